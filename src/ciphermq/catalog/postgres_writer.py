"""Metadata to PostgreSQL, behind everything else: in groups, in order, each once.

A group is taken out of what is pending and tried until it is committed, with a number that is
committed beside it, so that it does no harm to try once too often. While the database is away the
rest waits in `PendingMetadata`, which has a bound. Rows that the database can't hold (a stranger's
name with a character it has not) are found by halving their group, counted and left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import asyncpg
import msgspec

from ciphermq import limits
from ciphermq.catalog import postgres_schema as schema
from ciphermq.catalog.onex import timestamp
from ciphermq.catalog.pending import MessageRow, News, PendingMetadata
from ciphermq.catalog.postgres_pool import PostgresPool
from ciphermq.catalog.waiting import WaitingFile
from ciphermq.telemetry import Counters, get_logger

_PRUNE_ROWS: Final = 5_000
_WRITER_SIZE: Final = 16
_SAY_AGAIN: Final = 1000
"""Rows at fault themselves between two lines in the log: a stranger can make many."""

_UNFIT: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)
"""What a row itself is at fault for. All else is the database's, and may pass."""

_log = get_logger("catalog")


class MetadataWriter:
    """Writes what is pending; one task."""

    def __init__(
        self,
        pool: PostgresPool,
        pending: PendingMetadata,
        retention_ms: int,
        now_ms: Callable[[], int],
        waiting: WaitingFile | None = None,
    ) -> None:
        self.counters = Counters(
            "metadata_rows_written",
            "metadata_rows_failed",
            "metadata_rows_pruned",
            "database_losses",
        )
        self.away = ""
        """Why the database can't be written to; empty while it can."""
        self._pool = pool
        self._pending = pending
        self._retention_ms = retention_ms
        self._now_ms = now_ms
        self._waiting = waiting
        self._name = secrets.token_bytes(_WRITER_SIZE)
        self._number = 0
        self._tried = False
        """Whether the first of `_unwritten` has its number: it may be committed already."""
        self._unwritten: deque[News] = deque()
        self._early: list[MessageRow] = []
        self._writing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._next_prune = 0.0

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what waits, if the database takes it; say what was lost otherwise."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        await task
        try:
            async with asyncio.timeout(limits.DATABASE_TIMEOUT):
                await self.flush()
                async with self._pool.connection() as connection:
                    day_ms = int(limits.DAY * 1000)
                    await connection.execute(schema.LEAVE, self._name, self._now_ms() - day_ms)
        except Exception as error:  # noqa: BLE001  (whatever it is, the server is ending)
            _log.error(
                "metadata that waited could not be written; messages are not concerned",
                rows=len(self._pending),
                why=self._pool.explain(error),
            )

    async def _run(self) -> None:
        delay = limits.RECONNECT_FIRST
        while not self._stopping.is_set():
            try:
                await self.flush()
                await self._prune()
            except Exception:  # noqa: BLE001  (noted by `flush`, and tried again)
                await self._pause(delay)
                delay = min(2 * delay, limits.RECONNECT_MOST)
            else:
                delay = limits.RECONNECT_FIRST
                await self._pause(limits.METADATA_FLUSH)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- writing ------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Write all that waits. Raises why it can't; then it waits on."""
        async with self._writing:
            early, self._early = self._early, []
            self._pending.put_back(early)
            if self._waiting is not None:
                self._waiting.turn()
                self._waiting.early(early)
            try:
                while self._take():
                    await self._write_group()
            except Exception as error:
                self._lost(error)
                raise
            self._found()
            if self._waiting is not None:
                self._waiting.early(self._early)
                self._waiting.turned()

    def _take(self) -> bool:
        """Whether there is a group to be written."""
        if not self._unwritten:
            news = self._pending.take(limits.DATABASE_ROWS)
            if news.rows:
                self._unwritten.append(news)
        return bool(self._unwritten)

    async def _write_group(self) -> None:
        news = self._unwritten[0]
        if not self._tried:
            self._tried = True
            self._number += 1
        try:
            early = await self._transact(news)
        except _UNFIT as error:
            self._leave_group()
            self._unfit(news, error)
            return
        self._leave_group()
        self._early += early
        written = news.rows - len(early)
        self._pending.done(written)
        self.counters.add("metadata_rows_written", written)

    def _leave_group(self) -> None:
        self._unwritten.popleft()
        self._tried = False

    def _unfit(self, news: News, error: Exception) -> None:
        """Some row of the group can't be written: find out which, the others can."""
        if news.rows > 1:
            self._unwritten.extendleft(reversed(_halves(news)))
            return
        self._pending.done(1)
        self.counters.add("metadata_rows_failed")
        failed = self.counters["metadata_rows_failed"]
        if failed == 1 or failed % _SAY_AGAIN == 0:
            _log.error("a row of metadata can't be written", why=str(error), so_far=failed)

    async def _transact(self, news: News) -> list[MessageRow]:
        """Commit a group; the rows whose message is not there yet."""
        batches = list(map(msgspec.structs.astuple, news.batches))
        named = [row for row in news.messages if row.message_id is not None]
        added = [_columns(row) for row in named if not row.again]
        missing = [_columns(row) for row in named if row.again]
        events = [row for row in news.messages if row.message_id is None]
        async with self._pool.connection() as connection, connection.transaction():
            values = (self._name, self._number, self._now_ms())
            if await connection.fetchval(schema.ADVANCE, *values):
                if batches:
                    await connection.execute(schema.MERGE_BATCHES, *zip(*batches, strict=True))
                if added:
                    await connection.execute(schema.ADD_MESSAGES, *zip(*added, strict=True))
                if missing:
                    await connection.execute(schema.ADD_MISSING, *zip(*missing, strict=True))
            # Twice does no harm here, and tells which messages were not there yet.
            return await self._update(connection, events) if events else []

    async def _update(self, connection: Any, events: list[MessageRow]) -> list[MessageRow]:
        heads, tails = zip(*(schema.parts(row.internal_id) for row in events), strict=True)
        found = await connection.fetch(
            schema.UPDATE_MESSAGES,
            heads,
            tails,
            [timestamp(row.delivered_ms) for row in events],
            [timestamp(row.acked_ms) for row in events],
        )
        known = {(row[0], row[1]) for row in found}
        return [
            row
            for row, *name in zip(events, heads, tails, strict=True)
            if tuple(name) not in known and _may_come(row)
        ]

    async def _prune(self) -> None:
        now = time.monotonic()
        if now < self._next_prune:
            return
        before = self._now_ms() - self._retention_ms
        pruned = 0
        try:
            async with self._pool.connection() as connection:
                said = await connection.execute(schema.PRUNE, before, _PRUNE_ROWS)
                pruned = int(said.rpartition(" ")[2])
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("old metadata can't be pruned", why=self._pool.explain(error))
        self.counters.add("metadata_rows_pruned", pruned)
        if pruned < _PRUNE_ROWS:
            self._next_prune = now + limits.METADATA_PRUNE

    # --- away and back ------------------------------------------------------------------------

    def _lost(self, error: Exception) -> None:
        if not self.away:
            self.counters.add("database_losses")
            _log.error(
                "metadata can't be written for now and waits; messages are not concerned",
                where=self._pool.where,
                why=self._pool.explain(error),
            )
        self.away = self._pool.explain(error)

    def _found(self) -> None:
        if self.away:
            _log.info("metadata is written again", where=self._pool.where)
        self.away = ""


def _columns(row: MessageRow) -> tuple[str | None, ...]:
    """A message as 1.x's table has it."""
    return (
        row.message_id,
        row.client,
        row.exchange,
        row.routing_key,
        timestamp(row.sent_ms),
        timestamp(row.delivered_ms),
        timestamp(row.acked_ms),
    )


def _may_come(row: MessageRow) -> bool:
    """Whether the message that `row` is news of may yet be noted."""
    now = time.monotonic()
    if row.missed_at is None:
        row.missed_at = now
    return now - row.missed_at < limits.DATABASE_GRACE


def _halves(news: News) -> list[News]:
    batches, messages = len(news.batches) // 2, len(news.messages) // 2
    # One row of each kind: apart, or halving would not end.
    batches = batches or (len(news.batches) if news.messages else 0)
    return [
        News(news.batches[:batches], news.messages[:messages]),
        News(news.batches[batches:], news.messages[messages:]),
    ]
