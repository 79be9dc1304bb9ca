"""The bytes of a segment file: grammar, encoding, decoding. No input or output here.

Big-endian, without padding::

    segment  = header block | group*
    block    = 4096 bytes: header at 0, the same again at 2048, zeros elsewhere
    header   = 8s "CMQJRNL2" | u32 version = 1 | u64 segment | u64 first sequence | 16s secret
               | u32 crc of all before
    group    = 8s marker | u32 crc | u64 segment | u64 sequence | u32 records | u32 index length
               | u32 payloads length | index | payloads
    index    = record*
    record   = u32 crc | u8 kind (1-255) | u8 flags (1: has a payload) | u32 meta length
               | u32 payload length | u32 payload crc | u64 lsn | meta
    payloads = the records' payloads, in the same order

The index stands before the payloads, so that recovery reads all of a group's records at once and
none of the payloads. CRCs are CRC-32 (zlib's). That of a group's header covers what follows it up
to the index; that of a record what follows it up to the end of its meta. Both start from
``seed ^ offset of the group or record in the file`` instead of from zero.

Payloads are written by strangers, who might put there what looks like a group. So each segment
draws a random *secret*: its first half is the *marker* that begins each of its groups, its second
half and the segment's number make the *seed*. Who can't read the disk can't guess the marker
(2**-64), and bytes of another segment, or of another place in this one, fail the CRC: a CRC's
start value enters its result by a bijection, so a record moved to another offset never matches.

Zeros are never valid: not a header (its magic), a group (no marker is zero) or a record (kind 0).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

from ciphermq.journal.files import Buffer

MAGIC: Final = b"CMQJRNL2"
VERSION: Final = 1
BLOCK_SIZE: Final = 4096
"""The header block: one page, so that the first group never shares a page with it."""
SPARE_AT: Final = BLOCK_SIZE // 2
"""The header's second copy, for salvage: without the secret a whole segment would be lost."""

_HEADER: Final = struct.Struct(">8sIQQ16s")
_GROUP: Final = struct.Struct(">8sIQQIII")
_GROUP_BODY: Final = struct.Struct(">QQIII")
_RECORD: Final = struct.Struct(">IBBIIIQ")
_RECORD_BODY: Final = struct.Struct(">BBIIIQ")
_CRC: Final = struct.Struct(">I")
GROUP_SIZE: Final = _GROUP.size
RECORD_SIZE: Final = _RECORD.size
HAS_PAYLOAD: Final = 1
_U32: Final = 0xFFFFFFFF


class Bad(Exception):
    """Bytes that are not what the grammar demands. `reason` completes "at offset N: ..."."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Location(NamedTuple):
    """Where a payload is, and how to know it again."""

    segment: int
    offset: int
    """Of its first byte in the segment's file."""
    length: int
    crc: int


class Entry(NamedTuple):
    """A record waiting to be written."""

    lsn: int
    kind: int
    meta: bytes
    payload: Buffer | None
    crc: int
    """Of the payload; 0 without one."""
    essential: bool
    """Its payload may use the reserve when the disk is full."""


Record = tuple[int, int, bytes, Location | None]
"""``(lsn, kind, meta, location)``, as replayed."""


class SegmentHeader:
    """What a segment says of itself."""

    __slots__ = ("first_sequence", "marker", "secret", "seed", "segment")

    def __init__(self, segment: int, first_sequence: int, secret: bytes) -> None:
        self.segment = segment
        self.first_sequence = first_sequence
        """Of its first group; the last one of the segment before has one less."""
        self.secret = secret
        self.marker = secret[:8]
        """The bytes that begin each of its groups."""
        self.seed = crc32(segment.to_bytes(8, "big"), crc32(secret[8:]))
        """What the segment's CRCs start from, before the offset is mixed in."""

    def encode(self) -> bytes:
        """The header block."""
        header = _HEADER.pack(MAGIC, VERSION, self.segment, self.first_sequence, self.secret)
        header += _CRC.pack(crc32(header))
        half = header.ljust(SPARE_AT, b"\0")
        return half + half


def new_header(segment: int, first_sequence: int) -> SegmentHeader:
    """A header with a fresh secret."""
    secret = os.urandom(16)
    while not any(secret[:8]):  # zeros are never valid
        secret = os.urandom(16)
    return SegmentHeader(segment, first_sequence, secret)


