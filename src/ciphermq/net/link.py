"""One connection that carries frames: `Cmq2Machine` on a `Channel`.

Outgoing frames are gathered for one turn of the event loop and written together, so that small ones
share records and packets.

A link ends in one of these ways, and says which in `on_lost`: both sides sent CLOSE (no error); the
peer or the network ended it; the peer broke the protocol; the peer was silent, slow with a frame,
or took nothing. One tick looks after all the clocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ciphermq.errors import CipherMQError, ConnectionLost, refusal
from ciphermq.net.conduit import Conduit
from ciphermq.net.outgoing import gather
from ciphermq.net.watch import Watch
from ciphermq.wire.cmq2.codec import Buffer
from ciphermq.wire.cmq2.frames import Close, Error, Frame, Hello, Ok, Ping, Reconnect
from ciphermq.wire.cmq2.machine import Cmq2Machine
from ciphermq.wire.cmq2.table import Role, State
from ciphermq.wire.tls_errors import where_to_look

OnFrame = Callable[[Frame], None]
OnLost = Callable[[CipherMQError | None], None]

_OWN_REQUEST: Final = 0
"""Request id of a link's own PINGs, whose answers go no further."""

_CONCERN_THE_LINK: Final = frozenset({Ping, Ok, Hello, Close, Error})
_MAX_REASON: Final = 4096


def _nothing(*_: object) -> None:
    """What a link calls until `attach`."""


