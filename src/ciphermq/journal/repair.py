"""Salvaging a damaged log: all good records go into new files, the damaged ones are kept aside.

The steps, so that it can be interrupted anywhere and be run again::

    1  DIR/repair.tmp/          the salvaged segments are written here and synced
    2  DIR/repaired-<number>/   renamed to this: from here on the repair will be finished
    3  DIR/damaged-<number>/    the old segments are moved here
    4  DIR/                     the new segments are moved here; repaired-<number> is removed

<number> is that of the first new segment, above all old ones, so old and new are never mistaken.
A start that finds ``repaired-`` asks for the repair to be finished. Nothing that held data is
ever deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ciphermq.errors import JournalDamaged, JournalError, JournalFull
from ciphermq.journal.files import NO_SPACE, Files, OsFiles, write_all
from ciphermq.journal.format import BLOCK_SIZE, Entry, Record, encode_group
from ciphermq.journal.scan import Gap, Group, SegmentScan, walk
from ciphermq.journal.segments import (
    Tail,
    create_segment,
    list_segments,
    lock_directory,
    segment_path,
)
from ciphermq.journal.tools import Problem, Progress, extent, verify
from ciphermq.journal.writer import failed

_WORK: Final = "repair.tmp"
_DONE: Final = re.compile(r"repaired-([0-9a-f]{12})")


class Repaired(msgspec.Struct, frozen=True):
    """What `repair` did."""

    changed: bool
    """False: nothing was damaged and nothing was touched."""
    records: int
    """Kept."""
    lost: list[Problem]
    """What could not be salvaged, place by place, in the old files. Empty when this only finished
    an interrupted repair: `verify` of `aside` lists it."""
    snapshot: str
    """Empty, or what became of the log's lost first snapshot."""
    aside: Path | None
    """Where the old files are now."""


def check_repaired(files: Files, directory: Path) -> None:
    """`JournalDamaged` if a repair was interrupted after the point of no return."""
    if _unfinished(files, directory) is not None:
        raise JournalDamaged(
            f"{directory}: a repair of this journal was interrupted. Run `ciphermq journal repair "
            f"{directory}` again: it goes on where it stopped"
        )


def _unfinished(files: Files, directory: Path) -> str | None:
    return next((name for name in files.names(directory) if _DONE.fullmatch(name)), None)


def repair(
    directory: Path, *, progress: Progress | None = None, files: Files | None = None
) -> Repaired:
    """Salvage the log in `directory`, or finish an interrupted repair of it.

    Takes as much disk space again as the log has. Raises `JournalInUse`, `JournalFull`,
    `JournalFailed`, and `JournalError` if there is no log.
    """
    files = OsFiles() if files is None else files
    try:
        lock = lock_directory(files, directory)
    except OSError as error:
        raise JournalError(f"{directory}: can't be opened ({error.strerror})") from error
    try:
        return _repair(files, directory, progress)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise JournalFull(
                f"{directory}: no space left on the device for the salvaged copy. Nothing was "
                "changed. Make as much space free as the log takes, then run the repair again"
            ) from error
        raise failed(directory, error) from error
    finally:
        files.close(lock)


def _repair(files: Files, directory: Path, progress: Progress | None) -> Repaired:
    done = _unfinished(files, directory)
    if done is not None:
        aside = _finish(files, directory, done)
        records = sum(len(group.records) for _, group in walk(files, directory, _ignore))
        return Repaired(changed=True, records=records, lost=[], snapshot="", aside=aside)
    found = verify(directory, files=files, progress=progress)
    if not found.problems:
        return Repaired(changed=False, records=found.records, lost=[], snapshot="", aside=None)
    work = directory / _WORK
    _clear(files, work)
    first = list_segments(files, directory)[-1] + 1
    salvage = _Salvage(files, directory, work, first)
    try:
        salvage.run(progress)
    except OSError:
        _clear(files, work)
        raise
    name = f"repaired-{first:012x}"
    files.sync_directory(work)
    files.rename(work, directory / name)
    files.sync_directory(directory)
    aside = _finish(files, directory, name)
    lost = found.problems if found.torn is None else [*found.problems, found.torn]
    return Repaired(
        changed=True, records=salvage.records, lost=lost, snapshot=salvage.snapshot, aside=aside
    )


