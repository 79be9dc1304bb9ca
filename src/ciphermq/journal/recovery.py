"""Opening a log that may have been cut off at any instant.

What a crash can leave: only one group is ever in flight, and everything before it was synced. So
only the end of the log can be torn: the last group of the last segment, or a last segment that
was just being made. An end that isn't good is cut, and said. Anything else that isn't good was
good once, and the disk or somebody changed it: that is damage, and the start stops.

How to tell: a group is followed by another, and a segment by another, only after it was synced.
So bad bytes are a torn end only if no good group follows them in the file and no segment follows
the file. A torn group may have a whole index and torn payloads; so the payloads of the last group
are checked too, but only if nothing at all stands behind it.

What is shown may not be on the device: a sync may have failed just before, and the kernel shows
the pages it could not write. So the last group is written again, and file and directory synced,
before anything is served from it. (All before it were synced, or it would not be there.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ciphermq.errors import JournalDamaged
from ciphermq.journal.files import Files, write_all
from ciphermq.journal.format import BLOCK_SIZE, RECORD_SIZE, Location, SegmentHeader
from ciphermq.journal.ledger import Ledger, Written
from ciphermq.journal.scan import Gap, Group, SegmentScan, walk
from ciphermq.journal.segments import Tail, list_segments, segment_path

Replay = Callable[[int, int, bytes, Location | None], None]
"""``(lsn, kind, meta, location)`` of each record, in order."""


class Cut(msgspec.Struct, frozen=True):
    """An unfinished end that was taken off."""

    path: Path
    offset: int
    size: int
    reason: str


class RecoveryReport(msgspec.Struct, frozen=True):
    """What was found when the journal was opened."""

    segments: int
    groups: int
    records: int
    size: int
    """Bytes of all segments."""
    seconds: float
    cut: Cut | None = None
    """None when the log ended cleanly."""

    def describe(self) -> str:
        """A sentence for the broker's log."""
        found = (
            f"{self.records} records in {self.groups} groups, {self.segments} segments "
            f"({self.size} bytes), read in {self.seconds:.2f} s"
        )
        if self.cut is None:
            return f"{found}; the log ends cleanly"
        return (
            f"{found}; {self.cut.size} unfinished bytes, never confirmed, were cut off "
            f"{self.cut.path} at offset {self.cut.offset}: {self.cut.reason}"
        )


class Recovered(msgspec.Struct, frozen=True):
    """Where writing goes on."""

    report: RecoveryReport
    tail: Tail | None
    sequence: int
    last_lsn: int


def damaged(directory: Path, gap: Gap) -> JournalDamaged:
    """The error that stops a start: which file, where, what, and what to do."""
    return JournalDamaged(
        f"{gap.path}: damaged at offset {gap.start}: {gap.reason}. The disk or another program "
        f"changed the log; nothing was altered now. Run `ciphermq journal repair {directory}` to "
        "salvage all that is good (it keeps the damaged files), or restore a backup"
    )


def recover(files: Files, directory: Path, replay: Replay, ledger: Ledger) -> Recovered:
    """Replay the log in `directory`, cut its unfinished end, make the rest surely durable.

    Raises `JournalDamaged`, and whatever `replay` or the file system raises.
    """
    return _Recovery(files, directory, replay, ledger).run()


class _Last:
    """The last good group so far and its segment's header."""

    def __init__(self, header: SegmentHeader, group: Group) -> None:
        self.header = header
        self.group = group


