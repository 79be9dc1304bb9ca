"""Damage stops a start and is named; an unfinished end is cut and said; nothing is made up."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from faults import SimDisk
from journal_harness import DIRECTORY, Log, Owner, found_on, open_log

from ciphermq.errors import JournalDamaged, PayloadDamaged
from ciphermq.journal import Journal, Location
from ciphermq.journal.format import (
    BLOCK_SIZE,
    SPARE_AT,
    Entry,
    SegmentHeader,
    decode_header,
    encode_group,
    new_header,
)
from ciphermq.journal.segments import list_segments, segment_path
from ciphermq.journal.tools import verify


def test_any_flipped_byte_is_noticed_or_harmless() -> None:
    """The whole of it: no flipped byte changes what is replayed or read without being said."""
    log = Log()
    rng = random.Random(1)
    for index, segment in enumerate(log.segments):
        path = segment_path(DIRECTORY, segment)
        size = len(log.content(index))
        places = {*range(48), *range(SPARE_AT, SPARE_AT + 48), *range(BLOCK_SIZE, BLOCK_SIZE + 150)}
        places |= {rng.randrange(BLOCK_SIZE, size) for _ in range(250)}
        for at in sorted(places):
            disk = log.copy()
            disk.content(path)[at] ^= 1 << rng.randrange(8)
            judge(log, disk, segment, at)


def judge(log: Log, disk: SimDisk, segment: int, at: int) -> None:
    problems = verify(DIRECTORY, files=disk)
    found: list[tuple[int, int, bytes, Location | None]] = []
    journal = Journal(DIRECTORY, files=disk, segment_size=12 * 1024, reserve=0)
    message = ""
    try:
        report = journal.open(lambda *record: found.append(record))
    except JournalDamaged as error:
        message = str(error)
    if message:
        assert str(segment_path(DIRECTORY, segment)) in message
        offset = int(re.findall(r"at offset (\d+)", message)[0])
        assert offset <= at
        assert f"ciphermq journal repair {DIRECTORY}" in message
        assert problems.problems
        return
    wanted = [record[:3] for record in log.records]
    assert [record[:3] for record in found] == wanted[: len(found)]
    if len(found) < len(wanted):  # the last group: it can't be told from a torn one
        assert report.cut is not None
        assert segment == log.segments[-1]
        assert report.cut.offset <= at
        journal.close()
        return
    damaged = 0
    for record, (lsn, _, _, location) in zip(log.records, found, strict=True):
        assert record[0] == lsn
        if location is None:
            continue
        hit = location.segment == segment and 0 <= at - location.offset < location.length
        if hit:
            damaged += 1
            with pytest.raises(PayloadDamaged, match=f"{location.offset} fails its checksum"):
                journal.read(location)
        else:
            assert journal.read(location) == record[3]
    assert len(problems.problems) == damaged
    assert damaged or SPARE_AT <= at < BLOCK_SIZE
    journal.close()


def test_bytes_missing_from_any_closed_segment_stop_the_start() -> None:
    log = Log()
    for index, segment in enumerate(log.segments[:-1]):
        for size in (0, 30, BLOCK_SIZE, BLOCK_SIZE + 100, len(log.content(index)) - 1):
            disk = log.copy()
            del disk.content(segment_path(DIRECTORY, segment))[size:]
            owner, message = open_log(disk)
            assert owner is None
            assert "ciphermq journal repair" in message


def test_a_last_segment_cut_anywhere_is_an_unfinished_end() -> None:
    log = Log()
    path = segment_path(DIRECTORY, log.segments[-1])
    whole = len(log.content(-1))
    for size in range(0, whole, 97):
        disk = log.copy()
        del disk.content(path)[size:]
        found = found_on(disk)
        assert found == log.records[: len(found)]
        again = Owner(disk)
        assert again.report.cut is None
        assert "ends cleanly" in again.report.describe()


@pytest.mark.parametrize("junk", [bytes(5000), b"\xff" * 5000, random.Random(3).randbytes(70_000)])
def test_junk_after_the_end_is_cut_and_said(junk: bytes) -> None:
    log = Log()
    at = len(log.content(-1))
    log.content(-1).extend(junk)
    owner = Owner(log.copy())
    assert owner.written == log.records
    assert owner.report.cut is not None
    assert (owner.report.cut.offset, owner.report.cut.size) == (at, len(junk))
    assert f"{len(junk)} unfinished bytes, never confirmed" in owner.report.describe()


def test_junk_after_the_end_hides_no_damage_of_the_last_payload() -> None:
    """What stands before junk was synced before the junk was begun: it is not torn, it is bad."""
    log = Log()
    lsn = log.records[-2][0]
    location = log.located[lsn]
    assert location is not None
    log.content(-1)[location.offset] ^= 1
    log.content(-1).extend(b"begun")
    journal = Journal(DIRECTORY, files=log.copy(), reserve=0)
    journal.open(lambda *_: None)
    with pytest.raises(PayloadDamaged, match=f"offset {location.offset} fails its checksum"):
        journal.read(location)


def test_nor_does_a_segment_begun_behind_it() -> None:
    log = Log()
    lsn = log.records[-2][0]
    location = log.located[lsn]
    assert location is not None
    log.content(-1)[location.offset] ^= 1
    sequence = verify(DIRECTORY, files=log.disk).groups + 1
    new = new_header(log.segments[-1] + 1, sequence).encode()
    log.disk.close(log.disk.open(segment_path(DIRECTORY, log.segments[-1] + 1), create=True))
    for size in (0, 40, BLOCK_SIZE):
        disk = log.copy()
        disk.content(segment_path(DIRECTORY, log.segments[-1] + 1)).extend(new[:size])
        journal = Journal(DIRECTORY, files=disk, reserve=0)
        assert journal.open(lambda *_: None).records == len(log.records)
        with pytest.raises(PayloadDamaged, match=f"offset {location.offset} fails its checksum"):
            journal.read(location)


@pytest.mark.parametrize("size", [0, 1, 100, BLOCK_SIZE])
def test_a_segment_that_was_just_being_made_is_dropped(size: int) -> None:
    log = Log()
    new = segment_path(DIRECTORY, log.segments[-1] + 1)
    log.disk.close(log.disk.open(new, create=True))
    log.disk.content(new).extend(bytes(size))
    disk = log.copy()
    assert found_on(disk) == log.records
    assert list_segments(disk, DIRECTORY) == log.segments


def test_a_bad_header_in_front_of_groups_is_damage() -> None:
    log = Log()
    log.content(-1)[3] ^= 1
    owner, message = open_log(log.copy())
    assert owner is None
    assert f"{segment_path(DIRECTORY, log.segments[-1])}: damaged at offset 0" in message


def test_a_missing_segment_is_named() -> None:
    log = Log()
    missing = segment_path(DIRECTORY, log.segments[1])
    log.disk.unlink(missing)
    owner, message = open_log(log.copy())
    assert owner is None
    assert f"{missing}: damaged at offset 0: the segment is missing" in message


def test_swapped_segments_are_named() -> None:
    log = Log()
    first, second = (segment_path(DIRECTORY, segment) for segment in log.segments[1:3])
    aside = DIRECTORY / "aside"
    for source, target in ((first, aside), (second, first), (aside, second)):
        log.disk.rename(source, target)
    owner, message = open_log(log.copy())
    assert owner is None
    assert f"{first}: damaged at offset 0: the segment says that it is number" in message


def test_a_log_whose_only_segment_lost_everything_is_damage() -> None:
    """A number above 1 shows that there was a log before: it is not a new one."""
    log = Log()
    for segment in log.segments[:-1]:
        log.disk.unlink(segment_path(DIRECTORY, segment))
    del log.content(-1)[BLOCK_SIZE:]
    owner, message = open_log(log.copy())
    assert owner is None
    assert "all of it is lost" in message


def rewrite(log: Log, change: Callable[[SegmentHeader], tuple[int, int]]) -> str:
    """Append a good group, with (sequence, lsn) by `change`; the message at the start."""
    content = log.content(-1)
    header = decode_header(bytes(content[:BLOCK_SIZE]), log.segments[-1])
    sequence, lsn = change(header)
    buffers, _ = encode_group(header, len(content), sequence, [Entry(lsn, 1, b"", None, 0, False)])
    content.extend(b"".join(buffers))
    return open_log(log.copy())[1]


def test_groups_and_records_must_follow_each_other() -> None:
    assert "should" in rewrite(Log(), lambda header: (header.first_sequence + 90, 10_000))
    assert "out of order" in rewrite(Log(), lambda header: (header.first_sequence + 90, 1))


def test_a_start_that_stops_at_damage_changes_nothing() -> None:
    log = Log()
    log.content(0)[BLOCK_SIZE + 60] ^= 1
    disk = log.copy()
    before = disk.contents()
    owner, _ = open_log(disk)
    assert owner is None
    assert disk.contents() == before
