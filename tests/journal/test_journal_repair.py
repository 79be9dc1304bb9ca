"""Salvage: all that is good is kept, what is lost is named, nothing is deleted."""

from __future__ import annotations

import contextlib
import random

import pytest
from faults import SimDisk
from journal_harness import DIRECTORY, SNAPSHOT, Log, Owner, Record, found_on, open_log

from ciphermq.errors import JournalDamaged, JournalError, JournalFailed, JournalFull, JournalInUse
from ciphermq.journal.format import BLOCK_SIZE
from ciphermq.journal.repair import repair
from ciphermq.journal.segments import list_segments, segment_path
from ciphermq.journal.tools import verify


def contents_below(disk: SimDisk, name: str) -> dict[str, bytes]:
    return {
        path.name: data for path, data in disk.contents().items() if path.parent == DIRECTORY / name
    }


def is_subsequence(found: list[Record], whole: list[Record]) -> bool:
    rest = iter(whole)
    return all(record in rest for record in found)


def test_a_good_log_is_left_alone() -> None:
    log = Log()
    before = log.disk.contents()
    assert not repair(DIRECTORY, files=log.disk).changed
    assert log.disk.contents() == before


def test_an_unfinished_end_needs_no_repair() -> None:
    log = Log()
    del log.content(-1)[-3:]
    assert not repair(DIRECTORY, files=log.disk).changed


def test_all_but_the_damaged_group_is_kept() -> None:
    log = Log()
    lsn = next(record[0] for record in log.records if record[2] == b"meta 5")
    location = log.located[lsn]
    assert location is not None
    log.disk.content(segment_path(DIRECTORY, location.segment))[location.offset - 30] ^= 1
    before = log.disk.contents()
    segments = list_segments(log.disk, DIRECTORY)

    done = repair(DIRECTORY, files=log.disk)

    assert done.changed
    assert done.snapshot == ""
    assert len(done.lost) == 1
    assert done.lost[0].path == segment_path(DIRECTORY, location.segment)
    assert done.lost[0].offset <= location.offset
    assert "fails its checksum" in done.lost[0].describe()
    assert done.aside is not None
    assert contents_below(log.disk, done.aside.name) == {
        path.name: data for path, data in before.items()
    }
    new = list_segments(log.disk, DIRECTORY)
    assert new[0] == segments[-1] + 1
    assert verify(DIRECTORY, files=log.disk).problems == []
    found = found_on(log.disk)
    assert len(found) == done.records
    assert is_subsequence(found, log.records)
    assert len(log.records) - len(found) <= 3
    assert lsn not in {record[0] for record in found}


def test_a_damaged_payload_costs_its_own_record_only() -> None:
    log = Log()
    lsn = next(record[0] for record in log.records if record[2] == b"meta 5")
    location = log.located[lsn]
    assert location is not None
    log.disk.content(segment_path(DIRECTORY, location.segment))[location.offset] ^= 1
    done = repair(DIRECTORY, files=log.disk)
    assert [problem.lsn for problem in done.lost] == [lsn]
    assert found_on(log.disk) == [record for record in log.records if record[0] != lsn]


def test_a_lost_first_snapshot_is_replaced_by_the_next() -> None:
    log = Log()
    log.content(0)[BLOCK_SIZE + 50] ^= 1
    done = repair(DIRECTORY, files=log.disk)
    assert f"the one of {segment_path(DIRECTORY, 2).name} stands in for it" in done.snapshot
    found = found_on(log.disk)
    assert found[0][1:] == (SNAPSHOT, b"snapshot 2", None)
    assert is_subsequence(found[1:], log.records)


def test_if_no_snapshot_is_left_it_says_so() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    for _ in range(3):
        owner.append(1, b"", b"payload")
        owner.drain()
    owner.journal.close()
    disk.content(segment_path(DIRECTORY, 1))[BLOCK_SIZE + 50] ^= 1
    assert "no snapshot is left" in repair(DIRECTORY, files=disk).snapshot
    assert len(found_on(disk)) == 2


def test_a_lost_header_is_replaced_by_its_second_copy() -> None:
    log = Log()
    log.content(1)[20] ^= 1
    done = repair(DIRECTORY, files=log.disk)
    assert found_on(log.disk) == log.records
    assert [problem.offset for problem in done.lost] == [0]


