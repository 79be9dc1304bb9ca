"""Applications that publish and consume numbered messages, and come again whenever they are sent
away: with confirms and acknowledgements, as an application must that wants to lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq

_WINDOW = 200
_AGAIN = 0.05

Properties = aiormq.spec.Basic.Properties


class _Client:
    def __init__(self, url: str, queue: str) -> None:
        self.url = url
        self.queue = queue
        self.connections = 0
        """How often it has been let in."""

    @asynccontextmanager
    async def _channel(self, *, confirms: bool) -> AsyncIterator[aiormq.abc.AbstractChannel]:
        connection = await aiormq.connect(self.url)
        try:
            channel = await connection.channel(publisher_confirms=confirms)
            self.connections += 1
            yield channel
        finally:
            with contextlib.suppress(Exception):
                await connection.close()

    async def run(self) -> None:
        """Work until everything is done, however often the connection ends."""
        while not self.done:
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, _Ended):
                await self._work()
            await asyncio.sleep(_AGAIN)

    @property
    def done(self) -> bool:
        raise AssertionError

    async def _work(self) -> None:
        raise AssertionError


class _Ended(Exception):
    """The connection did."""


class Publisher(_Client):
    """Publishes the numbers from 0 up to `limit`, which may be raised until `count` is reached,
    in order; what was not confirmed is published again."""

    def __init__(self, url: str, queue: str, count: int, *, exchange: str = "") -> None:
        super().__init__(url, queue)
        self.count = count
        self.confirmed = 0
        self._exchange = exchange
        self._limit = 0
        self._raised = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether all is confirmed."""
        return self.confirmed >= self.count

    def allow(self, limit: int) -> None:
        """Publish up to here."""
        self._limit = limit
        self._raised.set()

    async def _work(self) -> None:
        async with self._channel(confirms=True) as channel:
            while not self.done:
                while self.confirmed >= self._limit:
                    self._raised.clear()
                    # A connection that ended is noticed by using it.
                    await self._raised.wait()
                numbers = range(self.confirmed, min(self.confirmed + _WINDOW, self._limit))
                results = await asyncio.gather(
                    *(self._publish(channel, number) for number in numbers), return_exceptions=True
                )
                for result in results:
                    if isinstance(result, BaseException):
                        raise _Ended from result
                    self.confirmed += 1

    async def _publish(self, channel: aiormq.abc.AbstractChannel, number: int) -> None:
        await channel.basic_publish(
            b"%d" % number,
            exchange=self._exchange,
            routing_key=self.queue,
            properties=Properties(delivery_mode=2),
        )


class Consumer(_Client):
    """Consumes until it has seen `count` different numbers, and acknowledges each."""

    def __init__(self, url: str, queue: str, count: int) -> None:
        super().__init__(url, queue)
        self.count = count
        self.seen: list[int] = []
        self._different: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether all were there."""
        return len(self._different) >= self.count

    @property
    def in_order(self) -> list[int]:
        """What was seen, without what came again."""
        return list(dict.fromkeys(self.seen))

    async def _work(self) -> None:
        async with self._channel(confirms=False) as channel:
            ended = asyncio.Event()

            async def take(message: aiormq.abc.DeliveredMessage) -> None:
                number = int(message.body)
                self.seen.append(number)
                self._different.add(number)
                with contextlib.suppress(aiormq.exceptions.AMQPError, RuntimeError, OSError):
                    await channel.basic_ack(message.delivery.delivery_tag)
                if self.done:
                    ended.set()

            channel.closing.add_done_callback(lambda _: ended.set())
            await channel.basic_qos(prefetch_count=100)
            await channel.basic_consume(self.queue, take)
            await ended.wait()
