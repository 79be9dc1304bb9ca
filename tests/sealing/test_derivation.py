"""What is derived and bound, against plain HMAC and SHA-256, and the primitives against
Wycheproof."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ciphermq.sealing import derivation

WYCHEPROOF = json.loads((Path(__file__).parents[1] / "vectors" / "wycheproof.json").read_text())
SESSION_KEY = bytes(range(32))


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 with an empty salt and one block of output."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_two_keys_are_the_documented_ones() -> None:
    derived = derivation.derive(SESSION_KEY)
    assert derived.body == hkdf(SESSION_KEY, b"CipherMQ/2 body\0")
    assert derived.commitment == hkdf(SESSION_KEY, b"CipherMQ/2 commit\0")


def test_no_label_begins_another() -> None:
    labels = [derivation.BODY_LABEL, derivation.COMMIT_LABEL, derivation.WRAP_LABEL]
    labels.append(derivation.SIGNATURE_LABEL)
    for first in labels:
        for second in labels:
            assert first is second or not second.startswith(first)


def test_the_info_of_a_wrap_is_the_documented_one() -> None:
    expected = b"CipherMQ/2 wrap\0" + hashlib.sha256(b"P").digest()
    expected += b"\x00\x03bob" + b"\x00\x10" + b"k" * 16
    assert derivation.wrap_info(b"P", "bob", b"k" * 16) == expected


def test_what_is_signed_is_the_documented_one() -> None:
    bound = derivation.binding(b"P", b"wraps")
    assert bound == hashlib.sha256(b"Pwraps").digest()
    expected = b" " * 64 + b"CipherMQ/2 batch\0" + bound + hashlib.sha256(b"body").digest()
    assert derivation.signed_bytes(bound, b"body") == expected


@pytest.mark.parametrize("test", WYCHEPROOF["hkdf"]["tests"], ids=lambda test: str(test["tcId"]))
def test_hkdf(test: dict[str, str]) -> None:
    info, size = bytes.fromhex(test["info"]), int(test["size"])
    found = HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info)
    assert found.derive(bytes.fromhex(test["ikm"])).hex() == test["okm"]


@pytest.mark.parametrize("test", WYCHEPROOF["aes_gcm"]["tests"], ids=lambda test: str(test["tcId"]))
def test_aes_gcm(test: dict[str, str]) -> None:
    cipher, nonce = AESGCM(bytes.fromhex(test["key"])), bytes.fromhex(test["iv"])
    plaintext, sealed = bytes.fromhex(test["msg"]), bytes.fromhex(test["ct"] + test["tag"])
    assert cipher.encrypt(nonce, plaintext, b"") == sealed
    assert cipher.decrypt(nonce, sealed, b"") == plaintext
    for bit in range(128):
        changed = bytearray(sealed)
        changed[len(sealed) - 16 + bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag):
            cipher.decrypt(nonce, bytes(changed), b"")
