"""kombu (what Celery speaks with), unchanged, through the proxy and without it."""

from __future__ import annotations

from typing import Any

import amqp.exceptions
import kombu
import pytest

from support.roads import Road, Roads

LARGE = "x" * 20_000_000


def connection_to(road: Road, **options: Any) -> kombu.Connection:
    tls = {"ca_certs": road.authority} if road.authority else False
    return kombu.Connection(
        hostname="localhost",
        port=road.port,
        userid=road.user,
        password=road.password,
        virtual_host=road.vhost,
        transport="pyamqp",
        ssl=tls,
        **options,
    )


def converse(road: Road) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    exchange = kombu.Exchange("tasks", type="direct", durable=True)
    queue = kombu.Queue(road.name, exchange, routing_key=road.name, max_priority=3)
    with connection_to(road, transport_options={"confirm_publish": True}) as connection:
        connection.connect()
        inner = connection.connection
        seen["tuned"] = (inner.channel_max, inner.frame_max)
        producer = connection.Producer(serializer="json")
        bodies = [{"n": 1, "text": "ä"}, "", LARGE]
        for body in bodies:
            producer.publish(
                body,
                exchange=exchange,
                routing_key=road.name,
                declare=[queue],
                retry=True,
                priority=1,
            )
        found = []

        def take(body: Any, message: kombu.Message) -> None:
            found.append(body)
            seen["properties"] = {
                name: message.properties.get(name) for name in ("delivery_mode", "priority")
            }
            message.ack()

        with connection.Consumer(queue, callbacks=[take], accept=["json"], prefetch_count=1):
            while len(found) < len(bodies):
                connection.drain_events(timeout=30)
        seen["bodies"] = found == bodies
        simple = connection.SimpleQueue(f"{road.name}-simple")
        simple.put({"hello": "world"})
        message = simple.get(timeout=30)
        seen["simple"] = message.payload
        message.reject()
        with pytest.raises(simple.Empty):
            simple.get(block=False)
        simple.close()
    return seen


def test_a_conversation_is_the_same(roads: Roads) -> None:
    assert converse(roads.proxied) == converse(roads.direct)


def refusal(road: Road) -> tuple[str, str]:
    connection = connection_to(road)
    with pytest.raises((amqp.exceptions.AMQPError, OSError)) as error:
        connection.connect()
    connection.release()
    return type(error.value).__name__, str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"password": "wrong"}, {"vhost": "no such vhost"}],
    ids=["password", "vhost"],
)
def test_a_refusal_is_the_same(roads: Roads, wrong: dict[str, str]) -> None:
    elsewhere = roads.otherwise(**wrong)
    assert refusal(elsewhere.proxied) == refusal(elsewhere.direct)


@pytest.mark.parametrize("roads", ["plain"], indirect=True)
def test_heartbeats_keep_an_idle_connection(roads: Roads) -> None:
    with connection_to(roads.proxied, heartbeat=2) as connection:
        connection.connect()
        assert connection.get_heartbeat_interval() == 2
        for _ in range(9):  # as a worker's timer does it
            connection.heartbeat_check()
            try:
                connection.drain_events(timeout=0.5)
            except TimeoutError:
                continue
        assert connection.channel().is_open
