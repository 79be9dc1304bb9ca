"""``vhost move`` between two real nodes, behind the real proxy, as an operator calls it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ciphermq.proxy.move.arguments import SOURCE_VARIABLE, TARGET_VARIABLE
from ciphermq.proxy.move.drain import is_ours
from ciphermq.proxy.move.main import DONE
from support.proxy import Proxy
from support.rabbitmq import Node, Vhost
from support.traffic import Consumer, Publisher

CTL = Path(sys.executable).with_name("ciphermq-proxy-ctl")


class Site:
    """A vhost at a blue node, behind a proxy, with a green node beside it."""

    def __init__(self, proxy: Proxy, blue: Vhost, green: Node, state: Path) -> None:
        self.proxy = proxy
        self.blue = blue
        self.green = Vhost(green, blue.name)
        self.vhost = blue.name
        self.state = state
        self.port = proxy.listen()
        self.user = f"app-{blue.name}"
        self._password = secrets.token_hex(8)
        proxy.farm("blue", blue.node)
        proxy.farm("green", green)
        proxy("MAP", "FARM", self.vhost, "blue")
        # Known to the old broker only: the move has to bring it along.
        user = {"password": self._password, "tags": ""}
        blue.node.api("PUT", f"users/{self.user}", user)
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        blue.node.api("PUT", f"permissions/{blue.quoted}/{self.user}", rights)

    def close(self) -> None:
        for node in (self.blue.node, self.green.node):
            node.api("DELETE", f"users/{self.user}")
            node.api("DELETE", f"vhosts/{self.blue.quoted}")

    @property
    def url(self) -> str:
        """Where applications connect to."""
        return f"amqp://{self.user}:{self._password}@127.0.0.1:{self.port}/{self.blue.quoted}"

    def queue(self, name: str, *, at: Vhost | None = None, **more: Any) -> None:
        vhost = at or self.blue
        vhost.node.api("PUT", f"queues/{vhost.quoted}/{name}", {"durable": True} | more)

    @property
    def farm(self) -> str:
        """Where the vhost is mapped to."""
        target: dict[str, str] = self.proxy.json("MAP", "PRINT")["vhosts"][self.vhost]
        return target["farm"]

    @property
    def paused(self) -> bool:
        vhosts: dict[str, dict[str, bool]] = self.proxy.json("VHOST", "PRINT")
        return vhosts.get(self.vhost, {}).get("paused", False)

    # --- the command ----------------------------------------------------------------------------

    async def start(self, *words: str, socket: Path | None = None) -> Process:
        blue, green = self.blue.node, self.green.node
        return await asyncio.create_subprocess_exec(
            *(str(CTL), str(socket or self.proxy.socket), "vhost", "move", self.vhost, *words),
            *("--state", str(self.state)),
            *("--source", f"http://{blue.user}@127.0.0.1:{blue.management}"),
            *("--target", f"http://{green.user}@127.0.0.1:{green.management}"),
            env=os.environ | {SOURCE_VARIABLE: blue.password, TARGET_VARIABLE: green.password},
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )

    async def move(self, *words: str, expect: int = DONE, socket: Path | None = None) -> str:
        """Run it to its end; what it printed, first its result and then its progress."""
        process = await self.start(*words, socket=socket)
        out, err = await process.communicate()
        text = out.decode() + err.decode()
        assert process.returncode == expect, text
        for password in (self.blue.node.password, self.green.node.password):
            assert password not in text
        return text

    def record(self) -> dict[str, Any]:
        (path,) = self.state.glob("*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture
def site(blue: Node, green: Node, tmp_path: Path) -> Iterator[Site]:
    with Proxy() as proxy, blue.vhost() as vhost:
        made = Site(proxy, vhost, green, tmp_path / "state")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
async def running() -> AsyncIterator[asyncio.TaskGroup]:
    """Applications that are ended with the test, if they have not ended by themselves."""
    async with asyncio.TaskGroup() as group:
        yield group
        for task in tuple(group._tasks):
            task.cancel()


async def finished(*clients: Publisher | Consumer, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not all(client.done for client in clients):
            await asyncio.sleep(0.05)


# --- there and back ------------------------------------------------------------------------------


async def test_there_and_back_while_applications_work(
    site: Site, running: asyncio.TaskGroup
) -> None:
    count, moves = 3000, 4
    site.queue("busy")
    site.queue("kept")
    publishers = [Publisher(site.url, "busy", count), Publisher(site.url, "kept", count)]
    consumer = Consumer(site.url, "busy", count)
    for client in (*publishers, consumer):
        running.create_task(client.run())
    for number in range(moves):
        for publisher in publishers:
            publisher.allow(count * (number + 1) // moves)
        there = number % 2 == 0
        await site.move(*(("--to", "green") if there else ("--back",)))
        assert site.farm == ("green" if there else "blue")
        assert not site.paused
    await finished(*publishers, consumer)
    assert consumer.in_order == list(range(count))
    assert site.green.counts() == {"busy": 0, "kept": 0}
    late = Consumer(site.url, "kept", count)
    await late.run()
    assert late.in_order == list(range(count))
    assert consumer.connections > 1
    for vhost in (site.blue, site.green):
        exchanges = vhost.node.api("GET", f"exchanges/{vhost.quoted}")
        assert not any(is_ours(each["name"]) for each in exchanges)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_times_there_and_back_under_load(site: Site, running: asyncio.TaskGroup) -> None:
    """100,000 numbered messages, all arrive, in the order of each queue."""
    moves, count = 20, 25_000
    busy, kept = ["one", "two", "three"], "four"
    for name in (*busy, kept):
        site.queue(name)
    publishers = [Publisher(site.url, name, count) for name in (*busy, kept)]
    consumers = [Consumer(site.url, name, count) for name in busy]
    for client in (*publishers, *consumers):
        running.create_task(client.run())
    for number in range(moves):
        # Each move meets publishers that have work to do, on a fast machine as on a slow one.
        for publisher in publishers:
            publisher.allow(count * (number + 1) // moves)
        await site.move(*(("--to", "green") if number % 2 == 0 else ("--back",)))
    await finished(*publishers, *consumers, seconds=200)
    last = Consumer(site.url, kept, count)
    await last.run()
    for consumer in (*consumers, last):
        assert consumer.in_order == list(range(count))
    assert sum(site.blue.counts().values()) == 0