class _Recovery:
    """One pass. A group is replayed only once it is known that it stays: one behind the walk."""

    def __init__(self, files: Files, directory: Path, replay: Replay, ledger: Ledger) -> None:
        self._files = files
        self._directory = directory
        self._replay = replay
        self._ledger = ledger
        self._cut: Cut | None = None
        self._segment = 0  # the one whose groups are replayed now
        self._groups = 0
        self._records = 0
        self._size = 0  # the rest are of that segment, up to now
        self._snapshot = 0
        self._payloads = 0
        self._payload_bytes = 0
        self._overhead = 0

    def run(self) -> Recovered:
        begun = time.monotonic()
        before: _Last | None = None
        last: _Last | None = None
        for scan, group in walk(self._files, self._directory, self._on_gap):
            if last is not None:
                self._deliver(last.group)
            before, last = last, _Last(scan.header, group)
        if last is not None and self._torn_payload(last.group):
            last = before
        elif last is not None:
            self._deliver(last.group)
        self._account()
        tail = self._settle(last)
        count, size, _ = self._ledger.totals()
        report = RecoveryReport(
            segments=count,
            groups=self._groups,
            records=self._records,
            size=size,
            seconds=time.monotonic() - begun,
            cut=self._cut,
        )
        return Recovered(
            report=report,
            tail=tail,
            sequence=last.group.sequence if last else 0,
            last_lsn=last.group.records[-1][0] if last else 0,
        )

    def _on_gap(self, gap: Gap) -> None:
        if gap.followed:
            raise damaged(self._directory, gap)
        size = gap.end - gap.start
        self._cut = Cut(path=gap.path, offset=gap.start, size=size, reason=gap.reason)

    def _torn_payload(self, group: Group) -> bool:
        """Whether `group` is the very end of the log and a payload of it was not all written."""
        if self._cut is not None or group.segment != self._last_segment():
            return False
        with SegmentScan(self._files, self._directory, group.segment) as scan:
            bad = scan.bad_payloads(group)
        if not bad:
            return False
        reason = f"the payload of record {bad[0][0]} fails its checksum"
        size = group.end - group.start
        self._cut = Cut(path=scan.path, offset=group.start, size=size, reason=reason)
        return True

    def _last_segment(self) -> int:
        return list_segments(self._files, self._directory)[-1]

    def _deliver(self, group: Group) -> None:
        records = group.records
        if group.segment != self._segment:
            self._account()
            self._segment = group.segment
            self._ledger.added(group.segment)
            if group.start == BLOCK_SIZE:
                self._snapshot = RECORD_SIZE + len(records[0][2])
        self._size += group.end - group.start
        self._groups += 1
        self._records += len(records)
        replay = self._replay
        payloads = payload_bytes = overhead = 0
        for lsn, kind, meta, location in records:
            if location is not None:
                payloads += 1
                payload_bytes += location.length
                overhead += RECORD_SIZE + len(meta)
            replay(lsn, kind, meta, location)
        self._payloads += payloads
        self._payload_bytes += payload_bytes
        self._overhead += overhead

    def _account(self) -> None:
        """Enter what was replayed of a segment: once for all its groups, which may be many.

        Until then its live bytes are too few by as much, which nobody sees before the end.
        """
        if self._size:
            written = Written(
                size=self._size,
                snapshot=self._snapshot,
                payloads=self._payloads,
                payload_bytes=self._payload_bytes,
                overhead=self._overhead,
            )
            self._ledger.wrote(self._segment, written)
        self._size = self._snapshot = 0
        self._payloads = self._payload_bytes = self._overhead = 0

    # --- making it durable ----------------------------------------------------------------------

    def _settle(self, last: _Last | None) -> Tail | None:
        """Cut what is beyond `last`, write `last` again, sync all; the segment to go on with."""
        files = self._files
        segments = list_segments(files, self._directory)
        keep = last.group.segment if last else 0
        if last is None and segments and segments[0] != 1:
            gap = Gap(segment_path(self._directory, segments[0]), 0, 0, "all of it is lost", True)
            raise damaged(self._directory, gap)
        for segment in reversed(segments):
            if segment > keep:  # it was just being made and holds no group
                files.unlink(segment_path(self._directory, segment))
        files.sync_directory(self._directory)
        if last is None:
            return None
        path = segment_path(self._directory, keep)
        start, end = last.group.start, last.group.end
        fd = files.open(path)
        try:
            files.truncate(fd, end)
            write_all(files, fd, [files.pread(fd, end - start, start)], start)
            files.sync(fd)
        except BaseException:
            files.close(fd)
            raise
        return Tail(files, path, fd, last.header, end=end)


SMALLEST_SEGMENT: Final = 2 * BLOCK_SIZE
"""A segment must have room for its header and a few records."""
