"""The Outbox: what was promised is sent, once, wherever its relay is killed."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ciphermq.client import Client, Inbox, Outbox
from ciphermq.client.outbox_rows import Rows, SealedRow
from ciphermq.client.publisher import Publisher
from ciphermq.client.relay import Relay
from ciphermq.errors import (
    BatchExpired,
    BatchTooLarge,
    ConnectionLost,
    QueueFull,
    StoreError,
    UnknownReceiver,
    Unroutable,
    UsageError,
    WaitTimeout,
)
from ciphermq.model.message import OutgoingMessage
from support.broker import Broker
from support.chopper import Chopper

Join = Callable[..., Awaitable[Client]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def received(client: Client, count: int, inbox: Inbox | None = None) -> list[bytes]:
    async with client.receiver(limit=count, timeout=10, inbox=inbox) as receiver:
        return [payload async for batch in receiver.batches() for payload in batch.payloads]


# --- adding -------------------------------------------------------------------------------------


async def test_what_is_added_is_sent_in_order(
    broker: Broker, alice: Client, bob: Client, path: Path
) -> None:
    with Outbox(path) as outbox:
        outbox.add("first", to="bob", headers={"n": "1"}, content_type="text/plain")
        outbox.add_many([b"second", OutgoingMessage(b"third", {"n": "3"})], to="bob")
        assert outbox.promised == 3
        assert await alice.drain(outbox) == 3
        assert outbox.promised == 0
        assert await alice.drain(outbox) == 0
    async with bob.receiver(limit=3, timeout=10) as messages:
        found = [(m.payload, dict(m.headers), m.content_type) async for m in messages]
    assert found == [
        (b"first", {"n": "1"}, "text/plain"),
        (b"second", {}, None),
        (b"third", {"n": "3"}, None),
    ]


async def test_single_messages_share_batches(
    broker: Broker, alice: Client, bob: Client, path: Path
) -> None:
    with Outbox(path) as outbox:
        with outbox.transaction():
            for number in range(2000):
                outbox.add(b"%d" % number, to="bob")
        assert await alice.drain(outbox) == 2000
    assert broker.counter("publishes") == 2
    assert await received(bob, 2000) == [b"%d" % number for number in range(2000)]


async def test_a_message_is_promised_with_the_applications_data_or_not_at_all(
    alice: Client, bob: Client, path: Path
) -> None:
    own = sqlite3.connect(path)
    own.execute("CREATE TABLE orders (what TEXT)")
    own.commit()
    outbox = Outbox(own)
    own.execute("INSERT INTO orders VALUES ('lost')")
    outbox.add(b"lost", to="bob")
    own.rollback()
    own.execute("INSERT INTO orders VALUES ('kept')")
    outbox.add(b"kept", to="bob")
    own.commit()
    with pytest.raises(ValueError, match="no"), outbox.transaction() as db:
        db.execute("INSERT INTO orders VALUES ('undone')")
        outbox.add(b"undone", to="bob")
        raise ValueError("no")
    assert own.execute("SELECT what FROM orders").fetchall() == [("kept",)]
    assert await alice.drain(outbox) == 1
    assert await received(bob, 1) == [b"kept"]
    own.close()


async def test_a_transaction_that_stays_open_stops_nobody(
    alice: Client, bob: Client, path: Path
) -> None:
    """The relay waits for the application's lock in a thread of its own."""
    with Outbox(path) as outbox:
        async with alice.relay(outbox) as relay:
            with outbox.transaction():
                outbox.add(b"x", to="bob")
                await asyncio.sleep(0.2)
            await relay.drained()
            assert relay.confirmed == 1


async def test_a_source_is_read_on_where_it_was_left(path: Path) -> None:
    lines = [b"line %d\n" % number for number in range(100)]
    for start in range(0, 100, 30):
        with Outbox(path) as outbox:
            assert outbox.position("file") == start
            assert outbox.position("other") == 0
            chunk = lines[start : start + 30]
            outbox.add_many(chunk, to="bob", source="file", position=start + len(chunk))
            with pytest.raises(BatchTooLarge):
                outbox.add_many(
                    [b"x", b"x" * 2_000_000], to="bob", source="file", position=start + 99
                )
    with Outbox(path) as outbox:
        assert outbox.position("file") == 100
        assert outbox.promised == 100


