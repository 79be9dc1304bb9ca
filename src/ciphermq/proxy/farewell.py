"""The orderly end of an open session, begun by the proxy.

::

    client                     proxy                      broker
       │ ◄────────── Close ───── │                           │      between two frames
       │ ── what was under way ─► │ ── passed on ───────────► │
       │ ──────── CloseOk ─────► │                           │
                                 │ ──────── Close ─────────► │      it has taken in all of it
                                 │ ◄─────── CloseOk ──────── │

So what a client had published before it saw the Close still arrives.
"""

from __future__ import annotations

from collections.abc import Callable

from ciphermq.errors import AmqpFault
from ciphermq.proxy.end import STALLED, VIEW, WAITING, End
from ciphermq.proxy.pump import Pump
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.frames import CLASS_CONNECTION, CLOSE, CLOSE_OK, FrameReader


class Farewell:
    """Takes over the client's direction of a session once the client was sent Close."""

    def __init__(self, up: Pump, on_client_done: Callable[[bool], None]) -> None:
        """`on_client_done`: the client has answered, or is gone; whether the broker can still be
        told (it stands between two frames)."""
        self._up = up
        self._client: End = up.source
        self._broker: End = up.sink
        self._frames = FrameReader()
        self._said, self._missing = up.scanner.begun, up.scanner.missing
        self._frames.feed(self._said)
        self._on_client_done = on_client_done

    def begin(self) -> None:
        """From now on."""
        self._client.on_readable(self._readable)

    def _readable(self) -> None:
        size = self._client.receive()
        if size is None:
            return
        if not size:
            self._done(clean=not self._missing and not self._said)
            return
        straight = min(size, self._missing)
        if straight:  # the rest of a frame of which the broker has the beginning
            self._missing -= straight
            self._pass_on(VIEW[:straight])
        self._frames.feed(VIEW[straight:size])
        try:
            self._whole_frames()
        except AmqpFault:
            self._done(clean=False)

    def _whole_frames(self) -> None:
        while (frame := self._frames.next()) is not None:
            said, self._said = self._said, b""
            of, method = frame.method
            if of == CLASS_CONNECTION and not frame.channel and method in (CLOSE, CLOSE_OK):
                if method == CLOSE:  # the two crossed
                    self._client.write(closing.CLOSE_OK)
                self._done(clean=not said)
                return
            self._up.scanner.frames += 1
            self._pass_on(frame.raw[len(said) :])

    def _pass_on(self, data: bytes | memoryview) -> None:
        if not self._broker.write(data):
            self._client.hold(STALLED)
            self._broker.on_drained(self._drained)

    def _drained(self) -> None:
        self._client.release(STALLED)

    def _done(self, *, clean: bool) -> None:
        self._client.hold(WAITING)
        self._on_client_done(clean)
