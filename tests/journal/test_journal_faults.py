"""Calls that fail: what is promised afterwards still holds, and the reader is told what to do."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import SimDisk
from journal_harness import DIRECTORY, Owner, Threaded, found_on
from test_journal_crash import Run, calls_of, check, half, plain

from ciphermq.errors import JournalError, JournalFailed, UsageError
from ciphermq.journal import Journal, OsFiles
from ciphermq.journal.files import IOV_MAX, write_all
from ciphermq.journal.segments import list_segments
from ciphermq.limits import KIB


def fail_at(call: int, error: int) -> Callable[[str, int], OSError | None]:
    return lambda _name, number: OSError(error, "broken") if number == call else None


# --- any call fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("workload", [plain, half])
def test_any_failing_call_stops_the_journal_and_loses_nothing(
    workload: Callable[[Run], None],
) -> None:
    for call in range(calls_of(workload)):
        disk = SimDisk()
        disk.fault = fail_at(call, errno.EIO)
        run = Run(workload, disk)
        if run.owner is None:
            continue
        assert run.owner.failure is not None
        made = disk.calls[call]
        assert not {"write", "create", "unlink"} & set(disk.calls[call + 4 :]), made
        # The machine stays up; the broker is started again, and then power is lost.
        disk.killed()
        found = found_on(disk)
        check(run, found)
        for seed in range(4):
            way = random.Random(seed) if seed else "nothing"
            assert found_on(disk.after_crash(way)) == found


def test_a_failed_sync_is_never_tried_again() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    first = owner.append(1, b"first", b"x" * 1000)
    owner.drain()
    disk.fault = lambda name, _: OSError(errno.EIO, "broken") if name == "sync" else None
    owner.append(1, b"second", b"y" * 1000)
    owner.append(1, b"third", b"z" * 9000)  # for the next segment
    owner.drain()
    disk.fault = None
    before = len(disk.calls)
    owner.drain()
    assert isinstance(owner.failure, JournalFailed)
    assert owner.confirmed == first
    with pytest.raises(JournalFailed, match=r"what was confirmed is not\. Check the disk"):
        owner.append(1, b"later")
    drop = owner.journal.drop_oldest(1)
    owner.drain()
    assert isinstance(drop.exception(), JournalFailed)
    assert disk.calls[before:] == []
    owner.journal.close()


def test_a_failed_write_is_taken_back() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    owner.append(1, b"first", b"x" * 1000)
    owner.drain()
    whole = disk.contents()
    disk.shorten = lambda _call: 100
    writes = []

    def second_write(name: str, _number: int) -> OSError | None:
        writes.append(name)
        second = name == "write" and writes.count("write") == 2
        return OSError(errno.EIO, "broken") if second else None

    disk.fault = second_write
    owner.append(1, b"second", b"y" * 1000)
    owner.drain()
    assert isinstance(owner.failure, JournalFailed)
    assert disk.contents() == whole


def test_a_device_that_takes_nothing_and_says_nothing_is_an_error() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    disk.shorten = lambda _call: 0
    owner.append(1, b"meta")
    owner.drain()
    assert "took no bytes" in str(owner.failure)


def test_a_failing_callback_stops_the_journal_instead_of_hanging_it() -> None:
    owner = Owner(SimDisk())
    owner.journal.stepped.on_durable = lambda _placed: 1 / 0  # type: ignore[assignment,return-value]
    owner.append(1, b"meta")
    owner.drain()
    assert "ZeroDivisionError" in str(owner.failure)


def test_an_error_while_opening_names_the_file() -> None:
    disk = SimDisk()
    disk.fault = fail_at(2, errno.EROFS)
    owner = Owner(disk)
    owner.journal.close()
    disk.fault = lambda _name, _number: OSError(errno.EROFS, "Read-only file system", "/log/x")
    with pytest.raises(JournalFailed, match=r"/log/x: .*Read-only file system"):
        Owner(disk)


def test_a_reserve_that_cannot_be_made_stops_the_start_and_leaves_nothing_open() -> None:
    disk = SimDisk()
    Owner(disk).journal.close()
    disk.fault = lambda name, _: OSError(errno.EIO, "broken") if name == "preallocate" else None
    with pytest.raises(JournalFailed):
        Owner(disk, reserve=10 * KIB)
    assert disk._open == {}
    disk.fault = None
    Owner(disk, reserve=10 * KIB).journal.close()


# --- the directory vanishes --------------------------------------------------------------------


def test_a_vanished_directory_stops_the_next_segment(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    owner.journal.append(1, b"", b"x" * 1000)
    assert owner.durable.acquire(timeout=30)
    shutil.rmtree(tmp_path / "log")
    owner.journal.append(1, b"", b"x" * 100_000)
    assert owner.failed.wait(30)
    assert str(tmp_path / "log") in str(owner.failure)
    owner.journal.close()


def test_a_vanished_directory_is_noticed_within_a_segment(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "log").mkdir()
    owner.journal.append(1, b"", b"x" * 1000)
    assert owner.durable.acquire(timeout=30)
    shutil.rmtree(tmp_path / "log")
    assert owner.journal._writer is not None
    owner.journal._writer._next_check = 0.0  # a second later
    owner.journal.append(1, b"", b"x" * 1000)
    assert owner.failed.wait(30)
    assert "was deleted while the broker ran" in str(owner.failure)
    owner.journal.close()


# --- the disk is full --------------------------------------------------------------------------


def fill(owner: Owner) -> None:
    while not owner.refused:
        owner.append(1, b"payload", b"p" * 3000)
        owner.drain()


def test_a_full_disk_refuses_payloads_and_goes_on_with_the_rest() -> None:
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    fill(owner)
    assert owner.failure is None
    refused = len(owner.refused)
    for i in range(40):
        owner.append(2, b"ack %d" % i + bytes(100))
        owner.append(1, b"payload", b"p" * 3000)
        owner.append(3, b"copy", b"c" * 100, essential=True)
        owner.drain()
    assert len(owner.refused) == refused + 40
    assert not owner.journal.stats().reserve_whole
    assert owner.journal.pending_bytes == 0
    assert owner.failure is None
    owner.journal.close()
    assert [record for record in found_on(disk) if record[1] != 1] == [
        record for record in owner.written if record[1] != 1
    ]


def test_when_space_is_back_so_is_the_reserve_and_then_payloads() -> None:
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    fill(owner)
    for _ in range(4):
        owner.append(2, b"ack" + bytes(3000))
    owner.drain()
    assert not owner.journal.stats().reserve_whole
    disk.capacity = 130 * KIB  # enough for the payload, not for the reserve and it
    owner.journal.stepped._next_remake = 0.0
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    held = owner.journal.stats().reserve_whole
    assert (lsn in owner.refused) == (not held)
    disk.capacity = 1 << 30
    owner.journal.stepped._next_remake = 0.0
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert lsn not in owner.refused
    assert owner.confirmed == lsn
    assert owner.journal.stats().reserve == 40 * KIB


def test_nothing_overtakes_what_was_refused() -> None:
    """Space may be back before the sender of what was refused has heard of it."""
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    owner.hears = False
    fill(owner)
    first = owner.refused[-1]
    assert owner.journal.stats().reserve_whole  # only payloads were short of space
    disk.capacity = 1 << 30
    second = owner.append(1, b"payload", b"p" * 3000)
    ack = owner.append(2, b"ack")
    owner.drain()
    assert owner.refused == [first, second]
    assert owner.confirmed == ack
    third = owner.append(1, b"payload", b"p" * 3000)
    owner.journal.resume(first)
    owner.journal.stepped._next_remake = 0.0
    owner.drain()
    assert owner.refused == [first, second, third]  # the second's sender hasn't heard either
    owner.journal.resume(second)
    fourth = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.refused[-1] == fourth
    owner.journal.resume(fourth)
    fifth = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.refused[-1] == fourth
    assert owner.confirmed == fifth


def test_a_full_disk_is_asked_again_after_a_while_only() -> None:
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    fill(owner)
    disk.capacity = 1 << 30
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.refused[-1] == lsn
    owner.journal.stepped._next_remake = 0.0  # a second later
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.confirmed == lsn


def test_refused_payloads_begin_no_segments() -> None:
    """Else an insistent publisher would use up the reserve with headers and snapshots."""
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    fill(owner)
    owner.append(2, b"ack")
    owner.drain()
    segments = list_segments(disk, DIRECTORY)
    for _ in range(100):
        owner.append(1, b"payload", b"p" * 3000)
        owner.drain()
    assert len(list_segments(disk, DIRECTORY)) <= len(segments) + 1
    assert owner.failure is None


def test_without_any_space_left_the_journal_fails_and_keeps_what_was_confirmed() -> None:
    disk = SimDisk(100 * KIB)
    owner = Owner(disk, reserve=40 * KIB)
    fill(owner)
    while owner.failure is None:
        owner.append(2, b"ack" + bytes(2000))
        owner.drain()
    assert "the journal's reserve is used up. Nothing confirmed is lost" in str(owner.failure)
    owner.journal.close()
    confirmed = [record for record in owner.written if record[0] <= owner.confirmed]
    assert found_on(disk) == confirmed


def test_a_full_disk_can_be_emptied_through_the_reserve() -> None:
    disk = SimDisk(150 * KIB)
    owner = Owner(disk, reserve=60 * KIB)
    fill(owner)
    for lsn, location in list(owner.located.items()):
        owner.append(2, b"ack %d" % lsn)
        if location is not None:
            owner.journal.release(location)
            owner.located[lsn] = None
    owner.drain()
    while owner.drop_oldest():
        pass
    owner.journal.stepped._next_remake = 0.0
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.confirmed == lsn


def test_a_disk_of_less_than_a_segment_can_be_emptied_too() -> None:
    disk = SimDisk(150 * KIB)
    owner = Owner(disk, reserve=60 * KIB, segment_size=200 * KIB)
    fill(owner)
    owner.append(2, b"ack of all")
    owner.drain()
    owner.release_before(owner.confirmed + 1)
    assert not owner.drop_oldest()
    refused = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert refused in owner.refused
    assert owner.drop_oldest()
    lsn = owner.append(1, b"payload", b"p" * 3000)
    owner.drain()
    assert owner.confirmed == lsn
    assert owner.failure is None
    written = owner.written
    owner.journal.close()
    assert found_on(disk) == [record for record in written if record[0] > refused - 2]


def test_without_relief_the_tail_is_ended_once() -> None:
    """Copies of copies would else use up the reserve."""
    disk = SimDisk(150 * KIB)
    owner = Owner(disk, reserve=60 * KIB, segment_size=200 * KIB)
    fill(owner)
    owner.release_before(owner.confirmed + 1)
    assert not owner.drop_oldest()
    owner.append(2, b"ack")
    owner.drain()
    disk.capacity = 61 * KIB  # somebody else has taken what is gained
    assert owner.drop_oldest()
    for _ in range(20):
        owner.append(2, b"ack" + bytes(2000))
        owner.append(1, b"payload", b"p" * 30_000)
        owner.drain()
        assert not owner.drop_oldest()
    assert owner.failure is None
    assert not owner.journal.stats().reserve_whole
    assert owner.journal.stepped.rotations == 2


def test_a_disk_too_full_for_the_reserve_still_starts() -> None:
    disk = SimDisk(30 * KIB)
    owner = Owner(disk, reserve=60 * KIB)
    lsn = owner.append(1, b"payload", b"p" * 100)
    owner.append(2, b"ack")
    owner.drain()
    assert owner.refused == [lsn]
    assert owner.failure is None


def test_a_smaller_reserve_gives_the_rest_back() -> None:
    disk = SimDisk()
    Owner(disk, reserve=60 * KIB).journal.close()
    owner = Owner(disk, reserve=10 * KIB)
    assert owner.journal.stats().reserve == 10 * KIB
    owner.journal.close()
    owner = Owner(disk)
    assert owner.journal.stats().reserve == 0


# --- the real file system ----------------------------------------------------------------------


def test_more_buffers_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    files = OsFiles()
    fd = files.open(tmp_path / "file", create=True)
    buffers = [b"%d," % i for i in range(3 * IOV_MAX)]
    write_all(files, fd, buffers, 5)
    assert files.pread(fd, 1 << 20, 5) == b"".join(buffers)
    files.close(fd)


def test_the_reserve_is_really_on_the_disk(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log", reserve=1 << 20)
    status = (tmp_path / "log" / "reserve").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
    owner.journal.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "a" / "log", reserve=4096)
    owner.journal.append(1, b"")
    owner.journal.close()
    assert (tmp_path / "a" / "log").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "log").iterdir()} == {0o600}


# --- misuse ------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_before() -> None:
    owner = Owner(SimDisk())
    for kind in (0, 256, -1):
        with pytest.raises(UsageError, match="kind"):
            owner.journal.append(kind, b"")
    with pytest.raises(UsageError, match="single bytes"):
        owner.journal.append(1, b"", memoryview(bytes(8)).cast("I"))
    with pytest.raises(UsageError, match="opened before"):
        owner.journal.open(lambda *_: None)
    with pytest.raises(UsageError, match="a segment of 100 bytes"):
        Journal(DIRECTORY, segment_size=100)
    with pytest.raises(UsageError, match="a group of 0 bytes"):
        Journal(DIRECTORY, max_group=0)


def test_only_the_oldest_closed_segment_is_dropped() -> None:
    disk = SimDisk()
    owner = Owner(disk)
    for _ in range(6):
        owner.append(1, b"payload", b"p" * 5000)
    owner.drain()
    segments = list_segments(disk, DIRECTORY)
    for segment in (segments[1], segments[-1], 99):
        done = owner.journal.drop_oldest(segment)
        owner.drain()
        assert isinstance(done.exception(), JournalError)
    assert owner.failure is None
    cancelled = owner.journal.drop_oldest(segments[0])
    cancelled.cancel()
    owner.drain()
    assert list_segments(disk, DIRECTORY) == segments
    owner.journal.drop_oldest(segments[0])
    owner.drain()
    assert list_segments(disk, DIRECTORY) == segments[1:]
