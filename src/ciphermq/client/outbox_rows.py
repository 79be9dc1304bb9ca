"""The relay's side of an Outbox's tables. Synchronous; of the relay's own thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.client.batcher import end_together
from ciphermq.client.lane import Route
from ciphermq.client.outbox import SCHEMA
from ciphermq.client.session import now_ms
from ciphermq.client.store import Store
from ciphermq.errors import StoreError, UsageError
from ciphermq.model import body
from ciphermq.model.body import Body
from ciphermq.model.message import OutgoingMessage


class Waiting(NamedTuple):
    """Messages that become one batch."""

    route: int
    rows: tuple[int, ...]
    body: Body
    expires_ms: int


class SealedRow(msgspec.Struct, frozen=True, order=True):
    """A batch that is sealed and not known to be confirmed; in the order of sealing."""

    seq: int
    route: int
    count: int


class Sealing(NamedTuple):
    """A batch to be kept in the place of what went into it."""

    waiting: Waiting
    data: bytes


class Failing(NamedTuple):
    """A batch that can never be sent."""

    row: SealedRow
    code: str
    detail: str


class Losing(NamedTuple):
    """Messages that can't even be sealed: it is too late for them."""

    waiting: Waiting
    code: str
    detail: str


class Rows:
    """An Outbox's tables, as the relay needs them."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path, name="outbox", schema=(SCHEMA,), failure=StoreError, guest=True)
        self.wipe_log = self._store.wipe_log

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def claim(self, name: str) -> None:
        """From now on the batches are sealed by client `name`; `UsageError` while another's are
        on their way, for the broker takes a batch from nobody but its sender."""
        with self._store.transaction():
            names = [row[0] for row in self._store.ask("SELECT name FROM ciphermq_outbox_sender")]
            sealed = self._store.ask("SELECT 1 FROM ciphermq_outbox_sealed LIMIT 1")
            if sealed and names and names != [name]:
                raise UsageError(
                    f"this outbox ({self._store.place}) has batches sealed by {names[0]!r} on "
                    f"their way: relay them as {names[0]!r}, not as {name!r}"
                )
            self._store.run("DELETE FROM ciphermq_outbox_sender")
            self._store.run("INSERT INTO ciphermq_outbox_sender VALUES (?)", (name,))

    def routes(self) -> dict[int, Route]:
        """All routes, by number."""
        rows = self._store.ask(
            "SELECT id, receivers, exchange, routing_key FROM ciphermq_outbox_route"
        )
        return {row[0]: Route(row[1].split(","), row[2], row[3]) for row in rows}

    def sealed(self) -> list[SealedRow]:
        """What an earlier run has sealed, oldest first."""
        return [
            SealedRow(*row)
            for row in self._store.ask(
                "SELECT seq, route, count FROM ciphermq_outbox_sealed ORDER BY seq"
            )
        ]

    def load(self, seq: int) -> bytes:
        """A sealed batch's bytes."""
        rows = self._store.ask("SELECT sealed FROM ciphermq_outbox_sealed WHERE seq = ?", (seq,))
        return bytes(rows[0][0])

    def waiting(self, room: dict[int, int], most: int) -> list[Waiting]:
        """What to seal next, `most` batches in all: of each route as many as it has `room` for
        (one that isn't known yet: any number), those first whose first message is older."""
        found: list[Waiting] = []
        heads = self._store.ask(
            "SELECT r.id, (SELECT min(seq) FROM ciphermq_outbox_waiting w WHERE w.route = r.id)"
            " AS first FROM ciphermq_outbox_route r WHERE first IS NOT NULL ORDER BY first"
        )
        for route, _ in heads:
            batches = min(room.get(route, most), most - len(found))
            if batches > 0:
                found += self._waiting_of(route, batches)
        return found

    def _waiting_of(self, route: int, batches: int) -> list[Waiting]:
        groups: list[_Group] = []
        for seq, expires_ms, data in self._store.each(
            "SELECT seq, expires_ms, body FROM ciphermq_outbox_waiting WHERE route = ?"
            " ORDER BY seq",
            (route,),
        ):
            row = _Row(seq, expires_ms, body.decode(data), data)
            if groups and groups[-1].takes(row):
                groups[-1].join(row)
            elif len(groups) < batches:
                groups.append(_Group(row))
            else:
                break
        return [group.waiting(route) for group in groups]

    def move(
        self,
        *,
        sealed: Sequence[Sealing] = (),
        confirmed: Sequence[int] = (),
        failed: Sequence[Failing] = (),
        lost: Sequence[Losing] = (),
    ) -> list[SealedRow]:
        """One commit: what was sealed, what is confirmed, what can't be sent; the new rows."""
        added = []
        with self._store.transaction():
            for seq in confirmed:
                self._store.run("DELETE FROM ciphermq_outbox_sealed WHERE seq = ?", (seq,))
            for failing in failed:
                self._fail(failing)
            for waiting, data in sealed:
                # Out before in: sealed bytes then go where the plaintext was, and the file need
                # not grow for them.
                self._remove(waiting)
                number = self._store.run(
                    "INSERT INTO ciphermq_outbox_sealed (route, count, sealed) VALUES (?, ?, ?)",
                    (waiting.route, waiting.body.count, data),
                ).lastrowid
                added.append(SealedRow(int(number or 0), waiting.route, waiting.body.count))
            for losing in lost:
                waiting = losing.waiting
                self._put_aside(waiting.route, waiting.body.count, losing.code, losing.detail)
                self._remove(waiting)
        return added

    def _fail(self, failing: Failing) -> None:
        row = failing.row
        self._put_aside(row.route, row.count, failing.code, failing.detail)
        self._store.run("DELETE FROM ciphermq_outbox_sealed WHERE seq = ?", (row.seq,))

    def _put_aside(self, route: int, count: int, code: str, detail: str) -> None:
        """Say what was never sent: the messages themselves are of no use to anybody."""
        self._store.run(
            "INSERT INTO ciphermq_outbox_failed (route, count, code, detail, at_ms)"
            " VALUES (?, ?, ?, ?, ?)",
            (route, count, code, detail, now_ms()),
        )

    def _remove(self, waiting: Waiting) -> None:
        for seq in waiting.rows:
            self._store.run("DELETE FROM ciphermq_outbox_waiting WHERE seq = ?", (seq,))


