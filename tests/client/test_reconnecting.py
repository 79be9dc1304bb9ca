"""Connections that break, brokers that come back, and what is kept through all of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ciphermq.client import Client, Inbox, connect
from ciphermq.errors import (
    CertificateError,
    ConnectFailed,
    ConnectionLost,
    TlsFailed,
    UsageError,
    WaitTimeout,
)
from ciphermq.net.options import LinkOptions
from support.broker import Broker, running_broker
from support.chopper import Chopper
from support.deployment import Deployment, make_deployment, now_ms

Join = Callable[..., Awaitable[Client]]


# --- the first connection ----------------------------------------------------------------------


async def test_the_first_failure_is_raised_at_once(deployment: Deployment, broker: Broker) -> None:
    await broker.stop()
    with pytest.raises(ConnectFailed, match=r"nothing listens.*is the server running"):
        async with connect(broker.url, identity=deployment.load("alice")):
            pass
    await broker.start()


async def test_a_broker_that_is_about_to_start_can_be_waited_for(
    deployment: Deployment, broker: Broker
) -> None:
    await broker.stop()
    opening = asyncio.ensure_future(
        connect(broker.url, identity=deployment.load("alice"), wait=20).__aenter__()
    )
    await asyncio.sleep(0.2)
    await broker.start()
    client = await opening
    assert client.connected
    await client.close()


async def test_who_waits_for_a_broker_waits_no_longer_than_said(
    deployment: Deployment, broker: Broker
) -> None:
    await broker.stop()
    with pytest.raises(ConnectFailed):
        await connect(broker.url, identity=deployment.load("alice"), wait=0.3)
    await broker.start()


async def test_another_authoritys_broker_is_refused(broker: Broker, tmp_path: Path) -> None:
    stranger = make_deployment(tmp_path / "other", ["alice"])
    with pytest.raises(TlsFailed):  # however long one would wait
        await connect(broker.url, identity=stranger.load("alice"), wait=math.inf)


async def test_a_client_can_be_awaited_and_closed_by_hand(
    deployment: Deployment, broker: Broker
) -> None:
    client = await connect(broker.url, identity=deployment.identity("alice"))
    assert (client.name, client.url, client.connected) == ("alice", broker.url, True)
    await client.close()
    assert not client.connected
    with pytest.raises(UsageError, match="this client is closed"):
        await client.peek("alice")


async def test_identities_are_found_by_name_and_environment(
    deployment: Deployment, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_HOME", str(deployment.home))
    monkeypatch.setenv("CIPHERMQ_URL", broker.url)
    async with connect(identity="alice") as client:
        assert client.name == "alice"
    monkeypatch.setenv("CIPHERMQ_IDENTITY", "bob")
    async with connect() as client:
        assert client.name == "bob"


# --- when it breaks ------------------------------------------------------------------------------


async def test_what_was_not_confirmed_goes_again_and_is_stored_once(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        sender = alice.sender("bob")
        await sender.send(b"0")
        road.answers = False
        sending = asyncio.create_task(sender.send(b"1"))
        await broker.until(lambda broker: broker.queue("bob")[0] == 2)
        assert not sending.done()
        road.cut()
        road.answers = True
        await sending
        assert alice.connections == 2
    assert broker.counter("publishes") == 3
    assert broker.queue("bob") == (2, 0)


async def test_requests_wait_for_the_connection(broker: Broker, alice: Client) -> None:
    await broker.stop()
    asking = asyncio.create_task(alice.peek("alice"))
    declaring = asyncio.create_task(alice.declare_queue("q"))
    await asyncio.sleep(0.1)
    await broker.start()
    await declaring
    with contextlib.suppress(Exception):
        await asking
    assert broker.queue("q") == (0, 0)


async def test_a_request_whose_answer_is_lost_says_so(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        await alice.declare_queue("q")
        road.answers = False
        purging = asyncio.create_task(alice.purge("q"))
        await asyncio.sleep(0.1)
        road.cut()
        road.answers = True
        with pytest.raises(ConnectionLost):
            await purging
        assert await alice.purge("q") == 0


async def test_an_answer_that_never_comes_is_named(broker: Broker, bob: Client, join: Join) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url, request_timeout=0.2, close_timeout=0.1)
        road.answers = False
        with pytest.raises(WaitTimeout, match=r"did not answer PURGE within 0\.2 s"):
            await alice.purge("alice")


async def test_acks_of_a_lost_connection_are_silently_late(
    broker: Broker, alice: Client, join: Join, bob: Client
) -> None:
    await alice.sender("bob").send_many([b"0", b"1", b"2"])
    async with Chopper(broker.port) as road:
        client = await join("bob", road.url)
        async with client.receiver(timeout=10) as messages:
            first = await messages.next()
            assert first is not None
            road.cut()
            await broker.until(lambda _: not client.connected)
            again = await messages.next()
            assert again is not None
            assert (again.payload, again.redelivered) == (b"0", True)
            first.ack()
            again.ack()
            rest = [await messages.next(), await messages.next()]
            for message in rest:
                assert message is not None
                message.ack()
            assert [message.payload for message in rest if message is not None] == [b"1", b"2"]
    assert broker.queue("bob") == (0, 0)


async def test_a_broker_that_restarts_is_found_again(
    broker: Broker, alice: Client, bob: Client
) -> None:
    sender = alice.sender("bob")
    seen = []
    async with bob.receiver(limit=6, timeout=20) as messages:

        async def send() -> None:
            for number in range(6):
                await sender.send(b"%d" % number)
                if number == 1:
                    await broker.restart()
                if number == 3:
                    await broker.crash()
                    await broker.start()

        sending = asyncio.create_task(send())
        async for message in messages:
            seen.append(message.payload)
        await sending
    assert sorted(set(seen)) == [b"%d" % number for number in range(6)][: len(set(seen))]
    assert alice.connections == 3


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_road_that_breaks_all_the_time_loses_and_repeats_nothing(
    broker: Broker, bob: Client, join: Join, tmp_path: Path, seed: int
) -> None:
    payloads = [b"%05d" % number * 40 for number in range(3000)]
    seen: list[bytes] = []
    async with Chopper(broker.port) as road:
        alice, receiving = await join("alice", road.url), await join("bob", road.url)
        chopping = asyncio.create_task(road.chop(seed, shortest=0.05, longest=0.3))

        async def receive() -> None:
            with Inbox(tmp_path / "inbox.db") as inbox:
                async with receiving.receiver(inbox=inbox, timeout=30) as receiver:
                    async for batch in receiver.batches():
                        with inbox.transaction(batch):
                            seen.extend(batch.payloads)
                        await asyncio.sleep(0.01)
                        if len(seen) == len(payloads):
                            batch.ack()
                            return

        receiver = asyncio.create_task(receive())
        assert await alice.sender("bob", batch_bytes=20_000).send_many(payloads) == len(payloads)
        await receiver
        chopping.cancel()
        await asyncio.gather(chopping, return_exceptions=True)
        assert road.connections > 2
    assert seen == payloads


# --- when it is to be replaced --------------------------------------------------------------------


async def test_a_connection_is_replaced_while_it_is_used(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Its TLS keys wear out soon here. Nothing is refused, lost, repeated or out of order."""
    payloads = [b"%05d" % number * 40 for number in range(30_000)]

    async def source() -> AsyncIterator[bytes]:
        for number, payload in enumerate(payloads):
            if number % 1024 == 0:
                await asyncio.sleep(0.06)  # a replacement takes a moment
            yield payload

    async with running_broker(deployment, LinkOptions(tls_records=150)) as broker:
        bob = await connect(broker.url, identity=deployment.load("bob"), close_timeout=5)
        alice = await connect(broker.url, identity=deployment.load("alice"), close_timeout=5)
        await bob.register_key()
        sending = asyncio.create_task(alice.sender("bob", batch_bytes=50_000).send_many(source()))
        seen: list[bytes] = []
        redelivered = 0
        async with bob.receiver(limit=len(payloads), timeout=20) as receiver:
            async for batch in receiver.batches():
                seen += batch.payloads
                redelivered += batch.origin.redelivered
        assert await sending == len(payloads)
        assert seen == payloads
        assert redelivered == 0
        # How often depends on how much is under way when a connection is asked to be replaced.
        assert alice.connections > 1
        assert bob.connections > 1
        await broker.until(lambda broker: broker.server.listener.connections == 2)
        assert broker.counter("publishes_returned") == 0
        await alice.close()
        await bob.close()


