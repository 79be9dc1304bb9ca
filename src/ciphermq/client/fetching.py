"""Taking messages out of a queue once, without a receiver that stays."""

from __future__ import annotations

from collections.abc import Sequence

from ciphermq.client.core import Core
from ciphermq.client.deliveries import Consumer
from ciphermq.client.inbox import Arrival
from ciphermq.client.messages import Batch, Message
from ciphermq.client.opening import Unsealer
from ciphermq.client.settling import Settling, Teller
from ciphermq.errors import CipherMQError


async def fetch(core: Core, unsealer: Unsealer, queue: str, messages: int) -> list[Arrival]:
    """The oldest messages of `queue`, in whole batches, opened.

    Raises a `ReceiverFault` when this machine can't open them now; they are given back then.
    """
    session = await core.line.session(core.patience.request)
    session.check_clock()
    await core.register(session)
    consumer = Consumer(session)
    for frame in await session.fetch(queue, messages):
        consumer.deliver(frame)
    arrivals: list[Arrival] = []
    try:
        for delivery in list(consumer.held.values()):
            arrival = await unsealer.open(delivery, queue)
            if arrival is not None:
                arrivals.append(arrival)
    except CipherMQError:
        for delivery in list(consumer.held.values()):
            delivery.nack(delivery.live, requeue=True)
        raise
    return arrivals


def messages_of(arrivals: Sequence[Arrival]) -> list[Message]:
    """All messages of these, each of which tells the broker at once how it was settled: there is
    no next one to be asked for."""

    def tell() -> None:
        teller.tell()

    teller = Teller(None, tell)
    return [
        message
        for arrival in arrivals
        for message in Batch(
            arrival.messages,
            arrival.origin,
            Settling(arrival.origin, arrival.live, arrival.delivery, teller),
        )
    ]
