"""Segment files: their names, the one being written, the ones being read, and what is live."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

from ciphermq.errors import JournalInUse, PayloadDamaged, SegmentDropped
from ciphermq.journal.files import Buffer, Files, write_all
from ciphermq.journal.format import BLOCK_SIZE, Location, SegmentHeader, new_header

_NAME: Final = re.compile(r"segment-([0-9a-f]{12})")
_OPEN_READERS: Final = 64
"""Segments kept open for reading: far below any descriptor limit, and readers are mostly at the
oldest segments and at the tail."""


def segment_path(directory: Path, segment: int) -> Path:
    """The file of that number: ``segment-`` and twelve hexadecimal digits."""
    return directory / f"segment-{segment:012x}"


def list_segments(files: Files, directory: Path) -> list[int]:
    """Numbers of the segments in `directory`, oldest first."""
    found = (_NAME.fullmatch(name) for name in files.names(directory))
    return sorted(int(match[1], 16) for match in found if match)


def lock_directory(files: Files, directory: Path) -> int:
    """A descriptor that keeps others out of `directory` until closed, or `JournalInUse`."""
    try:
        return files.lock(directory)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise JournalInUse(
            f"{directory} is in use by another process (a broker, or a repair). Stop that one, "
            "or give this one a directory of its own"
        ) from None


class Tail:
    """The segment that is being written. Used by the writer thread only."""

    def __init__(
        self, files: Files, path: Path, fd: int, header: SegmentHeader, *, end: int
    ) -> None:
        self._files = files
        self.path = path
        self.fd = fd
        self.header = header
        self.end = end
        """Just after its last good group; anything beyond is not there."""
        self._written = 0

    def write(self, buffers: Sequence[Buffer], size: int) -> None:
        """Put a group of `size` bytes at the end. After an ``OSError`` call `cut` or give up."""
        write_all(self._files, self.fd, buffers, self.end)
        self._written = size

    def sync(self) -> None:
        """Make what was written durable; from then on it belongs to the segment."""
        self._files.sync(self.fd)
        self.end += self._written
        self._written = 0

    def cut(self) -> None:
        """Take back a write that failed, durably.

        Were it not synced, a crash could show the torn bytes in front of a later segment, and
        recovery would rightly call that damage.
        """
        self._files.truncate(self.fd, self.end)
        self._files.sync(self.fd)

    def close(self) -> None:
        self._files.close(self.fd)


def create_segment(files: Files, directory: Path, segment: int, first_sequence: int) -> Tail:
    """A new segment whose header and name are durable before any group is written to it.

    So a file longer than its header block with a bad header is damaged, never merely torn.
    """
    path = segment_path(directory, segment)
    header = new_header(segment, first_sequence)
    fd = files.open(path, create=True)
    try:
        write_all(files, fd, [header.encode()], 0)
        files.sync(fd)
        files.sync_directory(directory)
    except OSError:
        files.close(fd)
        with contextlib.suppress(OSError):  # the first error is the one to tell; a start cleans up
            files.unlink(path)
            files.sync_directory(directory)
        raise
    return Tail(files, path, fd, header, end=BLOCK_SIZE)


class _Reader:
    __slots__ = ("dropped", "fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.dropped = False


class Readers:
    """Reads payloads on any thread; keeps a bounded number of segments open for it."""

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Reader] = OrderedDict()

    def read(self, location: Location) -> bytes:
        """The payload, or `PayloadDamaged`, or `SegmentDropped`."""
        segment, offset, length, crc = location
        try:
            with self._use(segment) as fd:
                data = self._files.pread(fd, length, offset)
        except FileNotFoundError:
            raise SegmentDropped(
                f"{segment_path(self._directory, segment)} is no longer there: "
                "what was live in it has been copied to the end of the log"
            ) from None
        except OSError as error:
            raise self._damaged(location, f"can't be read ({error.strerror})") from error
        if len(data) != length:
            raise self._damaged(location, f"is cut off after {len(data)} bytes")
        if crc32(data) != crc:
            raise self._damaged(location, "fails its checksum")
        return data

    def _damaged(self, location: Location, what: str) -> PayloadDamaged:
        path = segment_path(self._directory, location.segment)
        return PayloadDamaged(
            f"{path}: the payload of {location.length} bytes at offset {location.offset} {what}. "
            "The disk lost or changed it; `ciphermq journal verify "
            f"{self._directory}` lists all such places"
        )

    @contextlib.contextmanager
    def _use(self, segment: int) -> Iterator[int]:
        with self._lock:
            reader = self._open.get(segment)
            if reader is None:
                path = segment_path(self._directory, segment)
                reader = _Reader(self._files.open(path, write=False))
                self._open[segment] = reader
                if len(self._open) > _OPEN_READERS:
                    self._discard(next(iter(self._open)))
            else:
                self._open.move_to_end(segment)
            reader.users += 1
        try:
            yield reader.fd
        finally:
            with self._lock:
                reader.users -= 1
                if reader.dropped and not reader.users:
                    self._files.close(reader.fd)

    def _discard(self, segment: int) -> None:
        reader = self._open.pop(segment, None)
        if reader is not None:
            reader.dropped = True
            if not reader.users:  # else its last user closes it
                self._files.close(reader.fd)

    def forget(self, segment: int) -> None:
        """The segment is gone: close it, or the disk space stays taken."""
        with self._lock:
            self._discard(segment)

    def close(self) -> None:
        with self._lock:
            for segment in list(self._open):
                self._discard(segment)
