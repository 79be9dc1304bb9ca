"""Batches on their way to one consumer, in the order in which the broker gave them out.

What is in memory goes at once. What must be read from disk is waited for, and so is all that
comes after it: the order holds. How much is read ahead is bounded; when it is too much, the
consumer counts as not writable and the broker gives its turn to others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ciphermq import limits
from ciphermq.broker.deliveries import Held
from ciphermq.engines.embedded.payloads import Payloads, Result
from ciphermq.engines.face import Delivery, Sealed, Sink
from ciphermq.errors import PayloadDamaged, Unavailable


class _Slot:
    """A delivery in line, and its bytes once they are there."""

    __slots__ = ("held", "result")

    def __init__(self, held: Held, result: Result | None) -> None:
        self.held = held
        self.result = result


class Lane:
    """A consumer's line; the broker's `Outlet`."""

    def __init__(
        self,
        sink: Sink,
        payloads: Payloads,
        *,
        on_delivered: Callable[[Held], None],
        on_damaged: Callable[[Held, PayloadDamaged], None],
        on_room: Callable[[object], None],
    ) -> None:
        self.sink = sink
        self._payloads = payloads
        self._on_delivered = on_delivered
        self._on_damaged = on_damaged
        self._on_room = on_room
        self._line: deque[_Slot] = deque()
        self._ahead = 0

    @property
    def owner(self) -> object:
        """The connection."""
        return self.sink.owner

    @property
    def writable(self) -> bool:
        """Whether the connection takes more, and not too much is being read for it."""
        return self._ahead < limits.READ_AHEAD and self.sink.writable

    def give(self, held: Held) -> None:
        """The next delivery."""
        batch = held.entry.batch
        sealed = self._payloads.fresh(batch.seq)
        if sealed is not None and not self._line:
            self._deliver(held, sealed)
            return
        slot = _Slot(held, sealed)
        self._line.append(slot)
        self._ahead += batch.size
        if sealed is None:
            self._payloads.read(batch, lambda result: self._arrived(slot, result))

    def _arrived(self, slot: _Slot, result: Result) -> None:
        slot.result = result
        line = self._line
        full = self._ahead >= limits.READ_AHEAD
        while line and line[0].result is not None:
            first = line.popleft()
            self._ahead -= first.held.entry.batch.size
            # It may have been taken back while its bytes were read.
            if not first.held.bits:
                continue
            if isinstance(first.result, PayloadDamaged):
                self._on_damaged(first.held, first.result)
            elif not isinstance(first.result, Unavailable | None):
                self._deliver(first.held, first.result)
        if full and self._ahead < limits.READ_AHEAD:
            self._on_room(self.sink.owner)

    def _deliver(self, held: Held, sealed: Sealed) -> None:
        self._on_delivered(held)
        self.sink.deliver(delivery_of(held, sealed))

    def close(self) -> list[Held]:
        """The consumer has ended: what was not delivered yet, and won't be."""
        line, self._line = self._line, deque()
        self._ahead = 0
        return [slot.held for slot in line if slot.held.bits]


def delivery_of(held: Held, sealed: Sealed) -> Delivery:
    """What the server is given."""
    entry = held.entry
    batch = entry.batch
    return Delivery(
        held.consumer.number if held.consumer else 0,
        held.tag,
        entry.queue.spec.name,
        held.bits,
        batch.count,
        held.redeliveries,
        held.redelivered,
        batch.batch_id,
        batch.sender,
        batch.published_ms,
        sealed,
        entry.past.dead if entry.past else None,
    )
