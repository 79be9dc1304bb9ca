"""What is derived from a session key, and the bytes that bind a batch's parts together."""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ciphermq.model.envelope import Buffer

BODY_LABEL: Final = b"CipherMQ/2 body\0"
COMMIT_LABEL: Final = b"CipherMQ/2 commit\0"
WRAP_LABEL: Final = b"CipherMQ/2 wrap\0"
SIGNATURE_LABEL: Final = b"\x20" * 64 + b"CipherMQ/2 batch\0"
BODY_NONCE: Final = bytes(12)
"""Zero, since a body's key is used once."""

_U16: Final = struct.Struct(">H")


class BatchKeys(NamedTuple):
    """The two values that a session key stands for."""

    body: bytes
    commitment: bytes


def derive(session_key: bytes) -> BatchKeys:
    """K_body and K_commit (HKDF, RFC 5869)."""
    return BatchKeys(_hkdf(session_key, BODY_LABEL), _hkdf(session_key, COMMIT_LABEL))


def wrap_info(header_bytes: bytes, client: str, key_id: bytes) -> bytes:
    """HPKE's info: to which batch, receiver and key a wrap belongs."""
    name = client.encode()
    return b"".join(
        (
            WRAP_LABEL,
            hashlib.sha256(header_bytes).digest(),
            _U16.pack(len(name)),
            name,
            _U16.pack(len(key_id)),
            key_id,
        )
    )


def binding(header_bytes: bytes, wraps: Buffer) -> bytes:
    """H: all of a batch but its body, in 32 bytes."""
    digest = hashlib.sha256(header_bytes)
    digest.update(wraps)
    return digest.digest()


def signed_bytes(bound: bytes, body: Buffer) -> bytes:
    """What the sender signs; `bound` is H."""
    return SIGNATURE_LABEL + bound + hashlib.sha256(body).digest()


def _hkdf(session_key: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=label).derive(session_key)
