"""Taking messages out of a queue once, without a receiver that stays."""

from __future__ import annotations

import asyncio

from ciphermq.client.core import Core
from ciphermq.client.deliveries import Consumer
from ciphermq.client.messages import Batch, Message
from ciphermq.client.opening import Unsealer
from ciphermq.client.settling import Settling, Teller
from ciphermq.errors import CipherMQError


async def fetch(core: Core, unsealer: Unsealer, queue: str, messages: int) -> list[Message]:
    """The oldest messages of `queue`, for the caller to settle, in whole batches.

    Raises a `ReceiverFault` when this machine can't open them now; they are given back then.
    """
    session = await core.line.session(core.patience.request)
    session.check_clock()
    await core.register(session)
    consumer = Consumer(session)
    for frame in await session.fetch(queue, messages):
        consumer.deliver(frame)
    loop = asyncio.get_running_loop()

    def tell_soon() -> None:
        # There is no next message to ask for, which would tell the acks.
        loop.call_soon(teller.tell)

    teller = Teller(None, tell_soon)
    found: list[Message] = []
    try:
        for delivery in list(consumer.held.values()):
            arrival = await unsealer.open(delivery, queue)
            if arrival is not None:
                settling = Settling(arrival.origin, arrival.live, arrival.delivery, teller)
                found += Batch(arrival.messages, arrival.origin, settling)
    except CipherMQError:
        for delivery in list(consumer.held.values()):
            delivery.nack(delivery.live, requeue=True)
        raise
    return found
