"""Bytes from anywhere, given to everything that reads a batch.

The only exceptions allowed are those listed here; anything else is a way to stop a broker or a
receiver. `HYPOTHESIS_PROFILE=thorough` looks much longer.
"""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import BatchTooLarge, BodyRefused, MalformedBatch
from ciphermq.model import body, envelope
from support.batches import batches

REFUSED = (MalformedBatch, BatchTooLarge)

sizes = st.integers(0, 2**32 - 1) | st.integers(0, 300)


@st.composite
def nearly_batches(draw: st.DrawFn) -> bytes:
    """The right magic, any sizes, any bytes: gets past the first check, often the second."""
    parts = [draw(st.binary(max_size=80)) for _ in range(5)]
    honest = [len(part) for part in parts]
    told = [draw(st.just(size) | sizes) for size in honest]
    head = struct.pack(
        ">IIIHH",
        *(value & 0xFFFFFFFF for value in told[:3]),
        *(value & 0xFFFF for value in told[3:]),
    )
    return b"CMQ2" + head + b"".join(parts)


def check(data: bytes) -> None:
    """The cheap reading and the whole one agree, and what is read is written the same."""
    try:
        parsed = envelope.parse(data)
    except REFUSED:
        parsed = None
    try:
        header = envelope.read_header(data)
    except REFUSED:
        assert parsed is None
        return
    if parsed is not None:
        assert parsed.header == header
        parts = (parsed.header_bytes, parsed.wraps, parsed.body, parsed.chain, parsed.signature)
        assert envelope.build(*parts) == data


@given(st.binary(max_size=400))
@example(b"")
@example(b"CMQ2")
@example(b"CMQ2" + b"\xff" * 16)
@example(b"CMQ2" + bytes(16))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(nearly_batches())
def test_any_parts(data: bytes) -> None:
    check(data)


@given(batches(), st.data())
def test_a_batch_cut_anywhere_and_filled_with_anything(batch: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(batch)))
    end = data.draw(st.integers(start, min(len(batch), start + 40)))
    check(batch[:start] + data.draw(st.binary(max_size=40)) + batch[end:])


@given(batches())
def test_a_batch_given_in_pieces_is_none_until_it_is_whole(batch: bytes) -> None:
    for size in {0, 1, 19, 20, 21, len(batch) // 2, len(batch) - 1}:
        try:
            envelope.read_header(batch[:size])
        except MalformedBatch:
            continue
        raise AssertionError(f"{size} of {len(batch)} bytes were taken for a batch")


@given(st.binary(max_size=600))
@example(b"\x02" + b"\xff" * 500)
def test_any_header(data: bytes) -> None:
    for candidate in (data, b"\x02" + data):
        try:
            header = envelope.decode_header(candidate)
        except REFUSED:
            continue
        assert envelope.encode_header(header) == candidate


@given(st.binary(max_size=limits.MAX_CHAIN + 10))
def test_any_chain(data: bytes) -> None:
    try:
        chain = envelope.decode_chain(data)
    except REFUSED:
        return
    assert envelope.encode_chain(chain) == data


@given(st.binary(max_size=400), st.integers(0, 20))
@example(b"\xff" * 300, 1024)
def test_any_plaintext(data: bytes, count: int) -> None:
    for candidate in (data, struct.pack(">BH", 1, count) + data):
        try:
            messages = body.decode(candidate)
        except BodyRefused:
            continue
        assert len(list(messages)) == len(messages) == len(messages.payloads())


@given(st.binary(max_size=300))
def test_any_properties(data: bytes) -> None:
    try:
        properties = body.decode_properties(data)
    except BodyRefused:
        return
    assert body.encode_properties(properties.content_type, properties.headers) == data
