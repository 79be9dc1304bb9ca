"""Purging, and looking inside."""

from __future__ import annotations

from ciphermq import limits
from ciphermq.broker.entries import Entry
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import Kind, PurgeRecord
from ciphermq.broker.state import State
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap


class Administration:
    """What an operator does to a queue's contents."""

    def __init__(self, state: State) -> None:
        self._state = state

    def purge(self, queue: Queue) -> int:
        """Remove all messages that nobody has in hand. How many there were."""
        kept: dict[int, Bitmap] = {}
        counts: dict[int, int] = {}
        for held in queue.held.values():
            pos = held.entry.pos
            kept[pos] = kept.get(pos, 0) | held.bits
            counts[pos] = held.entry.batch.count
        before = queue.messages
        if before > queue.unacked:
            record = PurgeRecord(
                queue.id, [(pos, bitmap.encode(bits, counts[pos])) for pos, bits in kept.items()]
            )
            self._state.append(Kind.PURGE, record)
            for entry in queue.entries():
                if gone := entry.live & ~kept.get(entry.pos, 0):
                    self._state.remove(entry, gone)
            queue.clear_line()
        return before - queue.messages

    def oldest(self, queue: Queue, batches: int) -> list[Entry]:
        """The first entries, whoever has them in hand; only durable ones."""
        return [
            entry
            for entry in queue.oldest(min(batches, limits.MAX_PEEK))
            if entry.pos <= self._state.durable
        ]
