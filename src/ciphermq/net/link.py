"""One connection that carries frames: `TlsPump` and `Cmq2Machine` on an asyncio transport.

Incoming bytes are decrypted straight into the machine's buffers. Outgoing frames are gathered for
one turn of the event loop and written together, so that small ones share records and packets.

A link ends in one of these ways, and says which in `on_lost`: both sides sent CLOSE (no error);
one side refused TLS; the peer or the network ended it; the peer broke the protocol; the peer was
silent, slow with a frame, or took nothing. One tick looks after all the clocks.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from ciphermq import limits
from ciphermq.errors import CipherMQError, ConnectionLost, refusal
from ciphermq.net import address, tls_errors
from ciphermq.net.options import LinkOptions
from ciphermq.net.outgoing import gather
from ciphermq.net.watch import Watch
from ciphermq.wire.cmq2.codec import Buffer
from ciphermq.wire.cmq2.frames import Close, Error, Frame, Hello, Ok, Ping, Reconnect
from ciphermq.wire.cmq2.machine import Cmq2Machine, new_scratch
from ciphermq.wire.cmq2.table import Role, State
from ciphermq.wire.tls import CHUNK, TlsPump

OnFrame = Callable[[Frame], None]
OnLost = Callable[[CipherMQError | None], None]

_OWN_REQUEST: Final = 0
"""Request id of a link's own PINGs, whose answers go no further."""

_CONCERN_THE_LINK: Final = frozenset({Ping, Ok, Hello, Close, Error})
_MAX_REASON: Final = 4096


class Buffers:
    """What links read into. Links of one loop can share them: nothing stays in them."""

    def __init__(self) -> None:
        self.network = memoryview(bytearray(limits.NETWORK_BUFFER))
        self.scratch = new_scratch()


def _nothing(*_: object) -> None:
    """What a link calls until `attach`."""


