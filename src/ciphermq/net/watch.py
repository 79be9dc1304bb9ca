"""When a peer has been silent, slow or stuck for too long: the clocks of one link, without a clock.

`now` is any clock that only goes forward, in seconds.
"""

from __future__ import annotations

from typing import Final

from ciphermq.errors import ConnectionLost, TransportError, WaitTimeout
from ciphermq.net.options import LinkOptions

SILENT_HEARTBEATS: Final = 3
"""Heartbeats without a byte after which the peer is gone."""


class Watch:
    """Told of what happens on a link, it says when to ask for a sign of life and when to end."""

    def __init__(self, options: LinkOptions, peer: str, now: float) -> None:
        self._options = options
        self._peer = peer
        self._opened = now
        self._heard = now
        self._pinged = now
        self._frame_since: float | None = None
        self._taken = 0
        self._taken_at = now
        self._reading = True
        self._due = now + options.tick

    def heard(self, now: float, *, frames: bool, mid_frame: bool) -> None:
        """Bytes have come; `frames` if one became whole, `mid_frame` if one has begun."""
        self._heard = now
        if not mid_frame:
            self._frame_since = None
        elif frames or self._frame_since is None:
            self._frame_since = now

    def reading(self, now: float, *, on: bool) -> None:
        """This side stopped or resumed reading; what it doesn't read is no fault of the peer's."""
        self._reading = on
        if on:
            self._heard = now
            self._frame_since = now if self._frame_since is not None else None

    def ping_due(self, now: float) -> bool:
        """Whether to ask for a sign of life now; takes note that it was done."""
        interval = self._options.heartbeat
        # A side that isn't reading asks too: the peer hears from it, and knows that it lives.
        if now - self._heard < interval or now - self._pinged < interval:
            return False
        self._pinged = now
        return True

    def check(
        self, now: float, *, greeted: bool, taken: int, untaken: int
    ) -> TransportError | None:
        """Why the link must end now, or None. Called about once a tick.

        `taken` counts the bytes the peer's side has taken so far, `untaken` those that wait.
        """
        self._forgive(now)
        if taken != self._taken or not untaken:
            self._taken, self._taken_at = taken, now
        options, peer = self._options, self._peer
        if not greeted and now - self._opened > options.handshake_timeout:
            return WaitTimeout(f"{peer} sent no HELLO within {options.handshake_timeout:g} s")
        if now - self._taken_at > options.write_stall_timeout:
            return WaitTimeout(
                f"{peer} took none of the {untaken} bytes that wait for it in "
                f"{options.write_stall_timeout:g} s"
            )
        if not self._reading:
            return None
        if self._frame_since is not None and now - self._frame_since > options.frame_timeout:
            return WaitTimeout(
                f"{peer} began a frame and did not end it within {options.frame_timeout:g} s"
            )
        silence = SILENT_HEARTBEATS * options.heartbeat
        if now - self._heard > silence:
            return ConnectionLost(f"{peer} has been silent for {silence:g} s")
        return None

    def _forgive(self, now: float) -> None:
        """Move the clocks on by as much as this call is late.

        A loop that was blocked, or a machine that slept, has not read what the peer sent
        meanwhile; it must not take its own absence for the peer's.
        """
        late = now - self._due
        self._due = now + self._options.tick
        if late <= self._options.tick:
            return
        self._opened = min(now, self._opened + late)
        self._heard = min(now, self._heard + late)
        self._taken_at = min(now, self._taken_at + late)
        if self._frame_since is not None:
            self._frame_since = min(now, self._frame_since + late)
