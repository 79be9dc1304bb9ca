"""The steps of a move, seen from within."""

from __future__ import annotations

import asyncio
import contextlib

import aiormq
import pytest

from ciphermq.proxy.move import mover
from ciphermq.proxy.move.broker import Broker, trust
from ciphermq.proxy.move.control import Proxy
from ciphermq.proxy.move.plan import Options
from ciphermq.proxy.move.record import Record, Shelf, Side
from support.moving import Site
from support.rabbitmq import Node


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.waits = asyncio.Event()

    def step(self, text: str) -> None:
        self.steps.append(text)
        if text.startswith("Wait for"):
            self.waits.set()

    def begin(self, total: int) -> None:
        pass

    def moved(self, count: int, note: str) -> None:
        pass

    def end(self) -> None:
        pass


def side(name: str, node: Node) -> Side:
    return Side(
        kind="farm",
        name=name,
        management=node.management_url,
        user=node.user,
        addresses=(("127.0.0.1", node.port, False),),
    )


async def test_a_client_that_came_past_the_proxy_is_named_once_and_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_SLOW", 0.0)
    blue, green = site.blue.node, site.green.node
    site.queue("kept")
    await site.fill("kept", 10)
    record = Record(vhost=site.vhost, source=side("blue", blue), target=side("green", green))
    told = Told()
    stranger = await aiormq.connect(blue.url(site.vhost))
    where = f"vhosts/{site.blue.quoted}/connections"
    while not await asyncio.to_thread(blue.api, "GET", where):
        await asyncio.sleep(0.1)  # its node lists it within five seconds
    async with contextlib.AsyncExitStack() as stack:
        brokers = (
            await stack.enter_async_context(Broker(record.source, blue.password, trust(None))),
            await stack.enter_async_context(Broker(record.target, green.password, trust(None))),
        )
        shelf, proxy = Shelf(site.state, site.vhost), Proxy(site.proxy.socket)
        work = mover.Mover(record, shelf, proxy, brokers, Options(), told)
        moving = asyncio.create_task(work.go_on())
        waits = asyncio.create_task(told.waits.wait())
        await asyncio.wait([moving, waits], return_when=asyncio.FIRST_COMPLETED)
        assert not moving.done(), told.steps
        assert site.paused
        await stranger.close()
        assert await moving == 10
    said = [each for each in told.steps if each.startswith("Wait for")]
    name = "127.0.0.1:"
    assert len(said) == 1
    assert said[0].startswith("Wait for 1 clients that farm blue still has, and that this proxy")
    assert said[0].count(name) == 2  # where it came from, and where to
    assert (site.farm, site.paused) == ("green", False)
