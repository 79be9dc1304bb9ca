"""Turns at the processor for ZeroMQ's own thread, between one large packet and the next.

Whoever encrypts a stream of large messages wakes ZeroMQ's thread with each packet, and works on.
Where every processor is busy, the system lets him, for milliseconds: that thread gets its turn when
the window is full, and until then the receiver has nothing to do. So he steps back after a large
packet. Where others want the processor too it would be theirs then, for longer than the thread
needs: a turn that takes so long is not given again soon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from ciphermq import limits
from ciphermq.wire.tlszmq.header import Buffer


def _step_back() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()


class Turns:
    """Of one socket."""

    def __init__(
        self,
        step_back: Callable[[], None] = _step_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step_back` lets another thread run, if one waits for this processor."""
        self._step_back = step_back
        self._clock = clock
        self._leave_out = 0
        self._next_time = 1

    def give(self, frames: Sequence[Buffer]) -> None:
        """`frames` have been given to ZeroMQ."""
        if len(frames[-1]) < limits.ZMQ_TURN_FROM:
            return
        if self._leave_out:
            self._leave_out -= 1
            return
        began = self._clock()
        self._step_back()
        if self._clock() - began < limits.ZMQ_TURN:
            self._next_time = 1
        else:
            self._leave_out = self._next_time
            self._next_time = min(2 * self._next_time, limits.ZMQ_TURNS_LEFT_OUT)
