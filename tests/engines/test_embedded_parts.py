from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path
from typing import cast

import pytest

from ciphermq.broker import Broker
from ciphermq.broker.records import CopiedEntry, CopyRecord, Kind, encode
from ciphermq.broker.state import Port
from ciphermq.engines.embedded.clock import SteadyClock
from ciphermq.engines.embedded.confirms import Confirms
from ciphermq.engines.embedded.fingerprint import Fingerprints, new_key
from ciphermq.engines.embedded.payloads import Payloads, pack_place, segment_of, unpack_place
from ciphermq.engines.embedded.store import Store, StoreOptions
from ciphermq.errors import NoSpace, Unavailable
from ciphermq.journal import Journal, Location
from ciphermq.model.topology import QueueSpec


def test_the_clock_is_the_time_of_day_and_never_falls() -> None:
    clock = SteadyClock()
    assert abs(clock() - time.time() * 1000) < 5000
    readings = [clock() for _ in range(1000)]
    assert readings == sorted(readings)


def test_fingerprints_tell_bytes_apart_whatever_holds_them() -> None:
    key = new_key()
    of = Fingerprints(key).of
    data = bytes(range(256)) * 40
    assert len(of(data)) == 16
    assert of(data) == of(bytearray(data)) == of(memoryview(data)) == Fingerprints(key).of(data)
    assert of(data) != Fingerprints(new_key()).of(data)
    others = {
        of(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) for at in range(0, len(data), 97)
    }
    others |= {of(data[:-1]), of(data + b"\0"), of(b"\0" + data), of(b"")}
    assert of(data) not in others
    assert len(others) == len(range(0, len(data), 97)) + 4


def test_a_place_holds_a_location() -> None:
    for location in (
        Location(1, 4096, 10, 0),
        Location(1 << 40, (1 << 30) - 1, 1 << 20, 0xFFFFFFFF),
    ):
        place = pack_place(location)
        assert unpack_place(place, location.length) == location
        assert segment_of(place) == location.segment
    assert segment_of(0) == 0


async def test_confirms_come_in_order_a_group_at_a_time() -> None:
    confirms, loop = Confirms(), asyncio.get_running_loop()
    told: list[int] = []
    waiting = [
        confirms.wait(loop, lsn, result=lsn, tell=lambda lsn=lsn: told.append(lsn))
        for lsn in (1, 2, 3)
    ]
    assert not any(each.done() for each in waiting)
    confirms.group_durable(2)
    confirms.answer()
    assert [each.done() for each in waiting] == [True, True, False]
    assert told == [1, 2]
    assert confirms.wait(loop, 2).done()
    confirms.group_durable(3)
    confirms.answer()
    assert await waiting[2] == 3
    assert len(confirms) == 0


async def test_a_refusal_reaches_those_it_is_meant_for_and_holds_up_nobody() -> None:
    confirms, loop = Confirms(), asyncio.get_running_loop()
    batch = confirms.wait(loop, 1, seq=1)
    ack = confirms.wait(loop, 2)
    last = confirms.wait(loop, 3, seq=3)
    repeat = confirms.wait(loop, 1, seq=1)  # comes after record 3 was appended
    nothing = confirms.wait(loop, 3)
    confirms.group_refused([1, 3], lambda: NoSpace("full"))
    confirms.answer()
    for refused in (batch, repeat, last):
        with pytest.raises(NoSpace):
            await refused
    assert not ack.done()
    confirms.group_durable(2)
    confirms.answer()
    assert ack.done()
    assert nothing.done()  # record 3 will never be durable: there is nothing to wait for
    assert confirms.durable == 3


async def test_a_group_refused_whole_holds_up_nobody_either() -> None:
    confirms, loop = Confirms(), asyncio.get_running_loop()
    refused = [confirms.wait(loop, lsn, seq=lsn) for lsn in (1, 2)]
    nothing = confirms.wait(loop, 2)
    confirms.group_refused([1, 2], lambda: NoSpace("full"))
    confirms.answer()
    assert nothing.done()
    for each in refused:
        assert isinstance(each.exception(), NoSpace)


async def test_a_failure_reaches_all() -> None:
    confirms, loop = Confirms(), asyncio.get_running_loop()
    waiting = [confirms.wait(loop, lsn) for lsn in (1, 2)]
    waiting[0].cancel()
    confirms.fail(lambda: Unavailable("broken"))
    with pytest.raises(Unavailable):
        await waiting[1]
    assert waiting[0].cancelled()


async def test_who_stopped_waiting_is_passed_over() -> None:
    confirms, loop = Confirms(), asyncio.get_running_loop()
    gone, stays = confirms.wait(loop, 1), confirms.wait(loop, 1)
    gone.cancel()
    confirms.group_durable(1)
    confirms.answer()
    assert stays.done()


async def test_one_payload_that_nobody_takes_keeps_nothing_of_those_that_come_and_go(
    tmp_path: Path,
) -> None:
    payloads = Payloads(Journal(tmp_path), asyncio.get_running_loop(), 1000)
    payloads.keep(1, b"stays")
    tracemalloc.start()
    try:
        for seq in range(2, 50_000):
            payloads.keep(seq, b"comes")
            payloads.forget(seq)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        payloads.close()
    assert payloads.fresh(1) == b"stays"
    assert kept < 100_000


async def test_of_fresh_payloads_the_oldest_go_first(tmp_path: Path) -> None:
    payloads = Payloads(Journal(tmp_path), asyncio.get_running_loop(), 1000)
    for seq in range(1, 11):
        payloads.keep(seq, bytes(50))
    assert [seq for seq in range(1, 11) if payloads.fresh(seq) is not None] == [7, 8, 9, 10]
    assert payloads.fresh_bytes == 1000
    payloads.close()


def test_what_is_left_of_a_damaged_batch_is_found_again_however_often_it_was_copied(
    tmp_path: Path,
) -> None:
    """Else it would go, unseen, with the segment that has its last copy."""
    journal = Journal(tmp_path)
    journal.open(lambda *_: None)
    nothing = lambda *_: None  # noqa: E731
    journal.start(
        snapshot=lambda: Broker(cast("Port", None)).snapshot(),
        on_durable=nothing,
        on_refused=nothing,
        on_failed=nothing,
    )
    queue = journal.append(Kind.DECLARE_QUEUE, encode(QueueSpec("q")))
    entries = [CopiedEntry(queue, 5, b"")]
    copy = CopyRecord(5, "alice", bytes(16), 0, 0, 1, "q", entries)
    for _ in range(2):
        last = journal.append(Kind.COPY, encode(copy))
    journal.append(Kind.COPY, encode(CopyRecord(6, "alice", bytes(16), 0, 0, 1, "q", [])))
    journal.close()
    store = Store(tmp_path, StoreOptions(), SteadyClock())
    store.recover(Broker(store))
    assert store.segments.batches_in(1, last, iter(())) == []
    assert store.segments.batches_in(1, last + 2, iter(())) == [5]
    store.journal.close()