async def test_a_draining_broker_is_left_with_everything_settled(
    broker: Broker, alice: Client, bob: Client
) -> None:
    await alice.sender("bob").send_many([b"%d" % number for number in range(100)])
    async with bob.receiver(timeout=20) as messages:
        seen = [await messages.next() for _ in range(100)]
        for message in seen:
            assert message is not None
            message.ack()
        await broker.restart()
        assert broker.queue("bob") == (0, 0)
        await alice.sender("bob").send(b"afterwards")
        message = await messages.next()
        assert message is not None
        assert message.payload == b"afterwards"
        message.ack()


async def test_an_expired_certificate_is_told_before_the_broker_is_asked(tmp_path: Path) -> None:
    old = make_deployment(tmp_path, ["late"], at_ms=now_ms() - 400 * 86_400_000)
    with pytest.raises(CertificateError, match="renew"):
        await connect("cmq://127.0.0.1:1", identity=old.load("late"))


async def test_an_interrupted_program_does_not_wait_for_confirmations(
    broker: Broker, bob: Client, deployment: Deployment
) -> None:
    loop = asyncio.get_running_loop()
    async with Chopper(broker.port) as road:
        client = await connect(road.url, identity=deployment.load("alice"), close_timeout=20)
        sender = client.sender("bob")
        await sender.send(b"1")
        road.answers = False
        posted = await sender.post(b"2")
        began = loop.time()
        await client.close(KeyboardInterrupt())
        assert loop.time() - began < 10
        with pytest.raises(ConnectionLost, match="closed before the confirmation"):
            await posted
