"""Metadata on its way to the disk: gathered by batch, bounded, handed over in one piece.

The event loop notes, the catalog's thread takes. What happens to one batch within a flush
interval, often its whole life, becomes one row.
"""

from __future__ import annotations

import threading

import msgspec

from ciphermq.catalog.face import Publication


class Row(msgspec.Struct):
    """What one batch's row gains. None: nothing new. Member order is the order of columns."""

    batch_id: bytes
    client: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    messages: int | None = None
    size: int | None = None
    published_ms: int | None = None
    delivered: int = 0
    first_delivered_ms: int | None = None
    last_delivered_ms: int | None = None
    acked: int = 0
    first_acked_ms: int | None = None
    last_acked_ms: int | None = None
    dead: int = 0
    first_dead_ms: int | None = None
    last_dead_ms: int | None = None
    conflicts: int = 0
    noted_ms: int = 0


class PendingMetadata:
    """At most `capacity` batches' news; more are dropped and counted."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: dict[bytes, Row] = {}
        self._lock = threading.Lock()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rows)

    def publish(self, publication: Publication) -> None:
        """Note who published a batch. The first to use a batch id stands; another client with
        the same id, which only a liar has, is counted as a conflict."""
        with self._lock:
            row = self._row(publication.batch_id, publication.published_ms)
            if row is None:
                return
            if row.client is not None:
                row.conflicts += row.client != publication.client
                return
            row.client = publication.client
            row.exchange = publication.exchange
            row.routing_key = publication.routing_key
            row.messages = publication.messages
            row.size = publication.size
            row.published_ms = publication.published_ms

    def event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        """Note an engine's event; kinds that have no column are let pass."""
        with self._lock:
            if event == "delivered":
                if row := self._row(batch_id, at_ms):
                    row.delivered += messages
                    row.first_delivered_ms = row.first_delivered_ms or at_ms
                    row.last_delivered_ms = at_ms
            elif event == "acked":
                if row := self._row(batch_id, at_ms):
                    row.acked += messages
                    row.first_acked_ms = row.first_acked_ms or at_ms
                    row.last_acked_ms = at_ms
            elif event == "dead" and (row := self._row(batch_id, at_ms)):
                row.dead += messages
                row.first_dead_ms = row.first_dead_ms or at_ms
                row.last_dead_ms = at_ms

    def take(self) -> list[Row]:
        """All rows, which are the caller's from now on."""
        with self._lock:
            rows, self._rows = self._rows, {}
        return list(rows.values())

    def _row(self, batch_id: bytes, at_ms: int) -> Row | None:
        row = self._rows.get(batch_id)
        if row is None:
            if len(self._rows) >= self._capacity:
                self.dropped += 1
                return None
            row = self._rows[batch_id] = Row(batch_id)
        row.noted_ms = max(row.noted_ms, at_ms)
        return row
