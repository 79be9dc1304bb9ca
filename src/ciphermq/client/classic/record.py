"""The file of received messages, and the ids that are in it.

One JSON object a line, as receivers of 1.x wrote it::

    {"message_id": "sender_1-1a2b3c4d-receiver_1", "message": "Hello", "timestamp": 1757314980.5}

A line is on the disk before anything else is told of its message. The ids beside it (an SQLite
file, ``.received_messages.jsonl.ids``) only save reading all of it: whatever a crash has kept from
them is read out of the lines that were added since. So a message is in the file once, however often
it comes and whatever is killed when. The file may be moved away while no receiver runs; what was in
it is still known.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import StoreError
from ciphermq.model.onex import internal_id, is_message_id

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS shown (id BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS file (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        inode INTEGER NOT NULL,
        read INTEGER NOT NULL -- so many bytes of it
    )
"""
_KEPT: Final = limits.MAX_MESSAGE_AGE + limits.DAY
_CHUNK: Final = 1_000


class Received(NamedTuple):
    """A message that was opened."""

    message_id: str
    text: str
    at: float
    """When it was received: seconds since the epoch."""

    def line(self) -> bytes:
        """The line of the file."""
        members = {"message_id": self.message_id, "message": self.text, "timestamp": self.at}
        return json.dumps(members, ensure_ascii=False).encode() + b"\n"


class Record:
    """The file at `path`, for one receiver at a time."""

    def __init__(self, path: Path) -> None:
        """Opens it, made when missing. `StoreError` when it can't be used, or is in use."""
        self.path = path
        self._ids_path = path.with_name(f".{path.name}.ids")
        with ExitStack() as stack:
            try:
                self._open(stack)
            except OSError as error:
                raise StoreError(f"{error.filename or path}: {error.strerror}") from error
            except sqlite3.Error as error:
                raise self._damaged(error) from error
            self._parts = stack.pop_all()

    def _open(self, stack: ExitStack) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, disk.PRIVATE)
        stack.callback(os.close, self._file)
        self._lock()
        disk.sync_directory(self.path.parent)
        self._ids = sqlite3.connect(self._ids_path, isolation_level=None)
        stack.callback(self._ids.close)
        self._ids.execute("PRAGMA journal_mode = WAL")
        self._ids.execute("PRAGMA synchronous = NORMAL")
        self._ids.executescript(_SCHEMA)
        self._size = self._catch_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. May be repeated."""
        self._parts.close()

    def __contains__(self, message_id: object) -> bool:
        """Whether a message of this id is in the file, or was."""
        key = internal_id(str(message_id))
        try:
            found = self._ids.execute("SELECT 1 FROM shown WHERE id = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        return found is not None

    def add(self, messages: Iterable[Received]) -> None:
        """Append messages that are not in it, and see that they are on the disk.

        `StoreError` when they can't be written; then none of them is in the file."""
        added = list(messages)
        data = b"".join(message.line() for message in added)
        try:
            self._write(data)
        except OSError as error:
            self._cut(self._size)
            raise StoreError(f"{self.path} can't be written: {error.strerror}") from error
        self._size += len(data)
        try:
            self._remember((message.message_id for message in added), self._size)
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    # --- the file ---------------------------------------------------------------------------

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{self.path} is in use by another receiver: each needs a file of its own "
                "(--output)"
            ) from None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def _cut(self, size: int) -> None:
        """Take back what a write that failed has left, so that no line begins in another's middle.
        What can't be taken back is found at the next start."""
        try:
            os.ftruncate(self._file, size)
        except OSError:
            return

    def _catch_up(self) -> int:
        """Know all ids in the file; its size, without a line that a crash has cut short."""
        about = os.fstat(self._file)
        known = self._ids.execute("SELECT inode, read FROM file").fetchone()
        # A file that is another one, or shorter than it was, is read from its beginning.
        start = known[1] if known and known[0] == about.st_ino and known[1] <= about.st_size else 0
        end, ids = start, list[str]()
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                ids += _ids_in(line)
                if len(ids) >= _CHUNK:
                    self._remember(ids, end)
                    ids = []
        self._remember(ids, end)
        if end < about.st_size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        oldest = int(time.time()) - _KEPT
        self._ids.execute("DELETE FROM shown WHERE at < ?", (oldest,))
        return end

    def _remember(self, message_ids: Iterable[str], read: int) -> None:
        now = int(time.time())
        rows = [(internal_id(message_id), now) for message_id in message_ids]
        inode = os.fstat(self._file).st_ino
        self._ids.execute("BEGIN")
        self._ids.executemany("INSERT OR REPLACE INTO shown VALUES (?, ?)", rows)
        self._ids.execute("INSERT OR REPLACE INTO file VALUES (1, ?, ?)", (inode, read))
        self._ids.execute("COMMIT")

    def _damaged(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"the ids in {self._ids_path} can't be used ({error}): remove it, and those in "
            f"{self.path} are read again"
        )


def _ids_in(line: bytes) -> list[str]:
    """The id in a line; none in what is no such line, which is nobody's business here."""
    try:
        members = json.loads(line)
    except (ValueError, RecursionError):
        return []
    found = members.get("message_id") if isinstance(members, dict) else None
    return [found] if isinstance(found, str) and is_message_id(found) else []