async def test_routes_are_kept_apart(
    broker: Broker, alice: Client, bob: Client, path: Path
) -> None:
    await bob.declare_queue("work")
    with Outbox(path) as outbox:
        for number in range(6):
            outbox.add(b"%d" % number, to="bob", queue="work" if number % 2 else None)
        await alice.drain(outbox)
    assert await received(bob, 3) == [b"0", b"2", b"4"]
    assert broker.queue("work") == (3, 0)


# --- the relay ----------------------------------------------------------------------------------


async def test_a_relay_goes_on_by_itself(alice: Client, bob: Client, path: Path) -> None:
    told: list[int] = []
    with Outbox(path) as outbox:
        async with alice.relay(outbox, progress=told.append) as relay:
            for number in range(3):
                outbox.add(b"%d" % number, to="bob")
                await relay.drained()
        assert told == [1, 2, 3]
    assert await received(bob, 3) == [b"0", b"1", b"2"]


async def test_what_was_sent_is_in_no_file_any_more(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, path: Path
) -> None:
    monkeypatch.setattr("ciphermq.limits.OUTBOX_WIPE", 0.01)

    def traces() -> int:
        files = [file.read_bytes() for file in path.parent.glob("outbox.db*")]
        return sum(data.count(b"marker of alice") for data in files)

    with Outbox(path) as outbox:
        outbox.add_many([b"marker of alice %d" % number for number in range(5000)], to="bob")
        assert traces() >= 5000
        await alice.drain(outbox)
        assert traces() == 0
        async with alice.relay(outbox) as relay:
            outbox.add(b"marker of alice", to="bob")
            await relay.drained()
            async with asyncio.timeout(10):
                while traces():
                    await asyncio.sleep(0.01)


async def test_a_relay_leaves_the_applications_database_as_it_is(
    alice: Client, bob: Client, path: Path
) -> None:
    own = sqlite3.connect(path)
    own.execute("CREATE TABLE orders (what TEXT)")
    path.chmod(0o640)
    outbox = Outbox(own)
    outbox.add(b"x", to="bob")
    own.commit()
    assert await alice.drain(outbox) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert own.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    own.close()
    assert await received(bob, 1) == [b"x"]


async def test_an_outbox_has_one_relay(alice: Client, bob: Client, path: Path) -> None:
    with Outbox(path) as outbox:
        async with alice.relay(outbox):
            with pytest.raises(StoreError, match="being relayed already"):
                await alice.drain(outbox)
        assert await alice.drain(outbox) == 0


async def test_an_outbox_in_memory_is_no_use(alice: Client) -> None:
    outbox = Outbox(sqlite3.connect(":memory:"))
    with pytest.raises(UsageError, match="survive nothing"):
        alice.relay(outbox)


async def test_what_can_be_mended_ends_an_impatient_relay_and_not_a_patient_one(
    monkeypatch: pytest.MonkeyPatch, alice: Client, join: Join, path: Path
) -> None:
    monkeypatch.setattr("ciphermq.limits.OUTBOX_HOLD", 0.1)
    with Outbox(path) as outbox:
        outbox.add(b"to bob", to="bob")
        outbox.add(b"to herself", to="alice")
        with pytest.raises(UnknownReceiver, match="'bob'"):
            await alice.drain(outbox)
        assert outbox.promised == 2
        async with alice.relay(outbox) as relay:
            await asyncio.sleep(0.15)
            assert relay.confirmed == 0
            bob = await join("bob")
            await bob.register_key()
            await alice.register_key()
            await relay.drained()
        assert outbox.promised == 0
    assert await received(bob, 1) == [b"to bob"]


async def test_a_refusal_of_what_is_sealed_can_be_mended_too(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, path: Path
) -> None:
    monkeypatch.setattr("ciphermq.limits.OUTBOX_HOLD", 0.1)
    with Outbox(path) as outbox:
        outbox.add(b"x", to="bob", queue="later")
        with pytest.raises(Unroutable, match="later"):
            await alice.drain(outbox)
        assert outbox.promised == 1
        async with alice.relay(outbox) as relay:
            await asyncio.sleep(0.1)
            await bob.declare_queue("later")
            await relay.drained()
    async with bob.receiver("later", limit=1, timeout=10) as messages:
        assert [message.payload async for message in messages] == [b"x"]


