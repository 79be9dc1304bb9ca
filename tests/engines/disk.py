"""A real disk that can be full or broken on demand."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from ciphermq.journal import Buffer, OsFiles


class MoodyFiles(OsFiles):
    """The operating system's files, until told otherwise."""

    def __init__(self) -> None:
        self.full = False
        self.broken = False

    def _check(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        if create:
            self._check()
        return super().open(path, create=create, write=write)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._check()
        return super().pwritev(fd, buffers, offset)

    def preallocate(self, fd: int, size: int) -> None:
        self._check()
        super().preallocate(fd, size)

    def sync(self, fd: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def flip(directory: Path, payload: bytes) -> None:
    """Change one byte of a stored payload, wherever it lies."""
    found = 0
    for path in sorted(directory.iterdir()):
        data = path.read_bytes() if path.is_file() else b""
        at = data.find(payload)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + len(payload) // 2)
                file.write(bytes([data[at + len(payload) // 2] ^ 1]))
            found += 1
    assert found, "the payload is in no file"
