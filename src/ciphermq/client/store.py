"""A SQLite database of ours, or tables of ours in the application's own.

Inbox and Outbox share this: how a file is opened, what is demanded of a connection that the
application brings, how our tables are made, and what a failure is called.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import CipherMQError, UsageError

_PAGE_SIZE: Final = 32 * limits.KIB
"""Of a new file. Half a megabyte of payloads costs half as much as in SQLite's 4 KiB, and a note of
what is done costs the same."""

Failure = Callable[[str], CipherMQError]
"""Makes the error of the store in question out of a sentence."""


class Store:
    """One connection, used by one thread. Every write is in a transaction that this began."""

    def __init__(
        self,
        where: str | Path | sqlite3.Connection,
        *,
        name: str,
        schema: Sequence[str],
        failure: Failure,
        timeout: float = limits.STORE_TIMEOUT,
        guest: bool = False,
    ) -> None:
        """`name` is the prefix of the tables. `schema` is one script a version, oldest first:
        a database is brought from its version to the last by the scripts that it lacks.
        `guest`: one more connection to what is another's, perhaps the application's, so its mode
        stays as it is; and the caller sees to it that no two threads use it at once."""
        self._name = name
        self._failure = failure
        self._owned = not isinstance(where, sqlite3.Connection)
        self.place = str(where) if self._owned else "the application's database"
        with self._explained(f"the {name} can't be opened"):
            if isinstance(where, sqlite3.Connection):
                self.connection = where
            else:
                self.connection = _connect(Path(where), timeout, guest=guest)
                if not guest:
                    _prepare(Path(where), self.connection)
            self.path = _path_of(self.connection)
            self._migrate(schema)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write and commit together, or nothing at all when the block raises.

        Begins by taking SQLite's one write lock, so what is read inside stays true to the end.
        """
        connection = self.connection
        if self._busy():
            raise UsageError(
                f"{self.place} is in the middle of another transaction: commit it first (and use "
                "a connection in SQLite's own autocommit mode, or one of the sqlite3 module's "
                "default kind)"
            )
        with self._explained(f"the {self._name} can't be written"):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SAVEPOINT ciphermq")
        try:
            yield connection
            self._check_whole()
            with self._explained(f"the {self._name} can't be written"):
                connection.execute("COMMIT")
        except BaseException:
            if self._busy():
                connection.execute("ROLLBACK")
            raise

    def _check_whole(self) -> None:
        """The transaction that ends is the one that was begun: the savepoint is still there."""
        try:
            self.connection.execute("RELEASE ciphermq")
        except sqlite3.Error:
            raise UsageError(
                "the transaction was committed or rolled back inside its block: leave that to "
                f"the {self._name}, whose own note must be part of it"
            ) from None

    @contextmanager
    def joined(self) -> Iterator[sqlite3.Connection]:
        """Write in the transaction that is open, if there is one, else in one of its own."""
        if self._busy():
            yield self.connection
        else:
            with self.transaction() as connection:
                yield connection

    def _busy(self) -> bool:
        return self.connection.in_transaction

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows that `query` finds."""
        with self._explained(f"the {self._name} can't be read"):
            return self.connection.execute(query, values).fetchall()

    def each(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows that `query` finds, read as they are wanted."""
        with self._explained(f"the {self._name} can't be read"):
            yield from self.connection.execute(query, values)

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement inside a `transaction`."""
        with self._explained(f"the {self._name} can't be written"):
            return self.connection.execute(statement, values)

    def wipe_log(self) -> bool:
        """Empty SQLite's log, where deleted rows may still stand; False while others read in it."""
        with self._explained(f"the {self._name} can't be written"):
            ((timeout,),) = self.connection.execute("PRAGMA busy_timeout").fetchall()
            self.connection.execute("PRAGMA busy_timeout = 0")
            try:
                query = "PRAGMA wal_checkpoint(TRUNCATE)"
                ((busy, _, _),) = self.connection.execute(query).fetchall()
            finally:
                self.connection.execute(f"PRAGMA busy_timeout = {timeout}")
        return not busy

    def close(self) -> None:
        """Close the file, if it is ours to close."""
        if self._owned:
            self.connection.close()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._failure(f"{what} ({self.place}): {error}") from error

    def _migrate(self, schema: Sequence[str]) -> None:
        table = f"ciphermq_{self._name}_schema"
        found = self.connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
        ).fetchone()
        if found and self._version(table) == len(schema):
            return
        with self.transaction():
            # Another process may have done it while this one waited for the lock.
            self.run(f"CREATE TABLE IF NOT EXISTS {table} (version INTEGER NOT NULL)")
            version = self._version(table)
            if version > len(schema):
                raise self._failure(
                    f"the {self._name} in {self.place} was written by a newer CipherMQ (version "
                    f"{version} of its tables; this one knows {len(schema)}): upgrade this one"
                )
            for script in schema[version:]:
                for statement in script.split(";"):
                    self.run(statement)
            self.run(f"DELETE FROM {table}")  # noqa: S608 - a name of our own
            self.run(f"INSERT INTO {table} VALUES (?)", (len(schema),))  # noqa: S608

    def _version(self, table: str) -> int:
        row = self.connection.execute(f"SELECT max(version) FROM {table}").fetchone()  # noqa: S608
        return int(row[0] or 0)


def _connect(path: Path, timeout: float, *, guest: bool) -> sqlite3.Connection:
    # Made here and not by SQLite, which would leave it as open as the umask does: whoever opened it
    # before it was closed to others could read in it for ever after.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, disk.PRIVATE))
    connection = sqlite3.connect(
        path,
        timeout=timeout,
        isolation_level=None,  # no transaction begins behind our back
        check_same_thread=not guest,
    )
    try:
        # FULL syncs each commit: "done" must outlive a power cut once the broker was told.
        connection.execute("PRAGMA synchronous = FULL")
        # What was opened, or not sealed yet, must not outlive its row in pages that are free.
        connection.execute("PRAGMA secure_delete = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Set what a file keeps of itself."""
    try:
        path.chmod(disk.PRIVATE)
        connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise


def _path_of(connection: sqlite3.Connection) -> Path | None:
    """The main database's file; None for one in memory."""
    for _, name, file in connection.execute("PRAGMA database_list"):
        if name == "main" and file:
            return Path(file)
    return None
