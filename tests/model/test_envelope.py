"""The batch's codec: any value survives, any bytes get a value or the right error."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import (
    BatchTooLarge,
    MalformedBatch,
    UnsupportedSuite,
    UnsupportedVersion,
    UsageError,
)
from ciphermq.model import envelope
from ciphermq.model.envelope import MAX_TIME_MS, Header, ReceiverRef
from ciphermq.model.suites import Suite
from support.batches import batches, headers

HEADER = Header(
    sender="sender_1",
    certificate_sha256=b"c" * 32,
    batch_id=bytes.fromhex("01a3185c5000700080000000000f0000"),
    created_ms=1_800_000_000_000,
    expires_ms=0,
    exchange="prices",
    routing_key="eu.gas",
    count=2,
    commitment=b"k" * 32,
    receivers=(
        ReceiverRef("alpha", b"1" * 16, Suite.MLKEM768_X25519),
        ReceiverRef("beta", b"2" * 16, Suite.P256),
    ),
)
WRAPS = bytes(1168 + 113)
BODY = bytes(16 + 3 + 2 * 16)
CHAIN = (b"leaf", b"authority")


def build(header: Header = HEADER, **parts: object) -> bytes:
    found = {"wraps": WRAPS, "body": BODY, "chain": CHAIN, "signature": b"signature"} | parts
    return envelope.build(envelope.encode_header(header), **found)  # type: ignore[arg-type]


# --- the bytes, to the letter -------------------------------------------------------------------


def test_the_layout_is_the_documented_one() -> None:
    header = b"".join(
        [
            b"\x02",
            b"\x00\x08sender_1",
            b"c" * 32,
            bytes.fromhex("01a3185c5000700080000000000f0000"),
            struct.pack(">QQ", 1_800_000_000_000, 0),
            b"\x00\x06prices",
            b"\x00\x06eu.gas",
            b"\x00\x02",
            b"k" * 32,
            b"\x02",
            b"\x00\x05alpha" + b"1" * 16 + b"\x01",
            b"\x00\x04beta" + b"2" * 16 + b"\x03",
        ]
    )
    chain = b"\x02" + b"\x00\x04leaf" + b"\x00\x09authority"
    head = b"CMQ2" + struct.pack(
        ">IIIHH", len(header), len(WRAPS), len(BODY), len(chain), len(b"signature")
    )
    assert envelope.encode_header(HEADER) == header
    assert build() == head + header + WRAPS + BODY + chain + b"signature"


def test_parsing_gives_every_part() -> None:
    wraps = b"A" * 1168 + b"B" * 113
    parsed = envelope.parse(build(wraps=wraps))
    assert parsed.header == HEADER
    assert parsed.header_bytes == envelope.encode_header(HEADER)
    assert parsed.wraps == wraps
    assert parsed.wrap_of(0) == b"A" * 1168
    assert parsed.wrap_of(1) == b"B" * 113
    assert parsed.body == BODY
    assert parsed.chain == CHAIN
    assert parsed.signature == b"signature"


def test_the_large_parts_are_not_copied() -> None:
    data = build()
    parsed = envelope.parse(data)
    assert parsed.body.obj is data
    assert parsed.wraps.obj is data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: type) -> None:
    data = kind(build())
    assert envelope.read_header(data) == HEADER
    assert envelope.parse(data).header == HEADER
    assert envelope.decode_header(kind(envelope.encode_header(HEADER))) == HEADER


# --- round trips --------------------------------------------------------------------------------


@given(headers())
def test_any_header_survives(header: Header) -> None:
    encoded = envelope.encode_header(header)
    assert len(encoded) <= limits.MAX_HEADER_P
    assert envelope.decode_header(encoded) == header


@given(batches())
def test_any_batch_survives(data: bytes) -> None:
    parsed = envelope.parse(data)
    assert envelope.read_header(data) == parsed.header
    again = envelope.build(
        parsed.header_bytes, parsed.wraps, parsed.body, parsed.chain, parsed.signature
    )
    assert again == data
    assert envelope.encode_header(parsed.header) == parsed.header_bytes


def test_the_largest_batch_is_within_the_limits() -> None:
    receivers = tuple(
        ReceiverRef(f"{number:064}", bytes(16), Suite.MLKEM768_X25519)
        for number in range(limits.MAX_RECEIVERS)
    )
    header = msgspec.structs.replace(
        HEADER,
        sender="s" * limits.MAX_CLIENT_ID,
        exchange="é" * (limits.MAX_NAME // 2),
        routing_key="k" * limits.MAX_NAME,
        count=limits.MAX_BATCH_MESSAGES,
        receivers=receivers,
    )
    data = build(
        header,
        wraps=bytes(limits.MAX_RECEIVERS * 1168),
        body=bytes(limits.MAX_PLAINTEXT + 16),
        chain=(b"x" * (limits.MAX_CHAIN - 3),),
        signature=b"s" * limits.MAX_SIGNATURE,
    )
    assert len(data) <= limits.MAX_SEALED
    assert envelope.read_header(data) == header


# --- what no batch may be -----------------------------------------------------------------------


def test_every_truncation_is_malformed() -> None:
    data = build()
    for size in range(len(data)):
        with pytest.raises(MalformedBatch):
            envelope.read_header(data[:size])
        with pytest.raises(MalformedBatch):
            envelope.parse(data[:size])


def test_every_truncated_header_is_malformed() -> None:
    data = envelope.encode_header(HEADER)
    for size in range(len(data)):
        with pytest.raises(MalformedBatch):
            envelope.decode_header(data[:size])
    with pytest.raises(MalformedBatch, match="1 bytes too many"):
        envelope.decode_header(data + b"\0")


@given(batches(), st.data())
def test_any_change_gives_a_batch_or_an_error_of_a_batch(batch: bytes, data: st.DataObject) -> None:
    changed = bytearray(batch)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(batch) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = envelope.parse(changed)
    except (MalformedBatch, BatchTooLarge):
        return
    again = envelope.build(
        parsed.header_bytes, parsed.wraps, parsed.body, parsed.chain, parsed.signature
    )
    assert again == changed
    assert envelope.encode_header(parsed.header) == parsed.header_bytes


def test_another_format_is_told_from_garbage() -> None:
    data = build()
    with pytest.raises(UnsupportedVersion, match="CMQ3"):
        envelope.read_header(b"CMQ3" + data[4:])
    with pytest.raises(MalformedBatch, match="not a sealed batch"):
        envelope.read_header(b"GET / HTTP/1.1\r\n\r\n" + data)
    header = envelope.encode_header(HEADER)
    for version in (0, 1, 3, 255):
        with pytest.raises(UnsupportedVersion, match=f"format version {version};"):
            envelope.decode_header(bytes([version]) + header[1:])
    # The version decides before anything that another version might write otherwise.
    with pytest.raises(UnsupportedVersion):
        envelope.decode_header(b"\x03what follows is not ours to read")


@pytest.mark.parametrize("number", [0, 4, 255])
def test_an_unknown_suite_has_its_own_error(number: int) -> None:
    header = envelope.encode_header(HEADER)
    with pytest.raises(UnsupportedSuite, match=f"'beta' has the unknown .* suite {number}"):
        envelope.decode_header(header[:-1] + bytes([number]))


def with_sizes(**sizes: int) -> bytes:
    """A batch whose head announces other sizes than its parts have."""
    data = build()
    found = dict(
        zip(
            ("header", "wraps", "body", "chain", "signature"),
            struct.unpack(">IIIHH", data[4:20]),
            strict=True,
        )
    )
    return data[:4] + struct.pack(">IIIHH", *(found | sizes).values()) + data[20:]


@pytest.mark.parametrize(
    ("part", "size", "most"),
    [
        ("header", limits.MAX_HEADER_P + 1, limits.MAX_HEADER_P),
        ("header", 2**32 - 1, limits.MAX_HEADER_P),
        ("body", limits.MAX_PLAINTEXT + 17, limits.MAX_PLAINTEXT + 16),
        ("body", 2**32 - 1, limits.MAX_PLAINTEXT + 16),
        ("chain", limits.MAX_CHAIN + 1, limits.MAX_CHAIN),
        ("signature", limits.MAX_SIGNATURE + 1, limits.MAX_SIGNATURE),
    ],
)
def test_a_part_over_its_limit_is_refused_by_its_announced_size(
    part: str, size: int, most: int
) -> None:
    with pytest.raises(BatchTooLarge, match=f"{part} has {size} bytes; {most} at most"):
        envelope.read_header(with_sizes(**{part: size}))


@pytest.mark.parametrize("part", ["header", "wraps", "body", "chain", "signature"])
@pytest.mark.parametrize("by", [-1, 1])
def test_the_sizes_must_add_up(part: str, by: int) -> None:
    data = build()
    index = ["header", "wraps", "body", "chain", "signature"].index(part)
    size = struct.unpack(">IIIHH", data[4:20])[index] + by
    with pytest.raises(MalformedBatch, match="do not add up"):
        envelope.read_header(with_sizes(**{part: size}))


def test_parts_must_fit_the_header() -> None:
    with pytest.raises(UsageError, match="wraps have 1280 bytes, not 1281"):
        build(wraps=WRAPS[:-1])
    with pytest.raises(UsageError, match="50 bytes can't hold 2 messages"):
        build(body=BODY[:-1])
    data = build()
    # One byte moved from the body to the wraps: the sum still holds.
    with pytest.raises(MalformedBatch, match="wraps have 1282 bytes, not 1281"):
        envelope.read_header(with_sizes(wraps=len(WRAPS) + 1, body=len(BODY) - 1))
    assert envelope.read_header(data) == HEADER


def test_neither_chain_nor_signature_may_be_missing() -> None:
    with pytest.raises(UsageError, match="no certificate chain or no signature"):
        build(signature=b"")
    with pytest.raises(UsageError, match="0 certificates"):
        build(chain=())
    with pytest.raises(UsageError):
        build(chain=(b"leaf", b""))
    with pytest.raises(UsageError, match="4096 bytes at most"):
        build(chain=(b"x" * limits.MAX_CHAIN,))


@pytest.mark.parametrize(
    "chain",
    [
        b"",
        b"\0",
        b"\x01",
        b"\x01\x00",
        b"\x01\x00\x00",
        b"\x01\x00\x02a",
        b"\x01\x00\x01ab",
        b"\x02\x00\x01a",
        b"\xff" * 100,
    ],
)
def test_a_chain_must_be_whole(chain: bytes) -> None:
    with pytest.raises(MalformedBatch):
        envelope.decode_chain(chain)


def test_a_chain_over_its_limit_is_too_large() -> None:
    with pytest.raises(BatchTooLarge, match="4097 bytes; 4096 at most"):
        envelope.decode_chain(bytes(limits.MAX_CHAIN + 1))


# --- what no header may say ---------------------------------------------------------------------

FEW = (ReceiverRef("alpha", b"1" * 16, Suite.X25519),)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("sender", "", "not a client id"),
        ("sender", "dead.letters", "not a client id"),
        ("sender", "has space", "not a client id"),
        ("sender", "ümlaut", "not a client id"),
        ("sender", "s" * 65, "not a client id"),
        ("sender", "s" * 70_000, "can't be encoded"),
        ("certificate_sha256", b"c" * 31, "wrong length"),
        ("certificate_sha256", b"c" * 33, "wrong length"),
        ("batch_id", bytes(16), "UUIDv7"),
        ("batch_id", b"\xff" * 16, "UUIDv7"),
        ("created_ms", -1, "can't be encoded"),
        ("created_ms", MAX_TIME_MS + 1, "year 9999"),
        ("expires_ms", 1 << 64, "can't be encoded"),
        ("expires_ms", MAX_TIME_MS + 1, "year 9999"),
        ("exchange", "e" * 256, "over 255 bytes"),
        ("exchange", "ab\x1b[2J", "control characters"),
        ("routing_key", "é" * 128, "over 255 bytes"),
        ("routing_key", "line\nbreak", "control characters"),
        ("routing_key", "\x85", "control characters"),
        ("routing_key", "\ud800", "can't be encoded"),
        ("count", 0, "no messages"),
        ("commitment", b"", "wrong length"),
        ("receivers", (), "no receivers"),
        ("receivers", FEW + FEW, "in order, each once"),
        ("receivers", tuple(reversed(HEADER.receivers)), "in order, each once"),
        ("receivers", (ReceiverRef("alpha", b"short", Suite.P256),), "wrong length"),
        ("receivers", (ReceiverRef("a b", b"1" * 16, Suite.P256),), "not a client id"),
    ],
)
def test_what_a_header_may_not_say(field: str, value: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        envelope.encode_header(msgspec.structs.replace(HEADER, **{field: value}))


def test_too_many_messages_or_receivers_name_the_limit() -> None:
    with pytest.raises(BatchTooLarge, match="1025 messages; 1024 at most"):
        envelope.encode_header(msgspec.structs.replace(HEADER, count=1025))
    for number in (33, 255, 300):
        crowd = tuple(ReceiverRef(f"{n:04}", b"1" * 16, Suite.P256) for n in range(number))
        with pytest.raises(BatchTooLarge, match="receivers; 32 at most"):
            envelope.encode_header(msgspec.structs.replace(HEADER, receivers=crowd))


def test_names_are_utf_8_in_its_one_spelling() -> None:
    header = envelope.encode_header(msgspec.structs.replace(HEADER, exchange="ab"))
    for bad in (b"\xff\xfe", b"\xc0\x80", b"a\x80", b"\xc3"):
        with pytest.raises(MalformedBatch):
            envelope.decode_header(header.replace(b"\x00\x02ab", b"\x00\x02" + bad.ljust(2, b"a")))
