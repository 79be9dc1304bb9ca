"""Whether a batch was published before.

Batches are remembered by (client, batch id) for a window of time, with a fingerprint of their
bytes, so that a repeat is told from another batch under the same id. They are remembered in
*slices* of up to a second or two: a slice expires as a whole, and is also what is written down
again when the segment that holds its records is dropped.

A batch's id is the same object here and in `Batch`, and a fingerprint is an integer, so a
remembered batch takes some 110 bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from ciphermq.broker.records import DedupRecord

_SLICE_ENTRIES: Final = 1024
_SLICES: Final = 16
"""At least so many slices, however few batches are remembered: the oldest is lost to overflow."""
_SLICE_MS: Final = 2000
_HALF: Final = 16
"""Bytes of an id, and of a fingerprint."""


class Slice:
    """Batches published within a short time."""

    __slots__ = ("clients", "ids", "lsn", "newest_ms", "oldest_ms")

    def __init__(self, lsn: int, now: int) -> None:
        self.lsn = lsn
        """The first record that holds any of them."""
        self.oldest_ms = now
        self.newest_ms = now
        self.clients: list[str] = []
        self.ids: list[int] = []


class Dedup:
    """The batches seen within the window."""

    def __init__(self, window_ms: int, most: int) -> None:
        self._window = window_ms
        self._most = most
        self._slice_entries = min(_SLICE_ENTRIES, max(1, most // _SLICES))
        self._seen: dict[str, dict[int, int]] = {}
        self._slices: deque[Slice] = deque()
        self._closed = True
        self.overflow = 0
        """Batches forgotten before their time, because there were too many."""
        self.entries = 0

    def find(self, client: str, batch_id: int) -> int | None:
        """The fingerprint of the client's batch of that id, if it is remembered."""
        seen = self._seen.get(client)
        return None if seen is None else seen.get(batch_id)

    def add(self, client: str, batch_id: int, fingerprint: int, lsn: int, now: int) -> None:
        """Remember a batch that the record `lsn` brought."""
        piece = self._slices[-1] if self._slices else None
        if (
            piece is None
            or self._closed
            or len(piece.ids) >= self._slice_entries
            or now - piece.oldest_ms > _SLICE_MS
        ):
            piece = Slice(lsn, now)
            self._slices.append(piece)
            self._closed = False
        self._put(piece, client, batch_id, fingerprint)
        piece.newest_ms = max(piece.newest_ms, now)
        while self.entries > self._most and len(self._slices) > 1:
            self.overflow += self._expire(self._slices.popleft())

    def _put(self, piece: Slice, client: str, batch_id: int, fingerprint: int) -> None:
        seen = self._seen.get(client)
        if seen is None:
            seen = self._seen[client] = {}
        seen[batch_id] = fingerprint
        piece.clients.append(client)
        piece.ids.append(batch_id)
        self.entries += 1

    def forget(self, client: str, batch_id: int) -> None:
        """The batch was not stored after all."""
        if self.find(client, batch_id) is None:
            return
        self._drop(client, batch_id)
        # Out of its slice too: when the batch comes again, that slice must not expire it early.
        for piece in reversed(self._slices):
            for at in range(len(piece.ids) - 1, -1, -1):
                if piece.ids[at] == batch_id and piece.clients[at] == client:
                    del piece.ids[at], piece.clients[at]
                    return

    def _drop(self, client: str, batch_id: int) -> int:
        """How many were forgotten: 1, or 0 if it is not remembered."""
        seen = self._seen.get(client)
        if seen is None or seen.pop(batch_id, None) is None:
            return 0
        if not seen:
            del self._seen[client]
        self.entries -= 1
        return 1

    def _expire(self, piece: Slice) -> int:
        return sum(map(self._drop, piece.clients, piece.ids))

    def sweep(self, now: int) -> bool:
        """Forget a slice that is over the window. Whether there was one."""
        if not self._slices or self._slices[0].newest_ms + self._window > now:
            return False
        self._expire(self._slices.popleft())
        return True

    def next_deadline(self) -> int | None:
        """When `sweep` next has something to do."""
        return self._slices[0].newest_ms + self._window if self._slices else None

    # --- on disk ------------------------------------------------------------------------------

    def before(self, lsn: int) -> Iterator[Slice]:
        """The slices with batches whose records may be before `lsn`. They take no more."""
        self._closed = True
        return (piece for piece in list(self._slices) if piece.lsn < lsn and piece.ids)

    def record(self, piece: Slice) -> DedupRecord:
        """A slice, to be written down again."""
        parts: dict[str, list[bytes]] = {}
        for client, batch_id in zip(piece.clients, piece.ids, strict=True):
            fingerprint = self.find(client, batch_id)
            if fingerprint is not None:
                part = batch_id.to_bytes(_HALF, "big") + fingerprint.to_bytes(_HALF, "big")
                parts.setdefault(client, []).append(part)
        return DedupRecord(
            piece.newest_ms, {client: b"".join(each) for client, each in parts.items()}
        )

    def replay(self, record: DedupRecord, lsn: int) -> None:
        """A slice that was written down again."""
        piece = Slice(lsn, record.newest_ms)
        for client, packed in record.seen.items():
            for at in range(0, len(packed), 2 * _HALF):
                batch_id = int.from_bytes(packed[at : at + _HALF], "big")
                # Its own record may still be there too, if the copy was cut short.
                if self.find(client, batch_id) is None:
                    fingerprint = int.from_bytes(packed[at + _HALF : at + 2 * _HALF], "big")
                    self._put(piece, client, batch_id, fingerprint)
        if piece.ids:
            self._slices.append(piece)
            self._closed = True

    def recovered(self, now: int) -> None:
        """After a replay: slices in the order of time, and what is over the window forgotten."""
        self._slices = deque(sorted(self._slices, key=lambda piece: piece.newest_ms))
        self._closed = True
        while self.sweep(now):
            pass
