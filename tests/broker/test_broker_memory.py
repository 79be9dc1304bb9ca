"""What waits must be small: the numbers are bytes, measured, not seconds."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from broker_rig import START, Connection, Rig, header


def measure(batches: int, count: int) -> float:
    """Bytes of a waiting batch, all included: entry, order, dedup."""
    rig = Rig()
    rig.queue()
    headers = [header(number, count=count) for number in range(1, batches + 1)]
    sealed = bytes(1400)
    rig.log.append = forget(rig)  # type: ignore[method-assign]
    gc.collect()
    tracemalloc.start()
    for at, each in enumerate(headers):
        rig.broker.publish("sender", each, at.to_bytes(16, "big"), sealed, START)
        if at % 100 == 0:
            rig.sync()
    rig.sync()
    for batch in rig.broker.batches():
        batch.place = batch.seq << 70  # as large as real ones
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rig.info().messages_ready == batches * count
    return used / batches


def forget(rig: Rig):  # type: ignore[no-untyped-def]
    """Records go to a disk, not into this process's memory."""

    def append(kind: int, meta: bytes, payload: bytes | None = None) -> int:
        rig.log.last_lsn += 1
        return rig.log.last_lsn

    return append


@pytest.mark.parametrize("count", [1, 256])
def test_a_waiting_batch_takes_less_than_half_a_kilobyte(count: int) -> None:
    # Dictionaries grow by doubling: measure where they are fullest and where they just grew.
    assert max(measure(n, count) for n in (10_900, 11_000)) < 450


def test_nothing_is_left_when_all_is_acked() -> None:
    """No cycle keeps an entry alive: they are not for the garbage collector to find."""
    rig = Rig()
    rig.queue()
    rig.queue("p", ttl_ms=1000)
    rig.log.append = forget(rig)  # type: ignore[method-assign]

    def round_(first: int) -> None:
        for number in range(first, first + 1000):
            rig.publish_again(number, "q" if number % 2 else "p", count=3)
        rig.now += 1500
        rig.sweep()
        for queue in ("q", "dead.p"):
            connection = Connection()
            for held in rig.fetch(connection, queue, messages=10**6):
                rig.nack(held, 1)
                rig.ack(held)
            rig.broker.release(connection, rig.now)
            rig.advance(2)
            for held in rig.fetch(connection, queue, messages=10**6):
                rig.ack(held)
        rig.advance(700)
        rig.log.events.clear()
        rig.log.finished_places.clear()
        assert rig.broker.counts()["batches"] == 0

    gc.disable()
    try:
        round_(1)
        tracemalloc.start()
        round_(10_001)
        before, _ = tracemalloc.get_traced_memory()
        round_(20_001)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        gc.enable()
    assert after - before < 50_000
