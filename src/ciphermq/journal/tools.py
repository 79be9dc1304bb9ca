"""Looking at a log without opening it: what is in it, and whether all of it is good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ciphermq.errors import JournalError
from ciphermq.journal.files import Files, OsFiles
from ciphermq.journal.scan import Gap, walk
from ciphermq.journal.segments import list_segments, segment_path

Progress = Callable[[int, int], None]
"""``(bytes done, bytes in all)``, called now and then during long work."""


class Problem(msgspec.Struct, frozen=True):
    """A place that is not what was written there."""

    path: Path
    offset: int
    size: int
    """Bytes that are lost, as far as can be told."""
    reason: str
    lsn: int = 0
    """Of the record whose payload it is; 0 when it is no payload."""

    def describe(self) -> str:
        """One line for a person."""
        return f"{self.path}: at offset {self.offset}, {self.size} bytes: {self.reason}"


class Verified(msgspec.Struct, frozen=True):
    """What `verify` found."""

    segments: int
    groups: int
    records: int
    payloads: int
    size: int
    problems: list[Problem]
    """Empty: all is good."""
    torn: Problem | None
    """An unfinished end, as after a crash or while a broker writes: no damage; a start cuts it."""


class SegmentStats(msgspec.Struct):
    """One segment in numbers."""

    segment: int
    size: int
    groups: int = 0
    records: int = 0
    payload_bytes: int = 0
    first_lsn: int = 0
    last_lsn: int = 0


def verify(
    directory: Path, *, progress: Progress | None = None, files: Files | None = None
) -> Verified:
    """Read the whole log, payloads too, and list all that is not good. Changes nothing.

    May be used on a running broker's directory. Raises `JournalError` if there is no log.
    """
    files = OsFiles() if files is None else files
    total, segments = extent(files, directory)
    gaps: list[Gap] = []
    problems: list[Problem] = []
    groups = records = payloads = done = 0
    for scan, group in walk(files, directory, gaps.append, shrinking=True):
        groups += 1
        records += len(group.records)
        payloads += sum(1 for record in group.records if record[3] is not None)
        for lsn, location in scan.bad_payloads(group):
            reason = f"the payload of record {lsn} fails its checksum"
            problems.append(Problem(scan.path, location.offset, location.length, reason, lsn))
        done += group.end - group.start
        if progress is not None:
            progress(min(done, total), total)
    torn: Problem | None = None
    for gap in gaps:
        problem = Problem(gap.path, gap.start, gap.end - gap.start, gap.reason)
        if gap.followed:
            problems.append(problem)
        else:
            torn = problem
    problems.sort(key=lambda problem: (problem.path, problem.offset))
    return Verified(
        segments=segments,
        groups=groups,
        records=records,
        payloads=payloads,
        size=total,
        problems=problems,
        torn=torn,
    )


def stats(directory: Path, *, files: Files | None = None) -> list[SegmentStats]:
    """Each segment in numbers, oldest first, without reading payloads; bad places are left out.

    May be used on a running broker's directory. Raises `JournalError` if there is no log.
    """
    files = OsFiles() if files is None else files
    extent(files, directory)
    rows: dict[int, SegmentStats] = {}
    for scan, group in walk(files, directory, lambda _gap: None, shrinking=True):
        row = rows.setdefault(scan.segment, SegmentStats(scan.segment, scan.size))
        row.groups += 1
        row.records += len(group.records)
        row.payload_bytes += sum(place.length for *_, place in group.records if place is not None)
        row.first_lsn = row.first_lsn or group.records[0][0]
        row.last_lsn = group.records[-1][0]
    return list(rows.values())


def extent(files: Files, directory: Path) -> tuple[int, int]:
    """Bytes and number of all segments, or `JournalError` if there are none."""
    try:
        segments = list_segments(files, directory)
    except OSError as error:
        raise JournalError(f"{directory}: can't be read ({error.strerror})") from error
    if not segments:
        raise JournalError(
            f"{directory} holds no journal (no file segment-…). Give the directory that the "
            "broker's configuration names under [storage]"
        )
    total = 0
    for segment in segments:
        with contextlib.suppress(FileNotFoundError):  # a running broker dropped it just now
            fd = files.open(segment_path(directory, segment), write=False)
            total += files.size(fd)
            files.close(fd)
    return total, len(segments)
