from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from disk import MoodyFiles, flip
from engine_kit import Consumer, batch, consume, fetch, fetch_soon, publish, until

from ciphermq import limits
from ciphermq.broker import BrokerLimits
from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions
from ciphermq.engines.embedded.store import StoreOptions
from ciphermq.errors import JournalInUse, NoSpace, QueueFull, ResourceLimit, Unavailable
from ciphermq.limits import KIB
from ciphermq.model.topology import QueueSpec

Open = Callable[..., Awaitable[EmbeddedEngine]]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Open]:
    """Starts engines over one directory, and stops them all in the end."""
    engines: list[EmbeddedEngine] = []

    async def start(
        *,
        fresh: int = limits.FRESH_PAYLOADS,
        segment_size: int = limits.SEGMENT_SIZE,
        reserve: int = limits.MIB,
        files: MoodyFiles | None = None,
        **bounds: int,
    ) -> EmbeddedEngine:
        options = EmbeddedOptions(
            broker=BrokerLimits(**bounds),
            store=StoreOptions(segment_size=segment_size, reserve=reserve, files=files),
            fresh_payloads=fresh,
        )
        engine = EmbeddedEngine(tmp_path / "journal", options=options)
        await engine.start()
        engines.append(engine)
        if engine.queue("q") is None:
            await engine.declare_queue(QueueSpec("q"))
        return engine

    yield start
    for engine in engines:
        await engine.stop()


async def ack_all(engine: EmbeddedEngine, queue: str = "q", batches: int = 10**6) -> int:
    """Take and ack so many batches; how many there were."""
    owner, taken = object(), 0
    while taken < batches and (
        got := await engine.fetch(queue, client="r", owner=owner, messages=1)
    ):
        await asyncio.gather(*[engine.ack(owner, each.tag, None) for each in got])
        taken += len(got)
    return taken


# --- where the bytes come from ------------------------------------------------------------------


async def test_a_consumer_that_keeps_up_is_served_from_memory(running: Open) -> None:
    engine = await running()
    _, consumer = await consume(engine)
    await publish(engine, *[batch(size=1000) for _ in range(50)])
    await until(lambda: len(consumer.got) == 50, "all of them")
    assert engine.stats()["payloads_read"] == 0
    await asyncio.gather(*[engine.ack(consumer, got.tag, None) for got in consumer.got])
    assert engine.stats()["payloads_in_memory_bytes"] == 0


async def test_what_waits_long_is_read_back_and_memory_stays_bounded(running: Open) -> None:
    engine = await running(fresh=20_000)
    sent = [batch(size=3000) for _ in range(30)]
    await publish(engine, *sent)
    assert int(engine.stats()["payloads_in_memory_bytes"]) <= 20_000
    got = await fetch(engine, messages=30)
    assert [bytes(each.sealed) for each in got] == [bytes(each.sealed) for each in sent]
    assert 20 <= int(engine.stats()["payloads_read"]) < 30


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_is_taken(running: Open, kind: Callable[[bytes], bytes]) -> None:
    engine = await running(fresh=1)
    sent = batch(size=2000)
    await engine.publish(type(sent)(sent.client, sent.header, kind(bytes(sent.sealed))))
    (got,) = await fetch(engine)
    assert got.sealed == sent.sealed
    repeat = await engine.publish(sent)
    assert repeat.duplicate


async def test_order_holds_between_disk_and_memory(running: Open) -> None:
    engine = await running(fresh=50 * KIB)
    rng = random.Random(5)
    sent = [batch(size=rng.choice([100, 5000, 200 * KIB])) for _ in range(60)]
    await publish(engine, *sent[:40])
    _, consumer = await consume(engine)
    for each in sent[40:]:
        await publish(engine, each)
    await until(lambda: len(consumer.got) == 60, "all of them")
    assert consumer.ids() == [each.header.batch_id for each in sent]
    assert [bytes(got.sealed) for got in consumer.got] == [bytes(each.sealed) for each in sent]


async def test_reading_ahead_is_bounded(running: Open) -> None:
    engine = await running(fresh=1)
    size = limits.READ_AHEAD // 4
    await publish(engine, *[batch(size=size) for _ in range(12)])
    _, consumer = await consume(engine)
    most = 0
    async with asyncio.timeout(20):
        while len(consumer.got) < 12:
            await asyncio.sleep(0)
            most = max(most, engine.stats()["deliveries"] - len(consumer.got))
    assert most <= 5


