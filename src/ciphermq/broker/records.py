"""The broker's records in the journal: what each kind means and how it is laid out.

Every record is a msgpack array. A queue's id is the lsn of the record that declared it, a
batch's *seq* that of the record that brought it, and an entry's *pos* that of the record that
placed it in its queue; so ids need no counter and are never used twice. ``(queue, pos)`` names
an entry. Bitmaps are as in `ciphermq.model.bitmap`, relative to the batch's number of messages.

A record that names a queue or an entry which no longer exists says nothing: that is how the
records of deleted queues and of segments since dropped fall away.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from ciphermq.model.topology import Binding, DeadInfo, ExchangeSpec, QueueSpec


class Kind(IntEnum):
    """Record kinds; on disk, so never reused."""

    SNAPSHOT = 1
    DECLARE_QUEUE = 2
    """Body: `QueueSpec`. Its lsn is the queue's id."""
    DECLARE_EXCHANGE = 3
    """Body: `ExchangeSpec`."""
    DELETE_QUEUE = 4
    """Body: the queue's id."""
    DELETE_EXCHANGE = 5
    """Body: the exchange's name."""
    BIND = 6
    """Body: `Binding`."""
    UNBIND = 7
    """Body: `Binding`."""
    BATCH = 8
    COPY = 9
    ACK = 10
    TRY = 11
    DEAD = 12
    REDRIVE = 13
    PURGE = 14
    DEDUP = 15


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The whole topology. First in every segment: whatever was before may be gone."""

    fingerprint_key: bytes
    """The engine's: what it marks sealed bytes with, so that repeats are recognised."""
    queues: list[tuple[int, QueueSpec]]
    exchanges: list[ExchangeSpec]
    bindings: list[Binding]


class BatchRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A batch and all the queues it goes to. The payload is the sealed batch."""

    sender: str
    batch_id: bytes
    fingerprint: bytes
    published_ms: int
    expires_ms: int
    count: int
    routing_key: str
    queues: list[int]


class AckRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """These messages are done with."""

    queue: int
    pos: int
    bits: bytes


class TryRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """These messages were tried once more, in vain."""

    queue: int
    pos: int
    bits: bytes


class DeadRecord(msgspec.Struct, frozen=True, array_like=True):
    """These messages leave the entry for `targets`, in one step."""

    queue: int
    pos: int
    bits: bytes
    targets: list[int]
    info: DeadInfo


class RedriveRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """These messages leave a dead-letter queue for the end of `target`, tries forgotten."""

    queue: int
    pos: int
    bits: bytes
    target: int
    at_ms: int


class PurgeRecord(msgspec.Struct, frozen=True, array_like=True):
    """All messages of the queue are gone but `kept`, which were in somebody's hands."""

    queue: int
    kept: list[tuple[int, bytes]]
    """``(pos, bits)``."""


class CopiedEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry's whole state, as part of a `CopyRecord`."""

    queue: int
    pos: int
    live: bytes
    placed_ms: int = 0
    tries: dict[int, bytes] | None = None
    dead: DeadInfo | None = None


class CopyRecord(msgspec.Struct, frozen=True, array_like=True):
    """A batch as it is now, in place of all that was said of it before.

    The payload is the sealed batch again; without one, its bytes are lost."""

    seq: int
    sender: str
    batch_id: bytes
    published_ms: int
    expires_ms: int
    count: int
    routing_key: str
    entries: list[CopiedEntry]


class DedupRecord(msgspec.Struct, frozen=True, array_like=True):
    """Batches still to be recognised, all published at `newest_ms` or a little earlier."""

    newest_ms: int
    seen: dict[str, bytes]
    """Client to 32 bytes a batch: its id, its fingerprint."""


encode: Final = msgspec.msgpack.Encoder().encode
"""Any record's body."""

decode_snapshot: Final = msgspec.msgpack.Decoder(Snapshot).decode
decode_queue: Final = msgspec.msgpack.Decoder(QueueSpec).decode
decode_exchange: Final = msgspec.msgpack.Decoder(ExchangeSpec).decode
decode_binding: Final = msgspec.msgpack.Decoder(Binding).decode
decode_int: Final = msgspec.msgpack.Decoder(int).decode
decode_str: Final = msgspec.msgpack.Decoder(str).decode
decode_batch: Final = msgspec.msgpack.Decoder(BatchRecord).decode
decode_copy: Final = msgspec.msgpack.Decoder(CopyRecord).decode
decode_ack: Final = msgspec.msgpack.Decoder(AckRecord).decode
decode_try: Final = msgspec.msgpack.Decoder(TryRecord).decode
decode_dead: Final = msgspec.msgpack.Decoder(DeadRecord).decode
decode_redrive: Final = msgspec.msgpack.Decoder(RedriveRecord).decode
decode_purge: Final = msgspec.msgpack.Decoder(PurgeRecord).decode
decode_dedup: Final = msgspec.msgpack.Decoder(DedupRecord).decode
