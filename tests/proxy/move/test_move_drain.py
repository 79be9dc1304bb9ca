"""Messages between two real nodes: all arrive, in order, exactly as they were."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import pytest

from ciphermq import limits
from ciphermq.errors import CipherMQError, MoveError
from ciphermq.proxy.move.drain import Drain, Drained, Queue, exchange_for, is_ours
from ciphermq.proxy.move.link import Address, Link
from support.rabbitmq import Node, Vhost, wait_until

Properties = aiormq.spec.Basic.Properties


@pytest.fixture
def old(blue: Node) -> Iterator[Vhost]:
    with blue.vhost() as vhost:
        yield vhost


@pytest.fixture
def new(green: Node) -> Iterator[Vhost]:
    with green.vhost() as vhost:
        yield vhost


def address(node: Node, user: str | None = None, password: str | None = None) -> Address:
    return Address("127.0.0.1", node.port, user or node.user, password or node.password)


def declare(name: str, *vhosts: Vhost, durable: bool = True, **arguments: object) -> None:
    spelt = {f"x-{each.replace('_', '-')}": value for each, value in arguments.items()}
    for vhost in vhosts:
        body = {"durable": durable, "arguments": spelt}
        vhost.node.api("PUT", f"queues/{vhost.quoted}/{name}", body)


@asynccontextmanager
async def channel_to(vhost: Vhost) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    connection = await aiormq.connect(vhost.node.url(vhost.name))
    try:
        yield await connection.channel(publisher_confirms=True)
    finally:
        await connection.close()


async def fill(vhost: Vhost, queue: str, count: int, *, size: int = 0) -> None:
    """`count` numbered messages, confirmed."""
    connection = await aiormq.connect(vhost.node.url(vhost.name))
    channel = await connection.channel(publisher_confirms=False)
    for number in range(count):
        body = b"%d" % number
        await channel.basic_publish(body.ljust(size), routing_key=queue)
    await connection.close()
    wait_until(lambda: vhost.counts()[queue] == count)


async def read(vhost: Vhost, queue: str) -> list[Any]:
    """All messages of a queue, as a consumer gets them."""
    wanted = vhost.counts()[queue]
    found: list[Any] = []
    done = asyncio.Event()

    async def take(message: Any) -> None:
        found.append(message)
        if len(found) == wanted:
            done.set()

    async with channel_to(vhost) as channel:
        if wanted:
            await channel.basic_consume(queue, take, no_ack=True)
            await done.wait()
    return found


@asynccontextmanager
async def links(source: Vhost, target: Vhost) -> AsyncIterator[tuple[Link, Link]]:
    to = await Link.open(address(target.node), target.name)
    try:
        frm = await Link.open(address(source.node), source.name, frame_max=to.frame_max)
        try:
            yield frm, to
        finally:
            await frm.close()
    finally:
        await to.close()


async def drain(source: Vhost, target: Vhost, *queues: Queue) -> Drained:
    drained = Drained()
    async with links(source, target) as (frm, to):
        work = Drain(frm, to)
        await work.prepare()
        for queue in queues:
            await work.run(queue, drained)
    return drained


async def test_everything_about_a_message_stays(old: Vhost, new: Vhost) -> None:
    declare("kept", old, new)
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    sent = Properties(
        content_type="text/plain",
        content_encoding="utf-8",
        headers={
            "text": "ä",
            "small": -3,
            "large": 2**40,
            "real": 0.1,
            "flag": True,
            "nothing": None,
            "when": when,
            "bytes": bytearray(b"\x00\xce\xff"),
            "table": {"list": [1, "two", {"three": 3}]},
        },
        delivery_mode=2,
        priority=7,
        correlation_id="correlation",
        reply_to="amq.rabbitmq.reply-to.somebody",
        expiration="3600000",
        message_id="id",
        timestamp=when,
        message_type="type",
        app_id="app",
    )
    async with channel_to(old) as channel:
        await channel.basic_publish(b"body \xce\x00", routing_key="kept", properties=sent)
        taken = await channel.basic_get("kept", no_ack=False)
        raw = taken.header.properties.marshal()
        await channel.basic_nack(taken.delivery.delivery_tag, requeue=True)
    drained = await drain(old, new, Queue("kept"))
    assert (drained.moved, drained.expiring) == (1, True)
    (got,) = await read(new, "kept")
    assert got.body == b"body \xce\x00"
    assert got.header.properties.marshal() == raw
    assert (got.delivery.exchange, got.delivery.routing_key) == ("", "kept")
    assert old.counts() == {"kept": 0}


async def test_thousands_keep_their_order(old: Vhost, new: Vhost) -> None:
    count = limits.MOVE_PREFETCH * 3 + 17
    declare("many", old, new)
    await fill(old, "many", count)
    assert (await drain(old, new, Queue("many"))).moved == count
    assert [int(each.body) for each in await read(new, "many")] == list(range(count))


async def test_large_and_empty_messages(old: Vhost, new: Vhost) -> None:
    declare("sizes", old, new)
    bodies = [b"", b"x" * 20_000_000, b"y", b"z" * (limits.MOVE_FRAME_MAX - 8), b"\xce" * 131_073]
    async with channel_to(old) as channel:
        for body in bodies:
            await channel.basic_publish(body, routing_key="sizes")
    assert (await drain(old, new, Queue("sizes"))).moved == len(bodies)
    assert [each.body for each in await read(new, "sizes")] == bodies


async def test_more_bytes_than_may_be_on_their_way(old: Vhost, new: Vhost) -> None:
    size = limits.MOVE_IN_FLIGHT // 12
    declare("heavy", old, new)
    await fill(old, "heavy", 40, size=size)
    assert (await drain(old, new, Queue("heavy"))).moved_bytes > 40 * size
    assert [int(each.body) for each in await read(new, "heavy")] == list(range(40))


async def test_a_message_goes_to_its_queue_only_and_keeps_its_key(old: Vhost, new: Vhost) -> None:
    declare("one", old, new)
    declare("two", old, new)
    for vhost in (old, new):
        for queue in ("one", "two"):
            where = f"bindings/{vhost.quoted}/e/amq.topic/q/{queue}"
            vhost.node.api("POST", where, {"routing_key": "#"})
    async with channel_to(old) as channel:
        await channel.basic_publish(b"both", exchange="amq.topic", routing_key="a.b.c")
        copies = Properties(headers={"CC": ["two"]})
        await channel.basic_publish(b"copied", routing_key="one", properties=copies)
        await channel.basic_publish(b"named", routing_key="two")
    await drain(old, new, Queue("one"), Queue("two"))
    assert new.counts() == {"one": 2, "two": 3}
    one, two = await read(new, "one"), await read(new, "two")
    assert [each.body for each in one] == [b"both", b"copied"]
    assert [each.body for each in two] == [b"both", b"copied", b"named"]
    assert [each.delivery.routing_key for each in one] == ["a.b.c", "one"]
    assert one[1].header.properties.headers == {"CC": ["two"]}
    names = [each["name"] for each in new.node.api("GET", f"exchanges/{new.quoted}")]
    assert not any(is_ours(name) for name in names)


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (Queue("quorum", exclusive=False), {"queue_type": "quorum"}),
        (Queue("lazy"), {"queue_mode": "lazy"}),
        (Queue("single", exclusive=False), {"single_active_consumer": True}),
        (Queue("bounded"), {"max_length": 500, "overflow": "reject-publish"}),
    ],
    ids=lambda each: each.name if isinstance(each, Queue) else "",
)
async def test_types_of_queues(
    old: Vhost, new: Vhost, queue: Queue, arguments: dict[str, Any]
) -> None:
    declare(queue.name, old, new, **arguments)
    await fill(old, queue.name, 400)
    assert (await drain(old, new, queue)).moved == 400
    assert [int(each.body) for each in await read(new, queue.name)] == list(range(400))


async def test_priorities_are_kept_in_order(old: Vhost, new: Vhost) -> None:
    declare("ranked", old, new, max_priority=3)
    async with channel_to(old) as channel:
        for number in range(40):
            properties = Properties(priority=number % 4)
            await channel.basic_publish(b"%d" % number, routing_key="ranked", properties=properties)
    expected = sorted(range(40), key=lambda number: (-(number % 4), number))
    await drain(old, new, Queue("ranked"))
    assert [int(each.body) for each in await read(new, "ranked")] == expected


async def test_a_user_id_takes_the_tag_impersonator(old: Vhost, new: Vhost) -> None:
    user = f"writer-{old.name}"
    declare("signed", old, new)
    old.node.api("PUT", f"users/{user}", {"password": "pw", "tags": ""})
    rights = {"configure": "", "write": ".*", "read": ""}
    old.node.api("PUT", f"permissions/{old.quoted}/{user}", rights)
    try:
        url = f"amqp://{user}:pw@127.0.0.1:{old.node.port}/{old.quoted}"
        connection = await aiormq.connect(url)
        channel = await connection.channel(publisher_confirms=True)
        properties = Properties(user_id=user)
        await channel.basic_publish(b"mine", routing_key="signed", properties=properties)
        await connection.close()
    finally:
        old.node.api("DELETE", f"users/{user}")
    with pytest.raises(MoveError, match=f"user '{user}' published it.*impersonator"):
        await drain(old, new, Queue("signed"))
    wait_until(lambda: old.counts() == {"signed": 1})
    assert new.counts() == {"signed": 0}


async def test_a_full_target_stops_and_loses_nothing(old: Vhost, new: Vhost) -> None:
    declare("full", old)
    declare("full", new, max_length=10, overflow="reject-publish")
    await fill(old, "full", 100)
    with pytest.raises(MoveError, match="the target refused a message"):
        await drain(old, new, Queue("full"))
    wait_until(lambda: old.counts()["full"] + new.counts()["full"] >= 100)


async def test_a_missing_queue_stops_and_loses_nothing(old: Vhost, new: Vhost) -> None:
    declare("here", old)
    await fill(old, "here", 3)
    with pytest.raises(MoveError, match="404 NOT_FOUND"):
        await drain(old, new, Queue("here"))
    wait_until(lambda: old.counts() == {"here": 3})


async def test_another_consumer_is_waited_for_and_not_raced_with(old: Vhost, new: Vhost) -> None:
    declare("busy", old, new)
    await fill(old, "busy", 10)
    async with channel_to(old) as channel:
        await channel.basic_qos(prefetch_count=1)
        await channel.basic_consume("busy", lambda message: asyncio.sleep(0))
        async with links(old, new) as (frm, to):
            work = Drain(frm, to, patience=0.2)
            await work.prepare()
            with pytest.raises(MoveError, match="'busy' has a consumer that does not go away"):
                await work.run(Queue("busy"), Drained())
        waiting = asyncio.create_task(drain(old, new, Queue("busy")))
        await asyncio.sleep(0.2)
    assert (await waiting).moved == 10
    assert [int(each.body) for each in await read(new, "busy")] == list(range(10))


async def test_ending_it_leaves_nothing_in_both_queues(old: Vhost, new: Vhost) -> None:
    """Ctrl-C: what is under way arrives, the rest stays where it is."""
    count = 20_000
    declare("cut", old, new)
    await fill(old, "cut", count)
    drained = Drained()
    async with links(old, new) as (frm, to):
        work = Drain(frm, to)
        await work.prepare()
        running = asyncio.create_task(work.run(Queue("cut"), drained))
        while drained.moved < 100 and not running.done():
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    there = new.counts()["cut"]
    assert there == drained.moved >= 100
    here = count - there
    wait_until(lambda: old.counts()["cut"] == here)
    assert (await drain(old, new, Queue("cut"))).moved == here
    assert [int(each.body) for each in await read(new, "cut")] == list(range(count))


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_connection_that_breaks_doubles_a_few_and_loses_none(
    old: Vhost, new: Vhost, side: str
) -> None:
    count = 20_000
    declare("torn", old, new)
    await fill(old, "torn", count)
    drained = Drained()
    async with links(old, new) as (frm, to):
        work = Drain(frm, to)
        await work.prepare()
        running = asyncio.create_task(work.run(Queue("torn"), drained))
        while drained.moved < 100 and not running.done():
            await asyncio.sleep(0)
        (frm if side == "source" else to).abort()
        (error,) = await asyncio.gather(running, return_exceptions=True)
        assert error is None or isinstance(error, CipherMQError)
    await drain(old, new, Queue("torn"))
    numbers = [int(each.body) for each in await read(new, "torn")]
    assert list(dict.fromkeys(numbers)) == list(range(count))
    assert count <= len(numbers) <= count + limits.MOVE_PREFETCH


def test_a_long_name_has_an_exchange_too() -> None:
    assert exchange_for("short") == "ciphermq.move.short"
    long = "ü" * 127
    assert len(exchange_for(long).encode()) <= limits.MAX_NAME
    assert exchange_for(long) != exchange_for("ö" * 127)
    assert is_ours(exchange_for(long))
