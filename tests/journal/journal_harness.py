"""Journals for tests: one whose writer moves only when told, one with its own thread."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from faults import SimDisk

from ciphermq.errors import CipherMQError, JournalDamaged
from ciphermq.journal import Journal, Location
from ciphermq.journal.segments import list_segments, segment_path
from ciphermq.journal.writer import Writer
from ciphermq.limits import KIB

DIRECTORY = Path("/log")
SNAPSHOT = 255
Record = tuple[int, int, bytes, bytes | None]
"""``(lsn, kind, meta, payload)``."""


class SteppedJournal(Journal):
    """Its writer runs in the caller's thread, in `drain`: so a run is the same every time."""

    def _start_thread(self, writer: Writer) -> threading.Thread | None:
        self.stepped = writer
        return None

    def drain(self) -> None:
        """Write all that was appended."""
        while not self.stepped.queue.empty() or self.stepped._held is not None:
            self.stepped.step()
        self.stepped.baton.rest()


class Owner:
    """Appends to a journal on a `SimDisk` and remembers what was promised about it."""

    def __init__(self, disk: SimDisk, *, segment_size: int = 12 * KIB, reserve: int = 0) -> None:
        self.written: list[Record] = []
        """All that was appended, with what was found at the start before it, and without what
        was refused."""
        self.starts: dict[int, int] = {}
        """Segment to the lsn of its first record, for those that this run began."""
        self.located: dict[int, Location | None] = {}
        self.confirmed = 0
        self.refused: list[int] = []
        self.hears = True
        """Whether it takes note of what is refused."""
        self.dropped = 0
        self.failure: CipherMQError | None = None
        self.padding = b""
        """What makes snapshots larger."""
        self._snapshots = 0
        self.journal = SteppedJournal(
            DIRECTORY, files=disk, segment_size=segment_size, reserve=reserve, max_group=8 * KIB
        )
        found: list[tuple[int, int, bytes, Location | None]] = []
        self.report = self.journal.open(lambda *record: found.append(record))
        for lsn, kind, meta, location in found:
            payload = None if location is None else self.journal.read(location)
            self.written.append((lsn, kind, meta, payload))
            self.located[lsn] = location
        if found:
            self.confirmed = found[-1][0]
        self.journal.start(
            snapshot=self._snapshot,
            on_durable=self._durable,
            on_refused=self._refused,
            on_failed=self._failed,
        )

    def _snapshot(self) -> tuple[int, bytes]:
        self._snapshots += 1
        return SNAPSHOT, self._snapshot_meta()

    def _snapshot_meta(self) -> bytes:
        return b"snapshot %d" % self._snapshots + self.padding

    def _durable(self, placed: list[tuple[int, Location | None]]) -> None:
        assert self.failure is None
        assert placed[0][0] > self.confirmed
        self.confirmed = placed[-1][0]
        self.located.update(placed)

    def _refused(self, lsns: list[int], error: CipherMQError) -> None:
        assert "no space" in str(error)
        self.refused += lsns
        if self.hears:
            self.journal.resume(lsns[-1])
        self.written = [record for record in self.written if record[0] not in lsns]

    def _failed(self, error: CipherMQError) -> None:
        assert self.failure is None
        self.failure = error

    def append(
        self, kind: int, meta: bytes, payload: bytes | None = None, *, essential: bool = False
    ) -> int:
        before = self._snapshots
        lsn = self.journal.append(kind, meta, payload, essential=essential)
        if self._snapshots != before:
            self.written.append((lsn - 1, SNAPSHOT, self._snapshot_meta(), None))
        self.written.append((lsn, kind, meta, payload))
        return lsn

    def drain(self) -> None:
        self.journal.drain()

    def release_before(self, lsn: int) -> None:
        for number, location in list(self.located.items()):
            if number < lsn and location is not None:
                self.journal.release(location)
                self.located[number] = None

    def drop_oldest(self) -> bool:
        """Copy what is live in the oldest segment, if it is due, and drop it."""
        segment = self.journal.oldest_due()
        if segment is None:
            return False
        for lsn, location in list(self.located.items()):
            if location is not None and location.segment == segment:
                self.append(3, b"copy of %d" % lsn, self.journal.read(location), essential=True)
                self.located[lsn] = None
        self.drain()
        done = self.journal.drop_oldest(segment)
        self.dropped = segment
        self.drain()
        return done.exception() is None


def found_on(disk: SimDisk) -> list[Record]:
    """What a start finds, with every payload read."""
    owner = Owner(disk)
    owner.journal.close()
    return owner.written


class Log:
    """A closed log of several segments, to be damaged."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        owner = Owner(self.disk)
        for i in range(14):
            owner.append(1, b"meta %d" % i, random.Random(i).randbytes(i * 250))
            owner.append(2, b"ack %d" % i)
            owner.drain()
        owner.journal.close()
        self.records: list[Record] = owner.written
        self.located = owner.located
        self.segments = list_segments(self.disk, DIRECTORY)

    def content(self, index: int) -> bytearray:
        return self.disk.content(segment_path(DIRECTORY, self.segments[index]))

    def copy(self) -> SimDisk:
        return self.disk.after_crash("all")


def open_log(disk: SimDisk) -> tuple[Owner | None, str]:
    """An owner, or the damage's message."""
    try:
        return Owner(disk), ""
    except JournalDamaged as error:
        return None, str(error)


class Threaded:
    """A real journal on the real file system, with its own thread."""

    def __init__(self, directory: Path, **options: int) -> None:
        self.failed = threading.Event()
        self.failure: CipherMQError | None = None
        self.durable = threading.Semaphore(0)
        self.journal = Journal(directory, **{"reserve": 0, "segment_size": 64 * KIB, **options})
        self.journal.open(lambda *_: None)
        self.journal.start(
            snapshot=lambda: (255, b""),
            on_durable=lambda placed: self.durable.release(len(placed)),
            on_refused=lambda _lsns, _error: None,
            on_failed=self._failed,
        )

    def _failed(self, error: CipherMQError) -> None:
        self.failure = error
        self.failed.set()
