"""When a segment is worth dropping, and reading payloads while segments go."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from faults import SimDisk
from hypothesis import given
from hypothesis import strategies as st
from journal_harness import DIRECTORY, Owner, Threaded

from ciphermq.errors import PayloadDamaged, SegmentDropped
from ciphermq.journal import Location, OsFiles
from ciphermq.journal.format import BLOCK_SIZE
from ciphermq.journal.ledger import Ledger, Written
from ciphermq.journal.segments import Readers, list_segments, segment_path
from ciphermq.limits import KIB


def filled(live: int, segments: int = 8, snapshot: int = 0) -> Ledger:
    """Segments of ten records of 1,000 + 100 bytes, of which `live` are."""
    ledger = Ledger(11_000 + BLOCK_SIZE)
    for segment in range(1, segments + 1):
        ledger.added(segment)
        ledger.wrote(segment, Written(11_000 + snapshot, snapshot, 10, 10_000, 1_000))
        for _ in range(10 - live):
            ledger.released(Location(segment, 0, 1_000, 0))
    return ledger


def test_a_log_more_than_half_dead_is_due_from_its_oldest_end() -> None:
    assert filled(live=5).due(urgent=False) is None
    ledger = filled(live=4)
    assert ledger.due(urgent=False) == 1
    ledger.dropped(1)
    assert ledger.due(urgent=False) == 2


def test_the_meta_of_a_live_payload_is_live() -> None:
    """Small payloads with large metas would else be copied for ever."""
    ledger = Ledger(10_000)
    for segment in range(1, 9):
        ledger.added(segment)
        ledger.wrote(segment, Written(10_000, 0, 100, 1_000, 9_000))
    assert ledger.due(urgent=True) is None
    assert ledger.totals() == (8, 8 * (10_000 + BLOCK_SIZE), 80_000)


def test_snapshots_are_neither_live_nor_dead() -> None:
    """However large they are, dropping one segment only writes the next one's."""
    assert filled(live=10, snapshot=100_000).due(urgent=True) is None
    assert filled(live=4, snapshot=100_000).due(urgent=False) == 1


def test_less_than_two_dead_segments_wait_until_space_is_short() -> None:
    ledger = filled(live=0, segments=1)
    assert ledger.due(urgent=True) is None  # it is the tail
    ledger.added(2)
    assert ledger.due(urgent=False) is None
    assert ledger.due(urgent=True) == 1


def test_an_only_segment_is_ended_when_it_is_dead_and_its_rest_can_be_copied() -> None:
    assert filled(live=0, segments=1).tail_due(room=0)
    assert filled(live=4, segments=1).tail_due(room=1 << 20)
    assert not filled(live=4, segments=1).tail_due(room=1_000)  # its copies would use up the rest
    assert not filled(live=6, segments=1).tail_due(room=1 << 20)
    assert not filled(live=0, segments=2).tail_due(room=1 << 20)  # the older one goes first
    small = Ledger(1 << 20)
    small.added(1)
    small.wrote(1, Written(1_000, 0, 0, 0, 0))
    assert not small.tail_due(room=1 << 20)


def test_what_is_released_after_its_segment_went_changes_nothing() -> None:
    ledger = filled(live=4)
    ledger.dropped(1)
    before = ledger.totals()
    ledger.released(Location(1, 0, 1_000, 0))
    assert ledger.totals() == before


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_the_same_is_live_after_a_restart(sizes: list[int], seed: int) -> None:
    disk = SimDisk()
    owner = Owner(disk)
    for size in sizes:
        owner.append(1, b"meta", bytes(size))
        owner.append(2, b"ack")
    owner.drain()
    before = owner.journal.stats()
    owner.journal.close()
    again = Owner(disk)
    after = again.journal.stats()
    assert (after.segments, after.size, after.live) == (before.segments, before.size, before.live)
    assert after.size == sum(map(len, disk.contents().values()))
    places = [place for place in again.located.values() if place is not None]
    random.Random(seed).shuffle(places)
    for place in places:
        again.journal.release(place)
    assert again.journal.stats().live == 0


def test_a_dropped_segment_is_said_to_be_dropped() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    for _ in range(12):
        owner.append(1, b"meta", bytes(5000))
    owner.drain()
    place = next(place for place in owner.located.values() if place is not None)
    assert owner.journal.read(place) == bytes(5000)
    owner.release_before(owner.confirmed)
    assert owner.drop_oldest()
    with pytest.raises(SegmentDropped, match="copied to the end"):
        owner.journal.read(place)


def test_a_cut_off_payload_is_damaged() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    lsn = owner.append(1, b"meta", bytes(5000))
    owner.drain()
    place = owner.located[lsn]
    assert place is not None
    del disk.content(segment_path(DIRECTORY, place.segment))[-1:]
    with pytest.raises(PayloadDamaged, match="is cut off after 4999 bytes"):
        owner.journal.read(place)


def test_many_segments_are_read_with_few_descriptors(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log", segment_size=2 * BLOCK_SIZE)
    for _ in range(200):
        owner.journal.append(1, b"meta", bytes(5000))
    for _ in range(400):
        assert owner.durable.acquire(timeout=30)
    owner.journal.close()
    assert len(list_segments(OsFiles(), tmp_path / "log")) == 200
    readers = Readers(OsFiles(), tmp_path / "log")
    for segment in range(1, 201):
        with pytest.raises(PayloadDamaged):
            readers.read(Location(segment, BLOCK_SIZE, 100, 0))
    assert len(readers._open) <= 64
    readers.close()


def test_threads_read_while_segments_are_dropped() -> None:
    disk = SimDisk()
    owner = Owner(disk, segment_size=12 * KIB)
    for i in range(30):
        owner.append(1, b"meta", bytes([i]) * 4000)
    owner.drain()
    payloads = {record[0]: record[3] for record in owner.written}
    wanted = {place: payloads[lsn] for lsn, place in owner.located.items() if place is not None}
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for place, payload in wanted.items():
                try:
                    if owner.journal.read(place) != payload:
                        wrong.append(place)
                except SegmentDropped:
                    pass
                except PayloadDamaged as error:
                    wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    owner.release_before(owner.confirmed)
    while owner.drop_oldest():
        pass
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert owner.journal.oldest_due() is None
    shown = {segment_path(DIRECTORY, segment) for segment in list_segments(disk, DIRECTORY)}
    assert {path for _, path in disk._open.values()} <= {*shown, DIRECTORY}


def test_large_snapshots_do_not_make_the_log_turn_in_circles() -> None:
    owner = Owner(SimDisk())
    owner.padding = bytes(6 * KIB)
    for i in range(40):
        owner.append(1, b"meta %d" % i, bytes(300))
    owner.drain()
    stats = owner.journal.stats()
    assert stats.live * 3 < stats.size
    assert owner.journal.oldest_due() is None


def test_a_snapshot_as_large_as_a_segment_does_not_come_with_each_record() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    owner.padding = bytes(12 * KIB)
    for _ in range(40):
        owner.append(1, b"meta", bytes(300))
    owner.drain()
    assert len(list_segments(disk, DIRECTORY)) < 5