def _clear(files: Files, work: Path) -> None:
    """Remove what an interrupted repair had copied."""
    if work.name in files.names(work.parent):
        for segment in list_segments(files, work):
            files.unlink(segment_path(work, segment))
        files.remove_directory(work)


def _finish(files: Files, directory: Path, name: str) -> Path:
    """Steps 3 and 4. Each can be done twice."""
    done = directory / name
    first = int(name.rpartition("-")[2], 16)
    aside = directory / f"damaged-{first:012x}"
    files.make_directory(aside)
    for segment in list_segments(files, directory):
        if segment < first:
            files.rename(segment_path(directory, segment), segment_path(aside, segment))
    files.sync_directory(aside)
    files.sync_directory(directory)
    for segment in list_segments(files, done):
        files.rename(segment_path(done, segment), segment_path(directory, segment))
    files.sync_directory(directory)
    files.sync_directory(done)
    files.remove_directory(done)
    files.sync_directory(directory)
    return aside


class _Salvage:
    """Step 1: a new segment for each old one that has anything good."""

    def __init__(self, files: Files, directory: Path, work: Path, first: int) -> None:
        self.records = 0
        self.snapshot = ""
        self._files = files
        self._directory = directory
        self._work = work
        self._next_segment = first
        self._sequence = 0
        self._tail: Tail | None = None
        self._source = 0

    def run(self, progress: Progress | None) -> None:
        total, _ = extent(self._files, self._directory)
        self._files.make_directory(self._work)
        done = 0
        try:
            for scan, group in walk(self._files, self._directory, _ignore):
                entries = list(_good_entries(scan, group))
                if not self.records and entries:
                    self._replace_snapshot(group, entries)
                self._write(scan.segment, entries)
                done += group.end - group.start
                if progress is not None:
                    progress(min(done, total), total)
            self._end_segment()
        except BaseException:
            if self._tail is not None:
                self._tail.close()
            raise

    def _replace_snapshot(self, group: Group, entries: list[Entry]) -> None:
        """Make sure that the log begins with a snapshot: its own, or else the next there is."""
        if group.start == BLOCK_SIZE and entries[0].lsn == group.records[0][0]:
            return
        found = self._next_snapshot(group.segment)
        if found is None:
            self.snapshot = (
                "no snapshot is left: queues, exchanges and bindings that were made before the "
                "salvaged records are lost"
            )
            return
        segment, (_, kind, meta, _) = found
        entries.insert(0, Entry(entries[0].lsn - 1, kind, meta, None, 0, essential=True))
        self.snapshot = (
            "the log's first snapshot is lost: the one of "
            f"{segment_path(self._directory, segment).name} stands in for it"
        )

    def _next_snapshot(self, after: int) -> tuple[int, Record] | None:
        for _, group in walk(self._files, self._directory, _ignore):
            if group.segment > after and group.start == BLOCK_SIZE:
                return group.segment, group.records[0]
        return None

    def _write(self, source: int, entries: list[Entry]) -> None:
        if not entries:
            return
        if source != self._source or self._tail is None:
            self._end_segment()
            self._source = source
            self._tail = create_segment(
                self._files, self._work, self._next_segment, self._sequence + 1
            )
            self._next_segment += 1
        tail = self._tail
        self._sequence += 1
        buffers, _ = encode_group(tail.header, tail.end, self._sequence, entries)
        write_all(self._files, tail.fd, buffers, tail.end)
        tail.end += sum(map(len, buffers))
        self.records += len(entries)

    def _end_segment(self) -> None:
        if self._tail is not None:
            self._files.sync(self._tail.fd)
            self._tail.close()
            self._tail = None


def _good_entries(scan: SegmentScan, group: Group) -> Iterator[Entry]:
    for lsn, kind, meta, location in group.records:
        if location is None:
            yield Entry(lsn, kind, meta, None, 0, essential=True)
        else:
            payload = scan.payload(location)
            if payload is not None:
                yield Entry(lsn, kind, meta, payload, location.crc, essential=True)


def _ignore(_gap: Gap) -> None:
    """`verify` has listed it."""
