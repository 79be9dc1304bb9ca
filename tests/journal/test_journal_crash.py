"""Power is lost at every call that changes the disk; nothing confirmed is lost, nothing is torn.

Each run is cut off at its n-th write, sync, create, truncate, unlink or directory sync, and the
disk is found in several ways: all of the unsynced is there, nothing of it, any part of it. With
CIPHERMQ_LONG=1 there are many more such ways.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable

import pytest
from faults import SimDisk
from journal_harness import DIRECTORY, SNAPSHOT, Owner, Record, found_on

from ciphermq.errors import JournalFailed
from ciphermq.journal.tools import verify
from ciphermq.limits import KIB

LONG = os.environ.get("CIPHERMQ_LONG") == "1"
pytestmark = pytest.mark.timeout(7200 if LONG else 120)
SEEDS = 100 if LONG else 12


class Run:
    """One run of a workload, up to its end or to the crash."""

    def __init__(self, workload: Callable[[Run], None], disk: SimDisk) -> None:
        self.disk = disk
        self.owner: Owner | None = None
        with contextlib.suppress(JournalFailed):
            workload(self)

    def open(self, **options: int) -> Owner:
        self.owner = Owner(self.disk, **options)
        return self.owner


def plain(run: Run) -> None:
    """Groups of several shapes over several segments; the oldest is compacted away."""
    owner = run.open()
    for size in (0, 10, 700, 3000, 5000):
        owner.append(1, b"alone", b"a" * size)
        owner.drain()
    for i in range(16):
        owner.append(2, b"meta %d" % i * (i + 1))
        owner.append(1, b"together", bytes([i]) * (i * 400))
        if i % 4 == 3:
            owner.drain()
    keep = owner.append(1, b"kept", b"k" * 900)
    owner.drain()
    owner.release_before(keep - 9)
    while owner.drop_oldest():
        owner.append(2, b"after a drop")
        owner.drain()


def full(run: Run) -> None:
    """The disk fills up: payloads are refused, the rest goes on from the reserve, space returns."""
    run.disk.capacity = 90 * KIB
    owner = run.open(reserve=32 * KIB)
    for i in range(12):
        owner.append(1, b"payload %d" % i, b"p" * 5000)
        owner.append(2, b"ack %d" % i)
        owner.drain()
    owner.release_before(owner.confirmed)
    owner.journal.stepped._next_remake = 0.0
    while owner.drop_oldest():
        owner.append(2, b"after a drop")
        owner.drain()
    owner.append(1, b"fits again", b"f" * 5000)
    owner.drain()


def half(run: Run) -> None:
    """Half a group is written and taken back, then the next segment begins."""
    run.disk.capacity = 12 * KIB
    owner = run.open(segment_size=24 * KIB)
    owner.append(1, b"fits", b"f" * 500)
    owner.drain()
    owner.append(1, b"does not fit", b"n" * 12_000)
    owner.drain()
    run.disk.capacity = 1 << 30
    owner.append(2, b"in a new segment" * 2000)
    owner.drain()


def stutter(run: Run) -> None:
    """Every other write is cut short by the kernel, though there is space."""
    run.disk.shorten = lambda call: 1000 if call % 2 else None
    owner = run.open()
    for i in range(8):
        owner.append(1, b"payload %d" % i, bytes([i]) * 2500)
        owner.append(2, b"meta %d" % i)
        owner.drain()


def restarts(run: Run) -> None:
    """The process is killed and started again, on a machine that stays up."""
    for i in range(4):
        owner = run.open()
        owner.append(1, b"life %d" % i, b"x" * 1500)
        owner.drain()
        owner.append(2, b"never written")
        if not run.disk.dead:
            run.disk._open.clear()
            run.disk._locked.clear()


WORKLOADS = [plain, full, half, stutter, restarts]


def calls_of(workload: Callable[[Run], None]) -> int:
    """How many calls a run makes, having checked that it goes through."""
    run = Run(workload, SimDisk())
    assert run.owner is not None
    assert run.owner.failure is None
    return len(run.disk.calls)


def crashed(workload: Callable[[Run], None], call: int) -> Run:
    disk = SimDisk()
    disk.crash_at = call
    run = Run(workload, disk)
    assert disk.dead
    return run


def ways(call: int) -> list[random.Random | str]:
    return ["all", "nothing", *(random.Random(call * 1000 + seed) for seed in range(SEEDS))]


def check(run: Run, found: list[Record]) -> None:
    """`found` is what was written, from a segment's start on, at least to the last confirmed."""
    if run.owner is None:  # it had not even started
        return
    wanted = run.owner.written
    last = found[-1][0] if found else 0
    assert last >= run.owner.confirmed
    until = [record for record in wanted if record[0] <= last]
    if not run.owner.dropped:
        assert found == until
        return
    assert found == until[len(until) - len(found) :]
    assert found[0][1] == SNAPSHOT
    kept = [lsn for lsn, place in run.owner.located.items() if place is not None]
    assert all(lsn in {record[0] for record in found} for lsn in kept)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_crash_at_any_call_loses_nothing_confirmed(workload: Callable[[Run], None]) -> None:
    for call in range(calls_of(workload)):
        run = crashed(workload, call)
        for way in ways(call):
            disk = run.disk.after_crash(way)
            found = found_on(disk)
            check(run, found)
            # What a start has shown, it has also made durable.
            assert found_on(disk.after_crash("nothing")) == found
            if found:
                assert not verify(DIRECTORY, files=disk).problems


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_crash_during_recovery_is_no_worse(workload: Callable[[Run], None]) -> None:
    for call in range(0, calls_of(workload), 1 if LONG else 4):
        run = crashed(workload, call)
        for seed in range(10 if LONG else 2):
            again = 0
            while True:
                disk = run.disk.after_crash(random.Random(seed))
                disk.crash_at = again
                with contextlib.suppress(JournalFailed):
                    found_on(disk)
                if not disk.dead:
                    break
                found = found_on(disk.after_crash(random.Random(seed + again)))
                check(run, found)
                again += 1


@pytest.mark.parametrize("workload", WORKLOADS)
def test_work_goes_on_after_a_crash(workload: Callable[[Run], None]) -> None:
    for call in range(0, calls_of(workload), 1 if LONG else 3):
        run = crashed(workload, call)
        disk = run.disk.after_crash(random.Random(call))
        disk.capacity = 1 << 30
        owner = Owner(disk)
        for size in (1, 3000, 3000):  # the first one fits into the old segment
            owner.append(1, b"later", b"l" * size)
            owner.drain()
            assert found_on(disk.after_crash("nothing")) == owner.written


def test_the_workloads_do_what_they_are_for() -> None:
    run = Run(plain, SimDisk())
    assert run.owner is not None
    assert run.owner.dropped >= 2
    assert run.disk.calls.count("create") >= 4
    run = Run(full, SimDisk())
    assert run.owner is not None
    assert run.owner.refused
    assert run.owner.dropped
    assert len(run.owner.written) + len(run.owner.refused) > 26
    assert run.owner.written[-1][2] == b"fits again"
