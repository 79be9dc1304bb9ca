"""All queues or none: how a batch comes in.

A repeat is recognised first, so that it is confirmed even when its queue is full or gone by now.
Then the queues are found, and all must have room; only then one record is written that names
them all. When the disk refuses that record, the batch is taken out of all of them again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ciphermq.broker.entries import FULL, Batch, pack
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import BatchRecord, Kind, encode
from ciphermq.broker.state import Sealed, State
from ciphermq.errors import ConflictingDuplicate, ResourceLimit, Unroutable
from ciphermq.model.envelope import Header


class Accepted(NamedTuple):
    """What a publish comes to, once `lsn` is durable."""

    lsn: int
    """The record that must be durable first."""
    seq: int
    """The batch's; of the first publish, if this is a repeat. 0: that was durable long ago."""
    queues: int
    """0 for a repeat."""
    duplicate: bool


class Publishing:
    """Takes batches in."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._not_durable: deque[Batch] = deque()
        self._seqs: dict[tuple[str, int], int] = {}
        """Their seqs, by what a repeat of them is known by."""

    def publish(
        self, client: str, header: Header, fingerprint: bytes, sealed: Sealed, now: int
    ) -> Accepted:
        """Put a batch into its queues. `fingerprint` is 16 bytes that tell its bytes from others.

        Raises `ConflictingDuplicate`, `Unroutable`, `NotFound`, `QueueFull`, `ResourceLimit`."""
        state = self._state
        batch_id = int.from_bytes(header.batch_id, "big")
        mark = int.from_bytes(fingerprint, "big")
        known = state.dedup.find(client, batch_id)
        if known is not None:
            return self._repeat(client, batch_id, known == mark)
        queues = self._queues(header)
        count, size = header.count, len(sealed)
        for queue in queues:
            queue.check_room(count, size)
        record = BatchRecord(
            client,
            header.batch_id,
            fingerprint,
            now,
            header.expires_ms,
            count,
            header.routing_key,
            [queue.id for queue in queues],
        )
        lsn = state.port.append(Kind.BATCH, encode(record), sealed)
        batch = state.add_batch(
            lsn,
            batch_id,
            client,
            header.routing_key,
            count,
            header.expires_ms,
            pack(now, size),
        )
        for queue in queues:
            state.place(batch, queue, lsn, FULL[count])
        state.dedup.add(batch.sender, batch_id, mark, lsn, now)
        self._not_durable.append(batch)
        self._seqs[client, batch_id] = lsn
        return Accepted(lsn, lsn, len(queues), duplicate=False)

    def _repeat(self, client: str, batch_id: int, same: bool) -> Accepted:
        if not same:
            raise ConflictingDuplicate(
                f"client {client!r} published batch {batch_id:032x} before, with other bytes; "
                "a changed batch needs an id of its own"
            )
        seq = self._seqs.get((client, batch_id), 0)
        return Accepted(seq, seq, 0, duplicate=True)

    def _queues(self, header: Header) -> tuple[Queue, ...]:
        state = self._state
        exchange, key = header.exchange, header.routing_key
        if not exchange and not key:
            return self._inboxes(header)
        queues = state.route(exchange, key)
        if not queues:
            if exchange:
                raise Unroutable(
                    f"no queue is bound to exchange {exchange!r} for the routing key {key!r}"
                )
            raise Unroutable(
                f"there is no queue {key!r}, which is what the routing key {key!r} means on the "
                "default exchange"
            )
        if len(queues) > state.bounds.max_targets:
            raise ResourceLimit(
                f"exchange {exchange!r} leads to {len(queues)} queues for the routing key {key!r}; "
                f"one batch may go to {state.bounds.max_targets}"
            )
        return queues

    def _inboxes(self, header: Header) -> tuple[Queue, ...]:
        queues = []
        for receiver in header.receivers:
            queue = self._state.queues.get(receiver.client)
            if queue is None or not queue.spec.inbox:
                raise Unroutable(
                    f"client {receiver.client!r} has no inbox here: it has not registered a key yet"
                )
            queues.append(queue)
        return tuple(queues)

    def durable(self, lsn: int) -> None:
        """Batches up to `lsn` are on disk, or were undone."""
        pending = self._not_durable
        while pending and pending[0].seq <= lsn:
            batch = pending.popleft()
            self._seqs.pop((batch.sender, batch.id), None)

    def undo(self, lsn: int) -> None:
        """The disk had no room for the batch of that record: it was never here."""
        state = self._state
        for batch in self._not_durable:
            if batch.seq == lsn:
                break
        else:
            return
        self._not_durable.remove(batch)
        del self._seqs[batch.sender, batch.id]
        state.dedup.forget(batch.sender, batch.id)
        for entry in batch.all_entries():
            state.remove(entry, entry.live)
            entry.queue.passed_over(entry)
