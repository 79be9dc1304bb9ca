"""One TLS session in ZeroMQ messages.

ZeroMQ keeps the order of messages on a path, and drops some in silence: where a socket's queue is
full, where a device dies, where a connection breaks. TLS bears no gap. So messages are numbered:
one that came before is dropped, one that is missing ends the session, with that as the reason.
What carries no data says how many have been sent, so that the last one is missed too.

So that no queue fills up on the way, there is a window: a side has so many messages and bytes under
way and no more, until the other says that it has taken them. It says so in the header of whatever
it sends, or in a message of its own when half of the window's bytes are used, or a quarter of its
messages: each wakes the sender, and the other half keeps him busy until then.

A REQ socket must be answered once for each of its messages, and hears nothing else. Its session
collects what it has to say until an answer is owed, and says something empty where nothing else is.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from ciphermq import limits
from ciphermq.errors import ConnectionLost, TransportError, UsageError
from ciphermq.wire import tls_errors
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import BARE, DELIMITER, Buffer, Envelope, Head, Kind

_JOINED: Final = 16 * limits.KIB
"""TLS bytes that go into the header's frame: each frame costs ZeroMQ more than copying them."""

_REASON: Final = 200
"""Characters of a RESET's reason that are believed; it could come from anybody."""


def check_context(context: ssl.SSLContext, server_name: str | None = None) -> None:
    """`UsageError` when no session can be begun with these: now, and not from an event loop, where
    nobody would hear of it."""
    try:
        TlsPump(context, server_name=server_name)
    except (ssl.SSLError, ValueError) as error:
        right = "server_context()" if server_name is None else "client_context() and a server_name"
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"no TLS session can begin: {reason}; give it a {right}") from None


