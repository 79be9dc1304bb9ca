"""The journal's only way to a disk, so that tests can put another one there.

Each method is one system call, and every call that changes the disk passes here. Errors are
plain ``OSError``; what they mean is the caller's business.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview
"""Bytes to write. A memoryview is of single bytes; immutable once handed over."""

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A full quota is a full disk to us."""

IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)
"""Buffers the kernel takes in one call."""

_ZEROS: Final = bytes(1 << 20)


class Files(Protocol):
    """What the journal asks of a file system."""

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        """A descriptor. `create` makes a new file (0600) and refuses an existing one."""

    def close(self, fd: int) -> None: ...
    def size(self, fd: int) -> int: ...
    def linked(self, fd: int) -> bool:
        """Whether the open file still has a name, that is: was not deleted meanwhile."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """`length` bytes at `offset`; fewer only at the end of the file."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Bytes written, maybe fewer than given; at most `IOV_MAX` buffers."""

    def sync(self, fd: int) -> None:
        """fdatasync: when it returns, the bytes and the size are on the device."""

    def truncate(self, fd: int, size: int) -> None: ...
    def preallocate(self, fd: int, size: int) -> None:
        """Own at least `size` bytes of the device, or ENOSPC (then the size is undefined)."""

    def names(self, directory: Path) -> list[str]: ...
    def make_directory(self, directory: Path) -> None:
        """With its parents, 0700, durable; no error if it exists."""

    def rename(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def remove_directory(self, directory: Path) -> None: ...
    def sync_directory(self, directory: Path) -> None:
        """When it returns, the names in it are on the device."""

    def lock(self, directory: Path) -> int:
        """A descriptor that holds the directory's lock until closed, or BlockingIOError."""


class OsFiles:
    """The operating system's files."""

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def linked(self, fd: int) -> bool:
        return os.fstat(fd).st_nlink > 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data = os.pread(fd, length, offset)
        while len(data) < length:  # a read may be cut short by a signal or a 2 GiB bound
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def preallocate(self, fd: int, size: int) -> None:
        if size <= 0:
            return
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            for offset in range(0, size, len(_ZEROS)):  # the slow way, where it is the only one
                write_all(self, fd, [_ZEROS[: size - offset]], offset)

    def names(self, directory: Path) -> list[str]:
        return [path.name for path in directory.iterdir()]

    def make_directory(self, directory: Path) -> None:
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            self.sync_directory(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def remove_directory(self, directory: Path) -> None:
        directory.rmdir()

    def sync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, directory: Path) -> int:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd


def write_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write every byte of `buffers` at `offset`, in as many calls as it takes.

    A short write is followed by another for the rest, which either goes on or names the error.
    After an ``OSError`` any part of the range may have been written.
    """
    if len(buffers) > IOV_MAX:  # one copy costs less than several calls
        buffers = [b"".join(buffers)]
    rest = list(buffers)
    while rest:
        done = files.pwritev(fd, rest, offset)
        if done <= 0 and any(map(len, rest)):
            raise OSError(errno.EIO, "the device took no bytes and gave no reason")
        offset += done
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if done:
            rest[0] = memoryview(rest[0])[done:]
