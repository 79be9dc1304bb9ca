"""What waits in a queue, in order; what is in hand; what is full.

Sealed batches and messages of CipherMQ 1.x stand in a line each, since some consumers take only
the latter; for everybody else the next to go is the older of both heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from ciphermq.broker.credit import Turn
from ciphermq.broker.entries import Entry
from ciphermq.broker.line import Line
from ciphermq.errors import QueueFull
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.ids import DEAD_PREFIX
from ciphermq.model.topology import QueueInfo, QueueSpec

if TYPE_CHECKING:
    from ciphermq.broker.deliveries import Held


class Queue:
    """A queue and its entries. Counts what it holds; decides nothing."""

    def __init__(self, queue_id: int, spec: QueueSpec) -> None:
        self.id = queue_id
        self.spec = spec
        self.is_dead = spec.name.startswith(DEAD_PREFIX)
        """A ``dead.<queue>``: its messages never expire and are never dead-lettered again."""
        self.messages = 0
        """All that are live: ready, parked, in hand, not yet durable."""
        self.onex_messages = 0
        """Those of CipherMQ 1.x among them."""
        self.unacked = 0
        """Those in somebody's hands."""
        self.batches = 0
        self.bytes = 0
        self.turn = Turn()
        self.held: dict[int, Held] = {}
        """What is in hand, by tag."""
        self.parked: dict[Entry, Bitmap] = {}
        """Messages that wait for their back-off, or whose bytes are damaged."""
        self._sealed = Line()
        self._onex = Line()

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
            messages_onex=self.onex_messages,
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
        self._line_of(entry).append(entry)
        self.count_in(entry)

    def count_in(self, entry: Entry) -> None:
        """Count a new entry, without putting it in line."""
        messages = entry.live.bit_count()
        self.messages += messages
        if entry.batch.onex:
            self.onex_messages += messages
        self.batches += 1
        self.bytes += entry.batch.size

    def remove(self, entry: Entry, bits: Bitmap) -> bool:
        """These messages are gone from the entry. Whether they were its last.

        Those of them that are in hand were taken from there before."""
        entry.live &= ~bits
        entry.held &= ~bits
        messages = bits.bit_count()
        self.messages -= messages
        if entry.batch.onex:
            self.onex_messages -= messages
        if self.parked:
            self.unpark(entry, bits)
        if entry.live:
            return False
        self.batches -= 1
        self.bytes -= entry.batch.size
        return True

    def passed_over(self, entry: Entry) -> None:
        """An entry that stood in line is not ready any more."""
        self._line_of(entry).passed_over()

    def _line_of(self, entry: Entry) -> Line:
        return self._onex if entry.batch.onex else self._sealed

    def put_back(self, entry: Entry, bits: Bitmap) -> None:
        """These messages may be given out again, from their old place."""
        in_line = entry.ready
        entry.held &= ~bits
        if entry.ready and not in_line:
            self._line_of(entry).put_back(entry)

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

    def head(self, durable: int, *, onex: bool = False) -> Entry | None:
        """The oldest entry with messages to give out, which is durable; it stays in line.

        With `onex`, the oldest of CipherMQ 1.x."""
        first = self._onex.head()
        if not onex:
            sealed = self._sealed.head()
            if first is None or (sealed is not None and sealed.pos < first.pos):
                first = sealed
        return first if first is not None and first.pos <= durable else None

    def take(self, entry: Entry) -> Bitmap:
        """All ready messages of a `head`, which now are held and out of line."""
        self._line_of(entry).take(entry)
        bits = entry.ready
        entry.held |= bits
        return bits

    def in_line(self) -> Iterator[Entry]:
        """Entries with messages to give out, oldest first but for those that came back."""
        seen = set()
        fresh = heapq.merge(self._sealed.fresh, self._onex.fresh, key=lambda entry: entry.pos)
        for entry in chain(fresh, self._sealed.returned, self._onex.returned):
            if entry.ready and entry.pos not in seen:
                seen.add(entry.pos)
                yield entry

    def oldest(self, most: int) -> list[Entry]:
        """The first entries in the order of the queue, wherever their messages are."""
        found: dict[Entry, None] = {}
        for entry in heapq.merge(self._sealed.fresh, self._onex.fresh, key=lambda entry: entry.pos):
            if len(found) >= most:
                break
            if entry.live:
                found[entry] = None
        found.update((entry, None) for entry in self._not_fresh() if entry.live)
        return heapq.nsmallest(most, found, key=lambda entry: entry.pos)

    def entries(self) -> list[Entry]:
        """All entries, in no order."""
        everywhere = chain(self._sealed.fresh, self._onex.fresh, self._not_fresh())
        return list(dict.fromkeys(entry for entry in everywhere if entry.live))

    def _not_fresh(self) -> Iterator[Entry]:
        return chain(
            self._sealed.returned,
            self._onex.returned,
            self.parked,
            (held.entry for held in self.held.values()),
        )

    def clear_line(self) -> None:
        """Nothing is ready any more."""
        self.restore([])

    def restore(self, entries: list[Entry]) -> None:
        """After a replay: all that waits, in order."""
        self._sealed.restore([entry for entry in entries if not entry.batch.onex])
        self._onex.restore([entry for entry in entries if entry.batch.onex])
