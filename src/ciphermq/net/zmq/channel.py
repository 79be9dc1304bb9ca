"""A connection over ZeroMQ: a `Session` that a `Link` talks through as it does through TCP.

Bytes that are written wait here until the session's window lets them go, and count as taken once
the peer's side has said so. What a paused talker doesn't read is not taken, which closes the peer's
window: that is what TCP would have done.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import zmq

from ciphermq import limits
from ciphermq.errors import CipherMQError, ConnectionLost, TransportError, WaitTimeout
from ciphermq.net.conduit import Buffers, Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import CHUNK, TlsPump
from ciphermq.wire.tlszmq.header import Buffer, Envelope, Head, Kind
from ciphermq.wire.tlszmq.session import Session, reset_message

Send = Callable[[list[Buffer]], None]


class ZmqChannel(Conduit):
    """A `Conduit` over ZeroMQ. Whoever has the socket calls `receive` and `tick`."""

    def __init__(
        self,
        pump: TlsPump,
        token: bytes,
        send: Send,
        on_secure: Callable[[Conduit], None],
        on_failed: Callable[[CipherMQError], None],
        *,
        role: Role,
        peer: str,
        before: Sequence[bytes],
        options: LinkOptions | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """`send` is the socket's, and raises as ZeroMQ does; `before` stands before each header."""
        super().__init__(pump, role, on_secure, on_failed, options, buffers)
        self.peer = peer
        self.session = Session(
            pump,
            Kind.DATA,
            token,
            role=role,
            where=peer,
            before=before,
            now=asyncio.get_running_loop().time(),
        )
        self._send = send
        self._plain: deque[Buffer] = deque()
        self._waiting = 0
        self._written = 0
        self._full = False
        self._stuck: deque[list[Buffer]] = deque()
        self._held: deque[Sequence[Buffer]] = deque()
        self._deferred = False
        self._reading = True
        self._closing = False
        self._finishing = False
        self._set_timer(self.options.handshake_timeout)

    def begin(self) -> None:
        """A client's first words."""
        self._shake_hands()

    # --- for the talker ---------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be taken by the peer's side."""
        return not self._full

    @property
    def untaken(self) -> int:
        """Bytes that wait to be taken by the peer's side."""
        return self._waiting + self.session.untaken

    @property
    def taken(self) -> int:
        """Bytes that the peer's side has taken so far, more or less: encrypted ones are longer."""
        return self._written - self.untaken

    def write(self, parts: Iterable[Buffer]) -> None:
        """Encrypt and send, as far as the window allows; the rest later."""
        # The talker may answer what came before a bad record; its reason is on its way to him.
        if self._deaf or self._closing or self._pump.error is not None:
            return
        for part in parts:
            self._plain.append(part)
            self._waiting += len(part)
            self._written += len(part)
        self._flow()
        if self.untaken > self.options.write_high_water:
            self._full = True

    def pause_reading(self) -> None:
        """Take no more from the peer: its window closes."""
        self._reading = False

    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""
        if not self._reading:
            self._reading = True
            if not self._deferred:
                self._deferred = True
                self._loop.call_soon(self._take_held)

    def close(self) -> None:
        """End in order, once all that was written has gone."""
        if not self._closing and not self._finishing:
            self._closing = True
            self._set_timer(self.options.linger)
            self._flow()

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `error` is then the reason."""
        if self._reason is None:
            self._reason = error
        self._deaf = True
        if not self._finishing:
            # It is not there any more: that is all the peer needs to know.
            head = Head(Kind.RESET, self.session.token)
            self._try(reset_message(self._envelope, head, "its connection was ended"))
            self._finish()

    # --- from the socket --------------------------------------------------------------------

    def receive(self, head: Head, body: Sequence[Buffer]) -> None:
        """A message for this session has come."""
        if self._deaf or self._finishing:
            return
        now = self._loop.time()
        if head.kind is Kind.RESET:
            self.session.reset(body)
            self._lost(self.session.error)
            return
        try:
            fresh = self.session.accept(head, sum(map(len, body)), now)
        except TransportError as error:
            self._lost(error)
            return
        if fresh:
            self._held.append(body)
            if not self._deferred:
                self._take_held()
        self._flow()

    def tick(self) -> None:
        """Look at what could not be sent, and say what was taken."""
        if self._finishing:
            return
        while self._stuck and self._try(self._stuck[0]):
            self._stuck.popleft()
        self._flow()
        self._say_taken()

    def unreachable(self, why: str = "") -> None:
        """ZeroMQ has no way to the peer any more."""
        end = f": {why}" if why else ""
        self._lost(ConnectionLost(f"ZeroMQ has no way to {self.who} any more{end}"))

    def _take_held(self) -> None:
        """Decrypt what has come, as long as the talker reads."""
        self._deferred = False
        try:
            while self._held and self._reading and not self._deaf:
                body = self._held.popleft()
                for data in body:
                    self._take_in(data)
                self.session.take_one(sum(map(len, body)))
        except ssl.SSLError as error:
            self._explain(error)
            self._write_alert()
            self._finish()
            return
        if self._pump.ended:
            self._finish()

    def _take_in(self, data: Buffer) -> None:
        pump, view = self._pump, memoryview(data)
        for at in range(0, len(view), CHUNK + limits.KIB):
            if self._deaf:
                return
            self.session.feed(view[at : at + CHUNK + limits.KIB])
            if pump.established or self._shake_hands():
                talker = self._talker
                if talker is not None:
                    self._decrypt(talker)

    # --- to the socket ----------------------------------------------------------------------

    @property
    def _envelope(self) -> Envelope:
        return tuple(self.session.before[:-1])

    def _flow(self) -> None:
        """Send as much as the window allows."""
        if self._finishing:  # perhaps of a bad record: nothing can be encrypted behind it
            return
        session, plain = self.session, self._plain
        while session.room and plain and not self._stuck:
            size = 0
            while plain and size < limits.ZMQ_PACKET:
                part = plain.popleft()
                session.write(part)
                size += len(part)
            self._waiting -= size
            self._say()
        self._say()
        if self._full and self.untaken <= self.options.write_high_water // 2:
            self._full = False
            if self._talker is not None:
                self._loop.call_soon(self._talker.resume_writing)
        if self._closing and not plain and not self._stuck:
            session.end()
            self._say()
            self._finish()

    def _say(self) -> bool:
        # One message may be stuck and no more: whoever asks for answers and takes none would
        # otherwise have them pile up. What there is to say stays in the session meanwhile.
        if self._stuck or (message := self.session.message()) is None:
            return False
        if not self._try(message):
            self._stuck.append(message)
        return True

    def _say_taken(self) -> None:
        if not self._finishing and not self._stuck and (told := self.session.tell()) is not None:
            self._try(told)

    def _write_alert(self) -> bool:
        self.session.gather()
        return self._say()

    def _try(self, message: list[Buffer]) -> bool:
        try:
            self._send(message)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            why = "" if error.errno == zmq.EHOSTUNREACH else str(error)
            self._loop.call_soon(self.unreachable, why)
        return True

    # --- the end ----------------------------------------------------------------------------

    def _too_slow(self) -> None:
        if not self._closing:
            super()._too_slow()
            return
        self.abort(
            WaitTimeout(
                f"{self.who} did not take all that was sent to it within "
                f"{self.options.linger:g} s of the end: the last {self.untaken} bytes may be lost"
            )
        )

    def _lost(self, error: CipherMQError | None) -> None:
        if self._reason is None:
            self._reason = error
        self._deaf = True
        self._finish()

    def _finish(self) -> None:
        """Soon, as a transport would."""
        if not self._finishing:
            self._finishing = True
            self._loop.call_soon(self._over, None)