async def test_what_comes_back_while_the_next_is_read_from_the_outbox_goes_first(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, path: Path
) -> None:
    """Else the next one's bytes would go in its name, and it would count as confirmed."""
    monkeypatch.setattr("ciphermq.limits.OUTBOX_HOLD", 0.1)
    payloads = [b"first" * 80_000, b"second" * 80_000]
    mended = threading.Event()
    declaring: list[asyncio.Task[None]] = []
    load, landed = Rows.load, Relay._landed
    loads: list[int] = []

    def slow_load(rows: Rows, seq: int) -> bytes:
        loads.append(seq)
        if len(loads) == 2:
            assert mended.wait(10)
        return load(rows, seq)

    def landed_and_mended(relay: Relay, row: SealedRow, error: BaseException | None) -> None:
        landed(relay, row, error)
        if not declaring:
            assert isinstance(error, Unroutable)
            declaring.append(asyncio.create_task(bob.declare_queue("later")))
            declaring[0].add_done_callback(lambda _: mended.set())

    with Outbox(path) as outbox:
        outbox.add_many(payloads, to="bob", queue="later")
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "send", _killed)
            with pytest.raises(Killed):
                await alice.drain(outbox)
        monkeypatch.setattr(Rows, "load", slow_load)
        monkeypatch.setattr(Relay, "_landed", landed_and_mended)
        async with alice.relay(outbox) as relay:
            await relay.drained(10)
    async with bob.receiver("later", limit=2, timeout=10) as messages:
        assert [message.payload async for message in messages] == payloads


async def test_a_patient_relay_outlives_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, path: Path
) -> None:
    monkeypatch.setattr("ciphermq.limits.OUTBOX_HOLD", 0.01)
    move, failures = Rows.move, iter([True, True, False, True])

    def full_at_times(rows: Rows, **changes: Any) -> Any:
        if next(failures, False):
            raise StoreError("database or disk is full")
        return move(rows, **changes)

    monkeypatch.setattr(Rows, "move", full_at_times)
    with Outbox(path) as outbox:
        outbox.add(b"x", to="bob")
        async with alice.relay(outbox) as relay:
            await relay.drained(10)
        assert outbox.promised == 0
        assert next(failures, None) is None  # the last one was the note of the confirmation
        monkeypatch.setattr(Rows, "move", _killed_by_disk)
        outbox.add(b"y", to="bob")
        with pytest.raises(StoreError, match="full"):
            await alice.drain(outbox)
    assert await received(bob, 1) == [b"x"]


def _killed_by_disk(*_: Any, **__: Any) -> Any:
    raise StoreError("database or disk is full")


async def test_what_is_too_late_is_put_aside_and_the_rest_goes_on(
    alice: Client, bob: Client, path: Path
) -> None:
    with Outbox(path, clock=lambda: time.time() - 100) as outbox:
        outbox.add(b"late", to="bob", ttl=50)
        outbox.add(b"in time", to="bob", ttl=500)
        with pytest.raises(BatchExpired):
            await alice.drain(outbox)
        assert await alice.drain(outbox) <= 1
        (failed,) = outbox.failed()
        assert (failed.receivers, failed.count, failed.code) == (("bob",), 1, "batch-expired")
    assert await received(bob, 1) == [b"in time"]


async def test_an_outbox_is_not_waited_for_longer_than_said(
    broker: Broker, join: Join, bob: Client, path: Path
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url, close_timeout=0.1)
        await alice.key_record("bob")
        with Outbox(path) as outbox:
            outbox.add(b"x", to="bob")
            road.answers = False
            with pytest.raises(WaitTimeout, match=r"outbox\.db was confirmed within 0\.3 s: "):
                await alice.drain(outbox, limit=0.3)
            road.answers = True
            road.cut()
            assert await alice.drain(outbox, limit=20) == 1


