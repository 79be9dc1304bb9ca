"""Key records as bytes: the codec, without any cryptography.

A key record says "messages for this client are sealed to this public key", signed by the client
itself. Integers are big-endian, times are milliseconds since 1970::

    record    = "CMQR" | u32 len(body) | u16 len(chain) | u16 len(signature)
                | body | chain | signature

    body      = u8 version (1)
                | str client                  a client id
                | u8 suite | str public key   raw bytes, of the size that the suite has
                | 16 bytes key id             of suite and public key
                | u64 version of the record   rises with each that the client makes
                | u64 not before | u64 not after
                | 32 bytes                    SHA-256 of the client's certificate (DER)
    str       = u16 length | bytes

    chain     = as in a batch: u8 n | n * (u16 length | DER certificate), the client's first
    signature = ECDSA, DER, over 64 * 0x20 | "CipherMQ/2 key record" | 0 | SHA-256(body)

There is one way to write any record, so equal content means an equal body. `parse` takes any
bytes and gives a value or `KeyRecordMalformed`; nothing it gives is verified.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.errors import BatchError, KeyRecordMalformed, UsageError
from ciphermq.model.envelope import KEY_ID_SIZE, MAX_TIME_MS, Buffer, decode_chain, encode_chain
from ciphermq.model.ids import is_client_id
from ciphermq.model.suites import Suite

BODY_VERSION: Final = 1
MAX_VERSION: Final = (1 << 63) - 1
"""Greatest version of a record: the catalogs' integers are signed."""

_MAGIC: Final = b"CMQR"
_HEAD: Final = struct.Struct(">4sIHH")
_KEY: Final = struct.Struct(">BH")
_TAIL: Final = struct.Struct(f">{KEY_ID_SIZE}sQQQ32s")
_U16: Final = struct.Struct(">H")
_SIGNED: Final = b"\x20" * 64 + b"CipherMQ/2 key record\0"
_SUITES: Final = {int(suite): suite for suite in Suite}


class KeyRecord(msgspec.Struct, frozen=True):
    """What a client says about its own key."""

    client: str
    suite: Suite
    public_key: bytes
    key_id: bytes
    version: int
    not_before_ms: int
    not_after_ms: int
    certificate_sha256: bytes


class SignedRecord(msgspec.Struct, frozen=True):
    """A record, taken apart, with the proof that came with it. Not verified."""

    record: KeyRecord
    body: bytes
    chain: tuple[bytes, ...]
    """DER certificates, the client's first."""
    signature: bytes


def encode_body(record: KeyRecord) -> bytes:
    """The body; `UsageError` for a record that `parse` would not give back."""
    try:
        name = record.client.encode()
        body = b"".join(
            [
                bytes([BODY_VERSION]),
                _U16.pack(len(name)),
                name,
                _KEY.pack(record.suite, len(record.public_key)),
                record.public_key,
                _TAIL.pack(
                    record.key_id,
                    record.version,
                    record.not_before_ms,
                    record.not_after_ms,
                    record.certificate_sha256,
                ),
            ]
        )
        # Reading it back is the check: nobody signs a record that others would refuse.
        if _decode_body(body) != record:
            raise UsageError("a hash or an id in the key record has the wrong length")
    except (struct.error, UnicodeEncodeError, KeyRecordMalformed) as error:
        raise UsageError(f"the key record can't be encoded: {error}") from error
    return body


def signed_bytes(body: bytes) -> bytes:
    """What the client signs for `body`. The label keeps a batch's signature from passing here."""
    return _SIGNED + sha256(body).digest()


def build(body: bytes, chain: tuple[bytes, ...], signature: bytes) -> bytes:
    """A whole record from its parts."""
    chain_bytes = encode_chain(chain)
    if not 0 < len(signature) <= limits.MAX_SIGNATURE:
        raise UsageError(f"a signature of {len(signature)} bytes can't be sent")
    head = _HEAD.pack(_MAGIC, len(body), len(chain_bytes), len(signature))
    return head + body + chain_bytes + signature


def parse(data: Buffer) -> SignedRecord:
    """A record taken apart; `KeyRecordMalformed` when `data` is not exactly one."""
    if len(data) > limits.MAX_KEY_RECORD:
        raise KeyRecordMalformed(
            f"the key record has {len(data)} bytes; {limits.MAX_KEY_RECORD} at most"
        )
    data = bytes(data)
    if len(data) < _HEAD.size:
        raise KeyRecordMalformed(f"{len(data)} bytes are too few for a key record")
    magic, len_body, len_chain, len_signature = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise KeyRecordMalformed("these bytes are not a key record")
    if _HEAD.size + len_body + len_chain + len_signature != len(data):
        raise KeyRecordMalformed(f"the key record's parts do not add up to {len(data)} bytes")
    if not 0 < len_signature <= limits.MAX_SIGNATURE:
        raise KeyRecordMalformed(f"the key record has a signature of {len_signature} bytes")
    body_end = _HEAD.size + len_body
    body = data[_HEAD.size : body_end]
    try:
        chain = decode_chain(data[body_end : body_end + len_chain])
    except BatchError as error:
        raise KeyRecordMalformed(f"the key record's chain is wrong: {error}") from error
    return SignedRecord(_decode_body(body), body, chain, data[body_end + len_chain :])


def _decode_body(body: bytes) -> KeyRecord:
    try:
        if body[0] != BODY_VERSION:
            raise KeyRecordMalformed(
                f"the key record has format version {body[0]}; this program knows {BODY_VERSION}: "
                "upgrade it"
            )
        end = 3 + _U16.unpack_from(body, 1)[0]
        client = body[3:end].decode("ascii")
        number, size = _KEY.unpack_from(body, end)
        at = end + _KEY.size
        key_id, version, not_before_ms, not_after_ms, certificate = _TAIL.unpack_from(
            body, at + size
        )
    except (struct.error, IndexError):
        raise KeyRecordMalformed("the key record is cut short") from None
    except UnicodeDecodeError:
        raise KeyRecordMalformed("the key record's client is not a client id") from None
    if at + size + _TAIL.size != len(body):
        raise KeyRecordMalformed("bytes follow the key record's end")
    if not is_client_id(client):
        raise KeyRecordMalformed(f"{client[: limits.MAX_CLIENT_ID]!r} is not a client id")
    suite = _SUITES.get(number)
    if suite is None:
        raise KeyRecordMalformed(
            f"the key of {client!r} has the unknown suite {number}: upgrade this program"
        )
    if size != suite.public_key_size:
        raise KeyRecordMalformed(
            f"the key of {client!r} has {size} bytes, not the {suite.public_key_size} of a "
            f"{suite.name} key"
        )
    if not 0 < version <= MAX_VERSION:
        raise KeyRecordMalformed(f"the key record of {client!r} has version {version}")
    if not not_before_ms < not_after_ms <= MAX_TIME_MS:
        raise KeyRecordMalformed(f"the key record of {client!r} ends before it begins")
    if not_after_ms - not_before_ms > limits.MAX_KEY_RECORD_LIFETIME * 1000:
        raise KeyRecordMalformed(f"the key record of {client!r} is for more than 365 days")
    return KeyRecord(
        client,
        suite,
        body[at : at + size],
        key_id,
        version,
        not_before_ms,
        not_after_ms,
        certificate,
    )
