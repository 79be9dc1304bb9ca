"""The proxy replaced, and one of its workers killed, while applications work with RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq
from proxy_running import children

from support.proxy import Proxy
from support.rabbitmq import Node
from support.traffic import Consumer, Publisher

COUNT = 6000


@asynccontextmanager
async def working(url: str, queue: str) -> AsyncIterator[tuple[Publisher, Consumer]]:
    """A publisher and a consumer that are at work."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.queue_declare(queue, durable=True)
    await connection.close()
    publisher, consumer = Publisher(url, queue, COUNT), Consumer(url, queue, COUNT)
    publisher.allow(COUNT // 3)
    tasks = [asyncio.ensure_future(one.run()) for one in (publisher, consumer)]
    try:
        while len(consumer.seen) < COUNT // 6:
            await asyncio.sleep(0.01)
        yield publisher, consumer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def finish(publisher: Publisher, consumer: Consumer) -> None:
    """All of it is published and seen, in order, whatever came twice."""
    publisher.allow(COUNT)
    async with asyncio.timeout(100):
        while not (publisher.done and consumer.done):
            await asyncio.sleep(0.02)
    assert sorted(consumer.in_order) == list(range(COUNT))


async def test_a_restart_under_load_loses_nothing(blue: Node) -> None:
    with blue.vhost() as vhost, Proxy("--handover-drain", "0.2", workers=2) as proxy:
        proxy.farm("blue", blue)
        proxy("MAP", "FARM", vhost.name, "blue")
        url = blue.url(vhost.name, port=proxy.listen())
        async with working(url, "numbers") as (publisher, consumer):
            successor = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ciphermq.proxy.main", "--take-over", "--workers", "2",
                "--control", str(proxy.socket), stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                publisher.allow(2 * COUNT // 3)
                assert successor.stdout is not None
                assert b"ready" in await successor.stdout.readline()
                assert await asyncio.to_thread(proxy.process.wait, 60) == 0
                await finish(publisher, consumer)
                assert publisher.connections >= 2
                assert consumer.connections >= 2
            finally:
                with contextlib.suppress(ProcessLookupError):
                    successor.terminate()
                await successor.wait()


async def test_a_worker_killed_under_load_loses_nothing(blue: Node) -> None:
    with blue.vhost() as vhost, Proxy(workers=2) as proxy:
        proxy.farm("blue", blue)
        proxy("MAP", "FARM", vhost.name, "blue")
        url = blue.url(vhost.name, port=proxy.listen())
        async with working(url, "numbers") as (publisher, consumer):
            for victim in children(proxy.process.pid):
                os.kill(victim, signal.SIGKILL)
            await finish(publisher, consumer)
            assert publisher.connections >= 2
