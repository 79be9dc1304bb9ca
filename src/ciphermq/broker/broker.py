"""The broker's face: everything an engine asks of it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from ciphermq.broker.administration import Administration
from ciphermq.broker.credit import Consumer, Outlet
from ciphermq.broker.deadletters import DeadLetters, Redrive
from ciphermq.broker.deliveries import Held
from ciphermq.broker.entries import Batch, Entry
from ciphermq.broker.publishing import Accepted, Publishing
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import AckRecord, Kind, encode
from ciphermq.broker.recovery import Recovery, copy_of
from ciphermq.broker.redelivery import Redelivery
from ciphermq.broker.state import BrokerLimits, Port, Sealed, State
from ciphermq.broker.topology import Topology
from ciphermq.errors import BadRequest
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.envelope import Header
from ciphermq.model.topology import Binding, ExchangeSpec, QueueInfo, QueueSpec

_SWEEP: Final = 256
"""Timers of each sort handled in one go: a million that are due must not hold up the rest."""
_SOME: Final = 16
_MANY: Final = 4096
"""Expired entries passed over in one go, for the same reason."""


class Broker:
    """Decides. Refusals are `ciphermq.errors.Refused` and change nothing.

    `now` is the time in milliseconds, and never falls.
    """

    def __init__(self, port: Port, bounds: BrokerLimits | None = None) -> None:
        self._state = State(port, bounds or BrokerLimits())
        self._topology = Topology(self._state)
        self._dead_letters = DeadLetters(self._state, self._topology)
        self._publishing = Publishing(self._state)
        self._redelivery = Redelivery(self._state, self._dead_letters)
        self._administration = Administration(self._state)
        self._recovery = Recovery(self._state, self._topology)

    # --- starting -----------------------------------------------------------------------------

    @property
    def fingerprint_key(self) -> bytes:
        """What the engine marks sealed bytes with; the broker keeps it, in its snapshots."""
        return self._state.fingerprint_key

    @fingerprint_key.setter
    def fingerprint_key(self, key: bytes) -> None:
        self._state.fingerprint_key = key

    def begin_replay(self, now: int) -> None:
        """`replay` of all records follows, then `replayed`."""
        self._recovery.begin(now)

    def replay(self, lsn: int, kind: int, meta: bytes, size: int, place: int) -> None:
        """One record, in the order of the log; `size` and `place` of its payload, or 0."""
        self._recovery.replay(lsn, kind, meta, size, place)

    def replayed(self, now: int) -> None:
        """The log is read: all that is known is durable."""
        self._recovery.done(now)

    def snapshot(self) -> tuple[int, bytes]:
        """The first record of a new segment: its kind and body."""
        return Kind.SNAPSHOT, encode(self._topology.snapshot())

    # --- topology -----------------------------------------------------------------------------

    def declare_queue(self, spec: QueueSpec) -> QueueInfo:
        """Make a queue or agree; `PreconditionFailed` names what differs."""
        return self._topology.declare_queue(spec).info

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Make an exchange or agree."""
        self._topology.declare_exchange(spec)

    def delete_queue(
        self, name: str, *, if_empty: bool, if_unused: bool
    ) -> tuple[int, list[Consumer]]:
        """Messages lost with it, and its consumers, which have ended."""
        return self._topology.delete_queue(name, if_empty=if_empty, if_unused=if_unused)

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange with its bindings."""
        self._topology.delete_exchange(name, if_unused=if_unused)

    def bind(self, binding: Binding) -> None:
        """Add a binding; no error if it is there."""
        self._topology.bind(binding)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding; `NotFound` if there is none."""
        self._topology.unbind(binding)

    def queue(self, name: str) -> QueueInfo | None:
        """A queue as seen now."""
        queue = self._state.queues.get(name)
        return None if queue is None else queue.info

    def queues(self) -> list[QueueInfo]:
        """All queues, by name."""
        return [queue.info for _, queue in sorted(self._state.queues.items())]

    def exchange(self, name: str) -> ExchangeSpec | None:
        """A declared exchange."""
        exchange = self._state.exchanges.get(name)
        return None if exchange is None else exchange.spec

    def exchanges(self) -> list[ExchangeSpec]:
        """All declared exchanges, by name."""
        return [exchange.spec for _, exchange in sorted(self._state.exchanges.items())]

    def bindings(self) -> list[Binding]:
        """All bindings."""
        exchanges = self._state.exchanges.values()
        return [binding for exchange in exchanges for binding in exchange.bindings]

    # --- publishing ---------------------------------------------------------------------------

    def publish(
        self, client: str, header: Header, fingerprint: bytes, sealed: Sealed, now: int
    ) -> Accepted:
        """Put a batch into all its queues, or none."""
        return self._publishing.publish(client, header, fingerprint, sealed, now)

    def durable(self, lsn: int) -> None:
        """All records up to `lsn` are on disk, but for those that `undo` was called for."""
        state = self._state
        state.durable = lsn
        self._publishing.durable(lsn)
        waiting = state.not_durable
        while waiting and waiting[0].pos <= lsn:
            state.wake(waiting.popleft().queue)

    def undo(self, lsn: int) -> None:
        """The disk had no room for the batch that the record `lsn` brought."""
        self._publishing.undo(lsn)

    # --- delivering ---------------------------------------------------------------------------

    def consume(
        self,
        name: str,
        *,
        client: str,
        consumer_name: str,
        credit: int,
        outlet: Outlet,
        now: int,
        onex: bool = False,
    ) -> tuple[Consumer, list[Consumer]]:
        """A new consumer, and the ghosts it supersedes: those of the same client and name on
        this queue. What they held is back in line first. The empty name supersedes nobody.

        `onex`: it speaks 1.x; see `Consumer.onex`."""
        queue = self._state.queue(name)
        ghosts = [
            each
            for each in queue.turn
            if consumer_name and each.client == client and each.name == consumer_name
        ]
        for ghost in ghosts:
            self._end(ghost, now)
        consumer = self._state.deliveries.add_consumer(
            queue, client, consumer_name, outlet, onex=onex
        )
        consumer.add_credit(credit)
        self._state.wake(queue)
        return consumer, ghosts

    def add_credit(self, number: int, messages: int) -> None:
        """The consumer takes so many messages more. Nothing, if it has ended."""
        if messages < 0:
            raise BadRequest(f"credit of {messages} messages: a consumer can only ask for more")
        consumer = self._state.deliveries.consumers.get(number)
        if consumer is not None:
            consumer.add_credit(messages)
            self._resume(consumer)

    def resume(self, owner: object) -> None:
        """The owner's outlets may be writable again."""
        for consumer in self._state.deliveries.consumers_of(owner):
            self._resume(consumer)

    def _resume(self, consumer: Consumer) -> None:
        consumer.queue.turn.ready(consumer)
        self._state.wake(consumer.queue)

    def cancel(self, number: int, *, release: bool, now: int) -> Outlet | None:
        """The consumer is given nothing more; with `release` what it holds goes back in line.
        Its outlet, if there was such a consumer."""
        consumer = self._state.deliveries.consumers.get(number)
        if consumer is None:
            return None
        if release:
            self._end(consumer, now)
        else:
            self._state.deliveries.remove_consumer(consumer)
        return consumer.outlet

    def _end(self, consumer: Consumer, now: int) -> None:
        for held in self._state.deliveries.held_by(consumer.outlet.owner):
            if held.consumer is consumer:
                self._redelivery.returned(held, now)
        self._state.deliveries.remove_consumer(consumer)

    def release(self, owner: object, now: int) -> None:
        """The connection is gone: its consumers end, what it holds goes back in line."""
        for consumer in self._state.deliveries.consumers_of(owner):
            self._state.deliveries.remove_consumer(consumer)
        for held in self._state.deliveries.held_by(owner):
            self._redelivery.returned(held, now)

    def give_back(self, held: Held, now: int) -> None:
        """The delivery never reached its consumer: it goes back in line as it was."""
        if held.bits:
            self._redelivery.returned(held, now, given=False)

    def next_busy(self) -> Queue | None:
        """A queue that may have something to give to somebody; they take turns."""
        busy = self._state.busy
        queue = next(iter(busy), None)
        if queue is not None and len(busy) > 1:
            del busy[queue]
            busy[queue] = None
        return queue

    def next_delivery(self, queue: Queue, now: int) -> Held | None:
        """The oldest batch to the consumer whose turn it is. None: nothing for now, unless the
        queue is still busy, because so much in it has expired: then ask again, after others."""
        state = self._state
        entry = self._oldest(queue, now, _SOME)
        consumer = None if entry is None else queue.turn.next(onex=entry.batch.onex)
        onex = entry is not None and consumer is None and not entry.batch.onex
        if onex:
            # Nobody takes the oldest, which is sealed; but who speaks 1.x takes what is behind it.
            entry = self._oldest(queue, now, _SOME, onex=True) if queue.turn.waits else None
            consumer = None if entry is None else queue.turn.next(onex=True)
        if entry is None or consumer is None:
            nothing_left = queue.head(state.durable, onex=onex) is None
            if entry is not None or nothing_left or not queue.turn.waits:
                state.busy.pop(queue, None)
            return None
        bits = queue.take(entry)
        held = state.deliveries.give(
            entry,
            bits,
            consumer.outlet.owner,
            consumer,
            recovered=state.recovered,
            now=now,
            patient=consumer.onex,
        )
        if not (consumer.onex and held.redelivered):
            consumer.credit -= bits.bit_count()
        return held

    def fetch(
        self, name: str, *, owner: object, messages: int, now: int, onex: bool = False
    ) -> list[Held]:
        """The oldest batches into the owner's hands, until they have `messages` or there's none.

        `onex`: only those of 1.x, and for as long as the owner lives."""
        state = self._state
        queue = state.queue(name)
        found: list[Held] = []
        while messages > 0 and (entry := self._oldest(queue, now, _MANY, onex=onex)) is not None:
            bits = queue.take(entry)
            messages -= bits.bit_count()
            found.append(
                state.deliveries.give(
                    entry, bits, owner, None, recovered=state.recovered, now=now, patient=onex
                )
            )
        return found

    def _oldest(self, queue: Queue, now: int, most: int, *, onex: bool = False) -> Entry | None:
        """What goes out next. An expired message never does, however late its timer is; None also
        if more than `most` have expired: then others should have their turn first."""
        durable = self._state.durable
        for _ in range(most):
            entry = queue.head(durable, onex=onex)
            if entry is None or not 0 < entry.expires_ms <= now:
                return entry
            self._dead_letters.expire(entry, now)
        return None

    def give_again(self, client: str, batch_id: bytes, now: int) -> None:
        """What of the client's 1.x message is in somebody's hands goes back in line.

        `NotFound` if it waits nowhere, `AccessRefused` if it is another client's."""
        state = self._state
        batch = state.onex.find(client, int.from_bytes(batch_id, "big"))
        for entry in batch.all_entries():
            for held in [each for each in entry.queue.held.values() if each.entry is entry]:
                self._redelivery.returned(held, now)

    # --- settling -----------------------------------------------------------------------------

    def ack(self, owner: object, tag: int, bits: Bitmap | None, now: int) -> None:
        """These messages are done with; None: all that the delivery has left."""
        found = self._find(owner, tag, bits, now)
        if found is None:
            return
        held, bits = found
        state, entry = self._state, held.entry
        record = AckRecord(entry.queue.id, entry.pos, bitmap.encode(bits, entry.batch.count))
        state.port.append(Kind.ACK, encode(record))
        state.deliveries.take_back(held, bits)
        state.port.happened("acked", entry.batch, bits.bit_count())
        state.remove(entry, bits)

    def nack(
        self,
        owner: object,
        tag: int,
        bits: Bitmap | None,
        *,
        requeue: bool,
        reason: str,
        detail: str,
        now: int,
    ) -> None:
        """These messages come back later, or (not `requeue`) are dead, with the reason."""
        found = self._find(owner, tag, bits, now)
        if found is None:
            return
        held, bits = found
        if requeue or held.entry.queue.is_dead:
            self._redelivery.refused(held, bits, detail, now)
        else:
            self._state.deliveries.take_back(held, bits)
            self._dead_letters.bury(held.entry, bits, reason, detail, now)

    def _find(
        self, owner: object, tag: int, bits: Bitmap | None, now: int
    ) -> tuple[Held, Bitmap] | None:
        """The delivery and which of its messages are meant; None if they are settled already."""
        held = self._state.deliveries.find(owner, tag)
        if held is None:
            return None
        self._state.deliveries.touch(held, now)
        bits = held.bits if bits is None else held.bits & bits
        return (held, bits) if bits else None

    def damaged(self, held: Held, detail: str, now: int) -> None:
        """The delivery can't be made: its bytes fail their checksum. It is set aside, where it
        blocks nothing: among the dead letters, given to nobody until the next start."""
        if held.bits:
            self._state.deliveries.take_back(held, bits := held.bits)
            self._dead_letters.set_aside(held.entry, bits, detail, now)

    def batch_damaged(self, batch: Batch, detail: str, now: int) -> None:
        """The same for all of a batch that nobody has in hand."""
        for entry in batch.all_entries():
            if bits := entry.ready:
                self._dead_letters.set_aside(entry, bits, detail, now)

    # --- time ---------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """When `sweep` next has something to do; None: never, as things are."""
        state = self._state
        times = (
            state.deliveries.timeouts.next_deadline(),
            state.backoffs.next_deadline(),
            state.expiries.next_deadline(),
            state.dedup.next_deadline(),
        )
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def sweep(self, now: int) -> None:
        """What is due: time-outs, back-offs, expiry, forgotten repeats. A bounded part of it; while
        `next_deadline` is not in the future, there is more."""
        state = self._state
        for held in state.deliveries.overdue(now, _SWEEP):
            self._redelivery.timed_out(held, now)
        for entry, bits in state.backoffs.due(now, _SWEEP):
            self._redelivery.backed_off(entry, bits, now)
        for entry in state.expiries.due(now, _SWEEP):
            if entry.pos <= state.durable:
                self._dead_letters.expire(entry, now)
            else:
                state.expiries.add(now + 1, entry)
        state.dedup.sweep(now)

    # --- operators ----------------------------------------------------------------------------

    def purge(self, name: str) -> int:
        """Remove all messages that nobody has in hand. How many there were."""
        return self._administration.purge(self._state.queue(name))

    def peek(self, name: str, batches: int) -> list[Entry]:
        """The oldest entries of a queue, whoever has them in hand."""
        return self._administration.oldest(self._state.queue(name), batches)

    def redrive(self, name: str, messages: int | None) -> Redrive:
        """The work of moving dead letters back to where they were."""
        return self._dead_letters.redrive(self._state.queue(name), messages)

    # --- compaction ---------------------------------------------------------------------------

    def batches(self) -> Iterable[Batch]:
        """All batches, those written first coming first, but for some that were copied."""
        return self._state.batches.values()

    def batch(self, seq: int) -> Batch | None:
        """The batch, while any queue holds anything of it."""
        return self._state.batches.get(seq)

    def copy(self, batch: Batch, sealed: Sealed | None) -> int:
        """Write a batch down again, as it is now. The record's lsn."""
        lsn = self._state.port.append(Kind.COPY, encode(copy_of(batch)), sealed)
        # In the order of the log again, so that the oldest are found without a search.
        self._state.batches[batch.seq] = self._state.batches.pop(batch.seq)
        return lsn

    def copy_dedup(self, before: int, most: int) -> bool:
        """Write down again up to `most` slices of what repeats are known by, as far as records
        before `before` hold it. Whether there is more."""
        dedup = self._state.dedup
        slices = list(islice(dedup.before(before), most + 1))
        for piece in slices[:most]:
            piece.lsn = self._state.append(Kind.DEDUP, dedup.record(piece))
        return len(slices) > most

    # --- numbers ------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How much of everything there is."""
        state = self._state
        queues = state.queues.values()
        return {
            "queues": len(queues),
            "exchanges": len(state.exchanges),
            "bindings": state.bindings,
            "consumers": len(state.deliveries.consumers),
            "deliveries": len(state.deliveries),
            "messages": sum(queue.messages for queue in queues),
            "messages_unacked": sum(queue.unacked for queue in queues),
            "messages_onex": sum(queue.onex_messages for queue in queues),
            # Sealed, where everybody who consumes speaks 1.x.
            "messages_nobody_takes": sum(
                queue.messages - queue.onex_messages for queue in queues if queue.turn.only_onex
            ),
            "batches": len(state.batches),
            "dedup_entries": state.dedup.entries,
            "dedup_overflow": state.dedup.overflow,
            "timers": len(state.expiries) + len(state.backoffs) + len(state.deliveries.timeouts),
        }
