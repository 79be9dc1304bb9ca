"""Reading a log's groups in order, without their payloads, and finding groups after bad bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self
from zlib import crc32

from ciphermq import limits
from ciphermq.journal.files import Files
from ciphermq.journal.format import (
    BLOCK_SIZE,
    GROUP_SIZE,
    SPARE_AT,
    Bad,
    Location,
    Record,
    SegmentHeader,
    decode_group_header,
    decode_header,
    decode_index,
)
from ciphermq.journal.segments import list_segments, segment_path

_WINDOW: Final = 1 * limits.MIB
"""Read at once where groups are dense: their payloads come along for less than a call each."""
_GLANCE: Final = 16 * limits.KIB
"""Read at once after a jump over payloads: a group's header and most often all of its index."""
_NEAR: Final = 64 * limits.KIB
"""A jump shorter than this past what was read is no jump."""


class Group(NamedTuple):
    """One group as read, all its records checked, its payloads not."""

    segment: int
    start: int
    end: int
    sequence: int
    records: list[Record]


class Gap(NamedTuple):
    """Where a log is not what it should be."""

    path: Path
    start: int
    end: int
    """Offset from which it is good again, or of the end of the file."""
    reason: str
    followed: bool
    """Whether something stands behind it that was written only after this had been good: then
    this is damage. Else it is the unfinished end of the log."""


class SegmentScan:
    """One open segment file. `Bad` from its methods always speaks of the offset asked for."""

    def __init__(self, files: Files, directory: Path, segment: int) -> None:
        self.path = segment_path(directory, segment)
        self.segment = segment
        self.fd = files.open(self.path, write=False)
        self.size = files.size(self.fd)
        self.header: SegmentHeader
        self._files = files
        self._buffer = b""
        self._base = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close(self.fd)

    def read_header(self, *, spare: bool = False) -> None:
        """Fill in `header`, from its second copy if `spare`; `Bad` if it is not good."""
        block = self._files.pread(self.fd, BLOCK_SIZE, 0)
        self.header = decode_header(block, self.segment, at=SPARE_AT if spare else 0)

    def group(self, at: int) -> Group:
        """The group that begins at `at`, or `Bad`."""
        header = decode_group_header(self._take(at, GROUP_SIZE), self.header, at)
        if at + header.size > self.size:
            raise Bad("a group is cut off by the end of the file")
        index_at = at + GROUP_SIZE
        index = self._take(index_at, header.index_length)
        records = decode_index(index, header, self.header, index_at)
        return Group(self.segment, at, at + header.size, header.sequence, records)

    def bad_payloads(self, group: Group) -> list[tuple[int, Location]]:
        """``(lsn, location)`` of each payload in `group` that fails its checksum."""
        return [
            (lsn, location)
            for lsn, _, _, location in group.records
            if location is not None and self.payload(location) is None
        ]

    def payload(self, location: Location) -> bytes | None:
        """A payload in this segment, or None if it is not what its checksum says."""
        data = self._files.pread(self.fd, location.length, location.offset)
        return data if len(data) == location.length and crc32(data) == location.crc else None

    def find_group(self, after: int) -> int | None:
        """Offset of the next good group header beyond `after`, or None.

        The marker is secret, so what is found was written by us, whatever the payloads hold.
        """
        marker = self.header.marker
        at = after + 1
        while at + GROUP_SIZE <= self.size:
            data = self._files.pread(self.fd, _WINDOW, at)
            found = data.find(marker)
            while found >= 0:
                raw = self._files.pread(self.fd, GROUP_SIZE, at + found)
                with contextlib.suppress(Bad):
                    decode_group_header(raw, self.header, at + found)
                    return at + found
                found = data.find(marker, found + 1)
            if len(data) < len(marker):
                break
            at += len(data) - len(marker) + 1
        return None

    def _take(self, at: int, length: int) -> bytes:
        """Bytes at `at`, fewer only at the end of the file, through a window."""
        low = at - self._base
        buffered = len(self._buffer)
        if low < 0 or low + length > buffered:
            ahead = _WINDOW if low - buffered < _NEAR else _GLANCE
            self._buffer = self._files.pread(self.fd, max(length, ahead), at)
            self._base = at
            low = 0
        return self._buffer[low : low + length]


def walk(
    files: Files, directory: Path, on_gap: Callable[[Gap], None], *, shrinking: bool = False
) -> Iterator[tuple[SegmentScan, Group]]:
    """Every good group of the log, in order, with its open segment.

    `on_gap` is told of each place that is not good, and may end the walk by raising. With
    `shrinking` a broker may be running on it, which drops its oldest segments.
    """
    state = _Order(on_gap)
    segments = list_segments(files, directory)
    for segment in segments:
        if state.segment is not None and segment != state.segment + 1:
            path = segment_path(directory, state.segment + 1)
            state.gap(path, 0, 0, "the segment is missing", followed=True)
        state.segment = segment
        try:
            scan = SegmentScan(files, directory, segment)
        except FileNotFoundError:
            if not shrinking or any(old <= segment for old in list_segments(files, directory)):
                raise
            state.sequence = None
            continue
        with scan:
            if _header(scan, state, last=segment == segments[-1]):
                yield from _groups(scan, state, last=segment == segments[-1])


class _Order:
    """What must come next."""

    def __init__(self, on_gap: Callable[[Gap], None]) -> None:
        self.segment: int | None = None
        self.sequence: int | None = None
        self.lsn = 0
        self._on_gap = on_gap

    def gap(self, path: Path, start: int, end: int, reason: str, *, followed: bool) -> None:
        self.sequence = None  # what is missing is said now, not again at the next group
        self._on_gap(Gap(path, start, end, reason, followed))


def _header(scan: SegmentScan, state: _Order, *, last: bool) -> bool:
    """Whether the segment can be read at all."""
    try:
        scan.read_header()
    except Bad as bad:
        # A header is synced before a group follows it: only a file without groups can be torn.
        followed = not last or scan.size > BLOCK_SIZE
        try:
            scan.read_header(spare=True)
        except Bad:
            state.gap(scan.path, 0, scan.size, bad.reason, followed=followed)
            return False
        state.gap(scan.path, 0, BLOCK_SIZE, bad.reason, followed=followed)
    first = scan.header.first_sequence
    if state.sequence is not None and first != state.sequence + 1:
        reason = f"groups {state.sequence + 1} to {first - 1} are missing before this segment"
        state.gap(scan.path, 0, 0, reason, followed=True)
    state.sequence = first - 1
    return True


def _groups(scan: SegmentScan, state: _Order, *, last: bool) -> Iterator[tuple[SegmentScan, Group]]:
    at = BLOCK_SIZE
    while at < scan.size:
        try:
            group = scan.group(at)
        except Bad as bad:
            good = scan.find_group(at)
            followed = not last or good is not None
            end = scan.size if good is None else good
            state.gap(scan.path, at, end, bad.reason, followed=followed)
            at = end
            continue
        if group.records[0][0] <= state.lsn:
            state.gap(scan.path, at, group.end, "a group stands out of order", followed=True)
            at = group.end
            continue
        if state.sequence is not None and group.sequence != state.sequence + 1:
            reason = f"group {group.sequence} stands where {state.sequence + 1} should"
            state.gap(scan.path, at, at, reason, followed=True)
        state.sequence = group.sequence
        state.lsn = group.records[-1][0]
        yield scan, group
        at = group.end
