"""One suite for every road between clients and broker: TCP, ZeroMQ, ZeroMQ through two devices.

Whatever the road does, nothing that was confirmed is lost, and nothing is shown twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.cli import deployment as real
from ciphermq.client import Client, Inbox, Sender, connect
from ciphermq.errors import (
    CipherMQError,
    ConnectFailed,
    ConnectionLost,
    HostUnknown,
    TlsFailed,
    WaitTimeout,
)
from ciphermq.net.options import LinkOptions
from support.broker import Broker, running_broker
from support.deployment import Deployment, make_deployment
from support.devices import Device

ROADS = ("tcp", "zmq", "devices")
MESSAGES = 150
FAULTS = 5
KILLS = 6
QUICK = LinkOptions(connect_timeout=1.5, handshake_timeout=1.5, heartbeat=0.3)


class Road:
    """A broker, and the way to it."""

    def __init__(self, kind: str, deployment: Deployment, broker: Broker) -> None:
        self.kind = kind
        self.deployment = deployment
        self.broker = broker
        self.devices: list[Device] = []
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """For clients."""
        if self.kind == "tcp":
            return self.broker.url
        if self.devices:
            return f"zmq+tls://127.0.0.1:{self.devices[-1].port}"
        return self.broker.zmq_url

    def through(self, **fault: Any) -> Device:
        """One more device on the way."""
        server = self.broker.zmq_url.replace("zmq+tls:", "tcp:")
        self.devices.append(Device(self.devices[-1].address if self.devices else server, **fault))
        return self.devices[-1].start()

    async def join(self, name: str, **options: Any) -> Client:
        """A client that is connected, until the end of the test."""
        options = {"close_timeout": 5.0, "options": QUICK, "wait": 30, **options}
        return await self._stack.enter_async_context(
            connect(self.url, identity=self.deployment.load(name), **options)
        )

    async def close(self) -> None:
        await self._stack.aclose()
        for device in self.devices:
            device.kill()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return make_deployment(tmp_path_factory.mktemp("template"), ["alice", "bob"])


@pytest.fixture
def deployment(template: Deployment, tmp_path: Path) -> Deployment:
    made = real.Deployment(tmp_path / "deployment")
    shutil.copytree(template.home, made.home)
    return Deployment(made, made.open_authority(None), template.suite)


@pytest.fixture
async def take(deployment: Deployment) -> AsyncIterator[Callable[..., Awaitable[Road]]]:
    """Makes a road of a kind."""
    async with AsyncExitStack() as stack:

        async def make(kind: str, options: LinkOptions | None = None) -> Road:
            broker = await stack.enter_async_context(
                running_broker(deployment, options, zmq=kind != "tcp")
            )
            road = Road(kind, deployment, broker)
            stack.push_async_callback(road.close)
            if kind == "devices":
                road.through()
                road.through()
            return road

        yield make


@pytest.fixture(params=ROADS)
async def road(request: pytest.FixtureRequest, take: Callable[..., Awaitable[Road]]) -> Road:
    return await take(request.param)


async def receive(client: Client, count: int, **options: Any) -> list[bytes]:
    """The next `count` messages."""
    found: list[bytes] = []
    async with asyncio.timeout(60), client.receiver(limit=count, **options) as receiver:
        async for message in receiver:
            found.append(message.payload)
    return found


# --- on every road --------------------------------------------------------------------------------


async def test_messages_of_all_sizes_in_their_order(road: Road) -> None:
    alice, bob = await road.join("alice"), await road.join("bob")
    await bob.register_key()
    largest = limits.MAX_PLAINTEXT - 1024
    sent = [b"%d " % n + os.urandom((n * 7919) % 3000) for n in range(800)]
    sent[100:100] = [os.urandom(largest), b"", os.urandom(300_000), os.urandom(largest)]
    sending = asyncio.create_task(alice.sender("bob").send_many(sent))
    assert await receive(bob, len(sent)) == sent
    await sending


async def test_both_ends_know_each_other(road: Road) -> None:
    alice, admin = await road.join("alice"), await road.join("admin")
    status = await admin.status()
    assert status["server"]["connections"] == 2
    names = {session.client for session in road.broker.server.services.sessions}
    assert names == {"alice", "admin"}
    assert alice.connected


async def test_a_slow_receiver_holds_up_nobody_else(road: Road) -> None:
    alice, bob = await road.join("alice"), await road.join("bob")
    await alice.register_key()
    await bob.register_key()
    payload = os.urandom(500_000)
    await alice.sender("bob").send_many([payload] * 40)
    async with bob.receiver() as slow:
        async for _ in slow:  # it holds its first message, and the rest waits
            await alice.sender("alice").send(b"to myself")
            assert await receive(alice, 1) == [b"to myself"]
            break
    assert len(await receive(bob, 40)) == 40


async def test_a_broker_that_begins_again(road: Road, tmp_path: Path) -> None:
    alice, bob = await road.join("alice"), await road.join("bob")
    await bob.register_key()
    sender = alice.sender("bob")
    await sender.send(b"before")
    await road.broker.restart()
    async with asyncio.timeout(30):
        await sender.send(b"after")
    assert await receive(bob, 2, inbox=Inbox(tmp_path / "inbox")) == [b"before", b"after"]


async def test_connections_are_replaced_before_their_keys_are_used_up(
    take: Callable[..., Awaitable[Road]], tmp_path: Path
) -> None:
    for kind in ROADS:
        options = LinkOptions(tls_records=30)
        road = await take(kind, options)
        alice, bob = await road.join("alice"), await road.join("bob")
        await bob.register_key()
        sender = alice.sender("bob")
        for number in range(120):
            await sender.send(b"%d" % number)
        found = await receive(bob, 120, inbox=Inbox(tmp_path / f"inbox-{kind}"))
        assert found == [b"%d" % number for number in range(120)]
        assert alice._core.line.sessions > 2
        await road.close()
        await road.broker.stop()


async def test_who_is_refused_is_told_why(road: Road, tmp_path: Path) -> None:
    stranger = make_deployment(tmp_path / "other", ["alice"])
    with pytest.raises(TlsFailed, match="was not issued by the authority this side trusts"):
        await connect(road.url, identity=stranger.load("alice"))
    road.deployment.revoke("bob")
    await road.broker.restart()
    with pytest.raises(TlsFailed, match="has been revoked"):
        await connect(road.url, identity=road.deployment.load("bob"), wait=20)
    alice = await road.join("alice")  # nobody else has noticed
    assert alice.connected


async def test_nobody_is_there(deployment: Deployment) -> None:
    from ciphermq.cli.processes import free_port

    for scheme in ("cmq", "zmq+tls"):
        with pytest.raises(ConnectFailed, match="nothing listens"):
            await connect(f"{scheme}://127.0.0.1:{free_port()}", identity=deployment.load("bob"))
        with pytest.raises(HostUnknown):
            await connect(f"{scheme}://no-such-host.invalid", identity=deployment.load("bob"))


async def test_something_else_is_there(
    take: Callable[..., Awaitable[Road]], deployment: Deployment
) -> None:
    road = await take("zmq")
    for url in (
        road.broker.url.replace("cmq:", "zmq+tls:"),
        road.broker.zmq_url.replace("zmq+tls:", "cmq:"),
    ):
        with pytest.raises((TlsFailed, ConnectionLost, WaitTimeout)):
            await connect(url, identity=deployment.load("alice"), options=QUICK)


# --- roads that lose, repeat and reorder ----------------------------------------------------------


class Stream:
    """Numbered messages from alice to bob, many under way at a time, for as long as a test wants:
    what is confirmed is received, once and in its order."""

    AHEAD = 16
    LAST = b"the last"

    def __init__(self, road: Road, inbox: Path) -> None:
        self.sent: list[bytes] = []
        self._road = road
        self._inbox = inbox
        self._answers: deque[asyncio.Future[str]] = deque()

    @property
    def under_way(self) -> int:
        """Messages that are sent, and not confirmed yet."""
        return sum(not answer.done() for answer in self._answers)

    @property
    def confirmed(self) -> int:
        """Messages that the broker has on disk."""
        return len(self.sent) - self.under_way

    async def run(self, enough: Callable[[], bool]) -> Client:
        """Send until there are `enough`, and receive them all; alice."""
        alice, bob = await self._road.join("alice"), await self._road.join("bob")
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(CipherMQError):
                    await bob.register_key()
                    break
        async with asyncio.timeout(80), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(alice.sender("bob"), enough))
            receiving = tasks.create_task(self._receive(bob))
        assert receiving.result() == self.sent
        return alice

    async def _send(self, sender: Sender, enough: Callable[[], bool]) -> None:
        while not enough():
            number = len(self.sent)
            await self._post(sender, b"%d" % number + bytes(number * 7 % 5000))
            if len(self._answers) >= self.AHEAD:
                await self._answers[0]
                self._answers.popleft()
        await self._post(sender, self.LAST)
        for answer in self._answers:
            await answer

    async def _post(self, sender: Sender, payload: bytes) -> None:
        self._answers.append(await sender.post(payload))
        self.sent.append(payload)

    async def _receive(self, bob: Client) -> list[bytes]:
        found: list[bytes] = []
        async with bob.receiver(inbox=Inbox(self._inbox)) as receiver:
            async for message in receiver:
                found.append(message.payload)
                if message.payload == self.LAST:
                    break
        return found


@pytest.mark.parametrize("fault", ["lose", "repeat", "reorder"])
async def test_hostile_devices(
    take: Callable[..., Awaitable[Road]], tmp_path: Path, fault: str
) -> None:
    road = await take("zmq", QUICK)
    hostile = road.through(fault=fault, seed=7, each=80)
    road.through()
    stream = Stream(road, tmp_path / "inbox")
    await stream.run(lambda: hostile.faults >= FAULTS and stream.confirmed >= MESSAGES)
    assert hostile.faults >= FAULTS


@pytest.mark.crash
async def test_devices_that_die(take: Callable[..., Awaitable[Road]], tmp_path: Path) -> None:
    road = await take("devices", QUICK)
    stream = Stream(road, tmp_path / "inbox")
    unconfirmed: list[int] = []

    async def kill() -> None:
        for number in range(KILLS):
            due = stream.confirmed + 2 * stream.AHEAD  # some of them by a new session
            while stream.confirmed < due or not stream.under_way:
                await asyncio.sleep(0.001)
            device = road.devices[number % 2]
            device.kill()  # on this loop: nothing is confirmed meanwhile
            unconfirmed.append(stream.under_way)
            await asyncio.to_thread(device.start)

    killing = asyncio.create_task(kill())
    try:
        alice = await stream.run(killing.done)
        await killing
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    assert len(unconfirmed) == KILLS
    assert min(unconfirmed) > 0
    assert alice._core.line.sessions > KILLS  # each kill has ended one