class Session:
    """One end of a TLS session. Errors are `TransportError`s, and final."""

    def __init__(
        self,
        pump: TlsPump,
        kind: Kind,
        token: bytes,
        *,
        role: Role,
        where: str,
        before: Sequence[bytes] = (DELIMITER,),
        now: float,
    ) -> None:
        """`kind` is what carries its data: DATA, REQUEST or BARE. `where` the peer is, for errors;
        `before`: what stands before the header of all it sends."""
        self.pump = pump
        self.kind = kind
        self.strict = kind is not Kind.DATA
        """Whether one end is a REQ socket, where messages and answers take turns."""
        self.token = token
        self.role = role
        self.where = where
        self.heard = now
        """When the last message came."""
        self.began = now
        self.confirmed = False
        """Whether the peer has said anything since this side's handshake was over. In TLS 1.3 a
        server judges its client only then."""
        self.error: TransportError | None = None
        """Why it has ended."""
        self.before = before
        """What stands before the header of all it sends."""
        self._chunks: list[bytes] = []
        self._out = 0
        self._sizes: deque[int] = deque()
        self._under_way = 0
        self._in = 0
        self._taken = 0
        self._told = 0
        self._fresh = 0
        self._untold = 0
        self._owed = 0
        self._answer_ask = False

    # --- state --------------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """Whether this side has finished its handshake."""
        return self.pump.established

    @property
    def room(self) -> bool:
        """Whether more may be under way; a REQ's turn is awaited elsewhere."""
        return self._under_way < limits.ZMQ_WINDOW and len(self._sizes) < limits.ZMQ_WINDOW_MESSAGES

    @property
    def untaken(self) -> int:
        """Bytes on their way that the peer has not taken yet."""
        return self._under_way

    @property
    def sent(self) -> int:
        """Messages sent so far, of those that carry data."""
        return self._out

    @property
    def acknowledged(self) -> int:
        """Messages that the peer has taken so far."""
        return self._out - len(self._sizes)

    @property
    def owes(self) -> int:
        """How many answers the peer, a REQ socket, waits for: one at most, if it is one."""
        return self._owed

    @property
    def records(self) -> int:
        """TLS records of the direction that has had more."""
        return max(self.pump.records_in, self.pump.records_out)

    # --- incoming -----------------------------------------------------------------------------

    def accept(self, head: Head, size: int, now: float) -> bool:
        """Take note of a message with `size` TLS bytes; whether they are new.

        Raises `ConnectionLost` when one before it is missing, or when there is no window for it."""
        self.heard = now
        self.confirmed = self.established
        if head.kind is not Kind.BARE:
            self._acknowledge(head.taken)
            self.check_number(head.number)
        if head.kind is Kind.ASK:
            self._answer_ask = True
        if head.kind > Kind.REQUEST or (head.kind is not Kind.BARE and head.number < self._in):
            return False
        self._in += 1
        self._fresh += size
        # The peer keeps to the window, or it could have this side hold any amount.
        most = limits.MAX_ZMQ_MESSAGE if self.strict else limits.ZMQ_WINDOW
        many = self._in - self._taken > 2 * limits.ZMQ_WINDOW_MESSAGES
        if many or self._fresh > most + limits.ZMQ_WINDOW:
            raise self.fail(
                ConnectionLost(
                    f"the {self.role.peer.value} at {self.where} sends more than its window allows"
                )
            )
        if self.role is Role.SERVER and self.strict:
            self._owed += 1
        return True

    def check_number(self, number: int) -> None:
        """`ConnectionLost` when the peer has sent so many messages, and fewer have come."""
        if number > self._in:
            raise self.fail(
                ConnectionLost(
                    f"the {self.role.peer.value} at {self.where} has sent {number} messages of "
                    f"which {self._in} have come: a hop on the way lost or reordered some"
                )
            )

    def _acknowledge(self, taken: int) -> None:
        while self._sizes and self.acknowledged < taken:
            self._under_way -= self._sizes.popleft()

    def feed(self, data: Buffer) -> None:
        """TLS bytes of the message last accepted. Empty ones are an answer for form's sake."""
        if len(data):
            self.pump.receive(data)

    def shake(self) -> bool:
        """Go on with the handshake; whether it is over."""
        try:
            done = self.pump.handshake()
        except ssl.SSLError as error:
            raise self.fail(tls_errors.explain(error, self.role.peer, self.where)) from error
        finally:
            self.gather()
        return done

    def fill(self, room: memoryview) -> int:
        """Decrypt into `room`, as much as there is and it holds."""
        try:
            return self.pump.fill(room)
        except ssl.SSLError as error:
            self.gather()
            raise self.fail(tls_errors.explain(error, self.role.peer, self.where)) from error

    def take(self) -> None:
        """All that came so far is done with."""
        self._taken = self._in
        self._untold += self._fresh
        self._fresh = 0

    def take_one(self, size: int) -> None:
        """One more message is done with, which had `size` TLS bytes."""
        self._taken += 1
        self._untold += size
        self._fresh -= size

    # --- outgoing -----------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Encrypt, for the next message."""
        self.pump.write(data)

    def end(self) -> None:
        """Say good-bye (close_notify) with the next message."""
        self.pump.end()
        self.gather()

    def ask(self) -> list[Buffer]:
        """A message that asks whether the peer is there."""
        return [*self.before, Head(Kind.ASK, self.token, self._out, self._tell()).encode()]

    def fail(self, error: TransportError) -> TransportError:
        """It has ended of `error`, unless of another before."""
        if self.error is None:
            self.error = error
        return self.error

    def reset(self, body: Iterable[Buffer]) -> TransportError:
        """The peer says that it has no such session."""
        reason = bytes(next(iter(body), b""))[: 4 * _REASON].decode(errors="replace")[:_REASON]
        said = "".join(char if char.isprintable() else "?" for char in reason)
        return self.fail(
            ConnectionLost(
                f"the {self.role.peer.value} at {self.where} has dropped this session: {said}"
            )
        )

    def gather(self) -> None:
        """Have what TLS itself has to say sent with the next message."""
        if data := self.pump.outgoing():
            self._chunks.append(data)

    def message(self) -> list[Buffer] | None:
        """The next message to send; None: nothing for now.

        All that was written since the last one goes into it. A REQ's server speaks only when it
        owes an answer, and says nothing by itself: see `owes` and `answer`."""
        if self.strict and self.role is Role.SERVER and not self._owed:
            return None
        self.gather()
        if self._chunks:
            return self._data()
        if self.kind is not Kind.DATA:
            return None
        return self._taken_message() if self.due else None

    @property
    def due(self) -> bool:
        """Whether it has something to say of itself."""
        return (
            bool(self._chunks)
            or self._answer_ask
            or self._untold >= limits.ZMQ_WINDOW // 2
            or self._taken - self._told >= limits.ZMQ_WINDOW_MESSAGES // 4
        )

    def greet(self) -> None:
        """Have something said soon, whatever it is: it confirms the session."""
        self._answer_ask = True

    def tell_soon(self) -> None:
        """Have said what was taken, little as it is."""
        self._answer_ask |= self._taken > self._told

    def alert(self) -> list[Buffer] | None:
        """Why TLS has failed, as a message to the peer; None: it did not, or can't say it now."""
        self.gather()
        return self.message() if self._chunks else None

    def tell(self) -> list[Buffer] | None:
        """A message that says what was taken, if that was not said yet."""
        return self._taken_message() if self._taken > self._told else None

    def answer(self) -> list[Buffer]:
        """The answer that a REQ socket is owed, when TLS has nothing to say."""
        if self._chunks:
            return self._data()
        self._owed -= 1
        if self.kind is Kind.BARE:
            return [*self.before, b""]
        return self._taken_message()

    def _taken_message(self) -> list[Buffer]:
        self._answer_ask = False
        return [*self.before, Head(Kind.TAKEN, self.token, self._out, self._tell()).encode()]

    def _tell(self) -> int:
        self._told = self._taken
        self._untold = 0
        return self._taken

    def _data(self) -> list[Buffer]:
        chunks, self._chunks = self._chunks, []
        if self._owed:
            self._owed -= 1
        if self.kind is Kind.BARE:
            return [*self.before, chunks[0] if len(chunks) == 1 else b"".join(chunks)]
        number, size = self._out, sum(map(len, chunks))
        self._out += 1
        if self.strict:  # taking turns is its window
            self._taken = self._in
        else:
            self._sizes.append(size)
            self._under_way += size
        head = Head(self.kind, self.token, number, self._tell()).encode()
        at = small = 0
        while at < len(chunks) and small + len(chunks[at]) < _JOINED:
            small += len(chunks[at])
            at += 1
        if at:
            head = b"".join((head, *chunks[:at]))
        return [*self.before, head, *chunks[at:]]


def reset_message(envelope: Envelope, head: Head, reason: str) -> list[Buffer]:
    """Tell whoever sent `head` that there is no such session."""
    if head is BARE:
        return [*envelope, DELIMITER, b""]
    answer = Head(Kind.RESET, head.token, head.number, 0).encode()
    return [*envelope, DELIMITER, answer, reason.encode()[: 4 * _REASON]]
