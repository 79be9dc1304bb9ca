"""Letting the writer run while its owner keeps the interpreter busy.

In CPython one thread at a time runs Python code. The writer leaves it for each write and sync,
and must have it again to confirm. An owner that is always busy gives it up only for the
microseconds of its own system calls (each look at its sockets), and takes it back before the
writer has even woken up; and each time it does so, the writer's patience (`sys.setswitchinterval`)
begins anew. Measured with an event loop that never slept, nothing was confirmed for seconds.

So the owner steps aside on purpose: when the writer has been away longer than a write usually
takes, it waits for it for a moment, really waits, and if the writer was still busy with the disk,
not again for a while.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Final

_PATIENCE: Final = 0.000_5
"""Seconds that the writer may be away before the owner thinks of it."""
_MOMENT: Final = 0.000_1
"""Seconds to wait for it: a sleeping thread wakes up in half of that."""
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.016
"""Seconds until the owner thinks of it again, doubled each time in vain: a slow disk costs the
owner a few per cent of its time at most."""


class Baton:
    """The writer says where it is; the owner calls `step_aside`."""

    def __init__(self) -> None:
        self.idle = True
        """The writer has nothing to do: nobody needs to step aside. For a quick look."""
        self._left = math.inf
        self._moved = threading.Lock()
        self._moved.acquire()
        self._next = 0.0
        self._pause = _FIRST_PAUSE

    # --- the writer's side ------------------------------------------------------------------

    def rest(self) -> None:
        """It is about to wait for something to do."""
        self.idle = True
        self._left = math.inf
        self._signal()

    def leave(self) -> None:
        """It is about to make a system call."""
        self._left = time.monotonic()
        self._signal()

    def back(self) -> None:
        """It runs Python code again, and should run on."""
        self.idle = False
        self._left = 0.0
        self._signal()

    def _signal(self) -> None:
        if self._moved.locked():
            self._moved.release()

    # --- the owner's side -------------------------------------------------------------------

    def step_aside(self) -> None:
        """Give way to the writer if it seems to be waiting for that."""
        now = time.monotonic()
        if now - self._left < _PATIENCE or now < self._next:
            return
        self._moved.acquire(blocking=False)  # an old signal
        if self._moved.acquire(timeout=_MOMENT):
            self._pause = _FIRST_PAUSE
        else:
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
