"""The machine goes off at any call that changes the disk; nothing that was promised is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine_kit import batch
from faults import SimDisk

from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions
from ciphermq.engines.embedded.store import StoreOptions
from ciphermq.errors import CipherMQError, JournalFailed, Unavailable
from ciphermq.limits import KIB
from ciphermq.model.topology import QueueSpec

COUNT = 3
FULL = 0b111


def engine_on(disk: SimDisk) -> EmbeddedEngine:
    store = StoreOptions(segment_size=24 * KIB, reserve=0, max_group=16 * KIB, files=disk)
    options = EmbeddedOptions(store=store, fresh_payloads=10 * KIB)
    return EmbeddedEngine(Path("/log"), options=options)


@dataclass
class Promises:
    """What the engine said, and what it was asked without an answer."""

    confirmed: set[bytes] = field(default_factory=set)
    sealed: dict[bytes, bytes] = field(default_factory=dict)
    acked: dict[bytes, int] = field(default_factory=dict)
    buried: dict[bytes, int] = field(default_factory=dict)
    maybe: dict[bytes, int] = field(default_factory=dict)
    """Bits of acks and refusals that may or may not have come through."""


async def work(engine: EmbeddedEngine, promises: Promises, rng: random.Random) -> None:
    """Publish, ack, refuse, until the machine goes off."""
    owner = object()
    await engine.declare_queue(QueueSpec("q"))
    for _ in range(40):
        new = [batch(count=COUNT, size=rng.choice([100, 1000, 3000])) for _ in range(3)]
        waiting = []
        for each in new:
            promises.sealed[each.header.batch_id] = bytes(each.sealed)
            waiting.append(engine.publish(each))
        for each, future in zip(new, waiting, strict=True):
            await future
            promises.confirmed.add(each.header.batch_id)
        for got in await engine.fetch("q", client="r", owner=owner, messages=3 * COUNT):
            bits = got.live & rng.choice([FULL, FULL, FULL, 0b101, 0b010])
            if not bits:
                continue
            promises.maybe[got.batch_id] = promises.maybe.get(got.batch_id, 0) | bits
            if rng.random() < 0.8:
                await engine.ack(owner, got.tag, bits)
                promises.acked[got.batch_id] = promises.acked.get(got.batch_id, 0) | bits
            else:
                await engine.nack(owner, got.tag, bits, requeue=False)
                promises.buried[got.batch_id] = promises.buried.get(got.batch_id, 0) | bits
        engine.release(owner)


async def check(engine: EmbeddedEngine, promises: Promises) -> None:
    """What is there now is what was promised."""
    found: dict[str, dict[bytes, int]] = {"q": {}, "dead.q": {}}
    for queue, there in found.items():
        if engine.queue(queue) is None:
            continue
        owner = object()
        for got in await engine.fetch(queue, client="r", owner=owner, messages=10**6):
            # Entries of one batch may lie apart, but never overlap.
            assert not there.get(got.batch_id, 0) & got.live
            there[got.batch_id] = there.get(got.batch_id, 0) | got.live
            assert bytes(got.sealed) == promises.sealed[got.batch_id]
        engine.release(owner)
    for batch_id in promises.sealed:
        waits, dead = found["q"].get(batch_id, 0), found["dead.q"].get(batch_id, 0)
        acked, buried = promises.acked.get(batch_id, 0), promises.buried.get(batch_id, 0)
        maybe = promises.maybe.get(batch_id, 0)
        assert not waits & dead
        assert not (waits | dead) & acked
        assert dead & buried == buried
        assert dead & ~maybe == 0
        if batch_id in promises.confirmed:
            assert (waits | dead | maybe) == FULL
        # From here on what was found is what counts.
        promises.acked[batch_id] = FULL & ~(waits | dead) if maybe else acked
        promises.buried[batch_id] = dead
        promises.maybe[batch_id] = promises.acked[batch_id] | dead


@pytest.mark.parametrize("seed", range(12))
async def test_crashes_break_no_promise(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimDisk()
    promises = Promises()
    crashes = 0
    while crashes < 4:
        disk.crash_at = rng.randrange(5, 260)
        engine = engine_on(disk)
        try:
            await engine.start()
            await check(engine, promises)
            await work(engine, promises, rng)
        except (Unavailable, JournalFailed):
            crashes += 1
            assert disk.dead
        await engine.stop()
        disk = disk.after_crash(rng)
    disk.crash_at = None
    engine = engine_on(disk)
    await engine.start()
    await check(engine, promises)
    await engine.stop()
    assert promises.confirmed


async def test_the_run_that_is_crashed_does_compact() -> None:
    """Otherwise the crashes above would show less than they seem to."""
    disk = SimDisk()
    engine = engine_on(disk)
    await engine.start()
    try:
        await work(engine, Promises(), random.Random(1))
        assert int(engine.stats()["compaction_dropped_segments"]) > 3
        assert int(engine.stats()["compaction_copied_batches"]) > 3
        assert len(disk.calls) > 200
    except CipherMQError as error:
        pytest.fail(str(error))
    finally:
        await engine.stop()
