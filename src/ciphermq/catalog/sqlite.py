"""The catalog in one SQLite file, on a thread of its own.

Key records are synced before `put_key` returns. Metadata is gathered (`PendingMetadata`) and
written every quarter of a second, one transaction for all; a power cut may cost the last of it,
a stalled disk some rows (counted), and never a message: those are the journal's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ciphermq import limits
from ciphermq.catalog import schema
from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.catalog.face import KeyEntry, OnexPublication, Publication
from ciphermq.catalog.onex import timestamp
from ciphermq.catalog.pending import PendingMetadata
from ciphermq.errors import CatalogError, KeyRecordRolledBack
from ciphermq.model.onex import internal_id
from ciphermq.telemetry import Counters, get_logger

T = TypeVar("T")

_BUSY_TIMEOUT_MS: Final = 10_000
"""A backup may hold the file for a moment."""

_PRUNE_ROWS: Final = 5_000
"""Rows pruned in one transaction: some milliseconds, so that key look-ups don't wait."""

_log = get_logger("catalog")


class SqliteCatalog:
    """`ciphermq.catalog.face.Catalog` on the file `path`, made when it is not there.

    `metadata_days` 0 keeps no metadata at all. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        key: AtRestKey,
        *,
        metadata_days: float = 30.0,
        clock: Callable[[], float] = time.time,
        max_pending: int = limits.MAX_PENDING_METADATA,
    ) -> None:
        self._path = path
        self._key = key
        self._retention_ms = int(metadata_days * limits.DAY * 1000)
        self._clock = clock
        self._pending = PendingMetadata(max_pending)
        self._counters = Counters(
            "metadata_rows_written", "metadata_rows_failed", "metadata_rows_pruned"
        )
        self._jobs: deque[Callable[[sqlite3.Connection], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failing = False

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open and migrate on the catalog's own thread."""
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name="ciphermq-catalog", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(opened)

    async def stop(self) -> None:
        """Write what waits and close."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(thread.join)

    # --- key records ----------------------------------------------------------------------------

    async def put_key(self, client: str, version: int, record: bytes) -> None:
        """Keep as the client's newest; durable when this returns."""
        await self._call(lambda connection: self._put_key(connection, client, version, record))

    async def get_key(self, client: str) -> bytes | None:
        """The client's newest record."""
        found = await self._call(lambda connection: _stored(connection, client))
        if found is None:
            return None
        version, sealed = found
        return self._key.open(client, version, sealed)

    async def keys(self) -> list[KeyEntry]:
        """All stored records."""
        query = "SELECT client, version, stored_ms FROM keys ORDER BY client"
        rows = await self._call(lambda connection: connection.execute(query).fetchall())
        return [KeyEntry(row[0], int.from_bytes(row[1], "big"), row[2]) for row in rows]

    async def put_onex_key(self, client: str, public_key: bytes) -> None:
        """Keep as the 1.x client's only one; durable when this returns."""
        row = (client, self._key.seal_onex(client, public_key), self._now_ms())

        def put(connection: sqlite3.Connection) -> None:
            with _synced(connection), _transaction(connection):
                connection.execute("INSERT OR REPLACE INTO onex_keys VALUES (?, ?, ?)", row)

        await self._call(put)

    async def get_onex_key(self, client: str) -> bytes | None:
        """The 1.x client's key."""
        query = "SELECT sealed FROM onex_keys WHERE client = ?"
        found = await self._call(lambda connection: connection.execute(query, (client,)).fetchone())
        return None if found is None else self._key.open_onex(client, found[0])

    def _put_key(
        self, connection: sqlite3.Connection, client: str, version: int, record: bytes
    ) -> None:
        with _synced(connection), _transaction(connection):
            self._replace_key(connection, client, version, record)

    def _replace_key(
        self, connection: sqlite3.Connection, client: str, version: int, record: bytes
    ) -> None:
        found = _stored(connection, client)
        if found is not None and found[0] >= version:
            if found[0] == version and self._key.open(client, version, found[1]) == record:
                return
            raise KeyRecordRolledBack(
                f"version {version} of {client!r}'s key record is not newer than the stored "
                f"version {found[0]}"
            )
        sealed = self._key.seal(client, version, record)
        connection.execute(
            "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)",
            (client, version.to_bytes(8, "big"), sealed, self._now_ms()),
        )

    # --- metadata -------------------------------------------------------------------------------

    def note_published(self, publication: Publication) -> None:
        """Remember who published what, as soon as the thread gets to it."""
        if self._retention_ms:
            self._pending.publish(publication)

    def note_message(self, publication: OnexPublication) -> None:
        """Remember who published which 1.x message."""
        if self._retention_ms:
            self._pending.publish_message(publication)

    def note_event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        """Remember what became of a batch."""
        if self._retention_ms:
            self._pending.event(event, batch_id, messages, at_ms)

    async def trace(self, batch_id: bytes) -> dict[str, Any] | None:
        """What is known of a batch."""
        row = await self._look(schema.TRACE, batch_id)
        return None if row is None else dict(zip(schema.TRACE_COLUMNS, row, strict=True))

    async def trace_message(self, message_id: str) -> dict[str, str | None] | None:
        """What is known of a 1.x message."""
        row = await self._look(schema.TRACE_MESSAGE, internal_id(message_id))
        if row is None:
            return None
        *names, sent_ms, delivered_ms, acked_ms = row
        return {
            **dict(zip(schema.MESSAGE_COLUMNS[:4], names, strict=True)),
            "sent_time": timestamp(sent_ms),
            "delivered_time": timestamp(delivered_ms),
            "acknowledged_time": timestamp(acked_ms),
        }

    async def _look(self, query: str, name: bytes) -> Any:
        """The row of that name, with all that has been noted of it."""

        def look(connection: sqlite3.Connection) -> Any:
            self._flush(connection)
            return connection.execute(query, (name,)).fetchone()

        return await self._call(look)

    def stats(self) -> dict[str, int | float | str]:
        """Counters; ``metadata_rows_dropped`` is what the bound on memory cost."""
        return {
            "kind": "sqlite",
            "metadata_rows_waiting": len(self._pending),
            "metadata_rows_dropped": self._pending.dropped,
            **self._counters.snapshot(),
        }

    # --- the thread -----------------------------------------------------------------------------

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the catalog's thread; SQLite's own errors become `CatalogError`."""
        if self._thread is None or self._stopping:
            raise CatalogError("the catalog is not open")
        future: Future[T] = Future()

        def job(connection: sqlite3.Connection) -> None:
            if not future.set_running_or_notify_cancel():
                return  # who asked has given up
            try:
                future.set_result(work(connection))
            except sqlite3.Error as error:
                future.set_exception(self._failed(error))
            except BaseException as error:  # noqa: BLE001  (it is the caller's, who awaits it)
                future.set_exception(error)

        self._jobs.append(job)
        self._wake.set()
        return await asyncio.wrap_future(future)

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = self._open()
        except (sqlite3.Error, OSError) as error:
            opened.set_exception(self._failed(error))
            return
        except CatalogError as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        with contextlib.closing(connection):
            self._serve(connection)

    def _open(self) -> sqlite3.Connection:
        # Made here and not by SQLite, which would leave it as open as the umask does; its
        # write-ahead log takes the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=_BUSY_TIMEOUT_MS / 1000
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            schema.migrate(connection)
            self._check_key(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_key(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            query = "SELECT value FROM settings WHERE name = 'at_rest_check'"
            row = connection.execute(query).fetchone()
            if row is None:
                connection.execute(
                    "INSERT INTO settings VALUES ('at_rest_check', ?)", (self._key.check_value(),)
                )
            elif not self._key.matches(row[0]):
                raise CatalogError(
                    f"{self._path}: the at-rest key is not the one this catalog was made with; "
                    "put that key back (storage.at_rest_key_path)"
                )

    def _serve(self, connection: sqlite3.Connection) -> None:
        next_flush = next_prune = time.monotonic()
        while True:
            # Asked before the jobs are run, so that none that came before `stop` is left.
            stopping = self._stopping
            self._run_jobs(connection)
            now = time.monotonic()
            if stopping or now >= next_flush:
                self._flush(connection)
                next_flush = now + limits.METADATA_FLUSH
                if now >= next_prune and not self._prune(connection):
                    next_prune = now + limits.METADATA_PRUNE
            if stopping:
                return
            self._wake.wait(max(0.0, next_flush - now))
            self._wake.clear()

    def _run_jobs(self, connection: sqlite3.Connection) -> None:
        while self._jobs:
            self._jobs.popleft()(connection)

    def _flush(self, connection: sqlite3.Connection) -> None:
        news = self._pending.take()
        if not news.rows:
            return
        astuple = msgspec.structs.astuple
        try:
            with _transaction(connection):
                connection.executemany(schema.MERGE_ROW, map(astuple, news.batches))
                messages = (astuple(row)[: schema.MESSAGE_WIDTH] for row in news.messages)
                connection.executemany(schema.MERGE_MESSAGE, messages)
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not take the keys along)
            self._counters.add("metadata_rows_failed", news.rows)
            if not self._failing:
                _log.error("metadata can't be written; messages are not concerned", why=str(error))
            self._failing = True
        else:
            self._counters.add("metadata_rows_written", news.rows)
            self._failing = False
        finally:
            self._pending.done(news.rows)

    def _prune(self, connection: sqlite3.Connection) -> bool:
        """Delete some of what is past its age; whether there may be more."""
        before = self._now_ms() - self._retention_ms
        try:
            pruned = [
                connection.execute(prune, (before, _PRUNE_ROWS)).rowcount for prune in schema.PRUNE
            ]
        except sqlite3.Error as error:
            _log.warning("old metadata can't be pruned", why=str(error))
            return False
        self._counters.add("metadata_rows_pruned", sum(pruned))
        return _PRUNE_ROWS in pruned

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _failed(self, error: sqlite3.Error | OSError) -> CatalogError:
        return CatalogError(
            f"{self._path}: the catalog can't be used: {error}; if the file is damaged, restore "
            "it from a backup, or move it away and have clients register their keys again"
        )


def _stored(connection: sqlite3.Connection, client: str) -> tuple[int, bytes] | None:
    query = "SELECT version, sealed FROM keys WHERE client = ?"
    row: tuple[bytes, bytes] | None = connection.execute(query, (client,)).fetchone()
    return None if row is None else (int.from_bytes(row[0], "big"), row[1])


@contextlib.contextmanager
def _synced(connection: sqlite3.Connection) -> Iterator[None]:
    """What is committed within is on the disk. A key that was confirmed and then lost to a power
    cut would let a sender's highest version run ahead of what the server can serve."""
    connection.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = NORMAL")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A commit that failed for want of space may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
