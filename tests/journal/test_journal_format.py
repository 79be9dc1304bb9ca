"""The bytes of groups and headers: what is encoded decodes, what was changed does not."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.journal.format import (
    BLOCK_SIZE,
    GROUP_SIZE,
    SPARE_AT,
    Bad,
    Entry,
    GroupHeader,
    Record,
    SegmentHeader,
    decode_group_header,
    decode_header,
    decode_index,
    encode_group,
    new_header,
)

HEADER = SegmentHeader(3, 17, bytes(range(16)))


@st.composite
def groups(draw: st.DrawFn) -> list[Entry]:
    lsn = draw(st.integers(1, 1 << 60))
    entries = []
    for _ in range(draw(st.integers(1, 8))):
        payload = draw(st.none() | st.binary(max_size=40))
        crc = 0 if payload is None else crc32(payload)
        kind = draw(st.integers(1, 255))
        entries.append(Entry(lsn, kind, draw(st.binary(max_size=40)), payload, crc, False))
        lsn += draw(st.integers(1, 3))
    return entries


def decode(data: bytes, header: SegmentHeader, offset: int) -> tuple[GroupHeader, list[Record]]:
    group = decode_group_header(data[:GROUP_SIZE], header, offset)
    index = data[GROUP_SIZE : GROUP_SIZE + group.index_length]
    return group, decode_index(index, group, header, offset + GROUP_SIZE)


@given(entries=groups(), offset=st.integers(BLOCK_SIZE, 1 << 30), sequence=st.integers(1, 1 << 63))
def test_a_group_comes_back(entries: list[Entry], offset: int, sequence: int) -> None:
    buffers, placed = encode_group(HEADER, offset, sequence, entries)
    data = b"".join(buffers)
    group, records = decode(data, HEADER, offset)
    assert group.sequence == sequence
    assert group.size == len(data)
    assert [(lsn, location) for lsn, _, _, location in records] == placed
    for entry, (lsn, kind, meta, location) in zip(entries, records, strict=True):
        assert (entry.lsn, entry.kind, entry.meta) == (lsn, kind, meta)
        assert (entry.payload is None) == (location is None)
        if location is not None:
            at = location.offset - offset
            assert data[at : at + location.length] == entry.payload
            assert location.segment == HEADER.segment
            assert location.crc == entry.crc


@given(entries=groups(), data=st.data())
def test_no_changed_byte_of_header_or_index_is_taken(entries: list[Entry], data: st.DataObject):
    buffers, _ = encode_group(HEADER, BLOCK_SIZE, 5, entries)
    good = b"".join(buffers)
    group, _ = decode(good, HEADER, BLOCK_SIZE)
    at = data.draw(st.integers(0, GROUP_SIZE + group.index_length - 1))
    changed = bytearray(good)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Bad):
        decode(bytes(changed), HEADER, BLOCK_SIZE)


@given(entries=groups(), offset=st.integers(0, 1 << 30))
def test_a_group_is_good_at_its_own_place_only(entries: list[Entry], offset: int) -> None:
    buffers, _ = encode_group(HEADER, BLOCK_SIZE, 5, entries)
    data = b"".join(buffers)
    if offset != BLOCK_SIZE:
        with pytest.raises(Bad):
            decode(data, HEADER, offset)
        group, _ = decode(data, HEADER, BLOCK_SIZE)
        with pytest.raises(Bad):  # nor are its records, under whatever header
            decode_index(data[GROUP_SIZE:][: group.index_length], group, HEADER, offset)
    with pytest.raises(Bad):
        decode(data, new_header(3, 17), BLOCK_SIZE)
    with pytest.raises(Bad):  # the same secret, but another number
        decode(data, SegmentHeader(4, 17, HEADER.secret), BLOCK_SIZE)


@given(entries=groups(), cut=st.integers(1, 40))
def test_a_cut_index_is_bad(entries: list[Entry], cut: int) -> None:
    buffers, _ = encode_group(HEADER, BLOCK_SIZE, 5, entries)
    data = b"".join(buffers)
    group, _ = decode(data, HEADER, BLOCK_SIZE)
    index = data[GROUP_SIZE:][: group.index_length]
    with pytest.raises(Bad):
        decode_index(index[:-cut], group, HEADER, BLOCK_SIZE + GROUP_SIZE)
    with pytest.raises(Bad):
        decode_group_header(data[: GROUP_SIZE - cut], HEADER, BLOCK_SIZE)
    with pytest.raises(Bad):
        decode_index(index + b"x", group, HEADER, BLOCK_SIZE + GROUP_SIZE)


@given(
    header=st.builds(
        SegmentHeader,
        st.integers(1, 1 << 48),
        st.integers(1, 1 << 63),
        st.binary(min_size=16, max_size=16),
    ),
    at=st.sampled_from([0, SPARE_AT]),
)
def test_a_header_comes_back_from_both_its_copies(header: SegmentHeader, at: int) -> None:
    block = header.encode()
    assert len(block) == BLOCK_SIZE
    again = decode_header(block, header.segment, at=at)
    assert (again.first_sequence, again.secret) == (header.first_sequence, header.secret)
    for position in range(at, at + 48):
        changed = bytearray(block)
        changed[position] ^= 1
        with pytest.raises(Bad):
            decode_header(bytes(changed), header.segment, at=at)
    with pytest.raises(Bad, match="renamed or copied"):
        decode_header(block, header.segment + 1, at=at)


def test_zeros_are_never_valid() -> None:
    zeros = bytes(4096)
    with pytest.raises(Bad):
        decode_header(zeros, 0)
    for number in range(200):
        header = new_header(number, 1)
        assert any(header.marker)
        with pytest.raises(Bad):
            decode_group_header(zeros, header, BLOCK_SIZE)
        with pytest.raises(Bad):
            decode_index(zeros, GroupHeader(1, 1, 4096, 0), header, BLOCK_SIZE)


def test_a_record_of_kind_zero_is_bad_whatever_its_checksum() -> None:
    buffers, _ = encode_group(HEADER, BLOCK_SIZE, 5, [Entry(1, 0, b"meta", None, 0, False)])
    with pytest.raises(Bad, match="malformed"):
        decode(b"".join(buffers), HEADER, BLOCK_SIZE)


def test_an_unknown_version_is_named() -> None:
    block = bytearray(HEADER.encode())
    block[8:12] = (9).to_bytes(4, "big")
    block[44:48] = crc32(bytes(block[:44])).to_bytes(4, "big")
    with pytest.raises(Bad, match="format version 9; this program knows 1"):
        decode_header(bytes(block), 3)


def test_the_bytes_are_pinned() -> None:
    """The format's vector: a change here is a change of format and needs a new version."""
    entries = [
        Entry(7, 1, b"meta", b"payload", crc32(b"payload"), False),
        Entry(8, 2, b"", None, 0, False),
    ]
    buffers, _ = encode_group(HEADER, BLOCK_SIZE, 17, entries)
    assert b"".join(buffers).hex() == PINNED
    assert HEADER.encode()[:48].hex() == PINNED_HEADER


PINNED_HEADER = (
    "434d514a524e4c320000000100000000000000030000000000000011000102030405060708090a0b"
    "0c0d0e0f2a88568a"
)
PINNED = (
    "0001020304050607554303d000000000000000030000000000000011000000020000003800000007"
    "25d053a601010000000400000007422c6a1500000000000000076d6574610f392f22020000000000"
    "000000000000000000000000000000087061796c6f6164"
)
