"""A broker with a log in a list: time, durability and crashes are in the test's hands."""

from __future__ import annotations

from dataclasses import dataclass, field

from ciphermq.broker import Broker, BrokerLimits
from ciphermq.broker.deliveries import Held
from ciphermq.broker.entries import Batch
from ciphermq.broker.records import Kind
from ciphermq.model import bitmap
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.suites import Suite
from ciphermq.model.topology import QueueInfo, QueueSpec

Record = tuple[int, int, bytes, bytes | None]
START = 1_700_000_000_000


class Connection:
    """An owner, and an outlet of its own."""

    def __init__(self, name: str = "connection") -> None:
        self.name = name
        self.writable = True

    @property
    def owner(self) -> object:
        return self


class ListLog:
    """The port: records in a list, the first of each life a snapshot, as in a segment."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.finished_places: list[int] = []
        self.events: list[tuple[str, bytes, int]] = []
        self.last_lsn = 0

    def append(self, kind: int, meta: bytes, payload: bytes | None = None) -> int:
        self.last_lsn += 1
        self.records.append((self.last_lsn, kind, meta, payload))
        return self.last_lsn

    def finished(self, batch: Batch) -> None:
        self.finished_places.append(batch.place)

    def happened(self, event: str, batch: Batch, messages: int) -> None:
        self.events.append((event, batch.batch_id, messages))


def batch_id(number: int, *, onex: bool = False) -> bytes:
    """A valid batch id, or a 1.x message's; the same for the same number."""
    value = START << 80 | (0x8 if onex else 0x7) << 76 | 0b10 << 62 | number << 10
    return value.to_bytes(16, "big")


def header(
    number: int,
    *,
    exchange: str = "",
    key: str = "q",
    count: int = 1,
    expires_ms: int = 0,
    receivers: tuple[str, ...] = ("r",),
    sender: str = "sender",
    onex: bool = False,
) -> Header:
    refs = tuple(ReceiverRef(name, bytes(16), Suite.X25519) for name in sorted(receivers))
    return Header(
        sender,
        bytes(32),
        batch_id(number, onex=onex),
        START,
        expires_ms,
        exchange,
        key,
        count,
        bytes(32),
        refs,
    )


@dataclass
class Rig:
    bounds: BrokerLimits = field(default_factory=BrokerLimits)

    def __post_init__(self) -> None:
        self.now = START
        self.log = ListLog()
        self.broker = Broker(self.log, self.bounds)
        self.next_number = 1
        self.log.append(*self.broker.snapshot())
        self.sync()

    # --- the outside world --------------------------------------------------------------------

    def sync(self) -> None:
        """All that was appended is durable."""
        self.broker.durable(self.log.last_lsn)

    def advance(self, seconds: float) -> None:
        """Time passes, and all timers that are due are handled."""
        self.now += int(seconds * 1000)
        self.sweep()

    def sweep(self) -> None:
        while (at_ms := self.broker.next_deadline()) is not None and at_ms <= self.now:
            self.broker.sweep(self.now)
        self.sync()

    def restart(self, *, keep: int | None = None) -> None:
        """Crash, with the first `keep` records on disk (None: all), and start again."""
        records = self.log.records[:keep]
        self.log = ListLog()
        self.broker = Broker(self.log, self.bounds)
        self.broker.begin_replay(self.now)
        for lsn, kind, meta, payload in records:
            size = 0 if payload is None else len(payload)
            self.broker.replay(lsn, kind, meta, size, 0 if payload is None else lsn)
            self.log.last_lsn = lsn
        self.broker.replayed(self.now)
        self.log.records = records

    def kinds(self, *, since: int = 0) -> list[Kind]:
        return [Kind(kind) for lsn, kind, _, _ in self.log.records if lsn > since]

    # --- short ways ---------------------------------------------------------------------------

    def queue(self, name: str = "q", **members: object) -> QueueInfo:
        info = self.broker.declare_queue(QueueSpec(name=name, **members))  # type: ignore[arg-type]
        self.sync()
        return info

    def publish(
        self,
        key: str = "q",
        *,
        count: int = 1,
        size: int = 100,
        client: str = "sender",
        **more: object,
    ) -> int:
        """Publish a new batch; its number."""
        number = self.next_number
        self.next_number += 1
        self.publish_again(number, key, count=count, size=size, client=client, **more)
        return number

    def publish_again(
        self,
        number: int,
        key: str = "q",
        *,
        count: int = 1,
        size: int = 100,
        client: str = "sender",
        fingerprint: int = 0,
        durable: bool = True,
        **more: object,
    ) -> object:
        accepted = self.broker.publish(
            client,
            header(number, key=key, count=count, sender=client, **more),  # type: ignore[arg-type]
            (fingerprint or number).to_bytes(16, "big"),
            bytes(size),
            self.now,
        )
        if durable:
            self.sync()
        return accepted

    def consume(
        self,
        queue: str = "q",
        *,
        credit: int = 1000,
        name: str = "",
        client: str = "r",
        connection: Connection | None = None,
        onex: bool = False,
    ) -> tuple[int, Connection]:
        connection = connection or Connection()
        consumer, _ = self.broker.consume(
            queue,
            client=client,
            consumer_name=name,
            credit=credit,
            outlet=connection,
            now=self.now,
            onex=onex,
        )
        return consumer.number, connection

    def deliveries(self) -> list[Held]:
        """All that can be given out now."""
        found: list[Held] = []
        while (queue := self.broker.next_busy()) is not None:
            while (held := self.broker.next_delivery(queue, self.now)) is not None:
                found.append(held)
        return found

    def fetch(
        self, connection: Connection, queue: str = "q", *, messages: int = 1, onex: bool = False
    ) -> list[Held]:
        return self.broker.fetch(
            queue, owner=connection, messages=messages, now=self.now, onex=onex
        )

    def ack(self, held: Held, *indices: int) -> None:
        bits = bitmap.of(indices) if indices else None
        self.broker.ack(held.owner, held.tag, bits, self.now)
        self.sync()

    def nack(
        self,
        held: Held,
        *indices: int,
        requeue: bool = True,
        reason: str = "rejected",
        detail: str = "",
    ) -> None:
        bits = bitmap.of(indices) if indices else None
        self.broker.nack(
            held.owner, held.tag, bits, requeue=requeue, reason=reason, detail=detail, now=self.now
        )
        self.sync()

    def info(self, queue: str = "q") -> QueueInfo:
        info = self.broker.queue(queue)
        assert info is not None
        return info

    def waiting(self, queue: str = "q") -> list[tuple[int, int]]:
        """``(number, live)`` of a queue's entries, in order."""
        return [
            (number(entry.batch.batch_id), entry.live) for entry in self.broker.peek(queue, 100)
        ]

    def dead(self, queue: str = "dead.q") -> list[tuple[int, int, str]]:
        """``(number, live, reason)`` of a dead-letter queue's entries."""
        entries = self.broker.peek(queue, 100) if self.broker.queue(queue) else []
        return [
            (number(each.batch.batch_id), each.live, each.dead.reason if each.dead else "")
            for each in entries
        ]


def number(of: bytes) -> int:
    """The reverse of `batch_id`."""
    return int.from_bytes(of, "big") >> 10 & 0xFFFFFFFF


def numbers(deliveries: list[Held]) -> list[int]:
    return [number(held.entry.batch.batch_id) for held in deliveries]
