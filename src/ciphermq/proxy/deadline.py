"""One clock a session: which phase it is in, and when that has taken too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Phases come and go many times a second, so the loop's timer is not moved with each: when it
    fires too early it is set again for what is left."""

    __slots__ = ("_at", "_loop", "_on_late", "_timer", "_what")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_late: Callable[[str], None]) -> None:
        """`on_late` is given what was waited for, in words."""
        self._loop = loop
        self._on_late = on_late
        self._at: float | None = None
        self._what = ""
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float, what: str) -> None:
        """From now on this long for `what`, in place of what was set before."""
        self._at = at = self._loop.time() + seconds
        self._what = what
        timer = self._timer
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(at, self._fire)

    def clear(self) -> None:
        """Nothing is waited for."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._at > self._loop.time():
            self._timer = self._loop.call_at(self._at, self._fire)
            return
        self._at = None
        self._on_late(self._what)
