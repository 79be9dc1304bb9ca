"""What every engine's tests need: sealed batches of a stranger's, and somebody who consumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ciphermq.engines.face import Delivery, Engine, Publish, Published
from ciphermq.model import envelope, ids
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.suites import Suite

WAIT = 20.0
"""Seconds after which something that must happen did not."""


def batch(
    key: str = "q",
    *,
    exchange: str = "",
    count: int = 1,
    size: int = 0,
    receivers: tuple[str, ...] = ("r",),
    client: str = "sender",
    expires_ms: int = 0,
    batch_id: bytes | None = None,
    filler: int = 7,
) -> Publish:
    """A batch as the engine gets it: well formed, and sealed as far as anyone without keys can
    tell. `size` is the least size of its body."""
    header = Header(
        sender=client,
        certificate_sha256=bytes(32),
        batch_id=batch_id or ids.new_batch_id(1_700_000_000_000),
        created_ms=1_700_000_000_000,
        expires_ms=expires_ms,
        exchange=exchange,
        routing_key=key,
        count=count,
        commitment=bytes(32),
        receivers=tuple(ReceiverRef(name, bytes(16), Suite.X25519) for name in sorted(receivers)),
    )
    wraps = bytes(Suite.X25519.wrap_size * len(receivers))
    body = bytes([filler]) * max(size, 19 + 16 * count)
    sealed = envelope.build(envelope.encode_header(header), wraps, body, (b"chain",), b"signature")
    return Publish(client, header, sealed)


@dataclass
class Consumer:
    """A connection with whatever it is given."""

    writable: bool = True
    got: list[Delivery] = field(default_factory=list)
    ended: list[tuple[int, str, str]] = field(default_factory=list)
    on_delivery: Callable[[Delivery], None] | None = None

    @property
    def owner(self) -> object:
        return self

    def deliver(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        if self.on_delivery is not None:
            self.on_delivery(delivery)

    def cancelled(self, consumer: int, reason: str, code: str) -> None:
        self.ended.append((consumer, reason, code))

    def ids(self) -> list[bytes]:
        return [delivery.batch_id for delivery in self.got]

    __hash__ = object.__hash__


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.002)
    assert condition(), what


async def publish(engine: Engine, *publishes: Publish) -> list[Published]:
    """Publish in this order, and wait for all."""
    async with asyncio.timeout(WAIT):
        return list(await asyncio.gather(*[engine.publish(each) for each in publishes]))


async def consume(
    engine: Engine, queue: str = "q", *, credit: int = 1000, name: str = "", client: str = "r"
) -> tuple[int, Consumer]:
    consumer = Consumer()
    number = await engine.consume(queue, client=client, name=name, credit=credit, sink=consumer)
    return number, consumer


async def fetch(engine: Engine, queue: str = "q", messages: int = 1) -> list[Delivery]:
    """Into the hands of a connection of its own."""
    return await engine.fetch(queue, client="r", owner=object(), messages=messages)


async def fetch_soon(engine: Engine, queue: str) -> Delivery:
    """The first delivery of a queue that other tasks make and fill."""
    async with asyncio.timeout(WAIT):
        while True:
            if engine.queue(queue) is not None and (got := await fetch(engine, queue)):
                return got[0]
            await asyncio.sleep(0.002)
