"""Public keys as a 1.x catalog has them."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ciphermq.catalog.onex import OnexAtRestKey, StoredKey, timestamp
from ciphermq.errors import CatalogError

KEY = bytes(range(32))
PUBLIC = bytes(range(100, 132))


@pytest.fixture
def at_rest() -> OnexAtRestKey:
    return OnexAtRestKey(KEY)


def stored_by_1x(cipher: type[AESGCM | ChaCha20Poly1305], data: bytes = PUBLIC) -> StoredKey:
    sealed = cipher(KEY).encrypt(b"n" * 12, data, None)
    return StoredKey(
        *(base64.b64encode(part).decode() for part in (sealed[:-16], b"n" * 12, sealed[-16:]))
    )


@pytest.mark.parametrize("cipher", [AESGCM, ChaCha20Poly1305])
def test_either_cipher_of_1x_is_read(
    at_rest: OnexAtRestKey, cipher: type[AESGCM | ChaCha20Poly1305]
) -> None:
    assert at_rest.open("a", stored_by_1x(cipher)) == PUBLIC


def test_what_is_written_1x_reads(at_rest: OnexAtRestKey) -> None:
    stored = at_rest.seal(PUBLIC)
    assert at_rest.open("a", stored) == PUBLIC
    ciphertext, nonce, tag = (base64.b64decode(part, validate=True) for part in stored)
    assert (len(ciphertext), len(nonce), len(tag)) == (32, 12, 16)
    assert AESGCM(KEY).decrypt(nonce, ciphertext + tag, None) == PUBLIC
    assert at_rest.seal(PUBLIC) != stored


@pytest.mark.parametrize("cipher", [AESGCM, ChaCha20Poly1305])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_was_changed_does_not_open(
    at_rest: OnexAtRestKey, cipher: type[AESGCM | ChaCha20Poly1305], part: int
) -> None:
    parts = [bytearray(base64.b64decode(each)) for each in stored_by_1x(cipher)]
    parts[part][0] ^= 1
    changed = StoredKey(*(base64.b64encode(each).decode() for each in parts))
    with pytest.raises(CatalogError, match="'a' does not open"):
        at_rest.open("a", changed)


@pytest.mark.parametrize(
    "stored",
    [StoredKey("", "", ""), StoredKey("!", "!", "!"), StoredKey("AAAA", "ключ", "AAAA")],
)
def test_what_is_no_key_does_not_open(at_rest: OnexAtRestKey, stored: StoredKey) -> None:
    with pytest.raises(CatalogError, match=r"encryption\.aes_key"):
        at_rest.open("a", stored)


def test_a_key_of_another_length_is_none(at_rest: OnexAtRestKey) -> None:
    with pytest.raises(CatalogError):
        at_rest.open("a", stored_by_1x(AESGCM, b"short"))


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_an_aes_key_has_32_bytes(size: int) -> None:
    with pytest.raises(CatalogError, match=str(size)):
        OnexAtRestKey(bytes(size))


def test_what_1x_lacks_has_a_key_of_its_own(at_rest: OnexAtRestKey) -> None:
    own = at_rest.own_key()
    assert own.open("a", 1, OnexAtRestKey(KEY).own_key().seal("a", 1, b"record")) == b"record"
    assert not own.matches(AESGCM(KEY).encrypt(b"n" * 12, b"", None))
    assert KEY.hex() not in repr(vars(own))


def test_a_1x_key_in_our_own_catalog_is_bound_to_its_client(at_rest: OnexAtRestKey) -> None:
    own = at_rest.own_key()
    sealed = own.seal_onex("a", PUBLIC)
    assert own.open_onex("a", sealed) == PUBLIC
    with pytest.raises(CatalogError):
        own.open_onex("b", sealed)
    with pytest.raises(CatalogError):
        own.open("a", 0, sealed)


def test_times_are_as_1x_writes_them_and_sort_as_text() -> None:
    assert timestamp(None) is None
    assert timestamp(1_800_000_000_007) == "2027-01-15T08:00:00.007+00:00"
    times = [timestamp(at_ms) or "" for at_ms in (0, 999, 1000, 10**12, 2 * 10**12)]
    assert times == sorted(times)
