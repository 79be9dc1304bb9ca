"""A node without memory: clients are told, wait, and go on, through the proxy as without it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from test_amqp_tools import command, installed, tool
from test_amqplib import HERE, modules
from test_kombu import connection_to
from test_pika import connected

from support.rabbitmq import RabbitMQ, Vhost, wait_until
from support.roads import Junction, Road

__all__ = ["installed", "modules"]


def pika_blocked(road: Road, alarm: Any) -> list[str]:
    """What pika is told, while it publishes into an alarm that ends once it has been told."""
    told: list[str] = []
    with connected(road) as connection:
        connection.add_on_connection_blocked_callback(
            lambda _, method: told.append(f"blocked: {method.method.reason}")
        )
        connection.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
        channel = connection.channel()
        channel.queue_declare("own", exclusive=True)
        with alarm():
            channel.basic_publish("", "own", b"later")
            while not told:
                connection.process_data_events(time_limit=0.1)
        while len(told) < 2:
            connection.process_data_events(time_limit=0.1)
        channel.confirm_delivery()
        channel.basic_publish("", "own", b"now", mandatory=True)
        found = [channel.basic_get("own", auto_ack=True)[2] for _ in range(2)]
        told += [body.decode() for body in found]
    return told


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_pika_is_told(junction: Junction, rabbitmq_alone: RabbitMQ, kind: str) -> None:
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        roads = junction.roads(kind, vhost.name)
        direct = pika_blocked(roads.direct, node.memory_alarm)
        assert direct == ["blocked: low on memory", "unblocked", "later", "now"]
        assert pika_blocked(roads.proxied, node.memory_alarm) == direct


async def test_a_confirm_waits_for_the_end_of_the_alarm(
    junction: Junction, rabbitmq_alone: RabbitMQ
) -> None:
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        road = junction.roads("plain", vhost.name).proxied
        async with await aio_pika.connect(road.url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("own", exclusive=True)
            with node.memory_alarm():
                message = aio_pika.Message(b"later")
                publish = channel.default_exchange.publish(message, queue.name)
                waiting = asyncio.create_task(publish)
                # The node reads nothing more of this connection, so it can't confirm.
                done, _ = await asyncio.wait([waiting], timeout=1)
                assert not done
            await waiting
            assert (await queue.get(no_ack=True)).body == b"later"


async def test_amqplib_is_told(junction: Junction, rabbitmq_alone: RabbitMQ, modules: Path) -> None:
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        for road in junction.roads("plain", vhost.name):
            process = await asyncio.create_subprocess_exec(
                *("node", str(HERE / "client.mjs"), "blocked", road.url),
                cwd=modules,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stderr is not None
            with node.memory_alarm():
                assert await process.stderr.readline() == b"blocked\n"
            out, error = await process.communicate()
            assert process.returncode == 0, error
            assert json.loads(out) == {"told": ["low on memory"], "confirmed": True}


def kombu_blocked(road: Road, alarm: Any) -> list[str]:
    """What kombu is told, as `pika_blocked`."""
    told: list[str] = []
    hooks = {"on_blocked": told.append, "on_unblocked": lambda: told.append("unblocked")}
    with connection_to(road, transport_options=hooks) as connection:
        queue = connection.SimpleQueue("own")
        with alarm():
            queue.put("later")
            while not told:
                connection.drain_events(timeout=60)
        while len(told) < 2:
            connection.drain_events(timeout=60)
        queue.put("now")
        for _ in range(2):
            message = queue.get(timeout=60)
            told.append(message.payload)
            message.ack()
        queue.close()
    return told


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_kombu_is_told(junction: Junction, rabbitmq_alone: RabbitMQ, kind: str) -> None:
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        roads = junction.roads(kind, vhost.name)
        direct = kombu_blocked(roads.direct, node.memory_alarm)
        # py-amqp has no ear for the node's own words.
        assert direct == ["connection blocked, see broker logs", "unblocked", "later", "now"]
        assert kombu_blocked(roads.proxied, node.memory_alarm) == direct


def blocked(vhost: Vhost) -> bool:
    """Whether the node has stopped reading a connection of the vhost."""
    states = (
        "[S || [{vhost, V}, {state, S}] <- rabbit_networking:connection_info_all([vhost, state])"
    )
    return "blocked" in vhost.node.evaluate(f'{states}, V =:= <<"{vhost.name}">>]')


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_amqp_tools_wait(junction: Junction, rabbitmq_alone: RabbitMQ, kind: str) -> None:
    """They do not ask to be told; what they publish is taken when the alarm has ended."""
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        for road in junction.roads(kind, vhost.name):
            assert tool(road, "declare-queue", "-q", "own")[0] == 0
            publish = command(road, "publish", "-r", "own", "-b", "later")
            with node.memory_alarm():
                process = subprocess.Popen(publish, stderr=subprocess.PIPE)
                wait_until(lambda: blocked(vhost))
                # Its Close was not read: it can't have ended.
                assert process.poll() is None
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            assert tool(road, "get", "-q", "own") == (0, b"later", "")
