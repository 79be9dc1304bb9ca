"""The catalog in PostgreSQL: keys at once, metadata behind, 1.x's tables taken over in place.

The database may go away at any time. Keys can't be served then, and whoever asks is told so. The
rest goes on: metadata waits in memory, at most `limits.MAX_PENDING_METADATA` rows of it, and is
written when the database is back, all that waited and each row once. The status says how many
wait, whether the database is away, and how many there was no room for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from ciphermq import limits
from ciphermq.catalog import postgres_schema as schema
from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.catalog.face import KeyEntry, OnexPublication, Publication
from ciphermq.catalog.onex import OnexAtRestKey, StoredKey
from ciphermq.catalog.pending import PendingMetadata
from ciphermq.catalog.postgres_pool import PostgresPool
from ciphermq.catalog.postgres_writer import MetadataWriter
from ciphermq.catalog.schema import TRACE_COLUMNS
from ciphermq.catalog.waiting import WaitingFile
from ciphermq.errors import CatalogError, KeyRecordRolledBack
from ciphermq.settings import DatabaseSection
from ciphermq.telemetry import get_logger

T = TypeVar("T")
Connection = Any
"""asyncpg's, which come without types."""

_CHECK: Final = "at_rest_check"
_VERSION_SIZE: Final = 8
_MIGRATION_TIMEOUT: Final = 3600.0
_FAILURES: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_BROKEN: Final = (ConnectionError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)

_log = get_logger("catalog")


