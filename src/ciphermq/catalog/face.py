"""What the server asks of a catalog. One conformance suite tests every implementation."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Publication(msgspec.Struct, frozen=True):
    """What is known of a batch when it is published. All of it stands in its readable header."""

    batch_id: bytes
    client: str
    exchange: str
    routing_key: str
    messages: int
    size: int
    """Bytes of the whole sealed batch."""
    published_ms: int


class OnexPublication(msgspec.Struct, frozen=True):
    """What is known of a 1.x message when it is published."""

    message_id: str
    """As its sender chose it; `ciphermq.model.onex.internal_id` is what events name."""
    client: str
    exchange: str
    routing_key: str
    published_ms: int
    again: bool = False
    """It came again, and was stored before: perhaps by a broker that was killed before it noted
    that. A row that is there stays as it is."""


class KeyEntry(msgspec.Struct, frozen=True):
    """One stored key record, by name only."""

    client: str
    version: int
    stored_ms: int


class Catalog(Protocol):
    """Keys, durable once `put_key` returns; metadata, written behind and bounded.

    A row a batch, and for 1.x a row a message. Called from the event loop's thread. No method
    blocks it.
    """

    async def start(self) -> None:
        """Open, migrate if needed; `CatalogError` when it can't be used."""

    async def stop(self) -> None:
        """Write what waits, close. May be repeated."""

    async def put_key(self, client: str, version: int, record: bytes) -> None:
        """Keep `record` as the client's newest, durably and encrypted.

        The same again is no error. `KeyRecordRolledBack` when a higher version is stored, or
        this one with other bytes. The caller has verified the record.
        """

    async def get_key(self, client: str) -> bytes | None:
        """The newest record, or None; `CatalogError` when it does not open."""

    async def keys(self) -> list[KeyEntry]:
        """All stored records, by client id."""

    async def put_onex_key(self, client: str, public_key: bytes) -> None:
        """Keep a 1.x client's public key, durably and encrypted, in place of any before it.

        Nobody vouches for such a key, so there is no version to compare."""

    async def get_onex_key(self, client: str) -> bytes | None:
        """A 1.x client's public key, or None; `CatalogError` when it does not open."""

    def note_published(self, publication: Publication) -> None:
        """A batch was stored. Never blocks; dropped and counted when too much waits."""

    def note_message(self, publication: OnexPublication) -> None:
        """A 1.x message was stored; otherwise as `note_published`."""

    def note_event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        """An engine's event (``published``, ``delivered``, ``acked``, ``dead``) of a batch or of a
        1.x message; the signature of `Engine.on_event`'s callback. Never blocks."""

    async def trace(self, batch_id: bytes) -> dict[str, Any] | None:
        """All that is known of a batch, what still waits to be written included; or None.

        Plain values: ``batch_id`` (bytes), ``client``, ``exchange``, ``routing_key``,
        ``messages``, ``size``, ``published_ms``, and for each of ``delivered``, ``acked`` and
        ``dead``: the number of messages, ``first_…_ms`` and ``last_…_ms`` (None where it never
        happened); ``conflicts``: above 0 when other clients
        published under this id too, which only a liar does.
        """

    async def trace_message(self, message_id: str) -> dict[str, str | None] | None:
        """All that is known of a 1.x message, what still waits to be written included; or None.

        ``message_id``, ``client``, ``exchange``, ``routing_key``, ``sent_time`` (when it was
        published), ``delivered_time`` (first) and ``acknowledged_time`` (last), times in RFC 3339
        and None for what has not happened. Of two clients that used one id the first stands."""

    def stats(self) -> dict[str, int | float | str]:
        """Counters for the status, flat."""
