"""What is in whose hands, and until when.

A delivery is named by its tag and belongs to one owner, the connection. It shrinks as messages of
it are settled, and ends with the last. Nobody but its owner can settle it, and settling what is
settled already is no error: acks are repeated when a connection is slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from ciphermq.broker.credit import Consumer, Outlet
from ciphermq.broker.entries import Entry
from ciphermq.broker.queues import Queue
from ciphermq.broker.timers import Wheel
from ciphermq.errors import AccessRefused, BadRequest
from ciphermq.model.bitmap import Bitmap

_TIMEOUT_QUANTUM_MS: Final = 50
_TAGS_A_MS: Final = 20
"""Bits of tags: a million a millisecond."""


class Held(msgspec.Struct, eq=False, weakref=False):
    """A delivery: messages of an entry, in somebody's hands."""

    tag: int
    entry: Entry
    bits: Bitmap
    """Those not settled yet."""
    owner: object
    consumer: Consumer | None
    """None for a fetch."""
    redeliveries: int
    redelivered: bool
    deadline_ms: int
    """When it is taken back; 0: never."""
    filed_ms: int
    """When its deadline is looked at: never later."""


class Holder:
    """A connection: its consumers and what it holds."""

    __slots__ = ("consumers", "held", "owner")

    def __init__(self, owner: object) -> None:
        # Keeping the owner keeps its id(), by which it is known, from being another's.
        self.owner = owner
        self.consumers: dict[int, Consumer] = {}
        self.held: dict[int, Held] = {}


class Deliveries:
    """All deliveries and consumers, by number and by owner."""

    def __init__(self) -> None:
        self.consumers: dict[int, Consumer] = {}
        self.timeouts: Wheel[Held] = Wheel(_TIMEOUT_QUANTUM_MS, lambda held: held.bits != 0)
        self._held: dict[int, Held] = {}
        self._holders: dict[int, Holder] = {}
        self._first_tag = self._last_tag = 0
        self._last_consumer = 0

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, now: int) -> None:
        """Tags from here on are above all of earlier lives: a late ack of one of those must not
        settle another delivery that has its number now."""
        self._first_tag = self._last_tag = now << _TAGS_A_MS

    # --- consumers ----------------------------------------------------------------------------

    def add_consumer(
        self, queue: Queue, client: str, name: str, outlet: Outlet, *, onex: bool = False
    ) -> Consumer:
        """A new consumer with a number of its own, and no credit yet."""
        self._last_consumer += 1
        consumer = Consumer(self._last_consumer, queue, client, name, outlet, onex=onex)
        self.consumers[consumer.number] = consumer
        self._holder(outlet.owner).consumers[consumer.number] = consumer
        queue.turn.add(consumer)
        return consumer

    def remove_consumer(self, consumer: Consumer) -> None:
        """It is given nothing more; what it holds stays in its owner's hands."""
        del self.consumers[consumer.number]
        consumer.queue.turn.remove(consumer)
        holder = self._holder(consumer.outlet.owner)
        holder.consumers.pop(consumer.number, None)
        self._forget_idle(holder)

    # --- deliveries ---------------------------------------------------------------------------

    def give(
        self,
        entry: Entry,
        bits: Bitmap,
        owner: object,
        consumer: Consumer | None,
        *,
        recovered: int,
        now: int,
        patient: bool = False,
    ) -> Held:
        """Put messages, which their queue holds back already, into somebody's hands; if `patient`,
        for as long as its owner lives."""
        self._last_tag += 1
        tag = self._last_tag
        queue = entry.queue
        redeliveries = entry.times_given(bits) if entry.past else 0
        timeout_ms = 0 if patient else queue.spec.ack_timeout_ms
        deadline_ms = now + timeout_ms if timeout_ms else 0
        held = Held(
            tag,
            entry,
            bits,
            owner,
            consumer,
            redeliveries,
            redeliveries > 0 or entry.pos <= recovered,
            deadline_ms,
            deadline_ms,
        )
        self._held[tag] = queue.held[tag] = self._holder(owner).held[tag] = held
        queue.unacked += bits.bit_count()
        if deadline_ms:
            self.timeouts.add(deadline_ms, held)
        return held

    def find(self, owner: object, tag: int) -> Held | None:
        """The delivery; None if it is settled, timed out or its queue deleted."""
        held = self._held.get(tag)
        if held is None:
            if not self._first_tag < tag <= self._last_tag:
                raise BadRequest(
                    f"there never was a delivery with tag {tag} since the broker started"
                )
            return None
        if held.owner is not owner:
            raise AccessRefused(f"delivery {tag} is in the hands of another connection")
        return held

    def touch(self, held: Held, now: int) -> None:
        """Its holder is alive: the time-out starts again."""
        timeout_ms = held.entry.queue.spec.ack_timeout_ms
        if timeout_ms and held.deadline_ms:
            held.deadline_ms = now + timeout_ms

    def take_back(self, held: Held, bits: Bitmap) -> None:
        """Some of its messages are in nobody's hands any more; with the last it ends."""
        held.bits &= ~bits
        entry = held.entry
        entry.queue.unacked -= bits.bit_count()
        if held.bits:
            return
        tag = held.tag
        del self._held[tag]
        del entry.queue.held[tag]
        holder = self._holder(held.owner)
        del holder.held[tag]
        self._forget_idle(holder)
        if held.filed_ms:
            self.timeouts.drop(held.filed_ms)

    def overdue(self, now: int, most: int) -> list[Held]:
        """Deliveries whose time is over."""
        found = []
        for held in self.timeouts.due(now, most):
            if held.deadline_ms <= now:
                held.filed_ms = 0
                found.append(held)
            else:
                held.filed_ms = held.deadline_ms
                self.timeouts.add(held.filed_ms, held)
        return found

    # --- owners -------------------------------------------------------------------------------

    def consumers_of(self, owner: object) -> Iterable[Consumer]:
        """The owner's consumers."""
        holder = self._holders.get(id(owner))
        return list(holder.consumers.values()) if holder else ()

    def held_by(self, owner: object) -> Iterable[Held]:
        """The owner's deliveries."""
        holder = self._holders.get(id(owner))
        return list(holder.held.values()) if holder else ()

    def _holder(self, owner: object) -> Holder:
        holder = self._holders.get(id(owner))
        if holder is None:
            holder = self._holders[id(owner)] = Holder(owner)
        return holder

    def _forget_idle(self, holder: Holder) -> None:
        if not holder.held and not holder.consumers:
            self._holders.pop(id(holder.owner), None)
