"""What the broker's parts share: the tables, and the few steps that change them.

Whoever changes something for good appends its record first, then takes the same steps that a
replay of the record will take.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from ciphermq import limits
from ciphermq.broker.dedup import Dedup
from ciphermq.broker.deliveries import Deliveries
from ciphermq.broker.entries import Batch, Entry, Past
from ciphermq.broker.exchanges import Exchange
from ciphermq.broker.onex import OnexIndex
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import Kind, encode
from ciphermq.broker.timers import Wheel
from ciphermq.errors import NotFound
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.ids import DEAD_PREFIX

_EXPIRY_QUANTUM_MS: Final = 250
"""An expired message is never given out; how late it is seen among the dead letters."""
_BACKOFF_QUANTUM_MS: Final = 50
_MOST_ROUTES: Final = 4096
"""Routing keys whose queues are remembered; keys made up one a message would fill memory."""

Sealed = bytes | bytearray | memoryview


class BrokerLimits(msgspec.Struct, frozen=True):
    """What one broker takes."""

    max_queues: int = limits.MAX_QUEUES
    max_exchanges: int = limits.MAX_EXCHANGES
    max_bindings: int = limits.MAX_BINDINGS
    max_targets: int = limits.MAX_TARGETS
    dedup_window_ms: int = int(limits.DEDUP_WINDOW * 1000)
    max_dedup_entries: int = limits.MAX_DEDUP_ENTRIES


class Port(Protocol):
    """What the broker asks of the engine around it."""

    def append(self, kind: int, meta: bytes, payload: Sealed | None = None) -> int:
        """Make a record durable, after all before it. Its lsn, which is higher than theirs.

        Returns before it is durable; `Broker.durable` tells when it is."""

    def finished(self, batch: Batch) -> None:
        """No queue holds anything of the batch now: its bytes are not needed."""

    def happened(self, event: str, batch: Batch, messages: int) -> None:
        """For the metadata: ``acked`` or ``dead``."""


class State:
    """Everything the broker knows."""

    def __init__(self, port: Port, bounds: BrokerLimits) -> None:
        self.port = port
        self.bounds = bounds
        self.fingerprint_key = b""
        self.queues: dict[str, Queue] = {}
        self.queues_by_id: dict[int, Queue] = {}
        self.exchanges: dict[str, Exchange] = {}
        self.batches: dict[int, Batch] = {}
        """By seq; those brought or copied later come later, but for copies that failed."""
        self.onex = OnexIndex()
        self.dedup = Dedup(bounds.dedup_window_ms, bounds.max_dedup_entries)
        self.deliveries = Deliveries()
        self.expiries: Wheel[Entry] = Wheel(_EXPIRY_QUANTUM_MS, lambda entry: entry.live != 0)
        self.backoffs: Wheel[tuple[Entry, Bitmap]] = Wheel(_BACKOFF_QUANTUM_MS, _still_parked)
        self.durable = 0
        """Records up to here are on disk: only what they placed is given out."""
        self.recovered = 0
        """What was placed up to here may have been given out before a restart."""
        self.bindings = 0
        self.busy: dict[Queue, None] = {}
        """Queues that may have something to give to somebody."""
        self.not_durable: deque[Entry] = deque()
        self._routes: dict[tuple[str, str], tuple[Queue, ...]] = {}

    # --- finding ------------------------------------------------------------------------------

    def queue(self, name: str) -> Queue:
        """The queue of that name, or `NotFound`."""
        queue = self.queues.get(name)
        if queue is None:
            of = name.removeprefix(DEAD_PREFIX)
            why = "declare it first" if of == name else f"nothing of {of!r} has died"
            raise NotFound(f"there is no queue {name!r}; {why}")
        return queue

    def exchange(self, name: str) -> Exchange:
        """The exchange of that name, or `NotFound`."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise NotFound(f"there is no exchange {name!r}; declare it first")
        return exchange

    def route(self, exchange: str, key: str) -> tuple[Queue, ...]:
        """The queues that a batch with this key goes to. `NotFound` if there's no such exchange.

        The empty exchange is the default one: the key is the queue's name."""
        found = self._routes.get((exchange, key))
        if found is None:
            names: Sequence[str] = self.exchange(exchange).match(key) if exchange else (key,)
            found = tuple(self.queues[name] for name in names if name in self.queues)
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            self._routes[exchange, key] = found
        return found

    def forget_routes(self) -> None:
        """The topology has changed."""
        self._routes.clear()

    # --- steps --------------------------------------------------------------------------------

    def add_batch(
        self,
        seq: int,
        batch_id: int,
        sender: str,
        routing_key: str,
        count: int,
        expires_ms: int,
        facts: int,
    ) -> Batch:
        """A batch that is in no queue yet. Names, which repeat, are stored once."""
        batch = Batch(
            seq, batch_id, sys.intern(sender), sys.intern(routing_key), count, expires_ms, facts
        )
        self.batches[seq] = batch
        if batch.onex:
            self.onex.add(batch)
        return batch

    def forget(self, batch: Batch) -> None:
        """A batch is in no queue any more."""
        del self.batches[batch.seq]
        if batch.onex:
            self.onex.drop(batch)
        self.port.finished(batch)

    def place(
        self, batch: Batch, queue: Queue, pos: int, live: Bitmap, past: Past | None = None
    ) -> Entry:
        """Messages of a batch come into a queue, at its end."""
        entry = Entry(batch, queue, pos, live, 0, past)
        batch.join(entry)
        queue.append(entry)
        self.not_durable.append(entry)
        expires_ms = entry.expires_ms
        if expires_ms:
            self.expiries.add(expires_ms, entry)
        return entry

    def remove(self, entry: Entry, bits: Bitmap) -> bool:
        """Messages are gone from an entry, and nobody's hands hold them. Whether they were its
        last; with its last entry the batch is finished."""
        if not entry.queue.remove(entry, bits):
            return False
        expires_ms = entry.expires_ms
        if expires_ms:
            self.expiries.drop(expires_ms)
        batch = entry.batch
        if batch.leave(entry):
            self.forget(batch)
        return True

    def put_back(self, entry: Entry, bits: Bitmap, now: int) -> None:
        """Messages may be given out again, from their old place."""
        queue = entry.queue
        queue.put_back(entry, bits)
        self.check_expiry(entry, now)
        self.wake(queue)

    def check_expiry(self, entry: Entry, now: int) -> None:
        """Messages were in hand, where nothing expires: their time may be over by now."""
        expires_ms = entry.expires_ms
        if 0 < expires_ms <= now:
            self.expiries.add(expires_ms, entry)

    def wake(self, queue: Queue) -> None:
        """The queue may have something to give to somebody."""
        if queue.turn.waits:
            self.busy[queue] = None

    def append(self, kind: Kind, body: object) -> int:
        """Append a record without a payload."""
        return self.port.append(kind, encode(body))


def _still_parked(parked: tuple[Entry, Bitmap]) -> bool:
    entry, bits = parked
    return bool(entry.queue.parked.get(entry, 0) & bits)