def decode_header(block: bytes, segment: int, *, at: int = 0) -> SegmentHeader:
    """The header in `block` of the file that is named for `segment`, or `Bad`."""
    end = at + _HEADER.size
    if len(block) < end + _CRC.size:
        raise Bad(f"the segment's header has {len(block)} of its {BLOCK_SIZE} bytes")
    magic, version, number, first_sequence, secret = _HEADER.unpack_from(block, at)
    if _CRC.unpack_from(block, end)[0] != crc32(block[at:end]):
        raise Bad("the segment's header fails its checksum")
    if magic != MAGIC:
        raise Bad("the file is not a journal segment")
    if version != VERSION:
        raise Bad(f"the segment has format version {version}; this program knows {VERSION}")
    if number != segment:
        raise Bad(f"the segment says that it is number {number}: the file was renamed or copied")
    return SegmentHeader(number, first_sequence, secret)


class GroupHeader(NamedTuple):
    """A group's lengths and place in the order of groups."""

    sequence: int
    records: int
    index_length: int
    payloads_length: int

    @property
    def size(self) -> int:
        """Bytes of the whole group."""
        return GROUP_SIZE + self.index_length + self.payloads_length


def encode_group(
    header: SegmentHeader, offset: int, sequence: int, entries: Sequence[Entry]
) -> tuple[list[Buffer], list[tuple[int, Location | None]]]:
    """A group to be written at `offset`: its buffers, and each record's ``(lsn, location)``.

    Payloads are not copied: they are among the buffers.
    """
    segment, seed = header.segment, header.seed
    pack, pack_crc = _RECORD_BODY.pack, _CRC.pack
    index: list[bytes] = []
    at = offset + GROUP_SIZE
    for lsn, kind, meta, payload, crc, _ in entries:
        if payload is None:
            body = pack(kind, 0, len(meta), 0, 0, lsn) + meta
        else:
            body = pack(kind, HAS_PAYLOAD, len(meta), len(payload), crc, lsn) + meta
        index.append(pack_crc(crc32(body, (seed ^ at) & _U32)))
        index.append(body)
        at += 4 + len(body)
    first_payload = at
    buffers: list[Buffer] = [b""]
    placed: list[tuple[int, Location | None]] = []
    for lsn, _, _, payload, crc, _ in entries:
        if payload is None:
            placed.append((lsn, None))
        else:
            placed.append((lsn, Location(segment, at, len(payload), crc)))
            buffers.append(payload)
            at += len(payload)
    body = _GROUP_BODY.pack(
        segment, sequence, len(entries), first_payload - offset - GROUP_SIZE, at - first_payload
    )
    group_crc = pack_crc(crc32(body, (seed ^ offset) & _U32))
    buffers[0] = b"".join((header.marker, group_crc, body, *index))
    return buffers, placed


def decode_group_header(data: bytes, header: SegmentHeader, offset: int) -> GroupHeader:
    """The group header that is at `offset` of the segment's file, or `Bad`."""
    if len(data) < GROUP_SIZE:
        raise Bad("a group's header is cut off")
    marker, crc, _, sequence, records, index_length, payloads_length = _GROUP.unpack_from(data)
    if marker != header.marker:
        raise Bad("no group begins here")
    if crc32(data[12:GROUP_SIZE], (header.seed ^ offset) & _U32) != crc:
        raise Bad("a group's header fails its checksum")
    if not records:
        raise Bad("a group has no records")
    return GroupHeader(sequence, records, index_length, payloads_length)


def decode_index(
    index: bytes, group: GroupHeader, header: SegmentHeader, offset: int
) -> list[Record]:
    """All records of the group whose index begins at `offset` of the file, or `Bad`.

    The tightest loop of recovery: about a microsecond a record.
    """
    segment, seed, unpack = header.segment, header.seed, _RECORD.unpack_from
    new = tuple.__new__  # a third of the time that Location(...) takes
    limit = len(index)
    payload_at = first_payload = offset + limit
    records: list[Record] = []
    at = 0
    try:
        for _ in range(group.records):
            crc, kind, flags, meta_length, length, payload_crc, lsn = unpack(index, at)
            end = at + RECORD_SIZE + meta_length
            body = index[at + 4 : end]
            if crc32(body, (seed ^ (offset + at)) & _U32) != crc:
                raise Bad(f"record {len(records) + 1} of a group fails its checksum")
            if not kind or end > limit:
                raise Bad(f"record {len(records) + 1} of a group is malformed")
            at = end
            if flags:
                location = new(Location, (segment, payload_at, length, payload_crc))
                records.append((lsn, kind, body[RECORD_SIZE - 4 :], location))
                payload_at += length
            else:
                records.append((lsn, kind, body[RECORD_SIZE - 4 :], None))
    except struct.error:
        raise Bad("a group has fewer records than it says") from None
    if at != limit or payload_at - first_payload != group.payloads_length:
        raise Bad("a group's lengths do not add up")
    return records
