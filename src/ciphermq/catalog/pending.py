"""Metadata on its way to the disk: gathered by batch, bounded, handed over in one piece.

The event loop notes, the catalog takes. What happens to one batch, or one 1.x message, within a
flush interval, often its whole life, becomes one row.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from ciphermq.catalog.face import OnexPublication, Publication
from ciphermq.model.onex import internal_id, is_internal_id

Noted = TypeVar("Noted")


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


class MessageRow(msgspec.Struct):
    """What one 1.x message's row gains. None: nothing new. Member order is that of columns."""

    internal_id: bytes
    message_id: str | None = None
    client: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    sent_ms: int | None = None
    delivered_ms: int | None = None
    """First."""
    acked_ms: int | None = None
    """Last."""
    noted_ms: int = 0
    missed_at: float | None = None
    """No column: since when there was no row to add this to."""
    again: bool = False
    """No column: see `OnexPublication.again`."""


class News(NamedTuple):
    """What was taken to be written."""

    batches: list[Row]
    messages: list[MessageRow]

    @property
    def rows(self) -> int:
        """How many there are of both."""
        return len(self.batches) + len(self.messages)


class PendingMetadata:
    """At most `capacity` rows' news; more are dropped and counted."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._batches: dict[bytes, Row] = {}
        self._messages: dict[bytes, MessageRow] = {}
        self._in_hand = 0
        self._lock = threading.Lock()
        self.dropped = 0

    def __len__(self) -> int:
        """Rows that wait, and those that were taken and are not yet written."""
        return len(self._batches) + len(self._messages) + self._in_hand

    def publish(self, publication: Publication) -> None:
        """Note who published a batch. The first to use a batch id stands; another client with
        the same id, which only a liar has, is counted as a conflict."""
        with self._lock:
            row = self._batch(publication.batch_id, publication.published_ms)
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

    def publish_message(self, publication: OnexPublication) -> bool:
        """Note who published a 1.x message. The first to use an id stands. Whether it is noted."""
        with self._lock:
            row = self._message(internal_id(publication.message_id), publication.published_ms)
            if row is None or row.message_id is not None:
                return False
            row.message_id = publication.message_id
            row.client = publication.client
            row.exchange = publication.exchange
            row.routing_key = publication.routing_key
            row.sent_ms = publication.published_ms
            row.again = publication.again
            return True

    def event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> bool:
        """Note an engine's event; kinds that have no column are let pass. Whether it is one of a
        1.x message, and noted."""
        with self._lock:
            if is_internal_id(batch_id):
                return self._message_event(event, batch_id, at_ms)
            self._batch_event(event, batch_id, messages, at_ms)
            return False

    def _batch_event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        if event == "delivered":
            if row := self._batch(batch_id, at_ms):
                row.delivered += messages
                row.first_delivered_ms = row.first_delivered_ms or at_ms
                row.last_delivered_ms = at_ms
        elif event == "acked":
            if row := self._batch(batch_id, at_ms):
                row.acked += messages
                row.first_acked_ms = row.first_acked_ms or at_ms
                row.last_acked_ms = at_ms
        elif event == "dead" and (row := self._batch(batch_id, at_ms)):
            row.dead += messages
            row.first_dead_ms = row.first_dead_ms or at_ms
            row.last_dead_ms = at_ms

    def _message_event(self, event: str, message: bytes, at_ms: int) -> bool:
        if event == "delivered":
            if row := self._message(message, at_ms):
                row.delivered_ms = row.delivered_ms or at_ms
                return True
        elif event == "acked" and (row := self._message(message, at_ms)):
            row.acked_ms = at_ms
            return True
        return False

    def take(self, most: int | None = None) -> News:
        """The oldest rows, which are the caller's until it says `done`."""
        with self._lock:
            if most is None or len(self._batches) + len(self._messages) <= most:
                news = News(list(self._batches.values()), list(self._messages.values()))
                self._batches, self._messages = {}, {}
            else:
                batches = _oldest(self._batches, most)
                news = News(batches, _oldest(self._messages, most - len(batches)))
            self._in_hand += news.rows
        return news

    def done(self, rows: int) -> None:
        """So many rows that were taken are written, or given up."""
        with self._lock:
            self._in_hand -= rows

    def put_back(self, messages: list[MessageRow]) -> None:
        """Rows that were taken, and that can't be written before others come."""
        with self._lock:
            self._in_hand -= len(messages)
            for old in messages:
                row = self._messages.setdefault(old.internal_id, old)
                row.delivered_ms = old.delivered_ms or row.delivered_ms
                row.acked_ms = row.acked_ms or old.acked_ms
                row.missed_at = old.missed_at

    def _room(self) -> bool:
        if len(self) < self._capacity:
            return True
        self.dropped += 1
        return False

    def _batch(self, batch_id: bytes, at_ms: int) -> Row | None:
        row = self._batches.get(batch_id)
        if row is None:
            if not self._room():
                return None
            row = self._batches[batch_id] = Row(batch_id)
        row.noted_ms = max(row.noted_ms, at_ms)
        return row

    def _message(self, message: bytes, at_ms: int) -> MessageRow | None:
        row = self._messages.get(message)
        if row is None:
            if not self._room():
                return None
            row = self._messages[message] = MessageRow(message)
        row.noted_ms = max(row.noted_ms, at_ms)
        return row


def _oldest(rows: dict[bytes, Noted], most: int) -> list[Noted]:
    return [rows.pop(name) for name in list(islice(rows, most))]
