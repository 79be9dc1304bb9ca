"""Where a message goes that can't be had, and how it comes back.

It goes to the queue's dead-letter exchange, with the dead-letter key or else its own routing key;
if there is none, or no queue behind it that has room, to ``dead.<queue>``. The exchange is for
the first death only: what is a dead letter already goes to ``dead.<queue>`` of the queue it is
in, and from there nowhere. So no set of exchanges, however bound, can make a message go round.

A message leaves ``dead.<queue>`` by an ack, a purge or a redrive. Refusing it there only puts it
off, like any nack: it is the last place where anybody can look at it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from ciphermq import limits
from ciphermq.broker.entries import Entry, Past
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import DeadRecord, Kind, RedriveRecord
from ciphermq.broker.state import State
from ciphermq.broker.topology import Topology
from ciphermq.errors import BadRequest, NotFound, QueueFull
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.ids import DEAD_PREFIX
from ciphermq.model.topology import DeadInfo

DAMAGED = "payload-damaged"
"""The reason of a message whose stored bytes fail their checksum."""


class DeadLetters:
    """Buries messages and digs them up."""

    def __init__(self, state: State, topology: Topology) -> None:
        self._state = state
        self._topology = topology

    # --- there --------------------------------------------------------------------------------

    def bury(self, entry: Entry, bits: Bitmap, reason: str, detail: str, now: int) -> None:
        """Messages that nobody's hands hold go to the dead letters, in one record."""
        queue = entry.queue
        targets = self._targets(entry, bits)
        info = DeadInfo(
            queue=queue.spec.name,
            reason=reason[: limits.MAX_DEAD_REASON],
            detail=detail[: limits.MAX_DEAD_DETAIL],
            at_ms=now,
        )
        record = DeadRecord(
            queue.id,
            entry.pos,
            bitmap.encode(bits, entry.batch.count),
            [target.id for target in targets],
            info,
        )
        lsn = self._state.append(Kind.DEAD, record)
        self._state.port.happened("dead", entry.batch, bits.bit_count())
        self.move(entry, bits, targets, lsn, info)

    def move(
        self, entry: Entry, bits: Bitmap, targets: list[Queue], lsn: int, info: DeadInfo
    ) -> None:
        """The step that a DEAD record stands for."""
        for target in targets:
            past = Past(placed_ms=info.at_ms, dead=info)
            self._state.place(entry.batch, target, lsn, bits, past)
        self._leave(entry, bits)

    def _leave(self, entry: Entry, bits: Bitmap) -> None:
        in_line = entry.ready & bits
        self._state.remove(entry, bits)
        if in_line and not entry.ready:
            entry.queue.passed_over(entry)

    def _targets(self, entry: Entry, bits: Bitmap) -> list[Queue]:
        queue, batch = entry.queue, entry.batch
        spec = queue.spec
        targets: list[Queue] = []
        if spec.dead_letter_exchange is not None and entry.dead is None:
            key = spec.dead_letter_key
            try:
                found = self._state.route(
                    spec.dead_letter_exchange, batch.routing_key if key is None else key
                )
            except NotFound:
                found = ()
            for target in found[: self._state.bounds.max_targets]:
                try:
                    target.check_room(bits.bit_count(), batch.size)
                except QueueFull:
                    continue
                targets.append(target)
        return targets or [self._topology.dead_queue(queue)]

    def expire(self, entry: Entry, now: int) -> None:
        """The time of those of its messages that are in nobody's hands is over."""
        bits = entry.live & ~entry.queue.in_hand(entry)
        if bits:
            self.bury(entry, bits, "expired", "", now)

    def set_aside(self, entry: Entry, bits: Bitmap, detail: str, now: int) -> None:
        """These messages, which are in nobody's hands, can't be read from the disk."""
        if entry.queue.is_dead:
            entry.held |= bits
            entry.queue.park(entry, bits)
        else:
            self.bury(entry, bits, DAMAGED, detail, now)

    # --- and back -----------------------------------------------------------------------------

    def redrive(self, queue: Queue, most: int | None) -> Redrive:
        """The work of moving up to `most` messages back to where they were; None: all."""
        entries = [
            entry
            for entry in queue.in_line()
            if entry.dead is not None and entry.pos <= self._state.durable
        ]
        if not entries and not queue.is_dead:
            raise BadRequest(
                f"queue {queue.spec.name!r} holds no dead letters; "
                f"its own are in {DEAD_PREFIX + queue.spec.name!r}"
            )
        return Redrive(self, entries, most)

    def redrive_entry(self, entry: Entry, most: int, now: int) -> int:
        """Up to `most` of the entry's ready messages go back. How many did."""
        state, batch, info = self._state, entry.batch, entry.dead
        bits = _lowest(entry.ready, most)
        if not bits or info is None:
            return 0
        target = state.queues.get(info.queue)
        if target is None:
            raise NotFound(
                f"there is no queue {info.queue!r} to bring dead letters back to; "
                "declare it again, then redrive"
            )
        target.check_room(bits.bit_count(), batch.size)
        record = RedriveRecord(
            entry.queue.id, entry.pos, bitmap.encode(bits, batch.count), target.id, now
        )
        self.bring_back(entry, bits, target, state.append(Kind.REDRIVE, record), now)
        return bits.bit_count()

    def bring_back(self, entry: Entry, bits: Bitmap, target: Queue, lsn: int, at_ms: int) -> None:
        """The step that a REDRIVE record stands for."""
        self._state.place(entry.batch, target, lsn, bits, Past(placed_ms=at_ms))
        self._leave(entry, bits)


class Redrive:
    """A redrive under way: done in steps, since there may be millions of entries."""

    def __init__(self, dead_letters: DeadLetters, entries: list[Entry], most: int | None) -> None:
        self._dead_letters = dead_letters
        self._entries = deque(entries)
        self._left = most
        self._problem: NotFound | QueueFull | None = None
        self.moved = 0

    def step(self, entries: int, now: int) -> bool:
        """Look at so many entries. Whether there is more to do.

        At the end, if nothing could be moved: `NotFound` for a queue that is gone, or
        `QueueFull`. What can't go back stays where it is, and stops nothing else."""
        for _ in range(min(entries, len(self._entries))):
            most = limits.MAX_BATCH_MESSAGES if self._left is None else self._left
            try:
                moved = self._dead_letters.redrive_entry(self._entries.popleft(), most, now)
            except (NotFound, QueueFull) as problem:
                self._problem = problem
                continue
            self.moved += moved
            if self._left is not None:
                self._left -= moved
        if self._entries and self._left != 0:
            return True
        if self._problem is not None and not self.moved:
            raise self._problem
        return False


def _lowest(bits: Bitmap, most: int) -> Bitmap:
    """The first `most` of these messages."""
    if bits.bit_count() <= most:
        return bits
    return bitmap.of(islice(bitmap.indices(bits), most))
