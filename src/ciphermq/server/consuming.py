"""Batches out: consumers and their credit, deliveries, acks.

A connection is one owner to the engine, however many consumers it has: what it holds returns to
the queues when it ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.engines.face import Delivery
from ciphermq.errors import BadRequest, NotFound, ResourceLimit
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap
from ciphermq.net.link import Link
from ciphermq.server.access import Verb
from ciphermq.server.confirms import Confirms
from ciphermq.server.outcomes import failure, follow
from ciphermq.server.services import Services
from ciphermq.telemetry.traffic import BatchAcknowledged, BatchDelivered, Note
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    Cancel,
    Cancelled,
    ConfirmKind,
    Consume,
    Credit,
    DeliverFrame,
    Fetch,
    Nack,
)

_pack = msgspec.msgpack.Encoder().encode


class Held(NamedTuple):
    """A delivery in the client's hands, as far as the client has not settled it."""

    consumer: int
    bits: Bitmap
    batch_id: bytes


class Consumer(NamedTuple):
    """For listings."""

    queue: str
    name: str


class Consuming:
    """One connection's deliveries; it is the engine's `Sink` and `owner` for all of them."""

    def __init__(
        self,
        services: Services,
        link: Link,
        client: str,
        on_idle: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        """`on_broken`: the engine refused an ack, or ended one with something else."""
        self._services = services
        self._link = link
        self._client = client
        self._on_broken = on_broken
        self._confirms = Confirms(link, ConfirmKind.ACK, on_idle)
        self._held: dict[int, Held] = {}
        self._early: defaultdict[int, list[Delivery | Cancelled]] = defaultdict(list)
        self._full = False
        self._starting = 0
        self.consumers: dict[int, Consumer] = {}
        self._ended = False
        self.stopping = False
        """Set when the server stops: nothing more is taken out of the queues."""

    @property
    def waiting(self) -> int:
        """Acks that wait for their answer."""
        return len(self._confirms)

    @property
    def held(self) -> int:
        """Batches in the client's hands."""
        return len(self._held)

    # --- what the engine sees ---------------------------------------------------------------

    @property
    def owner(self) -> object:
        """This connection."""
        return self

    @property
    def writable(self) -> bool:
        """Whether the client takes deliveries: it reads them, and settles what it has."""
        self._full = len(self._held) >= limits.MAX_HELD_BATCHES
        return self._link.writable and not (self._full or self.stopping or self._ended)

    def deliver(self, delivery: Delivery) -> None:
        """Send one batch, or keep it until the client knows its consumer's number."""
        consumer = delivery.consumer
        if self._ended:
            return
        if self._starting and consumer and consumer not in self.consumers:
            self._early[consumer].append(delivery)
            return
        dead = delivery.dead
        self._held[delivery.tag] = Held(consumer, delivery.live, delivery.batch_id)
        self._services.counters.add("deliveries")
        self._note(BatchDelivered, delivery.batch_id, delivery.live, delivery.queue)
        self._link.send(
            DeliverFrame(
                consumer,
                delivery.tag,
                delivery.redeliveries,
                delivery.redelivered,
                delivery.published_ms,
                bitmap.encode(delivery.live, delivery.count),
                b"" if dead is None else _pack(dead),
                delivery.sealed,
            )
        )

    def cancelled(self, consumer: int, reason: str, code: str) -> None:
        """The engine ended a consumer."""
        frame = Cancelled(consumer=consumer, code=code, message=reason)
        if self.consumers.pop(consumer, None) is not None:
            self._link.send(frame)
        elif self._starting and not self._ended:
            self._early[consumer].append(frame)

    def resume(self) -> None:
        """The connection has drained, or the client has settled some of what it has."""
        if not (self.stopping or self._ended):
            self._services.engine.writable_again(self)

    def end(self) -> None:
        """Nothing more is delivered, and what the client holds returns to the queues."""
        self._ended = True
        self.consumers.clear()
        self._held.clear()
        self._early.clear()
        self._services.engine.release(self)

    # --- consumers --------------------------------------------------------------------------

    async def consume(self, frame: Consume) -> int:
        """Start a consumer; its number. What it is given waits until `announced`."""
        services = self._services
        services.access.require(self._client, Verb.CONSUME, services.queue(frame.queue))
        if len(self.consumers) + self._starting >= limits.MAX_CONSUMERS_PER_CONNECTION:
            raise ResourceLimit(
                f"this connection has {limits.MAX_CONSUMERS_PER_CONNECTION} consumers already"
            )
        if len(frame.name) > limits.MAX_NAME:
            raise BadRequest(
                f"a consumer's name has {len(frame.name)} characters; {limits.MAX_NAME} at most"
            )
        credit = _checked_credit(frame.credit)
        self._starting += 1
        try:
            number = await services.engine.consume(
                frame.queue, client=self._client, name=frame.name, credit=credit, sink=self
            )
        except BaseException:
            self._starting -= 1
            raise
        if self._ended:  # meanwhile
            services.engine.release(self)
        return number

    def announced(self, number: int, frame: Consume) -> None:
        """The client has been told its consumer's number: give it what came meanwhile."""
        self._starting -= 1
        if self._ended:
            return
        self.consumers[number] = Consumer(frame.queue, frame.name)
        for early in self._early.pop(number, ()):
            if isinstance(early, Cancelled):
                self.cancelled(number, early.message, early.code)
            else:
                self.deliver(early)

    def credit(self, frame: Credit) -> None:
        """More credit; for a consumer that has just ended it means nothing."""
        if frame.consumer in self.consumers:
            self._services.engine.add_credit(frame.consumer, _checked_credit(frame.messages))

    async def cancel(self, frame: Cancel) -> None:
        """End one of the connection's consumers."""
        if frame.consumer not in self.consumers:
            raise NotFound(f"this connection has no consumer {frame.consumer}")
        await self._services.engine.cancel(frame.consumer, release=frame.release)
        self.consumers.pop(frame.consumer, None)
        if frame.release:
            released = [tag for tag, held in self._held.items() if held.consumer == frame.consumer]
            for tag in released:
                del self._held[tag]

    async def fetch(self, frame: Fetch) -> int:
        """Deliver up to so many messages (rounded up to whole batches); how many there were.

        One batch at a time, so that a client that doesn't read has the broker hold no more.
        """
        services = self._services
        services.access.require(self._client, Verb.CONSUME, services.queue(frame.queue))
        if not 1 <= frame.messages <= limits.MAX_CREDIT:
            raise BadRequest(f"can't fetch {frame.messages} messages; at least one")
        fetched = 0
        while fetched < frame.messages and self.writable:
            deliveries = await services.engine.fetch(
                frame.queue, client=self._client, owner=self, messages=1
            )
            if self._ended:  # meanwhile
                services.engine.release(self)
                break
            if not deliveries:
                break
            for delivery in deliveries:
                self.deliver(delivery)
                fetched += delivery.live.bit_count()
        return fetched

    # --- acks -------------------------------------------------------------------------------

    def ack(self, frame: AckFrame) -> None:
        """One ACK; confirmed when it is durable."""
        self._services.counters.add("acks")
        self._confirms.open(frame.number)
        bits = _bits(frame.bitmap)
        held = self._let_go(frame.tag, bits)
        outcome = self._services.engine.ack(self, frame.tag, bits)
        follow(outcome, partial(self._acked, frame.number, held))

    def nack(self, frame: Nack) -> Awaitable[None]:
        """One NACK; what is returned ends when it is durable."""
        self._services.counters.add("nacks")
        bits = _bits(frame.bitmap)
        self._let_go(frame.tag, bits)
        return self._services.engine.nack(
            self,
            frame.tag,
            bits,
            requeue=frame.requeue,
            reason=frame.reason,
            detail=frame.detail,
        )

    def _acked(self, number: int, settled: Held | None, outcome: asyncio.Future[None]) -> None:
        error = failure(outcome)
        if error is None:
            if settled is not None:
                self._note(BatchAcknowledged, settled.batch_id, settled.bits)
            self._confirms.settle(number)
        else:
            self._on_broken(error)

    def _let_go(self, tag: int, bits: Bitmap | None) -> Held | None:
        """The client has settled these messages of a delivery (None: all of them): those that it
        had not settled before."""
        held = self._held.get(tag)
        if held is None:
            return None
        left = 0 if bits is None else held.bits & ~bits
        if left:
            self._held[tag] = held._replace(bits=left)
        else:
            del self._held[tag]
            if self._full and len(self._held) < limits.MAX_HELD_BATCHES:
                self.resume()
        return held._replace(bits=held.bits & ~left)

    def _note(self, kind: type[Note], batch_id: bytes, bits: Bitmap, *queue: str) -> None:
        traffic = self._services.traffic
        if traffic.wanted:
            traffic.note(kind, batch_id.hex(), self._client, *queue, bits.bit_count())


def _bits(data: bytes) -> Bitmap | None:
    """A bitmap as it stands in ACK and NACK; None for all messages that are left."""
    return int.from_bytes(data, "little") if data else None


def _checked_credit(messages: int) -> int:
    if not 0 <= messages <= limits.MAX_CREDIT:
        raise BadRequest(f"a credit of {messages}; 0 to {limits.MAX_CREDIT} are allowed")
    return messages
