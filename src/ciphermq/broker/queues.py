"""What waits in a queue, in order; what is in hand; what is full.

New entries come at the end, so they stand in a plain deque in the order of `pos`. Those that came
back stand in a heap beside it, by `pos` too, and the next to go is the lower of both heads: that
is how a returned batch is in its old place without anything being moved.

An entry whose messages went another way (expired, undone) is left where it stands and passed over
later; when such are half of the deque, it is swept.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import chain, count
from typing import TYPE_CHECKING, Final

from ciphermq.broker.credit import Turn
from ciphermq.broker.entries import Entry
from ciphermq.errors import QueueFull
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.ids import DEAD_PREFIX
from ciphermq.model.topology import QueueInfo, QueueSpec

if TYPE_CHECKING:
    from ciphermq.broker.deliveries import Held

_SWEEP_FROM: Final = 64
"""Entries that went another way before a sweep is worth it."""


class Queue:
    """A queue and its entries. Counts what it holds; decides nothing."""

    def __init__(self, queue_id: int, spec: QueueSpec) -> None:
        self.id = queue_id
        self.spec = spec
        self.is_dead = spec.name.startswith(DEAD_PREFIX)
        """A ``dead.<queue>``: its messages never expire and are never dead-lettered again."""
        self.messages = 0
        """All that are live: ready, parked, in hand, not yet durable."""
        self.unacked = 0
        """Those in somebody's hands."""
        self.batches = 0
        self.bytes = 0
        self.turn = Turn()
        self.held: dict[int, Held] = {}
        """What is in hand, by tag."""
        self.parked: dict[Entry, Bitmap] = {}
        """Messages that wait for their back-off, or whose bytes are damaged."""
        self._fresh: deque[Entry] = deque()
        self._returned: list[tuple[int, int, Entry]] = []
        self._ties = count()
        self._passed_over = 0

    @property
    def info(self) -> QueueInfo:
        """The queue as seen now."""
        return QueueInfo(
            spec=self.spec,
            messages_ready=self.messages - self.unacked,
            messages_unacked=self.unacked,
            batches=self.batches,
            bytes=self.bytes,
            consumers=len(self.turn),
        )

    def check_room(self, messages: int, size: int) -> None:
        """`QueueFull` if a batch of `messages` and `size` bytes does not fit."""
        spec = self.spec
        if self.messages + messages > spec.max_messages:
            raise QueueFull(
                f"queue {spec.name!r} is full: it holds {self.messages} of at most "
                f"{spec.max_messages} messages and the batch has {messages}; "
                "take some out or raise its max_messages"
            )
        if self.bytes + size > spec.max_bytes:
            raise QueueFull(
                f"queue {spec.name!r} is full: it holds {self.bytes} of at most "
                f"{spec.max_bytes} bytes and the batch has {size}; "
                "take some out or raise its max_bytes"
            )

    # --- entries come and go ------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """A new entry, later than all others."""
        self._fresh.append(entry)
        self.count_in(entry)

    def count_in(self, entry: Entry) -> None:
        """Count a new entry, without putting it in line."""
        self.messages += entry.live.bit_count()
        self.batches += 1
        self.bytes += entry.batch.size

    def remove(self, entry: Entry, bits: Bitmap) -> bool:
        """These messages are gone from the entry. Whether they were its last.

        Those of them that are in hand were taken from there before."""
        entry.live &= ~bits
        entry.held &= ~bits
        self.messages -= bits.bit_count()
        if self.parked:
            self.unpark(entry, bits)
        if entry.live:
            return False
        self.batches -= 1
        self.bytes -= entry.batch.size
        return True

    def passed_over(self) -> None:
        """An entry that stood in line is not there any more: perhaps sweep the line."""
        self._passed_over += 1
        if self._passed_over <= _SWEEP_FROM:
            return
        if self._passed_over * 2 > len(self._fresh) + len(self._returned):
            self._fresh = deque(entry for entry in self._fresh if entry.ready)
            self._returned = [each for each in self._returned if each[2].ready]
            heapq.heapify(self._returned)
            self._passed_over = 0

    def put_back(self, entry: Entry, bits: Bitmap) -> None:
        """These messages may be given out again, from their old place."""
        in_line = entry.ready
        entry.held &= ~bits
        if entry.ready and not in_line:
            heapq.heappush(self._returned, (entry.pos, next(self._ties), entry))

    def park(self, entry: Entry, bits: Bitmap) -> None:
        """These messages, which nobody's hands hold, are not ready until `unpark`."""
        self.parked[entry] = self.parked.get(entry, 0) | bits

    def unpark(self, entry: Entry, bits: Bitmap) -> Bitmap:
        """Those of `bits` that are parked are so no longer."""
        parked = self.parked.get(entry, 0)
        if left := parked & ~bits:
            self.parked[entry] = left
        else:
            self.parked.pop(entry, None)
        return parked & bits

    def in_hand(self, entry: Entry) -> Bitmap:
        """The entry's messages that are in somebody's hands."""
        return entry.held & ~self.parked.get(entry, 0) if entry.held else 0

    # --- in order -----------------------------------------------------------------------------

    def head(self, durable: int) -> Entry | None:
        """The oldest entry with messages to give out, which is durable; it stays in line."""
        fresh, returned = self._fresh, self._returned
        while fresh and not fresh[0].ready:
            fresh.popleft()
        while returned and not returned[0][2].ready:
            heapq.heappop(returned)
        first = fresh[0] if fresh else None
        if returned and (first is None or returned[0][0] < first.pos):
            first = returned[0][2]
        return first if first is not None and first.pos <= durable else None

    def take(self, entry: Entry) -> Bitmap:
        """All ready messages of the `head`, which now are held and out of line."""
        if self._fresh and self._fresh[0] is entry:
            self._fresh.popleft()
        else:
            heapq.heappop(self._returned)
        bits = entry.ready
        entry.held |= bits
        return bits

    def in_line(self) -> Iterator[Entry]:
        """Entries with messages to give out, oldest first but for those that came back."""
        seen = set()
        for entry in chain(self._fresh, (entry for _, _, entry in self._returned)):
            if entry.ready and entry.pos not in seen:
                seen.add(entry.pos)
                yield entry

    def oldest(self, most: int) -> list[Entry]:
        """The first entries in the order of the queue, wherever their messages are."""
        found: dict[Entry, None] = {}
        for entry in self._fresh:
            if len(found) >= most:
                break
            if entry.live:
                found[entry] = None
        others = chain(
            (entry for _, _, entry in self._returned),
            self.parked,
            (held.entry for held in self.held.values()),
        )
        found.update((entry, None) for entry in others if entry.live)
        return heapq.nsmallest(most, found, key=lambda entry: entry.pos)

    def entries(self) -> list[Entry]:
        """All entries, in no order."""
        return list(
            dict.fromkeys(
                entry
                for entry in chain(
                    self._fresh,
                    (entry for _, _, entry in self._returned),
                    self.parked,
                    (held.entry for held in self.held.values()),
                )
                if entry.live
            )
        )

    def clear_line(self) -> None:
        """Nothing is ready any more."""
        self._fresh.clear()
        self._returned.clear()
        self._passed_over = 0

    def restore(self, entries: list[Entry]) -> None:
        """After a replay: all that waits, in order."""
        self._fresh = deque(sorted(entries, key=lambda entry: entry.pos))
