"""Start, stop, failure, backpressure, clocks, hostile clients: the whole server."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from server_rig import Rig, batch, now_ms

from ciphermq import limits
from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions
from ciphermq.engines.embedded.store import StoreOptions
from ciphermq.errors import (
    ConfigError,
    ConnectionLost,
    JournalFailed,
    JournalInUse,
    RemoteProtocolError,
    Unavailable,
)
from ciphermq.journal import Buffer, OsFiles
from ciphermq.net.address import HostPort
from ciphermq.net.options import LinkOptions
from ciphermq.server.flow import Brake, Flow
from ciphermq.server.server import Server
from ciphermq.wire.cmq2.frames import ConfirmKind, Consume, Declare, Hello, List, Ping, Reconnect
from support.broker import Broker
from support.deployment import Deployment


async def test_the_port_is_taken(rig: Rig, tmp_path) -> None:
    storage = rig.broker.settings.storage.model_copy(update={"directory": tmp_path / "other"})
    other = Broker(rig.deployment)
    other.settings = rig.broker.settings.model_copy(update={"storage": storage})
    with pytest.raises(ConfigError, match=f"127.0.0.1:{rig.broker.port}: the port is taken"):
        await other.start()
    # It left nothing behind: on a port of its own it starts on that directory.
    free = Broker(rig.deployment)
    free.settings = free.settings.model_copy(update={"storage": storage})
    await free.start()
    await free.stop()


async def test_two_brokers_on_one_directory(rig: Rig) -> None:
    other = Broker(rig.deployment)
    other.settings = other.settings.model_copy(update={"storage": rig.broker.settings.storage})
    with pytest.raises(JournalInUse):
        await other.start()
    alice = await rig.client("alice")
    assert await alice.ask(Ping) is None


async def test_the_authoritys_key_beneath_the_server(rig: Rig, deployment) -> None:
    stray = deployment.server_dir / "old" / "ca.key"
    stray.parent.mkdir()
    stray.write_text("secret")
    try:
        with pytest.raises(ConfigError, match=r"private key .*ca.key lies in the server's own"):
            await Broker(deployment).start()
    finally:
        stray.unlink()
        stray.parent.rmdir()


async def test_stopping_settles_what_is_under_way(start: Callable) -> None:
    rig = await start(server={"drain_seconds": 60.0})
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    assert await alice.send(batch(to="bob")) == ""
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    stopping = asyncio.create_task(rig.broker.stop())
    await bob.until(lambda: any(isinstance(frame, Reconnect) for frame in bob.frames))
    assert not stopping.done()  # bob holds a batch
    assert await alice.send(batch(to="bob")) == "unavailable"
    await bob.acked(bob.ack(bob.deliveries[0].tag))
    await stopping
    for client in (alice, bob):
        error = await client.ended()
        assert isinstance(error, Unavailable)
        assert "the broker is stopping" in str(error)


async def test_stopping_does_not_wait_for_ever(start: Callable) -> None:
    rig = await start(server={"drain_seconds": 0.1})
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    assert await alice.send(batch(to="bob")) == ""
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    bob.link.pause_reading()
    async with asyncio.timeout(10):
        await rig.broker.stop()
        await rig.broker.stop()
    assert not rig.broker.server.services.sessions


class MoodyDisk(OsFiles):
    """The operating system's files, until they are full or broken."""

    full = broken = False

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwritev(fd, buffers, offset)

    def preallocate(self, fd: int, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().preallocate(fd, size)

    def sync(self, fd: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


class Running:
    """A server that runs as the command runs it, on a disk of its own."""

    def __init__(self, deployment: Deployment, directory: Path) -> None:
        self.disk = MoodyDisk()
        self.broker = Broker(deployment)
        storage = self.broker.settings.storage.model_copy(update={"directory": directory})
        self.broker.settings = self.broker.settings.model_copy(update={"storage": storage})
        directory.mkdir()
        key = AtRestKey.load(storage.at_rest_key_path)
        options = EmbeddedOptions(store=StoreOptions(files=self.disk, reserve=limits.MIB))
        server = Server(
            self.broker.settings,
            EmbeddedEngine(storage.journal_directory, options=options),
            SqliteCatalog(storage.catalog_path, key),
            options=LinkOptions(linger=0.3),
        )
        self.stop = asyncio.Event()
        self.ready: asyncio.Future[HostPort] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(server.run(ready=self.ready.set_result, stop=self.stop))
        self.rig = Rig(deployment, self.broker)


@pytest.fixture
async def running(deployment: Deployment, tmp_path: Path) -> AsyncIterator[Running]:
    it = Running(deployment, tmp_path / "running")
    assert await it.ready == it.broker.settings.server.address
    yield it
    it.stop.set()
    await asyncio.wait([it.task])


async def test_run_ends_when_it_is_told_to(running: Running) -> None:
    alice = await running.rig.client("alice")
    running.stop.set()
    await running.task
    assert isinstance(await alice.ended(), Unavailable)


async def test_a_failed_sync_ends_the_server(running: Running) -> None:
    alice, _ = await running.rig.client("alice"), await running.rig.registered("bob")
    assert await alice.send(batch(to="bob")) == ""
    running.disk.broken = True
    seq = alice.publish(batch(to="bob"))
    with pytest.raises(JournalFailed, match="Input/output error"):
        await running.task
    assert isinstance(await alice.ended(), Unavailable)
    # Nothing was confirmed that might not be on the disk.
    assert alice.confirmed[ConfirmKind.PUBLISH] < seq


async def test_a_full_disk(running: Running) -> None:
    alice, bob = await running.rig.client("alice"), await running.rig.registered("bob")
    running.disk.full = True
    assert await alice.send(batch(to="bob", size=5000)) == "no-space"
    assert "no space left on the device" in alice.returned[1].message
    assert await alice.send(batch(to="bob")) == "after-refusal"
    running.disk.full = False
    async with asyncio.timeout(20):
        while await alice.send(batch(to="bob"), restart=True) == "no-space":
            await asyncio.sleep(0.2)
    await bob.ask(Consume, queue="bob", credit=10)
    await bob.until(lambda: bob.deliveries)
    assert len(bob.deliveries) == 1


# --- backpressure -----------------------------------------------------------------------------


class SlowDisk:
    """As much of an engine as `Flow` sees."""

    def __init__(self) -> None:
        self.pending_bytes = 0
        self.relief: list[Callable[[], None]] = []

    def on_relief(self, callback: Callable[[], None]) -> None:
        self.relief.append(callback)


def test_publishers_are_held_until_relief() -> None:
    disk, calls = SlowDisk(), []
    flow = Flow(disk, most=100)  # type: ignore[arg-type]
    first = Brake(lambda: calls.append("stop 1"), lambda: calls.append("go 1"))
    second = Brake(lambda: calls.append("stop 2"), lambda: calls.append("go 2"))
    disk.pending_bytes = 100
    flow.check(first)
    assert calls == []
    disk.pending_bytes = 101
    flow.check(first)
    flow.check(first)
    flow.check(second)
    assert calls == ["stop 1", "stop 2"]
    assert len(disk.relief) == 1
    assert flow.stops == 2
    flow.forget(second)
    disk.relief.pop()()
    assert calls == ["stop 1", "stop 2", "go 1"]
    flow.check(first)
    assert calls[-1] == "stop 1"
    assert len(disk.relief) == 1


def test_a_brake_has_reasons() -> None:
    calls: list[str] = []
    brake = Brake(lambda: calls.append("stop"), lambda: calls.append("go"))
    brake.hold("one")
    brake.hold("other")
    brake.hold("one")
    brake.release("one")
    brake.release("one")
    assert calls == ["stop"]
    brake.release("other")
    brake.release("none")
    assert calls == ["stop", "go"]


async def test_a_flood_is_held_back_and_loses_nothing(
    start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await start()
    monkeypatch.setattr(rig.broker.server.services.flow, "_most", 300_000)
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    sent = [batch(to="bob", size=100_000) for _ in range(60)]
    for sealed in sent:
        last = alice.publish(sealed)
    assert await alice.settled(last) == ""
    assert rig.broker.server.services.flow.stops > 0
    assert rig.broker.engine.queue("bob").messages_ready == 60


async def test_too_many_requests_at_once_are_answered_all(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_IN_WORK", 4)
    alice = await rig.client("alice")
    asked = [alice.asking(List, what="queues") for _ in range(200)]
    assert await asyncio.gather(*asked) == [[]] * 200


# --- clocks and strangers ---------------------------------------------------------------------


async def test_a_wrong_clock_is_told_of(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ciphermq")
    alice = await rig.client("alice", hello=Hello(now_ms=now_ms() - 3_600_000, software="x/1"))
    assert abs(alice.link.hello.now_ms - time.time() * 1000) < 10_000
    lines = [record.getMessage() for record in caplog.records]
    assert any("clock is wrong" in line and "client=alice" in line for line in lines)


async def test_another_version(rig: Rig) -> None:
    with pytest.raises(Exception, match="speaks version 3") as caught:
        await rig.client("alice", hello=Hello(version=3))
    assert getattr(caught.value, "code", "") != RemoteProtocolError.code


async def test_the_hello_says_what_the_server_offers(rig: Rig) -> None:
    alice = await rig.client("alice")
    hello = alice.link.hello
    assert hello.client == "alice"
    assert hello.software.startswith("ciphermq/")
    assert hello.max_publish_window == limits.MAX_PUBLISH_WINDOW
    assert hello.guarantees == {
        "partial_ack": True,
        "dedup": True,
        "atomic_fanout": True,
        "peek": True,
        "order": True,
    }


async def test_a_handler_that_fails_ends_one_connection_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault of the server's own")

    monkeypatch.setattr(rig.broker.engine, "publish", broken)
    alice.publish(batch(to="bob"))
    error = await alice.ended()
    assert error is not None
    assert error.code == "internal"
    assert "ZeroDivisionError" not in str(error)
    assert any("a request failed" in record.getMessage() for record in caplog.records)
    assert await bob.ask(Ping) is None


async def test_a_request_that_fails_is_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await rig.client("alice")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault of the server's own")

    monkeypatch.setattr(rig.broker.engine, "queues", broken)
    with pytest.raises(Exception, match="its log says more"):
        await alice.ask(List, what="queues")
    assert await alice.ask(Ping) is None


async def test_a_slow_reader_is_given_no_more_than_the_connection_holds(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    for _ in range(40):
        assert await alice.send(batch(to="bob", size=500_000)) == ""
    await bob.ask(Consume, queue="bob", credit=1000)
    await bob.until(lambda: bob.deliveries)
    bob.link.pause_reading()
    await asyncio.sleep(0.3)
    unread = rig.broker.engine.queue("bob").messages_ready
    assert unread > 0
    bob.link.resume_reading()
    await bob.until(lambda: len(bob.deliveries) == 40)


async def test_who_asks_and_does_not_read_is_not_asked_for_more(start) -> None:
    options = LinkOptions(linger=0.3, write_high_water=100_000, most_untaken=500_000)
    rig = await start(options)
    alice = await rig.client("alice")
    for number in range(200):
        await alice.ask(Declare, queue={"name": f"{number:03}" + "x" * 200})
    (channel,) = rig.broker.server.listener.channels
    alice.link.pause_reading()
    asked = 0
    untaken = 0
    answers = []
    while asked < 600:  # 30 MB of answers
        asked += 20
        answers += [alice.asking(List, what="queues") for _ in range(20)]
        await asyncio.sleep(0.002)
        untaken = max(untaken, channel.untaken)
    async with asyncio.timeout(30):
        while channel.untaken <= 500_000:
            await asyncio.sleep(0.01)
    assert max(untaken, channel.untaken) < 1_500_000
    alice.link.resume_reading()
    async with asyncio.timeout(30):
        assert [len(rows) for rows in await asyncio.gather(*answers)] == [200] * asked


async def test_who_asks_without_reading_and_leaves_is_forgotten(start) -> None:
    options = LinkOptions(linger=0.3, write_high_water=10_000, most_untaken=50_000)
    rig = await start(options)
    alice = await rig.client("alice")
    for number in range(100):
        await alice.ask(Declare, queue={"name": f"{number:03}" + "x" * 200})
    alice.link.pause_reading()
    (session,) = rig.broker.server.services.sessions
    while session.idle or not session.link.behind:
        for _ in range(20):
            alice.asking(List, what="queues")
        await asyncio.sleep(0.002)
    alice.link.abort()
    async with asyncio.timeout(5):
        while not session.idle:
            await asyncio.sleep(0.01)


async def test_a_lost_client_is_forgotten(rig: Rig) -> None:
    alice = await rig.client("alice")
    services = rig.broker.server.services
    assert len(services.sessions) == 1
    alice.link.abort()
    assert isinstance(await alice.ended(), ConnectionLost | None)
    async with asyncio.timeout(5):
        while services.sessions:
            await asyncio.sleep(0.01)
