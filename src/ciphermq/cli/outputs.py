"""Where received batches go, and when they may be acknowledged.

`KeptFile` is the one that is exactly once. The file and the Inbox can't change in one step, so
the Inbox leads: its transaction says how long the file is. In this order::

    write at the known length  →  sync the file  →  commit "done" and the new length  →  ack

A crash before the commit leaves bytes beyond the known length, which the next start cuts off,
and the batch comes again. A crash after it leaves a batch that comes again and is known.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import AlreadyDone, StoreError

if TYPE_CHECKING:
    from ciphermq.cli.rendering import Renderer
    from ciphermq.client.inbox import Inbox
    from ciphermq.client.messages import Batch

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS ciphermq_files (path TEXT PRIMARY KEY, length INTEGER NOT NULL)"
)


class Output(Protocol):
    """Takes batches. What `write` has returned from may be acknowledged."""

    def write(self, batches: Sequence[Batch]) -> None: ...
    def close(self) -> None: ...


class StandardOutput:
    """Whoever reads our standard output."""

    def __init__(self, render: Renderer) -> None:
        self._render = render

    def write(self, batches: Sequence[Batch]) -> None:
        """Returns once the bytes are with the reader's side of the pipe."""
        for batch in batches:
            sys.stdout.buffer.write(self._render(batch))
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Standard output is not ours to close."""


class AppendedFile:
    """A file that grows. At least once: a batch that comes again is written again."""

    def __init__(self, path: Path, render: Renderer) -> None:
        """Makes the file if it is not there; `StoreError` when another run writes to it."""
        self._file = _LockedFile(path)
        self._render = render
        self._end = self._file.size

    def write(self, batches: Sequence[Batch]) -> None:
        """Returns once the bytes are on the disk."""
        data = b"".join(map(self._render, batches))
        self._file.write(data, self._end)
        self._end += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class KeptFile:
    """A file whose length is kept in an Inbox's transactions: each message is in it once."""

    def __init__(self, path: Path, render: Renderer, inbox: Inbox, inbox_path: Path) -> None:
        """Cuts off what a killed run left beyond the known length.

        `StoreError` when another run writes to the file, or when the file is shorter than what
        was received into it.
        """
        self._file = _LockedFile(path)
        self._render = render
        self._inbox = inbox
        self._key = str(path.resolve())
        try:
            self._length = self._recall(inbox_path)
            if self._file.size < self._length:
                raise StoreError(
                    f"{path} has {self._file.size} bytes, but {self._length} were received into "
                    f"it: something else changed it. Put it back, or receive into another file"
                )
            self._file.cut(self._length)
        except BaseException:
            self._file.close()
            raise

    def write(self, batches: Sequence[Batch]) -> None:
        """Returns once bytes and memory of them are both on the disk.

        What another receiver that shares the Inbox has done meanwhile is left out.
        """
        database: sqlite3.Connection | None = None
        try:
            with self._inbox.transaction(*batches) as database:
                data = b"".join(map(self._render, batches))
                self._file.write(data, self._length)
                database.execute(
                    "UPDATE ciphermq_files SET length = length + ? WHERE path = ?",
                    (len(data), self._key),
                )
        except AlreadyDone:
            pass
        finally:
            # Whatever happened, before the commit or after it: the Inbox knows.
            if database is not None:
                self._length = self._known(database)
                self._file.cut(self._length)

    def close(self) -> None:
        """Close the file; the Inbox is its owner's."""
        self._file.close()

    def _recall(self, inbox_path: Path) -> int:
        """How long the file was when the last run committed; as it is now, the first time."""
        try:
            with (
                contextlib.closing(
                    sqlite3.connect(inbox_path, isolation_level=None, timeout=limits.STORE_TIMEOUT)
                ) as database,
            ):
                database.execute("PRAGMA synchronous = FULL")
                database.execute(_CREATE)
                database.execute(
                    "INSERT OR IGNORE INTO ciphermq_files VALUES (?, ?)",
                    (self._key, self._file.size),
                )
                return self._known(database)
        except sqlite3.Error as error:
            raise StoreError(f"{inbox_path}: the Inbox can't be used: {error}") from error

    def _known(self, database: sqlite3.Connection) -> int:
        query = "SELECT length FROM ciphermq_files WHERE path = ?"
        try:
            (length,) = database.execute(query, (self._key,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"the length of {self._key} can't be read: {error}") from error
        return int(length)


class _LockedFile:
    """One file, written to by one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        new = not path.exists()
        # What was sealed on the way is not for everybody here.
        try:
            self._fd = disk.claim(path)
        except BlockingIOError:
            raise StoreError(
                f"{path} is being written to by another `ciphermq receive`: end that one, or "
                "receive into another file"
            ) from None
        if new:
            disk.sync_directory(path.absolute().parent)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write(self, data: bytes, at: int) -> None:
        """All of `data`, on the disk."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                at += written
                view = view[written:]
            os.fdatasync(self._fd)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error.strerror}") from error

    def cut(self, length: int) -> None:
        """Cut off what is beyond `length`."""
        if self.size > length:
            os.ftruncate(self._fd, length)

    def close(self) -> None:
        os.close(self._fd)
