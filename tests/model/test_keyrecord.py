"""Key records as bytes: one spelling each, and nothing else is taken."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import KeyRecordMalformed, UsageError
from ciphermq.model import keyrecord
from ciphermq.model.envelope import MAX_TIME_MS
from ciphermq.model.keyrecord import KeyRecord
from ciphermq.model.suites import Suite

CHAIN = (b"certificate",)
SIGNATURE = b"signature"
RECORD = KeyRecord(
    client="bob",
    suite=Suite.X25519,
    public_key=bytes(range(32)),
    key_id=bytes(range(16)),
    version=7,
    not_before_ms=1_000,
    not_after_ms=2_000,
    certificate_sha256=bytes(range(32, 64)),
)
BODY = keyrecord.encode_body(RECORD)
WHOLE = keyrecord.build(BODY, CHAIN, SIGNATURE)


@st.composite
def records(draw: st.DrawFn) -> KeyRecord:
    suite = draw(st.sampled_from(Suite))
    start = draw(st.integers(0, MAX_TIME_MS - limits.MAX_KEY_RECORD_LIFETIME * 1000))
    return KeyRecord(
        client=draw(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)),
        suite=suite,
        public_key=draw(st.binary(min_size=1, max_size=1)) * suite.public_key_size,
        key_id=draw(st.binary(min_size=16, max_size=16)),
        version=draw(st.integers(1, keyrecord.MAX_VERSION)),
        not_before_ms=start,
        not_after_ms=start + draw(st.integers(1, limits.MAX_KEY_RECORD_LIFETIME * 1000)),
        certificate_sha256=draw(st.binary(min_size=32, max_size=32)),
    )


@given(
    records().filter(lambda record: not record.client.startswith("dead.")),
    st.lists(st.binary(min_size=1, max_size=1200), min_size=1, max_size=3),
    st.binary(min_size=1, max_size=limits.MAX_SIGNATURE),
)
def test_a_record_comes_back_as_it_was(
    record: KeyRecord, chain: list[bytes], signature: bytes
) -> None:
    body = keyrecord.encode_body(record)
    signed = keyrecord.parse(keyrecord.build(body, tuple(chain), signature))
    assert signed.record == record
    assert signed.body == body
    assert signed.chain == tuple(chain)
    assert signed.signature == signature
    assert keyrecord.encode_body(signed.record) == body


def test_the_layout_byte_by_byte() -> None:
    body = (
        b"\x01"
        b"\x00\x03bob"
        b"\x02\x00\x20" + RECORD.public_key + RECORD.key_id + struct.pack(">QQQ", 7, 1000, 2000)
    ) + RECORD.certificate_sha256
    assert body == BODY
    chain = b"\x01\x00\x0bcertificate"
    head = b"CMQR" + struct.pack(">IHH", len(body), len(chain), len(SIGNATURE))
    assert head + body + chain + SIGNATURE == WHOLE


def test_what_is_signed_names_its_purpose() -> None:
    signed = keyrecord.signed_bytes(BODY)
    assert signed.startswith(b" " * 64 + b"CipherMQ/2 key record\0")
    assert len(signed) == 64 + 22 + 32
    assert keyrecord.signed_bytes(BODY + b"x") != signed


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_record(length: int) -> None:
    with pytest.raises(KeyRecordMalformed):
        keyrecord.parse(WHOLE[:length])


@given(st.binary(min_size=1, max_size=40))
def test_bytes_after_the_record(tail: bytes) -> None:
    with pytest.raises(KeyRecordMalformed):
        keyrecord.parse(WHOLE + tail)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_seen(at: int, flip: int) -> None:
    changed = bytearray(WHOLE)
    changed[at] ^= flip
    try:
        signed = keyrecord.parse(bytes(changed))
    except KeyRecordMalformed:
        return
    again = keyrecord.build(keyrecord.encode_body(signed.record), signed.chain, signed.signature)
    assert again == changed


@given(st.binary(max_size=400))
def test_no_bytes_do_anything_else_than_be_refused(data: bytes) -> None:
    with pytest.raises(KeyRecordMalformed):
        keyrecord.parse(data)


@given(st.binary(max_size=200))
def test_no_body_does_anything_else_than_be_refused(body: bytes) -> None:
    with pytest.raises(KeyRecordMalformed):
        keyrecord.parse(keyrecord.build(b"\x01" + body, CHAIN, SIGNATURE))


def test_a_view_is_as_good_as_bytes() -> None:
    assert keyrecord.parse(memoryview(bytearray(WHOLE))) == keyrecord.parse(WHOLE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"client": "dead.bob"}, "not a client id"),
        ({"client": "b b"}, "not a client id"),
        ({"client": "böb"}, "not a client id"),
        ({"public_key": b"short"}, "has 5 bytes, not the 32 of a X25519 key"),
        ({"version": 0}, "has version 0"),
        ({"version": 1 << 63}, "has version"),
        ({"version": 1 << 64}, "can't be encoded"),
        ({"not_after_ms": 1_000}, "ends before it begins"),
        ({"not_after_ms": MAX_TIME_MS + 1}, "ends before it begins"),
        ({"not_after_ms": 1_001 + 365 * 86_400_000}, "for more than 365 days"),
        ({"key_id": bytes(15)}, "wrong length"),
        ({"key_id": bytes(17)}, "wrong length"),
        ({"certificate_sha256": bytes(31)}, "wrong length"),
    ],
)
def test_what_others_would_refuse_is_not_made(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        keyrecord.encode_body(msgspec.structs.replace(RECORD, **changes))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"CMQR", b"CMQ2", "not a key record"),
        (b"\x01\x00\x03bob", b"\x02\x00\x03bob", r"format version 2.*upgrade"),
        (b"bob\x02", b"bob\x09", r"'bob' has the unknown suite 9: upgrade"),
        (b"bob\x02\x00\x20", b"bob\x01\x00\x20", "not the 1216 of a MLKEM768_X25519 key"),
        (b"bob\x02\x00\x20", b"bob\x02\x00\x1f", "bytes follow"),
        (b"bob", b"b\xffb", "not a client id"),
    ],
)
def test_each_refusal_says_what_is_wrong(old: bytes, new: bytes, sentence: str) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(KeyRecordMalformed, match=sentence):
        keyrecord.parse(WHOLE.replace(old, new))


def test_a_record_beyond_the_limit() -> None:
    with pytest.raises(KeyRecordMalformed, match="16384 at most"):
        keyrecord.parse(WHOLE.ljust(limits.MAX_KEY_RECORD + 1))


@pytest.mark.parametrize("signature", [b"", b"x" * (limits.MAX_SIGNATURE + 1)])
def test_signatures_of_no_size(signature: bytes) -> None:
    with pytest.raises(UsageError, match="signature"):
        keyrecord.build(BODY, CHAIN, signature)
    head = b"CMQR" + struct.pack(">IHH", len(BODY), 14, len(signature))
    with pytest.raises(KeyRecordMalformed, match="signature"):
        keyrecord.parse(head + BODY + b"\x01\x00\x0bcertificate" + signature)


def test_a_chain_that_is_none() -> None:
    head = b"CMQR" + struct.pack(">IHH", len(BODY), 1, len(SIGNATURE))
    with pytest.raises(KeyRecordMalformed, match="chain is wrong"):
        keyrecord.parse(head + BODY + b"\x00" + SIGNATURE)
