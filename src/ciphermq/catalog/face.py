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


class KeyEntry(msgspec.Struct, frozen=True):
    """One stored key record, by name only."""

    client: str
    version: int
    stored_ms: int


class Catalog(Protocol):
    """Key records, durable once `put_key` returns; metadata, written behind and bounded.

    Called from the event loop's thread. No method blocks it.
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

    def note_published(self, publication: Publication) -> None:
        """A batch was stored. Never blocks; dropped and counted when too much waits."""

    def note_event(self, event: str, batch_id: bytes, messages: int, at_ms: int) -> None:
        """An engine's event (``published``, ``delivered``, ``acked``, ``dead``) of a batch;
        the signature of `Engine.on_event`'s callback. Never blocks."""

    async def trace(self, batch_id: bytes) -> dict[str, Any] | None:
        """All that is known of a batch, what still waits to be written included; or None.

        Plain values: ``batch_id`` (bytes), ``client``, ``exchange``, ``routing_key``,
        ``messages``, ``size``, ``published_ms``, and for each of ``delivered``, ``acked`` and
        ``dead``: the number of messages, ``first_…_ms`` and ``last_…_ms`` (None where it never
        happened); ``conflicts``: above 0 when other clients
        published under this id too, which only a liar does.
        """

    def stats(self) -> dict[str, int | float | str]:
        """Counters for the status, flat."""
