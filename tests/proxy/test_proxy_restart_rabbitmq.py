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
import pytest
from applications import at_work
from proxy_running import alive, children, command, until

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


async def test_a_restart_goes_unnoticed_by_clients(blue: Node) -> None:
    """As long as the old process has patience, nobody has to connect again, and all who come
    meanwhile are served."""
    with blue.vhost() as vhost, Proxy(workers=2) as proxy:
        proxy.farm("blue", blue)
        proxy("MAP", "FARM", vhost.name, "blue")
        try:
            async with at_work(blue.url(vhost.name, port=proxy.listen()), "ledger") as office:
                await command(proxy, "RESTART")
                await office.progress()
                await office.finish()
                assert office.newcomers.turned_away == []
                assert set(office.books.connections.values()) == {1}
            # Its last session has ended: so does it, long before its patience.
            assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        finally:
            await command(proxy, "EXIT")
        await until(lambda: not proxy.socket.exists())


async def test_a_restart_without_patience_loses_nothing(blue: Node) -> None:
    flags = ("--handover-drain", "0.2")
    with blue.vhost() as vhost, Proxy(*flags, workers=2) as proxy:
        proxy.farm("blue", blue)
        proxy("MAP", "FARM", vhost.name, "blue")
        try:
            async with at_work(blue.url(vhost.name, port=proxy.listen()), "ledger") as office:
                await command(proxy, "RESTART")
                assert await asyncio.to_thread(proxy.process.wait, 60) == 0
                await office.progress()
                await office.finish()
                assert set(office.books.connections.values()) == {2}
        finally:
            await command(proxy, "EXIT")
        await until(lambda: not proxy.socket.exists())


@pytest.mark.crash
async def test_one_worker_killed_after_the_other_loses_nothing(blue: Node) -> None:
    with blue.vhost() as vhost, Proxy(workers=2) as proxy:
        proxy.farm("blue", blue)
        proxy("MAP", "FARM", vhost.name, "blue")
        async with at_work(blue.url(vhost.name, port=proxy.listen()), "ledger") as office:
            for number, victim in enumerate(children(proxy.process.pid)):
                os.kill(victim, signal.SIGKILL)
                await until(lambda times=number + 1: proxy.output.count("worker started") == times)
                assert sum(map(alive, children(proxy.process.pid))) == 2
                await office.progress()
            await office.finish()
            # Cut off was who was being served by a victim, once; none was refused.
            assert len(office.newcomers.turned_away) <= 2
            assert not any("refused" in error for error in office.newcomers.turned_away)
            # Two victims had all sessions between them.
            assert min(office.books.connections.values()) >= 2