class _Row(NamedTuple):
    seq: int
    expires_ms: int
    messages: body.Messages
    data: bytes


class _Group:
    """Rows that become one batch."""

    def __init__(self, first: _Row) -> None:
        self._rows = [first]
        self._count = len(first.messages)
        self._size = len(first.data)
        self._expires_ms = first.expires_ms
        self._latest_ms = first.expires_ms

    def takes(self, row: _Row) -> bool:
        """Whether `row` can share the batch."""
        return (
            self._size + len(row.data) <= limits.SEND_BATCH
            and self._count + len(row.messages) <= limits.MAX_BATCH_MESSAGES
            and end_together(self._expires_ms, self._latest_ms, row.expires_ms)
        )

    def join(self, row: _Row) -> None:
        """Add a row that it takes."""
        self._rows.append(row)
        self._count += len(row.messages)
        self._size += len(row.data)
        self._expires_ms = min(self._expires_ms, row.expires_ms)
        self._latest_ms = max(self._latest_ms, row.expires_ms)

    def waiting(self, route: int) -> Waiting:
        """The batch to be."""
        seqs = tuple(row.seq for row in self._rows)
        if len(self._rows) == 1:
            return Waiting(route, seqs, Body(self._rows[0].data), self._expires_ms)
        messages = [
            OutgoingMessage(
                message.payload,
                message.properties.headers,
                message.properties.content_type,
                message.sent_ms,
            )
            for row in self._rows
            for message in row.messages
        ]
        return Waiting(route, seqs, Body.of(messages), self._expires_ms)
