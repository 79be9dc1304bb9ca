"""Disk space kept back, so that a full disk can still be emptied."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ciphermq.journal.files import NO_SPACE, Files

NAME: Final = "reserve"
_STEPS: Final = 32
"""In how many parts it is given back, 4 MiB of the 128: other programs may snatch away what is
left of a part."""


class Reserve:
    """A preallocated file that is shortened when the disk is full.

    Acks, compaction copies and everything else that leads to space becoming free may use what
    it gives; publishes may not, and wait until it is whole again. Used by the writer thread only.
    """

    def __init__(self, files: Files, directory: Path, size: int) -> None:
        self._files = files
        self._directory = directory
        self.size = size
        self.held = 0
        """Bytes of the device it owns now."""
        self._fd = -1

    @property
    def whole(self) -> bool:
        """Whether nothing of it is used, so that publishes may be written."""
        return self.held >= self.size

    def open(self) -> None:
        """Find or make it. A disk too full for it is no error: it is then not `whole`."""
        path = self._directory / NAME
        if not self.size and NAME not in self._files.names(self._directory):
            return
        try:
            self._fd = self._files.open(path)
        except FileNotFoundError:
            self._fd = self._files.open(path, create=True)
        self.held = self._files.size(self._fd)
        if self.held > self.size:
            self.held = self.size
            self._files.truncate(self._fd, self.held)
        self.remake()

    def remake(self) -> bool:
        """Try to own all of it again; whether that worked."""
        if self.whole:
            return True
        try:
            self._files.preallocate(self._fd, self.size)
            self._files.sync(self._fd)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._files.truncate(self._fd, self.held)
            return False
        self.held = self.size
        return True

    def give(self, need: int) -> bool:
        """Return at least `need` bytes to the device, or all there is; False if there is none."""
        if not self.held:
            return False
        step = max(1, self.size // _STEPS)
        parts = -(-need // step)
        self.held = max(0, self.held - parts * step)
        self._files.truncate(self._fd, self.held)
        self._files.sync(self._fd)  # some file systems free blocks only with the next commit
        return True

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
