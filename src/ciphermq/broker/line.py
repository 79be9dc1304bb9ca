"""Entries that wait for their turn, in order.

New entries come at the end, so they stand in a plain deque in the order of `pos`. Those that came
back stand in a heap beside it, by `pos` too, and the next to go is the lower of both heads: that
is how a returned batch is in its old place without anything being moved.

An entry whose messages went another way (expired, undone) is left where it stands and passed over
later; when such are half of the line, it is swept.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Final

from ciphermq.broker.entries import Entry

_SWEEP_FROM: Final = 64
"""Entries that went another way before a sweep is worth it."""


class Line:
    """One line of a queue's entries."""

    def __init__(self) -> None:
        self._fresh: deque[Entry] = deque()
        self._returned: list[tuple[int, int, Entry]] = []
        self._ties = count()
        self._passed_over = 0

    @property
    def fresh(self) -> Iterator[Entry]:
        """Those that never left it, in order."""
        return iter(self._fresh)

    @property
    def returned(self) -> Iterator[Entry]:
        """Those that came back, in no order."""
        return (entry for _, _, entry in self._returned)

    def append(self, entry: Entry) -> None:
        """A new entry, later than all others."""
        self._fresh.append(entry)

    def put_back(self, entry: Entry) -> None:
        """An entry that was taken out, to its old place."""
        heapq.heappush(self._returned, (entry.pos, next(self._ties), entry))

    def head(self) -> Entry | None:
        """The oldest that is ready; it stays in line."""
        fresh, returned = self._fresh, self._returned
        while fresh and not fresh[0].ready:
            fresh.popleft()
        while returned and not returned[0][2].ready:
            heapq.heappop(returned)
        first = fresh[0] if fresh else None
        if returned and (first is None or returned[0][0] < first.pos):
            first = returned[0][2]
        return first

    def take(self, entry: Entry) -> None:
        """The `head` is out of line."""
        if self._fresh and self._fresh[0] is entry:
            self._fresh.popleft()
        else:
            heapq.heappop(self._returned)

    def passed_over(self) -> None:
        """An entry that stood here is not ready any more: perhaps sweep the line."""
        self._passed_over += 1
        if self._passed_over <= _SWEEP_FROM:
            return
        if self._passed_over * 2 > len(self._fresh) + len(self._returned):
            self._fresh = deque(entry for entry in self._fresh if entry.ready)
            self._returned = [each for each in self._returned if each[2].ready]
            heapq.heapify(self._returned)
            self._passed_over = 0

    def restore(self, entries: list[Entry]) -> None:
        """These and no others, in the order of their `pos`."""
        self._fresh = deque(sorted(entries, key=lambda entry: entry.pos))
        self._returned.clear()
        self._passed_over = 0
