"""The SQLite catalog's tables, by version, and its statements.

The version is SQLite's ``user_version``. Each step takes the one before it; an older program
refuses a newer catalog rather than guess.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from ciphermq.errors import CatalogError

_STEPS: Final = (
    # 1: key records, metadata
    """
    CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE keys (
        client TEXT PRIMARY KEY,
        version BLOB NOT NULL, -- u64, big-endian: SQLite's integers are signed
        sealed BLOB NOT NULL,
        stored_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE batches (
        batch_id BLOB PRIMARY KEY,
        client TEXT,
        exchange TEXT,
        routing_key TEXT,
        messages INTEGER,
        size INTEGER,
        published_ms INTEGER,
        delivered INTEGER NOT NULL,
        first_delivered_ms INTEGER,
        last_delivered_ms INTEGER,
        acked INTEGER NOT NULL,
        first_acked_ms INTEGER,
        last_acked_ms INTEGER,
        dead INTEGER NOT NULL,
        first_dead_ms INTEGER,
        last_dead_ms INTEGER,
        conflicts INTEGER NOT NULL,
        noted_ms INTEGER NOT NULL
    );
    CREATE INDEX batches_by_age ON batches (noted_ms);
    """,
    # 2: keys and messages of 1.x
    """
    CREATE TABLE onex_keys (
        client TEXT PRIMARY KEY,
        sealed BLOB NOT NULL,
        stored_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE messages (
        internal_id BLOB PRIMARY KEY,
        message_id TEXT,
        client TEXT,
        exchange TEXT,
        routing_key TEXT,
        sent_ms INTEGER,
        delivered_ms INTEGER,
        acked_ms INTEGER,
        noted_ms INTEGER NOT NULL
    );
    CREATE INDEX messages_by_age ON messages (noted_ms);
    """,
)
VERSION: Final = len(_STEPS)

TRACE_COLUMNS: Final = (
    "batch_id", "client", "exchange", "routing_key", "messages", "size", "published_ms",
    "delivered", "first_delivered_ms", "last_delivered_ms",
    "acked", "first_acked_ms", "last_acked_ms",
    "dead", "first_dead_ms", "last_dead_ms", "conflicts",
)  # fmt: skip

MERGE_ROW: Final = f"""
    INSERT INTO batches VALUES ({", ".join("?" * (len(TRACE_COLUMNS) + 1))})
    ON CONFLICT (batch_id) DO UPDATE SET
        client = COALESCE(client, excluded.client),
        exchange = COALESCE(exchange, excluded.exchange),
        routing_key = COALESCE(routing_key, excluded.routing_key),
        messages = COALESCE(messages, excluded.messages),
        size = COALESCE(size, excluded.size),
        published_ms = COALESCE(published_ms, excluded.published_ms),
        delivered = delivered + excluded.delivered,
        first_delivered_ms = COALESCE(first_delivered_ms, excluded.first_delivered_ms),
        last_delivered_ms = COALESCE(excluded.last_delivered_ms, last_delivered_ms),
        acked = acked + excluded.acked,
        first_acked_ms = COALESCE(first_acked_ms, excluded.first_acked_ms),
        last_acked_ms = COALESCE(excluded.last_acked_ms, last_acked_ms),
        dead = dead + excluded.dead,
        first_dead_ms = COALESCE(first_dead_ms, excluded.first_dead_ms),
        last_dead_ms = COALESCE(excluded.last_dead_ms, last_dead_ms),
        conflicts = conflicts + excluded.conflicts
            + (client IS NOT NULL AND excluded.client IS NOT NULL AND client <> excluded.client),
        noted_ms = MAX(noted_ms, excluded.noted_ms)
"""  # noqa: S608  (only our own column count is put in)

MESSAGE_WIDTH: Final = 9
MERGE_MESSAGE: Final = f"""
    INSERT INTO messages VALUES ({", ".join("?" * MESSAGE_WIDTH)})
    ON CONFLICT (internal_id) DO UPDATE SET
        message_id = COALESCE(message_id, excluded.message_id),
        client = COALESCE(client, excluded.client),
        exchange = COALESCE(exchange, excluded.exchange),
        routing_key = COALESCE(routing_key, excluded.routing_key),
        sent_ms = COALESCE(sent_ms, excluded.sent_ms),
        delivered_ms = COALESCE(delivered_ms, excluded.delivered_ms),
        acked_ms = COALESCE(excluded.acked_ms, acked_ms),
        noted_ms = MAX(noted_ms, excluded.noted_ms)
"""  # noqa: S608  (as above)

TRACE: Final = f"SELECT {', '.join(TRACE_COLUMNS)} FROM batches WHERE batch_id = ?"  # noqa: S608

MESSAGE_COLUMNS: Final = (
    "message_id", "client", "exchange", "routing_key", "sent_ms", "delivered_ms", "acked_ms",
)  # fmt: skip

TRACE_MESSAGE: Final = f"""
    SELECT {", ".join(MESSAGE_COLUMNS)} FROM messages
    WHERE internal_id = ? AND message_id IS NOT NULL
"""  # noqa: S608

PRUNE: Final = tuple(
    f"""
    DELETE FROM {table} WHERE rowid IN (
        SELECT rowid FROM {table} WHERE noted_ms < ? ORDER BY noted_ms LIMIT ?)
    """  # noqa: S608
    for table in ("batches", "messages")
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an open catalog (or an empty file) to `VERSION`; `CatalogError` if it is newer."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise CatalogError(
            f"the catalog is of version {found}, and this program knows {VERSION}: "
            "it was written by a newer CipherMQ"
        )
    for step in range(found, VERSION):
        # A crash in the middle must leave the former version whole.
        connection.executescript(
            f"BEGIN IMMEDIATE; {_STEPS[step]}; PRAGMA user_version = {step + 1}; COMMIT;"
        )
