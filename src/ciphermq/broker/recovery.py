"""Records back to state, and state back to records.

A replay takes each record in the order of the log and takes the same step that was taken when it
was written. What a record names may be gone: its queue deleted later, its batch's own record in
a segment that was dropped since. Then the record says nothing: what still counts of the batch
stands in a later *copy*, which carries its whole state and replaces whatever was known.

That is what lets the oldest segment be dropped: everything that only it says is either copied
(batches by `copy`, repeats by `Dedup.record`) or in the next segment's snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from ciphermq.broker import records
from ciphermq.broker.entries import FULL, Batch, Entry, Past, pack
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import BatchRecord, CopiedEntry, CopyRecord, Kind
from ciphermq.broker.state import State
from ciphermq.broker.topology import Topology
from ciphermq.errors import JournalDamaged
from ciphermq.model import bitmap

Step = Callable[[int, bytes, int, int], None]
"""``(lsn, meta, size of the payload, place of the payload)``."""


class Recovery:
    """Replays records into an empty state."""

    def __init__(
        self,
        state: State,
        topology: Topology,
    ) -> None:
        self._state = state
        self._topology = topology
        self._entries: dict[int, dict[int, Entry]] = {}
        """By queue and pos; only while replaying."""
        self._last = 0
        self._forget_before = 0
        self._steps: Final[dict[int, Step]] = {
            Kind.SNAPSHOT: self._snapshot,
            Kind.DECLARE_QUEUE: self._declare_queue,
            Kind.DECLARE_EXCHANGE: self._declare_exchange,
            Kind.DELETE_QUEUE: self._delete_queue,
            Kind.DELETE_EXCHANGE: self._delete_exchange,
            Kind.BIND: self._bind,
            Kind.UNBIND: self._unbind,
            Kind.BATCH: self._batch,
            Kind.COPY: self._copy,
            Kind.ACK: self._ack,
            Kind.TRY: self._try,
            Kind.DEAD: self._dead,
            Kind.REDRIVE: self._redrive,
            Kind.PURGE: self._purge,
            Kind.DEDUP: self._dedup,
        }

    def begin(self, now: int) -> None:
        """What was published before the dedup window need not be remembered."""
        self._forget_before = now - self._state.bounds.dedup_window_ms

    def replay(self, lsn: int, kind: int, meta: bytes, size: int, place: int) -> None:
        """Take the step that a record stands for. `size` and `place` are its payload's, or 0."""
        self._last = lsn
        step = self._steps.get(kind)
        if step is None:
            raise JournalDamaged(
                f"the journal's record {lsn} is of kind {kind}, which this program does not know: "
                "a newer version wrote it; start that one"
            )
        try:
            step(lsn, meta, size, place)
        except msgspec.MsgspecError as error:
            raise JournalDamaged(
                f"the journal's record {lsn}, of kind {kind}, is not what it should be ({error}): "
                "another version wrote it; start that one"
            ) from error

    def done(self, now: int) -> None:
        """All records are replayed: everything waits in line again."""
        state = self._state
        for queue in state.queues.values():
            queue.restore(list(self._entries.get(queue.id, {}).values()))
        self._entries.clear()
        state.not_durable.clear()
        state.durable = state.recovered = self._last
        state.deliveries.begin(now)
        state.dedup.recovered(now)
        state.dedup.overflow = 0

    # --- topology -----------------------------------------------------------------------------

    def _snapshot(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        """What the log said so far must agree; but if parts of it were salvaged, this is right."""
        snapshot = records.decode_snapshot(meta)
        state, topology = self._state, self._topology
        state.fingerprint_key = snapshot.fingerprint_key
        wanted = dict(snapshot.queues)
        for queue_id, queue in list(state.queues_by_id.items()):
            if wanted.get(queue_id) != queue.spec:
                self._forget_queue(queue)
        for queue_id, spec in wanted.items():
            if queue_id not in state.queues_by_id:
                topology.add_queue(queue_id, spec)
        for exchange in list(state.exchanges.values()):
            topology.remove_exchange(exchange)
        for each in snapshot.exchanges:
            topology.add_exchange(each)
        for binding in snapshot.bindings:
            topology.add_binding(state.exchanges[binding.exchange], binding)

    def _declare_queue(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        self._topology.add_queue(lsn, records.decode_queue(meta))

    def _declare_exchange(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        self._topology.add_exchange(records.decode_exchange(meta))

    def _delete_queue(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        queue = self._state.queues_by_id.get(records.decode_int(meta))
        if queue is not None:
            self._forget_queue(queue)

    def _forget_queue(self, queue: Queue) -> None:
        queue.restore(list(self._entries.pop(queue.id, {}).values()))
        self._topology.remove_queue(queue)

    def _delete_exchange(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        exchange = self._state.exchanges.get(records.decode_str(meta))
        if exchange is not None:
            self._topology.remove_exchange(exchange)

    def _bind(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        binding = records.decode_binding(meta)
        exchange = self._state.exchanges.get(binding.exchange)
        if exchange is not None and binding not in exchange.bindings:
            self._topology.add_binding(exchange, binding)

    def _unbind(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        binding = records.decode_binding(meta)
        exchange = self._state.exchanges.get(binding.exchange)
        if exchange is not None and binding in exchange.bindings:
            self._topology.remove_binding(exchange, binding)

    # --- batches ------------------------------------------------------------------------------

    def _place(self, batch: Batch, queue_id: int, pos: int, live: int, past: Past | None) -> None:
        """As `State.place`, but into no line: acked messages must not pile up in it."""
        queue = self._state.queues_by_id.get(queue_id)
        if queue is None:
            return
        entry = Entry(batch, queue, pos, live, 0, past)
        batch.join(entry)
        queue.count_in(entry)
        self._entries.setdefault(queue_id, {})[pos] = entry
        expires_ms = entry.expires_ms
        if expires_ms:
            self._state.expiries.add(expires_ms, entry)

    def _remove(self, entry: Entry, bits: int) -> None:
        if self._state.remove(entry, entry.live & bits):
            del self._entries[entry.queue.id][entry.pos]

    def _find(self, queue_id: int, pos: int) -> Entry | None:
        entries = self._entries.get(queue_id)
        return None if entries is None else entries.get(pos)

    def _add_batch(
        self, record: BatchRecord | CopyRecord, seq: int, size: int, place: int
    ) -> Batch:
        return self._state.add_batch(
            seq,
            int.from_bytes(record.batch_id, "big"),
            record.sender,
            record.routing_key,
            record.count,
            record.expires_ms,
            pack(record.published_ms, size, place),
        )

    def _drop_if_nowhere(self, batch: Batch) -> None:
        if batch.entries is None:
            self._state.forget(batch)

    def _batch(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_batch(meta)
        batch = self._add_batch(record, lsn, size, place)
        for queue_id in record.queues:
            self._place(batch, queue_id, lsn, FULL[record.count], None)
        if record.published_ms > self._forget_before:
            self._state.dedup.add(
                batch.sender,
                batch.id,
                int.from_bytes(record.fingerprint, "big"),
                lsn,
                record.published_ms,
            )
        self._drop_if_nowhere(batch)

    def _copy(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_copy(meta)
        before = self._state.batches.get(record.seq)
        if before is not None:
            for entry in before.all_entries():
                self._remove(entry, entry.live)
        batch = self._add_batch(record, record.seq, size, place)
        for each in record.entries:
            past = None
            if each.placed_ms or each.dead or each.tries:
                tries = {
                    times: bitmap.decode(bits, record.count)
                    for times, bits in (each.tries or {}).items()
                }
                past = Past(each.placed_ms, each.dead, tries, dict(tries))
            live = bitmap.decode(each.live, record.count)
            self._place(batch, each.queue, each.pos, live, past)
        self._drop_if_nowhere(batch)

    def _ack(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_ack(meta)
        entry = self._find(record.queue, record.pos)
        if entry is not None:
            self._remove(entry, bitmap.decode(record.bits, entry.batch.count))

    def _try(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_try(meta)
        entry = self._find(record.queue, record.pos)
        if entry is not None:
            bits = bitmap.decode(record.bits, entry.batch.count)
            entry.raise_levels(bits & entry.live, tries=True)

    def _dead(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_dead(meta)
        entry = self._find(record.queue, record.pos)
        if entry is None:
            return
        bits = bitmap.decode(record.bits, entry.batch.count)
        for target in record.targets:
            past = Past(placed_ms=record.info.at_ms, dead=record.info)
            self._place(entry.batch, target, lsn, bits, past)
        self._remove(entry, bits)

    def _redrive(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_redrive(meta)
        entry = self._find(record.queue, record.pos)
        if entry is not None:
            bits = bitmap.decode(record.bits, entry.batch.count)
            self._place(entry.batch, record.target, lsn, bits, Past(placed_ms=record.at_ms))
            self._remove(entry, bits)

    def _purge(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_purge(meta)
        kept = dict(record.kept)
        for entry in list(self._entries.get(record.queue, {}).values()):
            bits = kept.get(entry.pos)
            gone = entry.live
            if bits is not None:
                gone &= ~bitmap.decode(bits, entry.batch.count)
            self._remove(entry, gone)

    def _dedup(self, lsn: int, meta: bytes, size: int, place: int) -> None:
        record = records.decode_dedup(meta)
        if record.newest_ms > self._forget_before:
            self._state.dedup.replay(record, lsn)


def copy_of(batch: Batch) -> CopyRecord:
    """A batch's whole state, to be written down again."""
    return CopyRecord(
        batch.seq,
        batch.sender,
        batch.batch_id,
        batch.published_ms,
        batch.expires_ms,
        batch.count,
        batch.routing_key,
        [_copied(entry, batch.count) for entry in batch.all_entries()],
    )


def _copied(entry: Entry, count: int) -> CopiedEntry:
    past = entry.past
    live = bitmap.encode(entry.live, count)
    if past is None:
        return CopiedEntry(entry.queue.id, entry.pos, live)
    tries = {
        times: bitmap.encode(bits & entry.live, count)
        for times, bits in past.tries.items()
        if bits & entry.live
    }
    return CopiedEntry(entry.queue.id, entry.pos, live, past.placed_ms, tries or None, past.dead)
