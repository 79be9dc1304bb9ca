"""aio-pika, unchanged: what it sees through the proxy is what it sees without it."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import aiormq
import pytest
from aio_pika import DeliveryMode, Message

from support.roads import Road, Roads

LARGE = bytes(range(256)) * 78_125  # 20 MB


async def connect(road: Road, **options: Any) -> Any:
    more = {"ssl_context": road.tls} if road.tls else {}
    return await aio_pika.connect(road.url, **more, **options)


async def converse(road: Road) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    async with await connect(road) as connection:
        tune = connection.transport.connection.connection_tune
        seen["tuned"] = (tune.channel_max, tune.frame_max, tune.heartbeat)
        channel = await connection.channel()
        exchange = await channel.declare_exchange(f"{road.name}-topics", "topic", durable=True)
        queue = await channel.declare_queue(road.name, durable=True, arguments={"x-max-length": 99})
        await queue.bind(exchange, "a.*")
        bodies = [b"", b"tiny", LARGE]
        for body in bodies:
            message = Message(body, delivery_mode=DeliveryMode.PERSISTENT, headers={"n": 2**40})
            confirmed = await exchange.publish(message, "a.b")
            seen.setdefault("confirmed", []).append(type(confirmed).__name__)
        seen["messages"] = []
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    seen["messages"].append((message.body == bodies[len(seen["messages"])],))
                    seen["headers"] = dict(message.headers)
                if len(seen["messages"]) == len(bodies):
                    break
        strict = await connection.channel(on_return_raises=True)
        strictly = await strict.get_exchange(f"{road.name}-topics")
        with pytest.raises(aio_pika.exceptions.DeliveryError) as error:
            await strictly.publish(Message(b"nobody"), "nowhere")
        returned = error.value.frame
        seen["returned"] = (returned.reply_code, returned.reply_text, returned.routing_key)
    async with await connect(road) as connection:
        channel = await connection.channel(publisher_confirms=False)
        async with channel.transaction():
            await channel.default_exchange.publish(Message(b"kept"), road.name)
        with pytest.raises(ZeroDivisionError):
            async with channel.transaction():
                await channel.default_exchange.publish(Message(b"not kept"), road.name)
                raise ZeroDivisionError
        declared = await channel.declare_queue(road.name, passive=True)
        seen["transactions"] = declared.declaration_result.message_count
    return seen


async def test_a_conversation_is_the_same(roads: Roads) -> None:
    direct, proxied = await converse(roads.direct), await converse(roads.proxied)
    for name, value in direct.items():
        assert str(proxied[name]).replace("proxied", "direct") == str(value), name


async def refusal(road: Road) -> tuple[str, str]:
    with pytest.raises(aiormq.exceptions.AMQPError) as error:
        await connect(road)
    return type(error.value).__name__, str(error.value)


async def test_a_refusal_of_a_vhost_is_the_same(roads: Roads) -> None:
    elsewhere = roads.otherwise(vhost="no such vhost")
    direct, proxied = await refusal(elsewhere.direct), await refusal(elsewhere.proxied)
    # The text names an object by its address in memory.
    assert [proxied[0], proxied[1].split(" at ")[0]] == [direct[0], direct[1].split(" at ")[0]]


async def test_a_refused_login_comes_one_step_later(roads: Roads) -> None:
    """Which broker is asked depends on the vhost, so the proxy has tuned the connection before it
    can know. aiormq knows a refused login by the step, and calls any later Close unexpected."""
    elsewhere = roads.otherwise(password="wrong")
    direct, proxied = await refusal(elsewhere.direct), await refusal(elsewhere.proxied)
    assert (direct[0], proxied[0]) == ("ProbableAuthenticationError", "InvalidFrameError")
    assert "Connection.Close" in proxied[1]


@pytest.mark.parametrize("roads", ["plain"], indirect=True)
async def test_heartbeats_keep_an_idle_connection(roads: Roads) -> None:
    url = f"{roads.proxied.url}?heartbeat=1"
    more = {"ssl_context": roads.proxied.tls} if roads.proxied.tls else {}
    async with await aio_pika.connect(url, **more) as connection:
        await asyncio.sleep(4)
        channel = await connection.channel()
        assert (await channel.declare_queue("")).name


async def test_many_connections_at_once(roads: Roads) -> None:
    connections = await asyncio.gather(*(connect(roads.proxied) for _ in range(50)))
    channels = await asyncio.gather(*(each.channel() for each in connections))
    queues = await asyncio.gather(*(each.declare_queue("", exclusive=True) for each in channels))
    for channel, queue in zip(channels, reversed(queues), strict=True):
        await channel.default_exchange.publish(Message(queue.name.encode()), queue.name)
    for queue in queues:
        message = await queue.get(no_ack=True)
        assert message.body.decode() == queue.name
    await asyncio.gather(*(each.close() for each in connections))
