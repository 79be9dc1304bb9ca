"""A session that carries messages of several parts, and what waits to go into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from ciphermq import limits
from ciphermq.errors import ConnectionLost, RemoteProtocolError, TransportError, UsageError
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tlszmq import parts as codec
from ciphermq.wire.tlszmq.header import Buffer, Head, Kind
from ciphermq.wire.tlszmq.parts import Parts, PartsReader, Replaced
from ciphermq.wire.tlszmq.session import Session

_OVERHEAD: Final = 8
"""Bytes that a small message takes besides its own, about."""


class Waiting:
    """Messages that wait to be encrypted, in their order."""

    __slots__ = ("_large", "messages", "size")

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []
        self.size = 0
        """Bytes, about."""
        self._large = False

    def put(self, parts: Sequence[Buffer]) -> None:
        """Add one. `UsageError` for what is no message."""
        if len(parts) == 1 and type(parts[0]) is bytes:
            message = [parts[0]]
            size = len(parts[0])
        else:
            message = [_own(part) for part in parts]
            size = sum(map(len, message)) + _OVERHEAD * len(message)
        if size >= codec.LARGE_FROM:
            self._check(message, size)
            self._large = True
        elif not message or len(message) > limits.MAX_PARTS:
            raise UsageError(f"a message has 1 to {limits.MAX_PARTS} parts, not {len(message)}")
        self.messages.append(message)
        self.size += size + _OVERHEAD

    def _check(self, message: list[bytes], size: int) -> None:
        if len(message) > limits.MAX_PARTS:
            raise UsageError(f"a message has 1 to {limits.MAX_PARTS} parts, not {len(message)}")
        if size > limits.MAX_ZMQ_MESSAGE:
            raise UsageError(
                f"a message has at most {limits.MAX_ZMQ_MESSAGE} bytes, not {size}: cut it up"
            )

    def put_first(self, other: Waiting, unfinished: list[list[bytes]]) -> None:
        """Before all of it, what was `unfinished`, and all that waits in `other`, which is empty
        then."""
        for message in unfinished:
            size = sum(map(len, message))
            self._large |= size >= codec.LARGE_FROM
            self.size += size
        self.size += other.size
        self._large |= other._large
        self.messages[:0] = unfinished + other.take()

    def take(self) -> list[list[bytes]]:
        """All of it. It is empty then."""
        messages, self.messages, self.size, self._large = self.messages, [], 0, False
        return messages

    def pieces(self) -> Iterator[Buffer]:
        """All of it as blocks, in pieces for one TLS write each. It is empty then."""
        large = self._large
        messages = self.take()
        if not large and len(messages) <= codec.SMALL_MOST:
            yield from _cut(codec.small(messages))
            return
        for _, pieces in _blocks(messages):
            yield from pieces


def check_bare(parts: Sequence[Buffer]) -> None:
    """`UsageError` for what the bare protocol can't say: TLS has no empty message, and there is one
    frame for each."""
    if len(parts) != 1:
        raise UsageError("the bare protocol has no parts: a message is one part")
    if not 0 < len(parts[0]) <= limits.MAX_ZMQ_BARE:
        raise UsageError(
            f"a message of the bare protocol has 1 to {limits.MAX_ZMQ_BARE} bytes, "
            f"not {len(parts[0])}"
        )


def _own(part: Buffer) -> bytes:
    """`part`, out of reach of whoever may still change it."""
    if type(part) is bytes:
        return part
    try:
        return bytes(memoryview(part))
    except TypeError:
        raise UsageError(f"a part of a message is bytes, not {type(part).__name__}") from None


def _blocks(messages: list[list[bytes]]) -> Iterator[tuple[list[list[bytes]], Iterator[Buffer]]]:
    """Which messages share a block, and its pieces."""
    run: list[list[bytes]] = []
    for message in messages:
        if sum(map(len, message)) < codec.LARGE_FROM:
            run.append(message)
            continue
        yield from _small_blocks(run)
        run = []
        yield [message], codec.large(message)
    yield from _small_blocks(run)


def _small_blocks(
    messages: list[list[bytes]],
) -> Iterator[tuple[list[list[bytes]], Iterator[Buffer]]]:
    for at in range(0, len(messages), codec.SMALL_MOST):
        block = messages[at : at + codec.SMALL_MOST]
        yield block, _cut(codec.small(block))


def _cut(block: Buffer) -> Iterator[Buffer]:
    if len(block) <= limits.ZMQ_PIECE:
        yield block
        return
    view = memoryview(block)
    for at in range(0, len(view), limits.ZMQ_PIECE):
        yield view[at : at + limits.ZMQ_PIECE]


class Speaker:
    """A `Session` with parts in it. Errors are `TransportError`s, and end the session."""

    def __init__(self, session: Session, waiting: Waiting, scratch: memoryview) -> None:
        """`waiting`: what goes out; `scratch`: room for plaintext, shared with others."""
        self.session = session
        self.waiting = waiting
        self.stuck: list[list[Buffer]] = []
        """Messages that a socket had no room for."""
        self._reader = PartsReader(scratch, limits.MAX_ZMQ_MESSAGE + 5 * limits.MAX_PARTS)
        self._scratch = scratch
        self._pieces: deque[Buffer] = deque()
        self._begun: list[list[bytes]] = []
        self._bare = session.kind is Kind.BARE
        client = session.role is Role.CLIENT
        self._large_packet = limits.ZMQ_PACKET_OF_CLIENT if client else limits.ZMQ_PACKET

    @property
    def mid_message(self) -> bool:
        """Whether a message has been encrypted in part."""
        return bool(self._pieces)

    @property
    def announced(self) -> int:
        """Bytes of the large message that comes in."""
        return self._reader.announced

    @property
    def busy(self) -> bool:
        """Whether it has something to send besides what waits, or may have: a session that is not
        there yet, a message encrypted in part, what its session has to say itself."""
        session = self.session
        return not session.established or bool(self._pieces) or session.due

    def take_replaced(self) -> Replaced | None:
        """The session that the peer says this one replaces, once."""
        replaced, self._reader.replaced = self._reader.replaced, None
        return replaced

    # --- incoming -----------------------------------------------------------------------------

    def receive(self, head: Head, body: Sequence[Buffer], now: float) -> list[Parts]:
        """Take a message in; the messages that are whole with it."""
        session = self.session
        if not session.accept(head, sum(map(len, body)), now):
            return []
        found: list[Parts] = []
        for data in body:
            for at in range(0, len(data), limits.ZMQ_PIECE):
                session.feed(
                    data if len(data) <= limits.ZMQ_PIECE else data[at : at + limits.ZMQ_PIECE]
                )
                if session.established or session.shake():
                    self._drain(found)
                if len(found) > limits.ZMQ_PACKET_MESSAGES:
                    raise self._broken(f"{len(found)} messages at once are too many")
        return [[b"".join(part for (part,) in found)]] if self._bare and found else found

    def _drain(self, found: list[Parts]) -> None:
        session, reader = self.session, self._reader
        if self._bare:
            while size := session.fill(self._scratch):
                found.append([bytes(self._scratch[:size])])
            return
        room = reader.room()
        try:
            while size := session.fill(room):
                found += reader.filled(size)
                if size < len(room) and session.pump.error is None:
                    return  # there is no more, and nothing else to be told
                room = reader.room()
        except RemoteProtocolError as error:
            raise self._broken(str(error)) from error

    def _broken(self, how: str) -> TransportError:
        session = self.session
        who = f"the {session.role.peer.value} at {session.where}"
        return session.fail(ConnectionLost(f"{who} broke the protocol: {how}"))

    # --- outgoing -----------------------------------------------------------------------------

    def replaces(self, old: Session) -> None:
        """Tell the peer, before anything else, that this session replaces another."""
        self.session.write(codec.replaces(Replaced(old.token, old.sent)))
        self.session.gather()

    def farewell(self) -> list[list[Buffer]]:
        """The end in order: what a socket had no room for, and close_notify. Nothing can be
        encrypted any more."""
        stuck, self.stuck = self.stuck, []
        self.session.end()
        last = self.session.message()
        return stuck if last is None else [*stuck, last]

    def unfinished(self) -> list[list[bytes]]:
        """The messages that have not been encrypted to their end, for another session."""
        left, found = len(self._pieces), list[list[bytes]]()
        sizes = [(block, sum(1 for _ in pieces)) for block, pieces in _blocks(self._begun)]
        for block, size in reversed(sizes):
            if left <= 0:
                break
            found[:0] = block
            left -= size
        return found

    def outgoing(self, *, more: bool = True) -> Iterator[list[Buffer]]:
        """ZeroMQ messages to send now. Without `more` none is begun that waits."""
        session = self.session
        if session.strict:
            self._encrypt(more=more, size=limits.ZMQ_PACKET)
            while self._pieces:  # one message however large it is, in frames that a socket takes
                session.gather()
                self._encrypt(more=False, size=limits.ZMQ_PACKET)
            if (message := session.message()) is not None:
                yield message
            return
        while True:
            if session.room:
                # What is under way already is in no hurry to be decrypted at the other end.
                busy = session.untaken >= limits.ZMQ_BUSY
                self._encrypt(more=more, size=self._large_packet if busy else limits.ZMQ_PACKET)
            if (message := session.message()) is None:
                return
            yield message
            if not (self._pieces or (more and self.waiting.messages)):
                return

    def _encrypt(self, *, more: bool, size: int) -> None:
        session, pieces = self.session, self._pieces
        if not session.established:
            return
        if self._bare:
            for (data,) in self.waiting.take():
                session.write(data)
            return
        while size > 0:
            if not pieces:
                if not (more and self.waiting.messages):
                    return
                self._begun = self.waiting.messages
                pieces.extend(self.waiting.pieces())
            piece = pieces.popleft()
            session.write(piece)
            size -= len(piece)
            if not pieces:
                self._begun = []
