"""Copying a log while a broker writes it.

A log that ends earlier is a log too, so a copy need not be of one instant: all segments are
opened first (one that is dropped afterwards can still be read), then copied oldest first. What
the broker adds meanwhile is in the copy up to some point. A group that was in flight is cut off.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.errors import JournalDamaged, JournalError
from ciphermq.journal.files import OsFiles, write_all
from ciphermq.journal.recovery import damaged
from ciphermq.journal.scan import Gap, walk
from ciphermq.journal.segments import list_segments, segment_path
from ciphermq.journal.tools import Progress, extent

_CHUNK: Final = 4 * limits.MIB
_TRIES: Final = 10
"""Times that a segment may vanish between being listed and being opened."""
_SPARE_DESCRIPTORS: Final = 64


class BackedUp(msgspec.Struct, frozen=True):
    """What a copy holds."""

    segments: int
    groups: int
    records: int
    size: int
    last_lsn: int


def copy(directory: Path, target: Path, *, progress: Progress | None = None) -> BackedUp:
    """Copy the log in `directory` to `target` (made if missing), durably, and check the copy.

    Payloads are not checked: `verify` does that. Raises `JournalError` if there is no log, or
    `target` has one already, or it can't be written; `JournalDamaged` if the log is damaged.
    """
    files = OsFiles()
    total, _ = extent(files, directory)
    try:
        files.make_directory(target)
        if list_segments(files, target):
            raise JournalError(f"{target} holds a journal already: give an empty directory")
        with _opened(files, directory) as sources:
            done = 0
            for segment, fd in sources.items():
                for size in _copy_file(files, fd, segment_path(target, segment)):
                    done += size
                    if progress is not None:
                        progress(min(done, total), total)
            files.sync_directory(target)
            return _check(files, directory, target, sources)
    except OSError as error:
        where = error.filename or target
        raise JournalError(f"{where}: the copy failed ({error.strerror or error})") from error


@contextlib.contextmanager
def _opened(files: OsFiles, directory: Path) -> Iterator[dict[int, int]]:
    """All segments, open at one time, oldest first."""
    for _ in range(_TRIES):
        with contextlib.ExitStack() as stack:
            segments = list_segments(files, directory)
            _allow_descriptors(len(segments))
            sources: dict[int, int] = {}
            try:
                for segment in segments:
                    fd = files.open(segment_path(directory, segment), write=False)
                    stack.callback(files.close, fd)
                    sources[segment] = fd
            except FileNotFoundError:
                continue  # dropped just now: what was live in it is in a newer segment
            yield sources
            return
    raise JournalError(f"{directory}: segments are dropped faster than they can be opened")


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        most = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _copy_file(files: OsFiles, source: int, path: Path) -> Iterator[int]:
    target = files.open(path, create=True)
    try:
        at = 0
        while data := files.pread(source, _CHUNK, at):
            write_all(files, target, [data], at)
            at += len(data)
            yield len(data)
        files.sync(target)
    finally:
        files.close(target)


def _check(files: OsFiles, directory: Path, target: Path, sources: dict[int, int]) -> BackedUp:
    """Read the copy as a start would, and cut off a group that was in flight."""
    try:
        copied, torn = _walk(files, directory, target)
    except JournalDamaged:
        # On a full disk the broker takes half a group back and writes another in its place: a
        # copy of the last segment may then hold parts of both. Copied again, it is whole.
        last = max(sources)
        files.unlink(segment_path(target, last))
        for _ in _copy_file(files, sources[last], segment_path(target, last)):
            pass
        files.sync_directory(target)
        copied, torn = _walk(files, directory, target)
    if torn is not None:
        fd = files.open(torn.path)
        try:
            files.truncate(fd, torn.start)
            files.sync(fd)
        finally:
            files.close(fd)
    size, segments = extent(files, target)
    return msgspec.structs.replace(copied, size=size, segments=segments)


def _walk(files: OsFiles, directory: Path, target: Path) -> tuple[BackedUp, Gap | None]:
    torn: Gap | None = None

    def on_gap(gap: Gap) -> None:
        nonlocal torn
        if gap.followed:  # the copy is as damaged as its source: name the source
            raise damaged(directory, gap._replace(path=directory / gap.path.name))
        torn = gap

    groups = records = last_lsn = 0
    for _, group in walk(files, target, on_gap):
        groups += 1
        records += len(group.records)
        last_lsn = group.records[-1][0]
    copied = BackedUp(segments=0, groups=groups, records=records, size=0, last_lsn=last_lsn)
    return copied, torn
