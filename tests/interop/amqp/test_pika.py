"""pika, unchanged: what it sees through the proxy is what it sees without it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from support.roads import Road, Roads

LARGE = bytes(range(256)) * 78_125  # 20 MB


@contextmanager
def connected(road: Road, **options: Any) -> Iterator[BlockingConnection]:
    parameters = pika.ConnectionParameters(
        host="localhost",
        port=road.port,
        virtual_host=road.vhost,
        credentials=pika.PlainCredentials(road.user, road.password),
        ssl_options=pika.SSLOptions(road.tls, "localhost") if road.tls else None,
        **options,
    )
    connection = BlockingConnection(parameters)
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


def converse(road: Road) -> dict[str, Any]:
    """A bit of everything; what came of it."""
    seen: dict[str, Any] = {}
    with connected(road) as connection:
        params = connection._impl.params
        seen["tuned"] = (params.channel_max, params.frame_max, params.heartbeat)
        seen["capabilities"] = sorted(connection._impl.server_capabilities.items())
        channel = connection.channel()
        seen["confirms"] = confirms(channel, road.name)
        seen["consumed"] = consumed(channel, road.name)
        seen["transactions"] = transactions(connection.channel(), road.name)
        seen["missing"] = missing(connection.channel())
        seen["cancelled"] = cancelled(connection.channel(), connection.channel(), road.name)
    return seen


def confirms(channel: BlockingChannel, queue: str) -> list[Any]:
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True)
    properties = pika.BasicProperties(headers={"n": 1, "x": [2**40, {"y": None}]}, delivery_mode=2)
    for body in (b"", b"\xce", LARGE):
        channel.basic_publish("", queue, body, properties, mandatory=True)
    with pytest.raises(pika.exceptions.UnroutableError) as error:
        channel.basic_publish("", f"{queue}-missing", b"nobody", mandatory=True)
    (returned,) = error.value.messages
    return [returned.method.reply_code, returned.method.reply_text, returned.body]


def consumed(channel: BlockingChannel, queue: str) -> list[Any]:
    found = []
    channel.basic_qos(prefetch_count=1)
    for method, properties, body in channel.consume(queue, inactivity_timeout=30):
        assert method is not None
        found.append((properties.headers, method.redelivered, hashlib.sha256(body).hexdigest()))
        channel.basic_ack(method.delivery_tag)
        if len(found) == 3:
            break
    channel.cancel()
    return found


def transactions(channel: BlockingChannel, queue: str) -> list[int]:
    channel.tx_select()
    counts = []
    for end in (channel.tx_rollback, channel.tx_commit):
        channel.basic_publish("", queue, b"one")
        channel.basic_publish("", queue, b"two")
        end()
        counts.append(channel.queue_declare(queue, passive=True).method.message_count)
    channel.queue_purge(queue)
    channel.tx_commit()
    return counts


def missing(channel: BlockingChannel) -> tuple[int, str]:
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as error:
        channel.queue_declare("missing", passive=True)
    return error.value.reply_code, error.value.reply_text


def cancelled(channel: BlockingChannel, other: BlockingChannel, queue: str) -> bool:
    """The broker says when a consumer's queue is deleted."""
    told = []
    channel.add_on_cancel_callback(lambda method: told.append(method.method.consumer_tag))
    tag = channel.basic_consume(queue, lambda *_: None)
    other.queue_delete(queue)
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        channel.connection.process_data_events(time_limit=0.1)
    return told == [tag]


def test_a_conversation_is_the_same(roads: Roads) -> None:
    direct, proxied = converse(roads.direct), converse(roads.proxied)
    for name, value in direct.items():
        assert str(proxied[name]).replace("proxied", "direct") == str(value), name


def refusal(road: Road) -> tuple[str, Any]:
    with pytest.raises(pika.exceptions.AMQPConnectionError) as error, connected(road):
        pass
    return type(error.value).__name__, error.value.args


def test_a_refusal_of_a_vhost_is_the_same(roads: Roads) -> None:
    elsewhere = roads.otherwise(vhost="no such vhost")
    assert refusal(elsewhere.proxied) == refusal(elsewhere.direct)


@pytest.mark.parametrize(
    "wrong", [{"password": "wrong"}, {"user": "nobody"}], ids=["password", "user"]
)
def test_a_refused_login_has_the_same_code_and_text(roads: Roads, wrong: dict[str, str]) -> None:
    """It comes one step later: which broker is asked depends on the vhost, so the proxy has tuned
    the connection before it can know. pika guesses the cause from the step."""
    elsewhere = roads.otherwise(**wrong)
    direct, proxied = refusal(elsewhere.direct), refusal(elsewhere.proxied)
    assert (direct[0], proxied[0]) == ("ProbableAuthenticationError", "ProbableAccessDeniedError")
    assert proxied[1] == direct[1]
    assert "(403) 'ACCESS_REFUSED - Login was refused" in str(proxied[1])


def test_heartbeats_keep_an_idle_connection(roads: Roads) -> None:
    with connected(roads.proxied, heartbeat=1) as connection:
        assert connection._impl.params.heartbeat == 1
        connection.process_data_events(time_limit=4)
        assert connection.channel().is_open
