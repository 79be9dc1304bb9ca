"""Applications that keep books: what was confirmed to them, what they saw, what they settled.

They are pika's and aio-pika's users of the plain kind: confirms, acknowledgements, and connecting
anew when a connection ends. Every attempt to publish has a body of its own, so that a repetition by
the broker is told from one by the publisher.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import aio_pika
import aiormq
import pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pika.exceptions import AMQPError

WINDOW = 50
PERSISTENT = pika.BasicProperties(delivery_mode=2)
AGAIN = 0.02


@dataclass
class Books:
    """What the applications of one queue know. Threads and tasks only add to it."""

    confirmed: set[str] = field(default_factory=set)
    seen: Counter[str] = field(default_factory=Counter)
    settled: set[str] = field(default_factory=set)
    """What the broker surely knows to be acknowledged: it has answered since."""
    unmarked: set[str] = field(default_factory=set)
    """Seen without the mark of a redelivery."""
    faults: list[str] = field(default_factory=list)
    connections: Counter[str] = field(default_factory=Counter)

    def saw(self, body: str, *, redelivered: bool, before: frozenset[str]) -> None:
        """A message came over a connection that began when `before` was settled.

        Again it may come as long as nobody can know that its acknowledgement was read, and marked.
        (In which order the two copies are looked at is up to the consumers' own buffers.)
        """
        if body in before:
            self.faults.append(f"{body} came to a connection that began after it was settled")
        if body in self.unmarked and not redelivered:
            self.faults.append(f"{body} came twice and was not marked as redelivered")
        elif not redelivered:
            self.unmarked.add(body)
        self.seen[body] += 1

    @property
    def whole(self) -> bool:
        """Whether all that was confirmed has come."""
        return self.confirmed <= self.seen.keys()


class Connection(aio_pika.Connection):
    """aio-pika's would close itself, in a task, when nobody holds it any more; but who collects it
    may be one of the threads here, where no task can begin."""

    def __del__(self) -> None:
        """Nothing: what could not be opened has nothing to close."""


class Publishing:
    """Publishes without a pause until told to stop."""

    def __init__(self, name: str, url: str, queue: str, books: Books) -> None:
        self.name, self.url, self.queue, self.books = name, url, queue, books
        self.stop = threading.Event()
        self._number = 0

    def next(self) -> str:
        """A body that there never was."""
        self._number += 1
        return f"{self.name} {self._number}"

    async def aio_pika(self) -> None:
        """With many publications under way at a time."""
        while not self.stop.is_set():
            try:
                async with await aio_pika.connect(
                    self.url, connection_class=Connection
                ) as connection:
                    channel = await connection.channel()
                    self.books.connections[self.name] += 1
                    while not self.stop.is_set():
                        bodies = [self.next() for _ in range(WINDOW)]
                        results = await asyncio.gather(
                            *(self._publish(channel, body) for body in bodies),
                            return_exceptions=True,
                        )
                        for result in results:
                            if isinstance(result, BaseException):
                                raise result
            except Exception:  # noqa: BLE001  (aiormq raises that one, too, when a connection ends)
                await asyncio.sleep(AGAIN)

    async def _publish(self, channel: aio_pika.abc.AbstractChannel, body: str) -> None:
        message = Message(body.encode(), delivery_mode=DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, self.queue)
        self.books.confirmed.add(body)

    def pika(self) -> None:
        """One after another, each confirmed; in a thread."""
        while not self.stop.is_set():
            try:
                connection = pika.BlockingConnection(pika.URLParameters(self.url))
                channel = connection.channel()
                channel.confirm_delivery()
                self.books.connections[self.name] += 1
                while not self.stop.is_set():
                    body = self.next()
                    channel.basic_publish("", self.queue, body.encode(), PERSISTENT, mandatory=True)
                    self.books.confirmed.add(body)
                connection.close()
            except (AMQPError, OSError):
                self.stop.wait(AGAIN)


class Consuming:
    """Consumes and acknowledges until told to stop."""

    def __init__(self, name: str, url: str, queue: str, books: Books) -> None:
        self.name, self.url, self.queue, self.books = name, url, queue, books
        self.stop = threading.Event()

    async def aio_pika(self) -> None:
        """Each message by itself, settled by a question the queue has answered since."""
        while not self.stop.is_set():
            try:
                async with await aio_pika.connect(
                    self.url, connection_class=Connection
                ) as connection:
                    channel = await connection.channel()
                    await channel.set_qos(WINDOW)
                    before = frozenset(self.books.settled)
                    queue = await channel.declare_queue(self.queue, passive=True)
                    acknowledged: list[str] = []

                    await queue.consume(partial(self._take, acknowledged, before))
                    self.books.connections[self.name] += 1
                    ending = False
                    while not ending:
                        ending = self.stop.is_set()
                        known = list(acknowledged)
                        await channel.declare_queue(self.queue, passive=True)
                        self.books.settled.update(known)
                        del acknowledged[: len(known)]
                        await asyncio.sleep(AGAIN)
            except Exception:  # noqa: BLE001  (aiormq raises that one, too, when a connection ends)
                await asyncio.sleep(AGAIN)

    async def _take(
        self, acknowledged: list[str], before: frozenset[str], message: AbstractIncomingMessage
    ) -> None:
        body = message.body.decode()
        self.books.saw(body, redelivered=bool(message.redelivered), before=before)
        await message.ack()
        acknowledged.append(body)

    def pika(self) -> None:
        """Several with one acknowledgement; in a thread."""
        while not self.stop.is_set():
            try:
                connection = pika.BlockingConnection(pika.URLParameters(self.url))
                channel = connection.channel()
                channel.basic_qos(prefetch_count=WINDOW)
                before = frozenset(self.books.settled)
                self.books.connections[self.name] += 1
                taken: list[str] = []
                for method, properties, body in channel.consume(
                    self.queue, inactivity_timeout=AGAIN
                ):
                    if method is not None:
                        taken.append(body.decode())
                        self.books.saw(taken[-1], redelivered=method.redelivered, before=before)
                        last = method.delivery_tag
                    ending = self.stop.is_set()
                    if taken and (ending or properties is None or len(taken) >= WINDOW // 2):
                        channel.basic_ack(last, multiple=True)
                        channel.queue_declare(self.queue, passive=True)
                        self.books.settled.update(taken)
                        taken.clear()
                    if ending:
                        break
                connection.close()
            except (AMQPError, OSError):
                self.stop.wait(AGAIN)


class Newcomers:
    """Clients that come for a moment, one after another, and may never be turned away."""

    def __init__(self, url: str, queue: str, books: Books) -> None:
        self.url, self.queue, self.books = url, queue, books
        self.stop = threading.Event()
        self.served = 0
        self.turned_away: list[str] = []

    async def aio_pika(self) -> None:
        """Connect, publish one message, and go."""
        number = 0
        while not self.stop.is_set():
            number += 1
            body = f"newcomer {number}"
            try:
                async with await aio_pika.connect(
                    self.url, connection_class=Connection
                ) as connection:
                    channel = await connection.channel()
                    message = Message(body.encode(), delivery_mode=DeliveryMode.PERSISTENT)
                    await channel.default_exchange.publish(message, self.queue)
            except Exception as error:  # noqa: BLE001
                self.turned_away.append(repr(error))
            else:
                self.books.confirmed.add(body)
                self.served += 1


@dataclass
class Office:
    """All of them at work."""

    books: Books
    newcomers: Newcomers
    publishing: list[Publishing]
    consuming: list[Consuming]
    _working: list[asyncio.Future[None]] = field(default_factory=list)
    _reading: list[asyncio.Future[None]] = field(default_factory=list)

    async def progress(self, newcomers: int = 5) -> None:
        """Return when everybody has come on by a bit from now."""
        confirmed, settled = len(self.books.confirmed), len(self.books.settled)
        served = self.newcomers.served
        names = [one.name for one in self.publishing]

        def at(name: str) -> int:
            return sum(body.startswith(f"{name} ") for body in list(self.books.confirmed))

        before = {name: at(name) for name in names}
        while (
            len(self.books.confirmed) < confirmed + 300
            or len(self.books.settled) < settled + 300
            or self.newcomers.served < served + newcomers
            or any(at(name) < before[name] + 20 for name in names)
        ):
            await asyncio.sleep(0.05)

    async def finish(self) -> None:
        """No more is published; return when all that was confirmed has come, and check."""
        for one in (self.newcomers, *self.publishing):
            one.stop.set()
        await asyncio.gather(*self._working)
        while not self.books.whole:
            await asyncio.sleep(0.05)
        await self.close()
        assert self.books.faults == []

    async def close(self) -> None:
        """Everybody goes home."""
        for one in (self.newcomers, *self.publishing, *self.consuming):
            one.stop.set()
        await asyncio.gather(*self._working, *self._reading)


@asynccontextmanager
async def at_work(url: str, queue: str) -> AsyncIterator[Office]:
    """Two publishers, two consumers, each library one of both; and newcomers."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.queue_declare(queue, durable=True)
    await connection.close()
    books = Books()
    publishing = [Publishing(name, url, queue, books) for name in ("pika-out", "aio-out")]
    consuming = [Consuming(name, url, queue, books) for name in ("pika-in", "aio-in")]
    office = Office(books, Newcomers(url, queue, books), publishing, consuming)
    start = asyncio.ensure_future
    office._working += [
        start(asyncio.to_thread(publishing[0].pika)),
        start(publishing[1].aio_pika()),
        start(office.newcomers.aio_pika()),
    ]
    office._reading += [start(asyncio.to_thread(consuming[0].pika)), start(consuming[1].aio_pika())]
    try:
        async with asyncio.timeout(100):
            await office.progress()
            yield office
            await office.finish()
    finally:
        await office.close()