async def test_a_consumer_that_ends_while_its_batches_are_read(
    running: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await running(fresh=1)
    sent = [batch(size=1000) for _ in range(5)]
    await publish(engine, *sent)
    read, ended = engine._payloads._read_all, threading.Event()

    def read_when_it_has_ended(*arguments: Any) -> Any:
        assert ended.wait(20)
        return read(*arguments)

    monkeypatch.setattr(engine._payloads, "_read_all", read_when_it_has_ended)
    for end in ("cancel", "cancel and let go", "lose", "delete"):
        ended.clear()
        number, consumer = await consume(engine)
        await until(lambda: engine.stats()["deliveries"] == 5, "all in hand")
        if end == "lose":
            engine.release(consumer)
        elif end == "delete":
            assert await engine.delete_queue("q") == 5
        else:
            await engine.cancel(number, release=end.endswith("go"))
        ended.set()
        await until(lambda: engine.stats()["deliveries"] == 0, "nothing in hand")
        await asyncio.sleep(0.05)
        assert consumer.got == []
        if end == "cancel":
            first = await fetch(engine)
            assert not first[0].redelivered  # it never reached anybody
            engine.release(engine._broker._state.deliveries._held[first[0].tag].owner)


async def test_one_slow_reader_does_not_hold_up_another(running: Open) -> None:
    engine = await running(fresh=1)
    await engine.declare_queue(QueueSpec("p"))
    await publish(engine, *[batch(size=400 * KIB) for _ in range(10)], batch("p"))
    _, slow = await consume(engine)
    slow.writable = False
    _, fast = await consume(engine, "p")
    await until(lambda: len(fast.got) == 1, "the other queue's")
    assert slow.got == []
    slow.writable = True
    engine.writable_again(slow)
    await until(lambda: len(slow.got) == 10, "all of them")


# --- damage -------------------------------------------------------------------------------------


async def test_a_damaged_batch_is_set_aside_and_reported(running: Open, tmp_path: Path) -> None:
    engine = await running(fresh=1)
    sent = [batch(size=1000, filler=n) for n in range(5)]
    await publish(engine, *sent)
    flip(tmp_path / "journal", bytes(sent[2].sealed))
    _, consumer = await consume(engine)
    await until(lambda: len(consumer.got) == 4, "the others")
    assert consumer.ids() == [sent[n].header.batch_id for n in (0, 1, 3, 4)]
    assert engine.stats()["damaged_deliveries"] == 1
    async with asyncio.timeout(20):
        while engine.queue("dead.q") is None or not await engine.peek("dead.q", batches=5):
            await asyncio.sleep(0.002)
    (seen,) = await engine.peek("dead.q", batches=5)
    assert seen.batch_id == sent[2].header.batch_id
    assert (seen.header.sender, seen.header.count) == ("sender", 1)
    assert seen.dead is not None
    assert seen.dead.reason == "payload-damaged"
    assert "checksum" in seen.dead.detail
    assert await fetch(engine, "dead.q") == []
    assert engine.queue("dead.q").messages_ready == 1
    assert await engine.purge("dead.q") == 1


async def test_a_fetch_passes_over_what_is_damaged(running: Open, tmp_path: Path) -> None:
    engine = await running(fresh=1)
    sent = [batch(size=1000, filler=n) for n in range(3)]
    await publish(engine, *sent)
    flip(tmp_path / "journal", bytes(sent[0].sealed))
    (got,) = await fetch(engine, messages=1)
    assert got.batch_id == sent[1].header.batch_id


async def test_a_damaged_batch_does_not_stop_compaction(running: Open, tmp_path: Path) -> None:
    engine = await running(fresh=1, segment_size=64 * KIB)
    first = [batch(size=1000, filler=n) for n in range(3)]
    await publish(engine, *first)
    flip(tmp_path / "journal", bytes(first[1].sealed))
    await engine.declare_queue(QueueSpec("other"))
    for _ in range(60):
        await publish(engine, *[batch("other", size=4000) for _ in range(4)])
        await ack_all(engine, "other")
    await until(lambda: int(engine.stats()["compaction_dropped_segments"]) > 0, "a drop")
    assert [each.batch_id for each in await fetch(engine, messages=2)] == [
        first[n].header.batch_id for n in (0, 2)
    ]
    for _ in range(2):
        (seen,) = await engine.peek("dead.q", batches=5)
        assert seen.batch_id == first[1].header.batch_id
        assert seen.header.sender == "sender"
        assert await fetch(engine, "dead.q") == []
        await engine.stop()
        engine = await running(fresh=1, segment_size=64 * KIB)


# --- compaction ---------------------------------------------------------------------------------


async def test_dead_segments_are_dropped_and_what_lives_is_kept(running: Open) -> None:
    engine = await running(segment_size=64 * KIB)
    await engine.declare_queue(QueueSpec("keep", max_tries=5))
    kept = [batch("keep", count=3, size=500) for _ in range(20)]
    passed = batch(size=100)
    await publish(engine, passed, *kept[:10])
    await ack_all(engine)
    owner = object()
    (got,) = await engine.fetch("keep", client="r", owner=owner, messages=1)
    await engine.ack(owner, got.tag, 0b001)
    await engine.nack(owner, got.tag, 0b010, requeue=True)
    await engine.nack(owner, got.tag, 0b100, requeue=False, reason="no")
    for n in range(60):
        await publish(engine, *[batch(size=3000) for _ in range(5)])
        if n == 30:
            await publish(engine, *kept[10:])
        await ack_all(engine)
    await until(lambda: int(engine.stats()["journal_segments"]) <= 5, "segments to be dropped")
    assert int(engine.stats()["compaction_dropped_segments"]) > 5
    assert int(engine.stats()["compaction_copied_batches"]) >= 10
    await asyncio.sleep(1.1)  # the back-off of one of them
    for _ in range(2):
        engine.release(owner)
        back = await engine.fetch("keep", client="r", owner=owner, messages=1000)
        assert [each.batch_id for each in back] == [each.header.batch_id for each in kept]
        assert [each.live for each in back] == [0b010] + [0b111] * 19
        assert [bytes(each.sealed) for each in back] == [bytes(each.sealed) for each in kept]
        assert back[0].redeliveries >= 1
        (dead,) = await engine.peek("dead.keep", batches=2)
        assert (dead.live, dead.dead.reason if dead.dead else "") == (0b100, "no")
        (repeat,) = await publish(engine, passed)
        assert repeat.duplicate  # though its segment is long gone
        await engine.stop()
        engine = await running(segment_size=64 * KIB)


async def test_compaction_under_load_loses_nothing_and_brings_nothing_back(running: Open) -> None:
    """Publishes, acks, nacks and restarts, while segments are dropped all the time."""
    rng = random.Random(11)
    live: dict[bytes, int] = {}
    sent: dict[bytes, bytes] = {}
    dropped = 0
    for _ in range(3):
        engine = await running(segment_size=64 * KIB, fresh=100 * KIB)
        consumers: list[Consumer] = []
        acks: list[Awaitable[None]] = []
        for _ in range(80):
            new = [batch(count=4, size=rng.choice([200, 2000, 8000])) for _ in range(5)]
            for each in new:
                live[each.header.batch_id] = 0b1111
                sent[each.header.batch_id] = bytes(each.sealed)
            waiting = [engine.publish(each) for each in new]
            if len(consumers) < 3:
                consumers.append((await consume(engine, credit=40))[1])
            await asyncio.gather(*waiting)
            await asyncio.sleep(0)
            for consumer in consumers:
                got, consumer.got = consumer.got, []
                for each in got:
                    bits = each.live & rng.choice([each.live, 0b0101, 0b0010, 0])
                    if bits:
                        acks.append(engine.ack(consumer, each.tag, bits))
                        live[each.batch_id] &= ~bits
            if rng.random() < 0.2:
                engine.release(consumers.pop(rng.randrange(len(consumers))))
            if rng.random() < 0.7 and consumers:
                consumers[0].got, ignored = [], consumers[0].got
                engine.release(consumers.pop(0))
                assert all(each.batch_id in live for each in ignored)
        await asyncio.gather(*acks)
        dropped += int(engine.stats()["compaction_dropped_segments"])
        await engine.stop()
    assert dropped > 3
    engine = await running(segment_size=64 * KIB)
    back = await fetch(engine, messages=10**6)
    assert {each.batch_id: each.live for each in back} == {
        each: bits for each, bits in live.items() if bits
    }
    assert all(bytes(each.sealed) == sent[each.batch_id] for each in back)
    assert [each.batch_id for each in back] == [each for each, bits in live.items() if bits]


# --- the disk says no ---------------------------------------------------------------------------


async def test_a_full_disk_refuses_publishes_and_nothing_else(running: Open) -> None:
    files = MoodyFiles()
    engine = await running(files=files)
    await publish(engine, batch(), batch())
    owner = object()
    (got,) = await engine.fetch("q", client="r", owner=owner, messages=1)
    files.full = True
    refused = batch(size=5000)
    waiting = [engine.publish(refused), engine.publish(refused), engine.publish(batch())]
    for each in waiting:
        with pytest.raises(NoSpace, match="no space left on the device"):
            await each
    assert engine.queue("q").messages_ready == 1
    assert engine.stats()["refused_no_space_batches"] == 2
    files.full = False
    await engine.ack(owner, got.tag, None)
    async with asyncio.timeout(20):
        while True:
            try:
                confirmed = await engine.publish(refused)
                break
            except NoSpace:
                await asyncio.sleep(0.2)
    assert not confirmed.duplicate
    assert engine.queue("q").messages_ready == 2
    await engine.stop()
    engine = await running()
    back = await fetch(engine, messages=5)
    assert len(back) == 2
    assert back[1].batch_id == refused.header.batch_id


async def test_space_that_is_back_at_once_lets_nothing_overtake(running: Open) -> None:
    class ShortOnce(MoodyFiles):
        """Has no space for one write, and has it again as soon as that was said."""

        def pwritev(self, fd: int, buffers, offset: int) -> int:  # type: ignore[no-untyped-def]
            if self.full:
                loop.call_soon_threadsafe(publish_second)
                assert published.wait(20)
                self.full = False
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().pwritev(fd, buffers, offset)

    def publish_second() -> None:
        waiting.append(engine.publish(batch()))
        published.set()

    loop, published = asyncio.get_running_loop(), threading.Event()
    files = ShortOnce()
    engine = await running(files=files)
    files.full = True
    waiting = [engine.publish(batch())]
    with pytest.raises(NoSpace):
        await waiting[0]
    with pytest.raises(NoSpace):
        await waiting[1]
    assert engine.queue("q").batches == 0


async def test_acks_go_on_out_of_the_reserve(running: Open, tmp_path: Path) -> None:
    class SmallDisk(MoodyFiles):
        """Full but for what is given back: the reserve."""

        def __init__(self) -> None:
            super().__init__()
            self.budget = 10**9

        def pwritev(self, fd: int, buffers, offset: int) -> int:  # type: ignore[no-untyped-def]
            size = sum(map(len, buffers))
            self.full = size > self.budget
            self._check()
            self.budget -= size
            return super().pwritev(fd, buffers, offset)

        def truncate(self, fd: int, size: int) -> None:
            self.budget += max(0, self.size(fd) - size)
            super().truncate(fd, size)

        def unlink(self, path: Path) -> None:
            self.budget += path.stat().st_size
            super().unlink(path)

        def preallocate(self, fd: int, size: int) -> None:
            self.full = size > self.budget
            self._check()
            self.budget -= size
            super().preallocate(fd, size)

    files = SmallDisk()
    engine = await running(files=files, reserve=limits.MIB)
    await publish(engine, *[batch() for _ in range(50)])
    files.budget = 100
    with pytest.raises(NoSpace):
        await publish(engine, batch(size=5000))
    assert await ack_all(engine) == 50
    await engine.stop()
    engine = await running()
    assert engine.queue("q").batches == 0


async def test_a_failed_sync_is_final(running: Open) -> None:
    files = MoodyFiles()
    engine = await running(files=files)
    kept = batch()
    await publish(engine, kept)
    failures: list[Exception] = []
    engine.on_failure(failures.append)
    files.broken = True
    lost = batch()
    waiting = [engine.publish(lost), engine.publish(lost)]
    for each in waiting:
        with pytest.raises(Unavailable, match="can't store anything"):
            await each
    assert len(failures) == 1
    files.broken = False
    for attempt in (
        lambda: engine.publish(batch()),
        lambda: engine.publish(lost),
        lambda: engine.declare_queue(QueueSpec("p")),
    ):
        with pytest.raises(Unavailable):
            await attempt()
    _, consumer = await consume(engine)
    await asyncio.sleep(0.05)
    assert consumer.got == []  # what can't be acked is not given out
    await engine.stop()
    engine = await running()
    back = await fetch(engine, messages=5)
    assert back[0].batch_id == kept.header.batch_id


async def test_two_brokers_on_one_directory(running: Open, tmp_path: Path) -> None:
    await running()
    other = EmbeddedEngine(tmp_path / "journal")
    with pytest.raises(JournalInUse, match="in use by another process"):
        await other.start()
    await other.stop()


# --- stopping, limits, watching -----------------------------------------------------------------


async def test_what_was_accepted_is_confirmed_before_the_end(running: Open) -> None:
    engine = await running()
    sent = [batch(size=10_000) for _ in range(30)]
    waiting = [engine.publish(each) for each in sent]
    await engine.stop()
    assert all(each.done() and not each.exception() for each in waiting)
    engine = await running()
    assert len(await fetch(engine, messages=100)) == 30


async def test_the_end_comes_while_batches_are_read(running: Open) -> None:
    engine = await running(fresh=1)
    sent = [batch(size=200 * KIB) for _ in range(30)]
    await publish(engine, *sent)
    await consume(engine)
    fetching = asyncio.ensure_future(fetch(engine, messages=10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await engine.stop()
    with contextlib.suppress(Unavailable):
        await fetching
    engine = await running()
    back = await fetch(engine, messages=100)
    assert [each.batch_id for each in back] == [each.header.batch_id for each in sent]


async def test_limits_are_the_options(running: Open) -> None:
    engine = await running(max_queues=1, max_dedup_entries=16, dedup_window_ms=1000)
    with pytest.raises(ResourceLimit, match="max_queues is 1"):
        await engine.declare_queue(QueueSpec("p"))
    await publish(engine, *[batch() for _ in range(100)])
    assert int(engine.stats()["dedup_overflow"]) >= 80


async def test_a_full_queue_takes_again_after_an_ack(running: Open) -> None:
    engine = await running()
    await engine.declare_queue(QueueSpec("small", max_messages=1))
    await publish(engine, batch("small"))
    with pytest.raises(QueueFull):
        await publish(engine, batch("small"))
    assert await ack_all(engine, "small") == 1
    await publish(engine, batch("small"))


async def test_a_long_redrive_is_whole(running: Open) -> None:
    engine = await running()
    await engine.declare_queue(QueueSpec("brief", ttl_ms=50))
    sent = [batch("brief", count=2) for _ in range(600)]
    await publish(engine, *sent)
    await until(
        lambda: (info := engine.queue("dead.brief")) is not None and info.batches == 600,
        "all to expire",
    )
    await engine.declare_queue(QueueSpec("other"))
    assert await engine.redrive("dead.brief", messages=3) == 3
    assert await engine.redrive("dead.brief") == 1197
    await until(
        lambda: (info := engine.queue("dead.brief")) is not None and info.batches >= 600,
        "all to expire again",
    )


async def test_a_restart_goes_on_where_it_stopped_timers_and_all(running: Open) -> None:
    engine = await running()
    await engine.declare_queue(QueueSpec("brief", ttl_ms=300))
    await publish(engine, batch("brief"))
    await engine.stop()
    engine = await running()
    dead = await fetch_soon(engine, "dead.brief")
    assert dead.dead is not None
    assert dead.dead.reason == "expired"


async def test_many_consumers_and_queues(running: Open) -> None:
    engine = await running()
    names = [f"q{n}" for n in range(50)]
    for name in names:
        await engine.declare_queue(QueueSpec(name))
    consumers = {name: (await consume(engine, name))[1] for name in names for _ in range(2)}
    await publish(engine, *[batch(name) for name in names for _ in range(4)])
    await until(lambda: engine.stats()["delivered_messages"] == 200, "everything to be delivered")
    assert all(len(consumer.got) == 2 for consumer in consumers.values())
