"""The embedded engine: the broker decides, the journal remembers, this file joins them.

One publish, from call to confirm::

    publish ──► Broker.publish ──► Journal.append          (event loop's thread)
                                        │ group: write, sync     (the journal's thread)
    confirm ◄── Confirms ◄── Broker.durable ◄── one hop a group ─┘
                                   └──► deliveries to whoever waits

Everything but the journal's callbacks runs on the event loop's thread, and a group comes over in
a single hop. So no lock is needed, and a batch costs a few calls whatever it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ciphermq import limits
from ciphermq.broker import Broker, BrokerLimits
from ciphermq.engines.embedded.clock import SteadyClock
from ciphermq.engines.embedded.compaction import Compactor
from ciphermq.engines.embedded.dispatch import Dispatch
from ciphermq.engines.embedded.fingerprint import Fingerprints, new_key
from ciphermq.engines.embedded.inspection import peeked
from ciphermq.engines.embedded.payloads import Payloads
from ciphermq.engines.embedded.store import Event, Store, StoreOptions
from ciphermq.engines.face import Delivery, Guarantees, Peeked, Publish, Published, Sealed, Sink
from ciphermq.errors import NotFound, PayloadDamaged, Refused
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.topology import Binding, ExchangeSpec, QueueInfo, QueueSpec
from ciphermq.telemetry import get_logger

_REDRIVE_STEP: Final = 256
_GUARANTEES: Final = Guarantees(
    partial_ack=True, dedup=True, atomic_fanout=True, peek=True, order=True
)

_log = get_logger("engine")


class EmbeddedOptions(msgspec.Struct, frozen=True):
    """What may differ from the defaults."""

    broker: BrokerLimits = BrokerLimits()
    store: StoreOptions = StoreOptions()
    fresh_payloads: int = limits.FRESH_PAYLOADS
    """Bytes of payloads kept in memory."""


class EmbeddedEngine:
    """`ciphermq.engines.face.Engine` in one process, over one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        options: EmbeddedOptions | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._options = options or EmbeddedOptions()
        self._clock = clock or SteadyClock()
        self._directory = directory
        self._store = Store(directory, self._options.store, self._clock)
        self._broker = Broker(self._store, self._options.broker)
        self._relief: list[tuple[int, Callable[[], None]]] = []
        self._on_failure: list[Callable[[Exception], None]] = []
        self._running = False
        self._published = self._confirmed = self._duplicates = 0

    # --- starting and stopping ----------------------------------------------------------------

    @property
    def guarantees(self) -> Guarantees:
        """All that the face knows of."""
        return _GUARANTEES

    async def start(self) -> None:
        """Read the journal back, then serve. `JournalInUse`, `JournalDamaged`, `JournalFailed`."""
        loop = self._loop = asyncio.get_running_loop()
        broker, store = self._broker, self._store
        report = await loop.run_in_executor(None, store.recover, broker)
        _log.info("journal read", directory=str(self._directory), found=report.describe())
        if not broker.fingerprint_key:
            broker.fingerprint_key = new_key()
        self._fingerprint = Fingerprints(broker.fingerprint_key).of
        self._payloads = Payloads(store.journal, loop, self._options.fresh_payloads)
        self._dispatch = Dispatch(broker, store, self._payloads, loop, self._clock)
        self._compactor = Compactor(
            broker,
            store.journal,
            self._payloads,
            store.segments,
            store.copies,
            synced=self._synced,
            last_lsn=lambda: store.last_lsn,
            now=self._clock,
        )
        store.start(
            loop,
            broker,
            self._payloads,
            after_group=self._after_group,
            on_failed=self._failed,
        )
        self._running = True
        self._compactor.consider()
        self._dispatch.wake()

    async def stop(self) -> None:
        """Write what is accepted, confirm it, then close. May be repeated."""
        if not self._running:
            return
        self._running = False
        self._dispatch.stop()
        await self._compactor.stop()
        await self._loop.run_in_executor(None, self._payloads.close)
        # The journal's last callbacks are posted before this returns, and so run before it does.
        await self._loop.run_in_executor(None, self._store.journal.close)
        self._store.confirms.fail(self._store.unavailable)

    def _failed(self, error: Exception) -> None:
        _log.critical("the journal has failed: nothing is confirmed any more", error=str(error))
        for callback in self._on_failure:
            callback(error)

    # --- waiting for the disk -----------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet durable."""
        return self._store.journal.pending_bytes

    def _synced(self) -> asyncio.Future[None]:
        """Done once all that was appended so far is durable."""
        store = self._store
        if store.failure is not None:
            raise store.unavailable()
        return store.confirms.wait(self._loop, store.last_lsn)

    def _after_group(self) -> None:
        if self._relief:
            pending = self.pending_bytes
            ready = [callback for bound, callback in self._relief if pending <= bound]
            self._relief = [each for each in self._relief if pending > each[0]]
            for callback in ready:
                callback()
        if self._running:
            self._compactor.consider()
            self._dispatch.wake()

    # --- topology -----------------------------------------------------------------------------

    async def declare_queue(self, spec: QueueSpec) -> QueueInfo:
        """Make it durable, or agree."""
        self._broker.declare_queue(spec)
        await self._synced()
        info = self._broker.queue(spec.name)
        if info is None:
            raise NotFound(f"queue {spec.name!r} was deleted while it was being declared")
        return info

    async def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Make it durable, or agree."""
        self._broker.declare_exchange(spec)
        await self._synced()

    async def delete_queue(
        self, name: str, *, if_empty: bool = False, if_unused: bool = False
    ) -> int:
        """Messages lost with it. Its consumers are told."""
        lost, consumers = self._broker.delete_queue(name, if_empty=if_empty, if_unused=if_unused)
        for consumer in consumers:
            self._dispatch.ended(consumer, f"queue {name!r} was deleted", NotFound.code)
        await self._synced()
        return lost

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """With its bindings."""
        self._broker.delete_exchange(name, if_unused=if_unused)
        await self._synced()

    async def bind(self, binding: Binding) -> None:
        """Durable; no error if it is there."""
        self._broker.bind(binding)
        await self._synced()

    async def unbind(self, binding: Binding) -> None:
        """`NotFound` if there is none."""
        self._broker.unbind(binding)
        await self._synced()

    def queue(self, name: str) -> QueueInfo | None:
        """As seen now."""
        return self._broker.queue(name)

    def queues(self) -> list[QueueInfo]:
        """All, by name."""
        return self._broker.queues()

    def exchange(self, name: str) -> ExchangeSpec | None:
        """The declared one of that name."""
        return self._broker.exchange(name)

    def exchanges(self) -> list[ExchangeSpec]:
        """All that were declared, by name."""
        return self._broker.exchanges()

    def bindings(self) -> list[Binding]:
        """All."""
        return self._broker.bindings()

    # --- publishing ---------------------------------------------------------------------------

    def publish(self, publish: Publish) -> Awaitable[Published]:
        """Confirmed when durable in all its queues; refused whole otherwise."""
        store = self._store
        client, header, sealed = publish.client, publish.header, publish.sealed
        try:
            if not self._running or store.failure is not None:
                raise store.unavailable()
            accepted = self._broker.publish(
                client, header, self._fingerprint(sealed), sealed, self._clock()
            )
        except Refused as refusal:
            return self._refusal(refusal)
        lsn, seq, queues, duplicate = accepted
        if duplicate:
            self._duplicates += 1
        else:
            self._published += 1
            self._payloads.keep(seq, sealed)
        return store.confirms.wait(
            self._loop,
            lsn,
            seq=seq,
            result=Published(duplicate, queues),
            tell=None if duplicate else lambda: self._tell_published(header.batch_id, header.count),
        )

    def _tell_published(self, batch_id: bytes, messages: int) -> None:
        self._confirmed += 1
        self._store.tell("published", batch_id, messages)

    def _refusal(self, refusal: Exception) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(refusal)
        return future

    # --- delivering ---------------------------------------------------------------------------

    async def consume(
        self, queue: str, *, client: str, name: str, credit: int, sink: Sink, onex: bool = False
    ) -> int:
        """A consumer's number. The same client and name on this queue supersede their ghost."""
        return self._dispatch.consume(
            queue, client=client, name=name, credit=credit, sink=sink, onex=onex
        )

    def add_credit(self, consumer: int, messages: int) -> None:
        """It takes so many messages more."""
        self._broker.add_credit(consumer, messages)
        self._dispatch.wake()

    def writable_again(self, sink: Sink) -> None:
        """The sink's connection drained."""
        self._dispatch.resume(sink.owner)

    async def cancel(self, consumer: int, *, release: bool = False) -> None:
        """No more deliveries. What was given out and not yet handed over goes back in line."""
        self._dispatch.cancel(consumer, release=release)

    def release(self, owner: object) -> None:
        """The connection is gone."""
        self._broker.release(owner, self._clock())
        self._dispatch.wake()

    async def fetch(
        self, queue: str, *, client: str, owner: object, messages: int, onex: bool = False
    ) -> list[Delivery]:
        """The oldest batches, until they hold `messages` or there are no more."""
        return await self._dispatch.fetch(queue, owner=owner, messages=messages, onex=onex)

    async def give_again(self, batch_id: bytes, *, client: str) -> None:
        """A 1.x message that is in somebody's hands goes back in line."""
        self._broker.give_again(client, batch_id, self._clock())
        self._dispatch.wake()

    # --- settling -----------------------------------------------------------------------------

    def ack(self, owner: object, tag: int, bits: Bitmap | None) -> Awaitable[None]:
        """Done when the ack is durable."""
        try:
            self._broker.ack(owner, tag, bits, self._clock())
            return self._synced()
        except Refused as refusal:
            return self._refusal(refusal)

    def nack(
        self,
        owner: object,
        tag: int,
        bits: Bitmap | None,
        *,
        requeue: bool,
        reason: str = "rejected",
        detail: str = "",
    ) -> Awaitable[None]:
        """Back with back-off, or (not `requeue`) to the dead letters with the reason."""
        try:
            self._broker.nack(
                owner,
                tag,
                bits,
                requeue=requeue,
                reason=reason,
                detail=detail,
                now=self._clock(),
            )
            self._dispatch.wake()
            return self._synced()
        except Refused as refusal:
            return self._refusal(refusal)

    # --- operators ----------------------------------------------------------------------------

    async def purge(self, queue: str) -> int:
        """Messages removed: all but those in somebody's hands."""
        removed = self._broker.purge(queue)
        await self._synced()
        return removed

    async def peek(self, queue: str, *, batches: int) -> list[Peeked]:
        """The oldest batches, from memory or disk."""
        entries = self._broker.peek(queue, batches)
        loading = [self._payloads.load(entry.batch) for entry in entries]
        await asyncio.gather(*loading, return_exceptions=True)
        return [
            peeked(entry, _bytes_of(future))
            for entry, future in zip(entries, loading, strict=True)
            if entry.live
        ]

    async def redrive(self, queue: str, *, messages: int | None = None) -> int:
        """Messages moved back from the dead letters."""
        work = self._broker.redrive(queue, messages)
        while work.step(_REDRIVE_STEP, self._clock()):
            await self._synced()
        await self._synced()
        return work.moved

    # --- being watched ------------------------------------------------------------------------

    def on_relief(self, callback: Callable[[], None]) -> None:
        """Call once, soon after `pending_bytes` has halved."""
        pending = self.pending_bytes
        if pending:
            self._relief.append((pending // 2, callback))
        else:
            self._loop.call_soon(callback)

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """Call when the journal has failed."""
        self._on_failure.append(callback)

    def on_event(self, callback: Event) -> None:
        """Call for what happens to batches."""
        self._store.events.append(callback)

    def stats(self) -> dict[str, int | float | str]:
        """Totals since the start, what there is now, and the journal's, prefixed."""
        store, payloads, dispatch = self._store, self._payloads, self._dispatch
        found: dict[str, int | float | str] = {
            "published_batches": self._published,
            "confirmed_batches": self._confirmed,
            "duplicate_batches": self._duplicates,
            "refused_no_space_batches": store.refused,
            "delivered_messages": dispatch.delivered,
            "redelivered_messages": dispatch.redelivered,
            "acked_messages": store.acked,
            "dead_messages": store.dead,
            "damaged_deliveries": dispatch.damaged,
            "payloads_in_memory_bytes": payloads.fresh_bytes,
            "payloads_read": payloads.reads,
            "unconfirmed": len(store.confirms),
            "compaction_copied_batches": self._compactor.copied,
            "compaction_dropped_segments": self._compactor.dropped,
        }
        found.update(self._broker.counts())
        journal = msgspec.structs.asdict(store.journal.stats())
        found.update((f"journal_{name}", value) for name, value in journal.items())
        return found


def _bytes_of(loaded: asyncio.Future[Sealed]) -> Sealed | None:
    """None, if they are damaged."""
    return None if isinstance(loaded.exception(), PayloadDamaged) else loaded.result()
