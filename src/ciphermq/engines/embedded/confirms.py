"""Who waits for which record to be durable.

Records become durable in order, a group at a time, so those who wait stand in one line and a
group is answered by walking to its end: no look-ups, no tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple


class Waiter(NamedTuple):
    """Somebody who waits."""

    lsn: int
    """What must be durable."""
    seq: int
    """The batch whose refusal is meant for this one too; 0: none."""
    future: asyncio.Future[Any]
    result: Any
    tell: Callable[[], None] | None
    """Called when it is durable, before the future is done."""


class Confirms:
    """The line."""

    def __init__(self) -> None:
        self._line: deque[Waiter] = deque()
        self.durable = 0
        """All records up to here are durable, or were refused."""
        self._refused: set[int] = set()

    def __len__(self) -> int:
        return len(self._line)

    def wait(
        self,
        loop: asyncio.AbstractEventLoop,
        lsn: int,
        *,
        seq: int = 0,
        result: Any = None,
        tell: Callable[[], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Done, with `result`, once `lsn` is durable."""
        future = loop.create_future()
        if lsn <= self.durable:
            future.set_result(result)
        else:
            line = self._line
            # Records are numbered in the order of the calls, but a repeat waits for an older one.
            if line and line[-1].lsn > lsn:
                lsn = line[-1].lsn
            line.append(Waiter(lsn, seq, future, result, tell))
        return future

    def group_durable(self, last: int) -> None:
        """All records up to `last` are on disk, but for those that were refused."""
        self.durable = max(self.durable, last)
        self._skip_refused()

    def group_refused(self, lsns: Collection[int], error: Callable[[], Exception]) -> None:
        """These records, all of batches, were not written."""
        refused = frozenset(lsns)
        self._refused |= refused
        for waiter in self._line:
            if waiter.seq in refused and not waiter.future.done():
                waiter.future.set_exception(error())
        self._skip_refused()

    def _skip_refused(self) -> None:
        """Nobody will hear of a refused record again: what waits for it must not wait for ever."""
        if self._refused:
            while self.durable + 1 in self._refused:
                self.durable += 1
            self._refused = {lsn for lsn in self._refused if lsn > self.durable}

    def answer(self) -> None:
        """Those who wait for what is durable wait no more."""
        line, durable = self._line, self.durable
        while line and line[0].lsn <= durable:
            _, _, future, result, tell = line.popleft()
            if future.done():
                continue
            if tell is not None:
                tell()
            future.set_result(result)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Nothing will be durable any more."""
        line, self._line = self._line, deque()
        for waiter in line:
            if not waiter.future.done():
                waiter.future.set_exception(error())
