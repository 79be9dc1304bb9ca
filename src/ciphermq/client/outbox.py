"""The Outbox: a message is promised in the same transaction as the data that it tells of.

An application that writes "order taken" into its database and then sends a message about it can die
between the two. So it writes the message into the same database, in the same transaction::

    with outbox.transaction() as db:
        db.execute("INSERT INTO orders ...")
        outbox.add(b"...", to="billing")

and a relay (`Client.relay`), in this process or another, does the rest: it seals, commits the
sealed bytes, sends them until they are confirmed, and deletes them. Killed at any point it goes on
with the same bytes, which broker and receivers recognise by their id::

    before the sealed bytes are committed    nothing was sent; they are sealed anew
    after that, before the confirmation      the same bytes go again and are stored once
    after it, before the deletion            the same

The broker remembers ids for ten minutes. Bytes that go again after a longer pause may be stored a
second time; a receiver's Inbox, which remembers for a month, drops them. A batch can be sent for as
long as receivers take it, 30 days from sealing; after that it is put aside (`failed`).

What waits here is not sealed yet and is as safe as the file is (0600). When it is sealed it is
overwritten in the file; in SQLite's log beside it, when the relay has nothing else to do.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from ciphermq import limits
from ciphermq.client.cutting import bodies
from ciphermq.client.lane import Route
from ciphermq.client.payload import Payload, expiry_ms, outgoing
from ciphermq.client.store import Store
from ciphermq.errors import StoreError, UsageError
from ciphermq.model.message import OutgoingMessage

SCHEMA: Final = """
    CREATE TABLE ciphermq_outbox_route (
        id INTEGER PRIMARY KEY,
        receivers TEXT NOT NULL,
        exchange TEXT NOT NULL,
        routing_key TEXT NOT NULL,
        UNIQUE (receivers, exchange, routing_key)
    );
    CREATE TABLE ciphermq_outbox_waiting (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        route INTEGER NOT NULL,
        count INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX ciphermq_outbox_waiting_by_route ON ciphermq_outbox_waiting (route, seq);
    CREATE TABLE ciphermq_outbox_sealed (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        route INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sealed BLOB NOT NULL
    );
    CREATE TABLE ciphermq_outbox_failed (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        route INTEGER NOT NULL,
        count INTEGER NOT NULL,
        code TEXT NOT NULL,
        detail TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    );
    CREATE TABLE ciphermq_outbox_source (
        source TEXT PRIMARY KEY,
        position INTEGER NOT NULL
    );
    CREATE TABLE ciphermq_outbox_sender (name TEXT NOT NULL)
"""


class Failed(msgspec.Struct, frozen=True):
    """What is kept of messages that it is too late to send."""

    receivers: tuple[str, ...]
    exchange: str
    routing_key: str
    count: int
    code: str
    detail: str
    at_ms: int


class Outbox:
    """Messages that are promised and not yet confirmed, in a SQLite database.

    Adding is for the thread that made it; the relay works beside it, on a connection of its own.
    """

    def __init__(
        self,
        where: str | Path | sqlite3.Connection,
        *,
        timeout: float = limits.STORE_TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`where`: a file of its own, made when it isn't there, or the application's own
        connection, whose settings (how durable a commit is, above all) are the application's.
        `timeout`: seconds to wait for another process that is writing.

        Raises `StoreError` when it can't be used.
        """
        self._clock = clock
        self._store = Store(
            where, name="outbox", schema=(SCHEMA,), failure=StoreError, timeout=timeout
        )

    def close(self) -> None:
        """Close the file; an application's own connection stays open."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- adding -----------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the block's writes and what it adds together; nothing of it when it raises.

        Yields the database. An application with a transaction of its own on its own connection
        doesn't need this: `add` joins what is open.
        """
        with self._store.transaction() as connection:
            yield connection

    def add(
        self,
        payload: Payload,
        *,
        to: str | Iterable[str],
        queue: str | None = None,
        exchange: str = "",
        routing_key: str = "",
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        ttl: float | None = None,
    ) -> None:
        """Promise one message, in the transaction that is open or in one of its own.

        The arguments are those of `Client.sender` and `Sender.send`.
        """
        message = outgoing(payload, headers, content_type)
        self.add_many(
            [message], to=to, queue=queue, exchange=exchange, routing_key=routing_key, ttl=ttl
        )

    def add_many(
        self,
        messages: Iterable[Payload | OutgoingMessage],
        *,
        to: str | Iterable[str],
        queue: str | None = None,
        exchange: str = "",
        routing_key: str = "",
        ttl: float | None = None,
        source: str | None = None,
        position: int = 0,
    ) -> int:
        """Promise many, all or none of them; how many.

        `source` and `position` are noted in the same transaction: where the messages were read
        from, and how far. Whoever was killed asks `position` where to go on reading.
        """
        route = Route.of(to, queue=queue, exchange=exchange, routing_key=routing_key)
        expires_ms = expiry_ms(int(self._clock() * 1000), ttl)
        added = 0
        with self._store.joined():
            number = self._route(route)
            for body in bodies(messages):
                self._store.run(
                    "INSERT INTO ciphermq_outbox_waiting (route, count, expires_ms, body)"
                    " VALUES (?, ?, ?, ?)",
                    (number, body.count, expires_ms, body.data),
                )
                added += body.count
            if source is not None:
                self._store.run(
                    "INSERT OR REPLACE INTO ciphermq_outbox_source VALUES (?, ?)",
                    (source, position),
                )
        return added

    def position(self, source: str) -> int:
        """How far `source` has been added; 0 when nothing of it was."""
        rows = self._store.ask(
            "SELECT position FROM ciphermq_outbox_source WHERE source = ?", (source,)
        )
        return int(rows[0][0]) if rows else 0

    def _route(self, route: Route) -> int:
        key = (",".join(route.to), route.exchange, route.routing_key)
        # Not remembered from one call to the next: the transaction it was made in may be undone.
        self._store.run(
            "INSERT OR IGNORE INTO ciphermq_outbox_route (receivers, exchange, routing_key)"
            " VALUES (?, ?, ?)",
            key,
        )
        rows = self._store.ask(
            "SELECT id FROM ciphermq_outbox_route"
            " WHERE receivers = ? AND exchange = ? AND routing_key = ?",
            key,
        )
        return int(rows[0][0])

    # --- looking ----------------------------------------------------------------------------

    @property
    def promised(self) -> int:
        """Messages that were added and are not known to be confirmed."""
        rows = self._store.ask(
            "SELECT (SELECT coalesce(sum(count), 0) FROM ciphermq_outbox_waiting)"
            " + (SELECT coalesce(sum(count), 0) FROM ciphermq_outbox_sealed)"
        )
        return int(rows[0][0])

    def failed(self) -> list[Failed]:
        """What could not be sent and never will be, oldest first."""
        rows = self._store.ask(
            "SELECT receivers, exchange, routing_key, count, code, detail, at_ms"
            " FROM ciphermq_outbox_failed f JOIN ciphermq_outbox_route r ON r.id = f.route"
            " ORDER BY f.seq"
        )
        return [Failed(tuple(row[0].split(",")), *row[1:]) for row in rows]

    @property
    def path(self) -> Path:
        """The database's file, for the relay; `UsageError` when it is in memory only."""
        if self._store.path is None:
            raise UsageError("an Outbox in memory can't be relayed: it would survive nothing")
        return self._store.path
