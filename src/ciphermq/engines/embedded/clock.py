"""The engine's clock: the time of day that never jumps."""

from __future__ import annotations

import time
from typing import Final

_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, where there is such a clock."""


class SteadyClock:
    """Milliseconds since 1970, as of the start, and from then on by a clock nobody sets.

    Were the time of day set back by an hour, nothing would time out for an hour; set forward,
    everything in hand would be taken back at once. So a change counts from the next start.
    """

    def __init__(self) -> None:
        self._start = time.time_ns() - time.clock_gettime_ns(_STEADY)

    def __call__(self) -> int:
        return (self._start + time.clock_gettime_ns(_STEADY)) // 1_000_000