def test_a_missing_segment_costs_no_other() -> None:
    log = Log()
    log.disk.unlink(segment_path(DIRECTORY, log.segments[1]))
    done = repair(DIRECTORY, files=log.disk)
    assert any("missing" in problem.reason for problem in done.lost)
    assert is_subsequence(found_on(log.disk), log.records)


def test_a_log_with_nothing_good_becomes_an_empty_one() -> None:
    log = Log()
    for index in range(len(log.segments)):
        content = log.content(index)
        content[:] = random.Random(index).randbytes(len(content))
    done = repair(DIRECTORY, files=log.disk)
    assert done.records == 0
    assert len(done.lost) == len(log.segments)
    assert found_on(log.disk) == []
    owner = Owner(log.disk)
    owner.append(1, b"meta")
    owner.drain()
    assert owner.failure is None


def test_any_damage_can_be_repaired() -> None:
    """Random holes anywhere: what is salvaged was written, in order, and the log is good again."""
    log = Log()
    for seed in range(40):
        rng = random.Random(seed)
        disk = log.copy()
        for _ in range(rng.randrange(1, 6)):
            content = disk.content(segment_path(DIRECTORY, rng.choice(log.segments)))
            at = rng.randrange(len(content))
            size = rng.choice((1, 30, 512, 5000))
            kind = rng.randrange(3)
            if kind == 0:
                content[at : at + size] = rng.randbytes(len(content[at : at + size]))
            elif kind == 1:
                content[at : at + size] = bytes(len(content[at : at + size]))
            else:
                del content[at : at + size]
        repair(DIRECTORY, files=disk)
        found = found_on(disk)
        if found and found[0] not in log.records:
            assert found.pop(0)[1] == SNAPSHOT
        assert is_subsequence(found, log.records)
        assert not verify(DIRECTORY, files=disk).problems if found else True


def test_a_crash_at_any_call_of_a_repair_is_made_good_by_the_next() -> None:
    log = Log()
    log.content(1)[BLOCK_SIZE + 200] ^= 1
    log.content(2)[BLOCK_SIZE + 200] ^= 1
    whole = log.copy()
    repair(DIRECTORY, files=whole)
    wanted = found_on(whole)
    calls = len(whole.calls)
    assert calls > 20
    originals = {path.name: data for path, data in log.disk.contents().items()}
    for call in range(calls):
        for seed in range(3):
            disk = log.copy()
            disk.crash_at = call
            with contextlib.suppress(JournalFailed):
                repair(DIRECTORY, files=disk)
            found = disk.after_crash(random.Random(seed) if seed else "nothing")
            owner, message = open_log(found)
            if owner is None:  # it says what to do, and that does it
                assert "ciphermq journal repair" in message
                repair(DIRECTORY, files=found)
            else:
                owner.journal.close()
            assert found_on(found) == wanted
            aside = [name for name in found.names(DIRECTORY) if name.startswith("damaged-")]
            assert contents_below(found, aside[0]) == originals


def test_a_repair_on_a_full_disk_changes_nothing() -> None:
    log = Log()
    log.content(1)[BLOCK_SIZE + 200] ^= 1
    before = log.disk.contents()
    log.disk.capacity = sum(map(len, before.values())) + 9000
    with pytest.raises(JournalFull, match="Make as much space free"):
        repair(DIRECTORY, files=log.disk)
    assert log.disk.contents() == before


def test_a_repair_needs_the_journal_for_itself() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    with pytest.raises(JournalInUse):
        repair(DIRECTORY, files=disk)
    owner.journal.close()
    with pytest.raises(JournalError, match="holds no journal"):
        repair(DIRECTORY, files=disk)


def test_a_broken_start_says_how_to_repair() -> None:
    log = Log()
    log.content(0)[BLOCK_SIZE + 60] ^= 1
    with pytest.raises(JournalDamaged, match=f"ciphermq journal repair {DIRECTORY}"):
        Owner(log.disk)
    repair(DIRECTORY, files=log.disk)
    Owner(log.disk).journal.close()