class PostgresCatalog:
    """`ciphermq.catalog.face.Catalog` on a PostgreSQL database.

    `metadata_days` 0 keeps no metadata at all; otherwise it is how long rows of batches are kept.
    Rows of 1.x messages are kept for ever, as 1.x kept them. `onex_key` is what 1.x clients' keys
    are encrypted with. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        database: DatabaseSection,
        key: AtRestKey,
        *,
        onex_key: OnexAtRestKey | None = None,
        metadata_days: float = 30.0,
        clock: Callable[[], float] = time.time,
        max_pending: int = limits.MAX_PENDING_METADATA,
        waiting: Path | None = None,
    ) -> None:
        """`waiting`: where to keep what the database has not got yet; None: only in memory."""
        self._database = database
        self._pool = PostgresPool(database)
        self._key = key
        self._onex_key = onex_key
        self._clock = clock
        self._retention_ms = int(metadata_days * limits.DAY * 1000)
        self._pending = PendingMetadata(max_pending)
        self._waiting = None if waiting is None else WaitingFile(waiting)
        self._writer = MetadataWriter(
            self._pool, self._pending, self._retention_ms, self._now_ms, self._waiting
        )

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, take over or migrate what is there, and see whether it is readable."""
        await self._pool.start()
        try:
            await self._prepare()
            if self._waiting is not None:
                self._waiting.open(self._pending)
        except BaseException:
            await self._pool.stop()
            raise
        if not (self._database.local or self._database.verified):
            _log.warning(
                "the database is on another machine and need not prove who it is: set "
                'database.tls = "verify" and database.ca_cert_path',
                where=self._pool.where,
            )
        self._writer.start()

    async def stop(self) -> None:
        """Write what waits and close."""
        await self._writer.stop()
        if self._waiting is not None:
            self._waiting.close()
        await self._pool.stop()

    async def _prepare(self) -> None:
        try:
            async with self._pool.connection() as connection:
                async with connection.transaction():
                    # Another server may be at it, which may take as long.
                    await connection.execute(
                        "SELECT pg_advisory_xact_lock($1)", schema.LOCK, timeout=_MIGRATION_TIMEOUT
                    )
                    await self._migrate(connection)
                    await self._check_key(connection)
                await self._check_onex_key(connection)
        except _FAILURES as error:
            raise self._pool.failed(error) from None

    async def _migrate(self, connection: Connection) -> None:
        """Bring the database to `schema.VERSION`, in the transaction that is open."""
        release = await connection.fetchval("SHOW server_version_num")
        if int(release) < schema.OLDEST_SERVER:
            raise CatalogError(
                f"{self._pool.where} is version {int(release) // 10_000}; the oldest that has what "
                f"the catalog needs is {schema.OLDEST_SERVER // 10_000}"
            )
        await connection.execute(schema.VERSIONS)
        found = await connection.fetchval(schema.FOUND_VERSION) or 0
        if found > schema.VERSION:
            raise CatalogError(
                f"{self._pool.where}: the catalog is of version {found}, and this program knows "
                f"{schema.VERSION}: it was written by a newer CipherMQ"
            )
        if not found:
            await self._look_at_1x(connection)
        for version in range(found, schema.VERSION):
            # An index over years of 1.x's rows takes longer than any other statement may.
            await connection.execute(schema.step(version), timeout=_MIGRATION_TIMEOUT)
            await connection.execute(schema.REACHED_VERSION, version + 1)

    async def _look_at_1x(self, connection: Connection) -> None:
        """Take 1.x's tables for what they are, if they are there."""
        for table, columns in schema.ONEX_TABLES.items():
            found = dict(await connection.fetch(schema.COLUMNS, table))
            wrong = [column for column in columns if found.get(column) != "text"]
            if found and wrong:
                raise CatalogError(
                    f"{self._pool.where}: there is a table {table!r} that is not CipherMQ 1.x's: "
                    f"its {wrong[0]!r} is {found.get(wrong[0], 'missing')}, not text"
                )
            if found:
                _log.info("takes over a table of CipherMQ 1.x", table=table)

    async def _check_key(self, connection: Connection) -> None:
        check = await connection.fetchval(schema.GET_SETTING, _CHECK)
        if check is None:
            await connection.execute(schema.PUT_SETTING, _CHECK, self._key.check_value())
        elif not self._key.matches(check):
            raise CatalogError(
                f"{self._pool.where}: the at-rest key is not the one this catalog was made with; "
                "put that key back (storage.at_rest_key_path, or encryption.aes_key)"
            )

    async def _check_onex_key(self, connection: Connection) -> None:
        """Notice now, and not at each look-up, that the key is another than 1.x had."""
        if self._onex_key is None:
            return
        failure = None
        for client, *stored in await connection.fetch(schema.SOME_ONEX_KEYS):
            try:
                self._onex_key.open(client, StoredKey(*stored))
            except CatalogError as error:
                failure = error
            else:
                return
        if failure is not None:
            raise CatalogError(f"{self._pool.where}: {failure}")

    # --- keys -----------------------------------------------------------------------------------

    async def put_key(self, client: str, version: int, record: bytes) -> None:
        """Keep as the client's newest; durable when this returns."""
        number = version.to_bytes(_VERSION_SIZE, "big")
        sealed = self._key.seal(client, version, record)
        values = (client, number, sealed, self._now_ms())
        if await self._ask(lambda connection: connection.fetchval(schema.PUT_KEY, *values)):
            return
        found = await self._ask(lambda connection: connection.fetchrow(schema.GET_KEY, client))
        # In between nobody deletes keys; a version is never given back.
        stored = int.from_bytes(found[0], "big")
        if stored == version and self._key.open(client, version, found[1]) == record:
            return
        raise KeyRecordRolledBack(
            f"version {version} of {client!r}'s key record is not newer than the stored version "
            f"{stored}"
        )

    async def get_key(self, client: str) -> bytes | None:
        """The client's newest record."""
        found = await self._ask(lambda connection: connection.fetchrow(schema.GET_KEY, client))
        if found is None:
            return None
        return self._key.open(client, int.from_bytes(found[0], "big"), found[1])

    async def keys(self) -> list[KeyEntry]:
        """All stored records."""
        rows = await self._ask(lambda connection: connection.fetch(schema.LIST_KEYS))
        return [KeyEntry(row[0], int.from_bytes(row[1], "big"), row[2]) for row in rows]

    async def put_onex_key(self, client: str, public_key: bytes) -> None:
        """Keep as the 1.x client's only one, where 1.x would look; durable when this returns."""
        stored = self._needed_onex_key().seal(public_key)
        await self._ask(lambda found: found.execute(schema.PUT_ONEX_KEY, client, *stored))

    async def get_onex_key(self, client: str) -> bytes | None:
        """The 1.x client's key."""
        found = await self._ask(lambda found: found.fetchrow(schema.GET_ONEX_KEY, client))
        return None if found is None else self._needed_onex_key().open(client, StoredKey(*found))

    def _needed_onex_key(self) -> OnexAtRestKey:
        if self._onex_key is None:
            raise CatalogError(
                "keys of 1.x clients need encryption.aes_key where the catalog is PostgreSQL"
            )
        return self._onex_key

    # --- metadata -------------------------------------------------------------------------------

    def note_published(self, publication: Publication) -> None:
        """Remember who published what, as soon as the database takes it."""
        if self._retention_ms:
            self._pending.publish(publication)

    def note_message(self, publication: OnexPublication) -> None:
        """Remember who published which 1.x message."""
        if not self._retention_ms:
            return
        noted = self._pending.publish_message(publication)
        if noted and self._waiting is not None:
            self._waiting.published(publication)

    def note_event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        """Remember what became of a batch or a message."""
        if not self._retention_ms:
            return
        noted = self._pending.event(event, batch_id, messages, at_ms)
        if noted and self._waiting is not None:
            self._waiting.happened(event, batch_id, at_ms)

    async def trace(self, batch_id: bytes) -> dict[str, Any] | None:
        """What is known of a batch."""
        row = await self._look(schema.TRACE, batch_id)
        return None if row is None else dict(zip(TRACE_COLUMNS, row, strict=True))

    async def trace_message(self, message_id: str) -> dict[str, str | None] | None:
        """What is known of a 1.x message."""
        row = await self._look(schema.TRACE_MESSAGE, message_id)
        return None if row is None else dict(row)

    def stats(self) -> dict[str, int | float | str]:
        """Counters; ``database`` says whether it is there, ``metadata_rows_waiting`` how far it
        is behind, ``metadata_rows_dropped`` what the bound on memory cost."""
        away = self._writer.away
        return {
            "kind": "postgresql",
            "database": f"away: {away}" if away else "connected",
            "metadata_rows_waiting": len(self._pending),
            "metadata_rows_dropped": self._pending.dropped,
            **self._writer.counters.snapshot(),
        }

    # --- the database ---------------------------------------------------------------------------

    async def _look(self, query: str, name: object) -> Any:
        """The row of that name, with all that has been noted of it."""
        if self._pool.open:
            try:
                await self._writer.flush()
            except _FAILURES as error:
                raise self._pool.failed(error) from None
        return await self._ask(lambda connection: connection.fetchrow(query, name))

    async def _ask(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` finds on a connection; `CatalogError` when the database fails.

        Once more on another connection when one proves to be lost, as all are after a restart of
        the database. All that is asked here may be done twice."""
        try:
            try:
                return await self._once(work)
            except _BROKEN:
                return await self._once(work)
        except _FAILURES as error:
            raise self._pool.failed(error) from None

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._pool.connection() as connection:
            return await work(connection)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