class Link:
    """A connection to a peer, in frames. All of it is for the event loop's thread."""

    def __init__(self, channel: Conduit) -> None:
        """Begin to talk through `channel`, whose handshake is over."""
        self.role = channel.role
        self.options = channel.options
        self.peer = channel.peer
        """The peer's ``host:port``."""
        self.peer_certificate = channel.peer_certificate
        """DER."""
        self.protocol = channel.protocol
        """What TLS agreed on (ALPN)."""
        self.hello: Hello | None = None
        """The peer's, once it has come."""
        self._channel = channel
        self._machine = Cmq2Machine(channel.role, channel.buffers.scratch)
        self._on_frame: OnFrame = _nothing
        self._on_lost: OnLost = _nothing
        self._on_writable: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self.options, channel.who, self._loop.time())
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
        self._closer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._lost = False
        self._pieces: list[Buffer] = []
        self._queued = 0
        self._flush_due = False
        self._replacing = False
        self._paused = False
        self._stopped = False
        channel.attach(self)

    def attach(
        self, on_frame: OnFrame, on_lost: OnLost, on_writable: Callable[[], None] | None = None
    ) -> None:
        """Say who is told of frames, of the end, and of `writable` turning true.

        Frames are all but the links' own heartbeats. The end is told once, with its reason, or
        with None when both sides closed in order.
        """
        self._on_frame, self._on_lost = on_frame, on_lost
        self._on_writable = on_writable or _nothing

    # --- sending ----------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be written."""
        return self._channel.writable and self._queued < self.options.write_high_water

    @property
    def behind(self) -> bool:
        """Whether so much waits to be written that this side should answer nothing more."""
        if self.writable or self._lost:
            return False
        return self._queued + self._channel.untaken > self.options.most_untaken

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
        self._channel.write(gather(pieces))
        self._replace_in_time()
        if was_full and self.writable:
            self._drained()

    # --- the end ----------------------------------------------------------------------------

    def close(self, reason: str = "", code: str = "") -> None:
        """Send CLOSE, with an error's `code` if it is for one, and end once the peer has too.

        Frames that the peer sent before its own CLOSE still arrive. Ends by itself after
        `options.linger`. Idempotent.
        """
        if self._lost or self._machine.ours is State.CLOSED:
            return
        self.send(Close(reason=reason[:_MAX_REASON], code=code))
        seconds = self.options.linger
        late = ConnectionLost(f"{self._channel.who} did not close its side within {seconds:g} s")
        self._closer = self._loop.call_later(seconds, self.abort, late)
        self._end_if_both_closed()

    def fail(self, error: CipherMQError) -> None:
        """End for a fault: tell the peer, then close; `on_lost` gets `error`."""
        if self._reason is None:
            self._reason = error
        self.close(str(error), error.code)

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `on_lost` gets `error`."""
        self._channel.abort(error)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await self._channel.wait_closed()

    def _end_if_both_closed(self) -> None:
        machine = self._machine
        if machine.ours is State.CLOSED and machine.theirs is State.CLOSED:
            self._flush()
            self._channel.close()

    # --- receiving --------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take no more from the peer; TCP slows it down."""
        self._read(paused=True, stopped=self._stopped)

    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""
        self._read(paused=False, stopped=self._stopped)

    def _read(self, *, paused: bool, stopped: bool) -> None:
        """Read unless the owner has `paused` the link or it has `stopped` by itself."""
        before = self._paused or self._stopped
        self._paused, self._stopped = paused, stopped
        if (paused or stopped) == before:
            return
        if before:
            self._channel.resume_reading()
        else:
            self._channel.pause_reading()
        self._watch.reading(self._loop.time(), on=before)

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

    def _replace_in_time(self) -> None:
        """Ask for a replacement before AES-GCM's limit, and end when it isn't made."""
        used, limit = self._channel.records, self.options.tls_records
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
            who = self._channel.who
            self.abort(ConnectionLost(f"{who} used its TLS keys up and was not replaced"))

    # --- what the channel calls -------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""
        return self._machine.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._machine.buffer_updated(nbytes)

    def received(self) -> None:
        """That was all for now."""
        machine = self._machine
        frames = machine.events()
        self._watch.heard(self._loop.time(), frames=bool(frames), mid_frame=machine.mid_frame)
        for frame in frames:
            if type(frame) in _CONCERN_THE_LINK:
                self._handle(frame)
            else:
                self._on_frame(frame)
        if (fault := machine.fault) is not None:
            if self._reason is None:
                self._reason = type(fault)(f"{self._channel.who} broke the protocol: {fault}")
            self.close(str(fault), fault.code)
        self._replace_in_time()
        # A server's side only: if both waited for the other to read, both would wait for ever.
        if self.role is Role.SERVER and self.behind:
            self._read(paused=self._paused, stopped=True)

    def resume_writing(self) -> None:
        """The channel is writable again."""
        if self.writable:
            self._drained()

    def _drained(self) -> None:
        """`writable` has turned true."""
        self._read(paused=self._paused, stopped=False)
        self._on_writable()

    def lost(self, error: BaseException | None) -> None:
        """The channel has ended."""
        self._ticker.cancel()
        if self._closer is not None:
            self._closer.cancel()
        self._lost = True
        self._pieces = []
        self._on_lost(self._why(error))

    def _why(self, error: BaseException | None) -> CipherMQError | None:
        """What the link ended of."""
        machine, who = self._machine, self._channel.who
        if self._reason is not None:
            return self._reason
        if machine.ours is State.CLOSED and machine.theirs is State.CLOSED:
            return None
        if isinstance(error, CipherMQError):
            return error
        if self.hello is None:
            look = where_to_look(self.role.peer)
            return ConnectionLost(f"{who} ended the connection before its HELLO{look}")
        where = " in the middle of a frame" if machine.mid_frame else ""
        cause = f": {error.strerror or error}" if isinstance(error, OSError) else ""
        return ConnectionLost(f"{who} ended the connection{where}{cause}")

    def _tick(self) -> None:
        now, channel = self._loop.time(), self._channel
        error = self._watch.check(
            now, greeted=self.hello is not None, taken=channel.taken, untaken=channel.untaken
        )
        if error is not None:
            self.abort(error)
            return
        if self.open and self._watch.ping_due(now):
            self.send(Ping(request=_OWN_REQUEST))
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
