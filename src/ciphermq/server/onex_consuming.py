"""Messages out to a 1.x client: pushed or fetched, and gone from their queue with its ack.

Such a client names a message by its id alone, so it is here that an id leads to what the client
holds. It acks each message once, and never what it has seen before. So it is given time without
end, and what may have been given out before is given without regard to how much it has; otherwise
what it keeps silent about would in time be all that it may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ciphermq import limits
from ciphermq.engines.face import Delivery
from ciphermq.errors import BatchError, ResourceLimit, Unavailable, refusal
from ciphermq.model import onex
from ciphermq.net.lines import LineLink
from ciphermq.server.access import Verb
from ciphermq.server.consuming import Consumer
from ciphermq.server.outcomes import disregard, follow
from ciphermq.server.services import Services
from ciphermq.telemetry import get_logger
from ciphermq.telemetry.traffic import MessageDelivered
from ciphermq.wire.lines.speech import Message, Said

_log = get_logger("server")


class Kept(NamedTuple):
    """A delivery in the client's hands."""

    tag: int
    consumer: int
    """0: it was fetched."""
    costs: bool
    """Whether it used up some of its consumer's credit."""
    what: tuple[str, str, int]
    """Which of the messages with its id: its queue, its sender, when it was published."""


class OnexConsuming:
    """One connection's deliveries; it is the engine's `Sink` and `owner` for all of them."""

    def __init__(
        self, services: Services, link: LineLink, client: str, on_broken: Callable[..., None]
    ) -> None:
        """`on_broken`: the engine ended something in a way that the client must not live with."""
        self._services = services
        self._link = link
        self._client = client
        self._on_broken = on_broken
        self._held: dict[str, list[Kept]] = {}
        self._count = 0
        self._full = False
        self._ended = False
        self.consumers: dict[int, Consumer] = {}
        self.stopping = False
        """Set when the server stops: nothing more is taken out of the queues."""

    @property
    def held(self) -> int:
        """Messages in the client's hands."""
        return self._count

    # --- what the engine sees ---------------------------------------------------------------

    @property
    def owner(self) -> object:
        """This connection."""
        return self

    @property
    def writable(self) -> bool:
        """Whether the client reads what it is given. What it may have unacked, its credit says;
        but for redeliveries, which cost none and yet have a bound."""
        if self._count >= limits.MAX_HELD_BATCHES and not self._full:
            self._full = True
            _log.warning(
                "a 1.x client acks nothing: it is given no more on this connection",
                client=self._client,
                held=self._count,
            )
        return self._link.writable and not (self._full or self.stopping or self._ended)

    def deliver(self, delivery: Delivery) -> None:
        """Push one message."""
        if self._ended:
            return
        message = self._message(delivery)
        if message is not None:
            self._link.send(message)

    def cancelled(self, consumer: int, reason: str, code: str) -> None:
        """The engine ended a consumer. 1.x has no word for it; a new connection starts anew."""
        if self.consumers.pop(consumer, None) is not None:
            self._on_broken(refusal(code, reason))

    def resume(self) -> None:
        """The connection has drained."""
        if not (self.stopping or self._ended):
            self._services.engine.writable_again(self)

    def end(self) -> None:
        """Nothing more is delivered, and what the client holds returns to the queues."""
        self._ended = True
        self.consumers.clear()
        self._held.clear()
        self._count = 0
        self._services.engine.release(self)

    def _message(self, delivery: Delivery) -> Message | None:
        """What to send, which the client holds from now on. None: it can't be sent."""
        try:
            message_id, text = onex.stored_id(delivery.sealed)
        except BatchError as error:
            # It was looked at when it came in; so this is for what an older or newer version took.
            _log.error("a stored message is none", batch_id=delivery.batch_id, reason=str(error))
            outcome = self._services.engine.nack(
                self, delivery.tag, None, requeue=False, reason=error.code, detail=str(error)
            )
            follow(outcome, disregard)
            return None
        self._services.counters.add("deliveries")
        self._keep(message_id, delivery)
        self._services.traffic.note(MessageDelivered, message_id, self._client, delivery.queue)
        return Message(message_id, text)

    def _keep(self, message_id: str, delivery: Delivery) -> None:
        """Note it. What was taken out of the client's hands to be given again, at its sender's
        wish, is the same delivery still: else each such wish would add one, and have no bound."""
        costs = bool(delivery.consumer) and not delivery.redelivered
        what = (delivery.queue, delivery.sender, delivery.published_ms)
        kept = Kept(delivery.tag, delivery.consumer, costs, what)
        mine = self._held.setdefault(message_id, [])
        for at, each in enumerate(mine):
            if each.what == what:
                mine[at] = kept if costs else each._replace(tag=kept.tag)
                return
        mine.append(kept)
        self._count += 1

    # --- what the client says ---------------------------------------------------------------

    async def consume(self, queue: str) -> None:
        """Have the queue's messages pushed, the backlog first; nothing new, if they are."""
        services = self._services
        services.access.require(self._client, Verb.CONSUME, services.queue(queue))
        if any(consumer.queue == queue for consumer in self.consumers.values()):
            return
        if len(self.consumers) >= limits.MAX_CONSUMERS_PER_CONNECTION:
            raise ResourceLimit(
                f"this connection has {limits.MAX_CONSUMERS_PER_CONNECTION} consumers already"
            )
        number = await services.engine.consume(
            queue, client=self._client, name="", credit=limits.ONEX_WINDOW, sink=self, onex=True
        )
        self.consumers[number] = Consumer(queue, "")

    async def fetch(self, queue: str) -> Message | Said:
        """The oldest message of a queue, which stays there until it is acked."""
        services = self._services
        services.access.require(self._client, Verb.CONSUME, services.queue(queue))
        if self.stopping:
            raise Unavailable("the broker is stopping")
        if self._count >= limits.MAX_HELD_BATCHES:
            raise ResourceLimit(
                f"this connection has {limits.MAX_HELD_BATCHES} messages without an ack"
            )
        while deliveries := await services.engine.fetch(
            queue, client=self._client, owner=self, messages=1, onex=True
        ):
            for delivery in deliveries:
                message = self._message(delivery)
                if message is not None:
                    return message
        return Said.NO_MESSAGES

    def ack(self, message_id: str) -> asyncio.Future[None] | None:
        """All that this connection holds with this id is done with, once the future is; None: it
        holds nothing of it, any more. What others hold with the same id stays theirs."""
        engine, last = self._services.engine, None
        found = self._held.pop(message_id, ())
        self._count -= len(found)
        for kept in found:
            if last is not None:
                follow(last, disregard)
            self._services.counters.add("acks")
            last = asyncio.ensure_future(engine.ack(self, kept.tag, None))
            if kept.costs:
                engine.add_credit(kept.consumer, 1)
        if self._full and self._count < limits.MAX_HELD_BATCHES:
            self._full = False
            self.resume()
        return last
