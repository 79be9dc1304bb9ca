"""One connection that carries frames: `Cmq2Machine` on a `Channel`.

A link ends in one of these ways, and says which in `on_lost`: both sides sent CLOSE (no error); the
peer or the network ended it; the peer broke the protocol; the peer was silent, slow with a frame,
or took nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ciphermq.errors import CipherMQError, ConnectionLost, refusal
from ciphermq.net.conduit import Conduit
from ciphermq.net.linkage import Linkage, OnLost, nothing
from ciphermq.wire.cmq2.frames import Close, Error, Frame, Hello, Ok, Ping, Reconnect
from ciphermq.wire.cmq2.machine import Cmq2Machine
from ciphermq.wire.cmq2.table import Role, State
from ciphermq.wire.tls_errors import where_to_look

OnFrame = Callable[[Frame], None]

_OWN_REQUEST: Final = 0
"""Request id of a link's own PINGs, whose answers go no further."""

_CONCERN_THE_LINK: Final = frozenset({Ping, Ok, Hello, Close, Error})
_MAX_REASON: Final = 4096


class Link(Linkage):
    """A connection to a peer, in frames. All of it is for the event loop's thread."""

    def __init__(self, channel: Conduit) -> None:
        """Begin to talk through `channel`, whose handshake is over."""
        self._machine = Cmq2Machine(channel.role, channel.buffers.scratch)
        super().__init__(channel, self._machine, channel.options)
        self.role = channel.role
        self.protocol = channel.protocol
        """What TLS agreed on (ALPN)."""
        self.hello: Hello | None = None
        """The peer's, once it has come."""
        self._on_frame: OnFrame = nothing
        self._replacing = False
        channel.attach(self)

    def attach(
        self, on_frame: OnFrame, on_lost: OnLost, on_writable: Callable[[], None] | None = None
    ) -> None:
        """Say who is told of frames, of the end, and of `writable` turning true.

        Frames are all but the links' own heartbeats. The end is told once, with its reason, or
        with None when both sides closed in order.
        """
        self._on_frame, self._on_lost = on_frame, on_lost
        self._on_writable = on_writable or nothing

    # --- sending ----------------------------------------------------------------------------

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
        self._write(pieces, sum(map(len, pieces)))

    # --- the end ----------------------------------------------------------------------------

    def close(self, reason: str = "", code: str = "") -> None:
        """Send CLOSE, with an error's `code` if it is for one, and end once the peer has too.

        Frames that the peer sent before its own CLOSE still arrive. Ends by itself after
        `options.linger`. Idempotent.
        """
        if self._lost or self._machine.ours is State.CLOSED:
            return
        self.send(Close(reason=reason[:_MAX_REASON], code=code))
        self._abort_in_time(
            ConnectionLost(
                f"{self._channel.who} did not close its side within {self.options.linger:g} s"
            )
        )
        self._end_if_both_closed()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await self._channel.wait_closed()

    def _end_if_both_closed(self) -> None:
        machine = self._machine
        if machine.ours is State.CLOSED and machine.theirs is State.CLOSED:
            self._flush()
            self._channel.close()

    def _see_to_keys(self) -> None:
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

    # --- receiving --------------------------------------------------------------------------

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
        self._see_to_keys()
        # A server's side only: if both waited for the other to read, both would wait for ever.
        if self.role is Role.SERVER and self.behind:
            self._read(paused=self._paused, stopped=True)

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
        if not self._in_time(greeted=self.hello is not None):
            return
        if self.open and self._watch.ping_due(self._loop.time()):
            self.send(Ping(request=_OWN_REQUEST))
        self._tick_again()
