"""A node that is killed while its messages are moved: start it, move again, and all are there."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.proxy.move.main import DONE, STOPPED
from support.moving import Site
from support.proxy import Proxy
from support.rabbitmq import RabbitMQ
from support.traffic import Consumer

pytestmark = pytest.mark.crash

BACKLOG = 8000


@pytest.mark.parametrize("killed", ["blue", "green"])
async def test_a_node_that_is_killed_amid_messages(
    rabbitmq_alone: RabbitMQ, crossing: tuple[Proxy, int], killed: str, tmp_path: Path
) -> None:
    blue, green = rabbitmq_alone.start("blue"), rabbitmq_alone.start("green")
    proxy, port = crossing
    with blue.vhost() as vhost:
        site = Site(proxy, port, vhost, green, tmp_path)
        site.queue("kept")
        await site.fill("kept", BACKLOG)
        process = await site.start("--to", "green")
        await site.seen(process, "Move messages")
        while not site.green.counts().get("kept"):
            await asyncio.sleep(0.005)
        await asyncio.to_thread(rabbitmq_alone.kill, killed)
        _, said = await process.communicate()
        await asyncio.to_thread(rabbitmq_alone.start, killed)
        if process.returncode != DONE:
            assert process.returncode == STOPPED, said
            assert b"its clients are held" in said
            assert site.paused
        if site.record()["step"] != "done":
            await site.move("--to", "green")
        assert (site.farm, site.paused) == ("green", False)
        consumer = Consumer(site.url, "kept", BACKLOG)
        async with asyncio.timeout(60):
            await consumer.run()
        assert consumer.in_order == list(range(BACKLOG))
        if killed == "green":
            assert len(consumer.seen) <= BACKLOG + limits.MOVE_PREFETCH
        # A source that is killed has also forgotten acknowledgements that were not on its disk
        # yet, however many these are: such messages come again, once.
        assert max(Counter(consumer.seen).values()) <= 2
        site.close()
