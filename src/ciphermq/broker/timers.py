"""What is due when: many timers, few wake-ups.

Items are filed in buckets by the time they are due, rounded up to a quantum, so that filing one
costs a list's append and a sweep touches only what is due. Nothing is searched for when a timer
is no longer needed: its bucket is told (`drop`), and is cleaned once half of it is stale. So the
memory is at most twice that of the timers in use.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_CLEAN_FROM: Final = 64
"""Buckets (and lists of them) with fewer stale items are not worth cleaning."""


class Wheel(Generic[T]):
    """Timers of one sort. `wanted` says whether an item's timer still means something."""

    def __init__(self, quantum_ms: int, wanted: Callable[[T], bool]) -> None:
        self._quantum = quantum_ms
        self._wanted = wanted
        self._buckets: dict[int, list[T]] = {}
        self._stale: dict[int, int] = {}
        self._ticks: list[int] = []
        self._due: list[T] = []
        """What is left of a bucket that is due, last first."""
        self._due_tick = 0

    def __len__(self) -> int:
        """Items filed, those no longer wanted among them."""
        return len(self._due) + sum(map(len, self._buckets.values()))

    def add(self, at_ms: int, item: T) -> None:
        """`due` will give `item` at `at_ms` or up to a quantum later, never before."""
        tick = -(-at_ms // self._quantum)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [item]
            heapq.heappush(self._ticks, tick)
        else:
            bucket.append(item)

    def drop(self, at_ms: int) -> None:
        """One item that was filed for `at_ms` is wanted no longer."""
        tick = -(-at_ms // self._quantum)
        bucket = self._buckets.get(tick)
        if bucket is None:
            return
        stale = self._stale.get(tick, 0) + 1
        if stale < len(bucket) and (stale < _CLEAN_FROM or stale * 2 < len(bucket)):
            self._stale[tick] = stale
            return
        bucket[:] = filter(self._wanted, bucket)
        self._stale.pop(tick, None)
        if not bucket:
            del self._buckets[tick]
            if len(self._ticks) > 2 * len(self._buckets) + _CLEAN_FROM:
                self._ticks = sorted(self._buckets)

    def due(self, now_ms: int, most: int) -> list[T]:
        """Up to `most` items that are due and still wanted; they are filed no more. Those that
        were filed for about the same time come in the order in which they were filed."""
        found: list[T] = []
        while len(found) < most and (self._due or self._next_bucket(now_ms)):
            item = self._due.pop()
            if self._wanted(item):
                found.append(item)
        return found

    def _next_bucket(self, now_ms: int) -> bool:
        """Take apart the next bucket, if it is due."""
        while self._ticks and self._ticks[0] * self._quantum <= now_ms:
            tick = heapq.heappop(self._ticks)
            bucket = self._buckets.pop(tick, None)
            self._stale.pop(tick, None)
            if bucket:
                bucket.reverse()
                self._due, self._due_tick = bucket, tick
                return True
        return False

    def next_deadline(self) -> int | None:
        """When `due` may next give something, or None."""
        if self._due:
            return self._due_tick * self._quantum
        while self._ticks and self._ticks[0] not in self._buckets:
            heapq.heappop(self._ticks)
        return self._ticks[0] * self._quantum if self._ticks else None