async def test_a_queue_that_stays_full_is_the_reason(
    broker: Broker, alice: Client, bob: Client, path: Path
) -> None:
    await bob.declare_queue("small", max_messages=1)
    with Outbox(path) as outbox:
        outbox.add(b"fits", to="bob", queue="small")
        assert await alice.drain(outbox) == 1
        outbox.add(b"waits", to="bob", queue="small")
        async with alice.relay(outbox) as relay:
            assert relay.refusal is None
            await broker.until(lambda broker: broker.counter("publishes_returned") > 0)
            with pytest.raises(QueueFull, match=r"within 0\.1 s: the broker refuses it for now"):
                await relay.drained(0.1)
            assert isinstance(relay.refusal, QueueFull)
        assert outbox.promised == 1
        assert await bob.purge("small") == 1
        assert await alice.drain(outbox) == 1
    (message,) = await bob.fetch("small")
    assert message.payload == b"waits"


async def test_a_relay_that_is_closed_does_not_wait_for_what_is_refused(
    broker: Broker, bob: Client, join: Join, path: Path
) -> None:
    alice = await join("alice", close_timeout=3600)
    await bob.declare_queue("small", max_messages=1)
    with Outbox(path) as outbox:
        outbox.add_many([b"fits", b"waits"], to="bob", queue="small")
        outbox.add(b"waits, too", to="bob", queue="small", ttl=600)
        async with alice.relay(outbox):
            await broker.until(lambda broker: broker.counter("publishes_returned") > 0)
        assert outbox.promised == 3


async def test_sealed_batches_are_relayed_by_who_sealed_them(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, path: Path
) -> None:
    with Outbox(path) as outbox:
        outbox.add(b"x", to="bob")
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "send", _killed)
            with pytest.raises(Killed):
                await alice.drain(outbox)
        with pytest.raises(UsageError, match="relay them as 'alice', not as 'bob'"):
            await bob.drain(outbox)
        assert await alice.drain(outbox) == 1
        assert await bob.drain(outbox) == 0


# --- killed -------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here, as far as its files and its peers can see."""


def _killed(*_: Any, **__: Any) -> Any:
    raise Killed


def before(method: Any, calls: int) -> Callable[..., Any]:
    """`method`, but killed before its call number `calls` does anything."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return method(*args, **kwargs)

    return call


def after(method: Any, calls: int) -> Callable[..., Any]:
    """`method`, but killed when its call number `calls` has been done."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        result = method(*args, **kwargs)
        if count == calls:
            raise Killed
        return result

    return call


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize(
    ("where", "name", "killer"),
    [
        (Rows, "move", before),
        (Rows, "move", after),
        (Publisher, "send", before),
        (Publisher, "send", after),
        (Publisher, "confirmed", before),
    ],
)
async def test_killed_anywhere_it_sends_the_same_bytes_again(
    monkeypatch: pytest.MonkeyPatch,
    broker: Broker,
    join: Join,
    bob: Client,
    path: Path,
    where: type,
    name: str,
    killer: Callable[[Any, int], Callable[..., Any]],
    calls: int,
) -> None:
    payloads = [b"%04d" % number * 100 for number in range(3000)]
    outbox = Outbox(path)
    for start in range(0, 3000, 1000):
        outbox.add_many(payloads[start : start + 1000], to="bob")
    first = await join("alice", close_timeout=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killer(getattr(where, name), calls))
        try:
            async with asyncio.timeout(1.0):
                await first.drain(outbox)
        except (Killed, TimeoutError, ConnectionLost):
            pass
        await first.close()
    second = await join("alice")
    await second.drain(outbox)
    assert outbox.promised == 0
    outbox.close()
    assert broker.queue("bob") == (3000, 0), "stored once each"
    assert await received(bob, 3000) == payloads


async def test_a_road_that_breaks_all_the_time(
    broker: Broker, join: Join, bob: Client, path: Path
) -> None:
    payloads = [b"%05d" % number * 100 for number in range(4000)]
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        chopping = asyncio.create_task(road.chop(5, shortest=0.03, longest=0.1))
        with Outbox(path) as outbox:
            async with alice.relay(outbox) as relay:
                for start in range(0, 4000, 100):
                    outbox.add_many(payloads[start : start + 100], to="bob")
                    await asyncio.sleep(0.01)
                await relay.drained()
            assert outbox.promised == 0
        chopping.cancel()
        await asyncio.gather(chopping, return_exceptions=True)
    assert await received(bob, 4000) == payloads
    assert broker.queue("bob") == (0, 0)