class Link(asyncio.BufferedProtocol):
    """A connection to a peer. All of it is for the event loop's thread."""

    def __init__(
        self,
        context: ssl.SSLContext,
        on_open: Callable[[Link], None],
        *,
        server_name: str | None = None,
        options: LinkOptions | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """A client's end if there is a `server_name`. `on_open`: TLS is up, `attach` now."""
        self.role = Role.SERVER if server_name is None else Role.CLIENT
        self.options = options or LinkOptions()
        self.peer = "an unknown address"
        """The peer's ``host:port``."""
        self.hello: Hello | None = None
        """The peer's, once it has come."""
        self._buffers = buffers or Buffers()
        self._pump = TlsPump(context, server_name=server_name)
        self._machine = Cmq2Machine(self.role, self._buffers.scratch)
        self._on_open = on_open
        self._on_frame: OnFrame = _nothing
        self._on_lost: OnLost = _nothing
        self._on_writable: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None  # uvloop's transports share no base class with asyncio's
        self._watch = Watch(self.options, self.peer, self._loop.time())
        self._ticker: asyncio.TimerHandle | None = None
        self._closer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._lost = False
        self._deaf = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._pieces: list[Buffer] = []
        self._queued = 0
        self._written = 0
        self._flush_due = False
        self._paused = False
        self._replacing = False

    def attach(
        self, on_frame: OnFrame, on_lost: OnLost, on_writable: Callable[[], None] | None = None
    ) -> None:
        """Say who is told of frames, of the end, and of `writable` turning true.

        Frames are all but the links' own heartbeats. The end is told once, with its reason, or
        with None when both sides closed in order.
        """
        self._on_frame, self._on_lost = on_frame, on_lost
        self._on_writable = on_writable or _nothing

    @property
    def peer_certificate(self) -> bytes:
        """DER."""
        return self._pump.peer_certificate

    @property
    def protocol(self) -> str | None:
        """What TLS agreed on (ALPN)."""
        return self._pump.protocol

    # --- sending ----------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be written."""
        return not self._paused and self._queued < self.options.write_high_water

    @property
    def open(self) -> bool:
        """Whether this side can send all that its role allows: neither lost nor closing."""
        return not self._lost and self._machine.ours is State.OPEN

    def send(self, frame: Frame) -> None:
        """Have `frame` written with all others of this turn of the loop; never blocks.

        Does nothing once this side has closed or the link is lost, which can happen between any
        two turns of the loop. Raises `LocalProtocolError` for what this side may not send now.
        """
        if self._lost or self._machine.ours is State.CLOSED:
            return
        pieces = self._machine.send(frame)
        self._pieces += pieces
        self._queued += sum(map(len, pieces))
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._lost or not self._pieces:
            return
        was_full = not self.writable
        pieces, self._pieces, self._queued = self._pieces, [], 0
        pump, encrypted = self._pump, []
        for piece in gather(pieces):
            pump.write(piece)
            encrypted.append(pump.outgoing())
        self._write(encrypted)
        self._replace_in_time()
        if was_full and self.writable:
            self._on_writable()

    def _write(self, encrypted: list[bytes]) -> None:
        self._written += sum(map(len, encrypted))
        self._transport.writelines(encrypted)

    def _write_handshake(self) -> bool:
        """Send what TLS itself has to say; whether there was anything."""
        data = self._pump.outgoing()
        if data:
            self._write([data])
        return bool(data)

    # --- the end ----------------------------------------------------------------------------

    def close(self, reason: str = "", code: str = "") -> None:
        """Send CLOSE, with an error's `code` if it is for one, and end once the peer has too.

        Frames that the peer sent before its own CLOSE still arrive. Ends by itself after
        `options.linger`. Idempotent.
        """
        if self._lost or self._machine.ours is State.CLOSED:
            return
        self.send(Close(reason=reason[:_MAX_REASON], code=code))
        self._linger()
        self._end_if_both_closed()

    def fail(self, error: CipherMQError) -> None:
        """End for a fault: tell the peer, then close; `on_lost` gets `error`."""
        if self._reason is None:
            self._reason = error
        self.close(str(error), error.code)

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `on_lost` gets `error`."""
        if self._reason is None:
            self._reason = error
        if self._transport is not None:
            self._transport.abort()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called soon after the connection has ended, whoever is attached."""
        self._ended.add_done_callback(lambda _: callback())

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await asyncio.shield(self._ended)

    def _linger(self) -> None:
        """Give the peer some time to end its side."""
        seconds = self.options.linger
        who = f"the {self.role.peer.value} at {self.peer}"
        error = ConnectionLost(f"{who} did not close its side within {seconds:g} s")
        self._closer = self._loop.call_later(seconds, self.abort, error)

    def _end_if_both_closed(self) -> None:
        machine = self._machine
        if machine.ours is State.CLOSED and machine.theirs is State.CLOSED:
            self._flush()
            self._pump.end()
            self._write_handshake()
            self._transport.close()

    # --- receiving --------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take no more from the peer; TCP slows it down."""
        if not self._lost:
            self._transport.pause_reading()
            self._watch.reading(self._loop.time(), on=False)

    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""
        if not self._lost:
            self._transport.resume_reading()
            self._watch.reading(self._loop.time(), on=True)

    def _shake_hands(self) -> bool:
        """Go on with TLS; whether it is up."""
        up = self._pump.handshake()
        self._write_handshake()
        if up:
            self._new_watch()
            self._on_open(self)
        return up

    def _decrypt(self) -> None:
        pump, machine = self._pump, self._machine
        try:
            while got := pump.fill(machine.get_buffer()):
                machine.buffer_updated(got)
        finally:  # what came before an error counts
            frames = machine.events()
            now = self._loop.time()
            self._watch.heard(now, frames=bool(frames), mid_frame=machine.mid_frame)
            for frame in frames:
                if type(frame) in _CONCERN_THE_LINK:
                    self._handle(frame)
                else:
                    self._on_frame(frame)
        if machine.fault is not None:
            self.fail(machine.fault)

    def _handle(self, frame: Frame) -> None:
        """A frame that the link has a part in."""
        if isinstance(frame, Ping):
            self.send(Ok(request=frame.request))
            return
        if isinstance(frame, Ok) and frame.request == _OWN_REQUEST:
            return
        if isinstance(frame, Hello):
            self.hello = frame
        elif isinstance(frame, Close):
            if frame.code and self._reason is None:
                self._reason = refusal(frame.code, frame.reason)
            self._end_if_both_closed()
        elif isinstance(frame, Error) and frame.request == _OWN_REQUEST and self._reason is None:
            self._reason = refusal(frame.code, frame.message)
        self._on_frame(frame)

    def _tls_failed(self, error: ssl.SSLError) -> None:
        """Get the alert out, if there is one, before the connection ends."""
        if self._reason is None:
            self._reason = tls_errors.explain(error, self.role.peer, self.peer)
        self._deaf = True
        if not self._write_handshake():
            self._transport.close()
            return
        # A socket that is closed with unread bytes is reset, and the alert would be lost: so end
        # our half, and read and forget until the peer ends its own.
        self._transport.write_eof()
        self._linger()

    def _replace_in_time(self) -> None:
        """Ask for a replacement before AES-GCM's limit, and end when it isn't made."""
        used = max(self._pump.records_in, self._pump.records_out)
        limit = self.options.tls_records
        if used < limit:
            return
        if not self._replacing:
            self._replacing = True
            frame = Reconnect(reason="this connection's keys have encrypted enough")
            if self.role is Role.CLIENT:
                self._on_frame(frame)
            elif self.open:
                self.send(frame)
        elif used >= 2 * limit:
            self.abort(ConnectionLost(f"{self.peer} used its TLS keys up and was not replaced"))

    # --- asyncio.BufferedProtocol -----------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """TCP is up."""
        self._transport = transport
        self.peer = address.spell(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(high=self.options.write_high_water)
        self._new_watch()
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
        if self.role is Role.CLIENT:
            self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffers.network

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        data, pump = self._buffers.network, self._pump
        try:
            for at in range(0, nbytes, CHUNK):
                if self._deaf:
                    return
                pump.receive(data[at : min(at + CHUNK, nbytes)])
                if pump.established or self._shake_hands():
                    self._decrypt()
        except ssl.SSLError as error:
            self._tls_failed(error)
        else:
            self._replace_in_time()

    def eof_received(self) -> None:
        """The peer has ended its half; with that the transport ends ours."""
        if not self._deaf and not self._pump.established:
            try:
                self._pump.receive_eof()
                self._pump.handshake()
            except ssl.SSLError as error:
                self._tls_failed(error)

    def pause_writing(self) -> None:
        """The transport's buffer is over its high-water mark."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._paused = False
        self._on_writable()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport has ended."""
        for timer in (self._ticker, self._closer):
            if timer is not None:
                timer.cancel()
        self._lost = True
        self._pieces = []
        self._ended.set_result(None)
        self._on_lost(self._why(exc))

    # --- the clocks -------------------------------------------------------------------------

    def _new_watch(self) -> None:
        who = f"the {self.role.peer.value} at {self.peer}"
        self._watch = Watch(self.options, who, self._loop.time())

    def _tick(self) -> None:
        now = self._loop.time()
        untaken = self._transport.get_write_buffer_size()
        error = self._watch.check(
            now,
            greeted=self.hello is not None,
            taken=self._written - untaken,
            untaken=untaken,
        )
        if error is not None:
            if not self._pump.established:
                error = tls_errors.explain(TimeoutError(), self.role.peer, self.peer)
            self.abort(error)
            return
        if self.open and self._watch.ping_due(now):
            self.send(Ping(request=_OWN_REQUEST))
        self._ticker = self._loop.call_later(self.options.tick, self._tick)

    def _why(self, exc: BaseException | None) -> CipherMQError | None:
        """What the link ended of."""
        machine, who = self._machine, f"the {self.role.peer.value} at {self.peer}"
        if self._reason is not None:
            return self._reason
        if machine.ours is State.CLOSED and machine.theirs is State.CLOSED:
            return None
        if not self._pump.established:
            return tls_errors.explain(exc or EOFError(), self.role.peer, self.peer)
        if self.hello is None:
            return ConnectionLost(f"{who} ended the connection before its HELLO; its log says why")
        where = " in the middle of a frame" if machine.mid_frame else ""
        cause = f": {exc.strerror or exc}" if isinstance(exc, OSError) else ""
        return ConnectionLost(f"{who} ended the connection{where}{cause}")
