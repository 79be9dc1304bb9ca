"""The nodes themselves: what the other tests here take for granted."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import aiormq

from support.rabbitmq import Node, RabbitMQ


async def test_a_message_survives_the_kill_of_its_node(rabbitmq_alone: RabbitMQ) -> None:
    node = rabbitmq_alone.start("blue")
    with node.vhost() as vhost:
        connection = await aiormq.connect(node.url(vhost.name))
        channel = await connection.channel(publisher_confirms=True)
        await channel.queue_declare("kept", durable=True)
        properties = aiormq.spec.Basic.Properties(delivery_mode=2)
        await channel.basic_publish(b"here", routing_key="kept", properties=properties)
        await asyncio.to_thread(rabbitmq_alone.kill, "blue")
        await asyncio.gather(connection.close(), return_exceptions=True)
        again = await asyncio.to_thread(rabbitmq_alone.start, "blue")
        assert again == node
        assert vhost.counts() == {"kept": 1}


def test_an_alarm_is_raised_and_ends(rabbitmq_alone: RabbitMQ) -> None:
    node = rabbitmq_alone.start("blue")
    with node.memory_alarm():
        assert "memory" in node.evaluate("rabbit_alarm:get_alarms()")
    assert not node.alarmed()


def test_a_node_answers_several_at_a_time(blue: Node) -> None:
    """As it must: tests that run beside each other ask one node for what their queues have."""

    def ask(caller: int) -> list[str]:
        return [blue.evaluate(f"{caller} + {number}") for number in range(20)]

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(ask, range(4)))
    assert answers == [[str(caller + number) for number in range(20)] for caller in range(4)]


def test_two_nodes_know_nothing_of_each_other(blue: Node, green: Node) -> None:
    assert {blue.port, blue.tls_port}.isdisjoint({green.port, green.tls_port})
    with blue.vhost() as vhost:
        assert green.api("GET", f"vhosts/{vhost.quoted}") is None
    assert blue.api("GET", f"vhosts/{vhost.quoted}") is None
