"""Receivers' key pairs, and HPKE as RFC 9180 has it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ciphermq.custody import keys
from ciphermq.errors import IdentityError, KeyRecordMalformed, WrapRefused
from ciphermq.model.suites import Suite
from support import hpke

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "hpke_rfc9180.json").read_text())
SUITES = list(Suite)
INFO = b"CipherMQ/2 wrap\0 and so on"
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group P-256."""


@pytest.fixture(scope="module", params=SUITES, ids=lambda suite: suite.name)
def pair(request: pytest.FixtureRequest) -> tuple[Suite, bytes, bytes]:
    private = keys.generate(request.param)
    return request.param, private, keys.public_bytes(request.param, private)


def unwrap(suite: Suite, private: bytes, wrapped: bytes, info: bytes) -> bytes:
    return keys.unwrap(suite, keys.load_private(suite, private), wrapped, info)


def test_sizes_are_those_of_the_suite(pair: tuple[Suite, bytes, bytes]) -> None:
    suite, private, public = pair
    assert len(private) == suite.private_key_size
    assert len(public) == suite.public_key_size
    assert len(keys.wrap(suite, public, bytes(32), INFO)) == suite.wrap_size


def test_a_session_key_opens_with_its_key_and_its_info_only(
    pair: tuple[Suite, bytes, bytes],
) -> None:
    suite, private, public = pair
    session_key = bytes(range(32))
    wrapped = keys.wrap(suite, public, session_key, INFO)
    assert unwrap(suite, private, wrapped, INFO) == session_key
    for info in (b"", INFO[:-1], INFO + b"\0"):
        with pytest.raises(WrapRefused):
            unwrap(suite, private, wrapped, info)
    with pytest.raises(WrapRefused):
        unwrap(suite, keys.generate(suite), wrapped, INFO)


def test_no_changed_wrap_opens(pair: tuple[Suite, bytes, bytes]) -> None:
    suite, private, public = pair
    wrapped = keys.wrap(suite, public, bytes(32), INFO)
    key = keys.load_private(suite, private)
    for at in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[at] ^= 1 << at % 8
        with pytest.raises(WrapRefused):
            keys.unwrap(suite, key, bytes(changed), INFO)
    for size in (0, 1, len(wrapped) - 1):
        with pytest.raises(WrapRefused):
            keys.unwrap(suite, key, wrapped[:size], INFO)
    with pytest.raises(WrapRefused):
        keys.unwrap(suite, key, wrapped + b"\0", INFO)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 1000])
def test_what_is_wrapped_must_be_a_session_key(pair: tuple[Suite, bytes, bytes], size: int) -> None:
    suite, private, public = pair
    wrapped = keys.wrap(suite, public, bytes(size), INFO)
    with pytest.raises(WrapRefused, match=f"has {size} bytes, not 32"):
        unwrap(suite, private, wrapped, INFO)


# --- the same, by another implementation --------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_the_reference_agrees_with_the_rfc(vector: dict[str, str]) -> None:
    suite = Suite[vector["suite"]]
    private = bytes.fromhex(vector["skRm"])
    sealed = bytes.fromhex(vector["enc"] + vector["ct"])
    aead = int(vector["aead_id"])
    info = bytes.fromhex(vector["info"])
    secret = hpke.decapsulate(suite, private, bytes.fromhex(vector["enc"]))
    key, nonce = hpke.key_schedule(suite, secret, info, aead)
    assert key.hex() == vector["key"]
    assert nonce.hex() == vector["base_nonce"]
    opened = hpke.open_base(suite, private, sealed, info, bytes.fromhex(vector["aad"]), aead)
    assert opened.hex() == vector["pt"]
    assert keys.public_bytes(suite, private).hex() == vector["pkRm"]


def test_the_reference_opens_what_we_wrap(pair: tuple[Suite, bytes, bytes]) -> None:
    suite, private, public = pair
    wrapped = keys.wrap(suite, public, b"\x42" * 32, INFO)
    assert hpke.open_base(suite, private, wrapped, INFO) == b"\x42" * 32


@pytest.mark.parametrize("suite", [Suite.X25519, Suite.P256])
def test_we_open_what_the_reference_wraps(suite: Suite) -> None:
    private = keys.generate(suite)
    public = keys.public_bytes(suite, private)
    wrapped = hpke.seal_base(suite, keys.generate(suite), public, b"\x24" * 32, INFO)
    assert len(wrapped) == suite.wrap_size
    assert unwrap(suite, private, wrapped, INFO) == b"\x24" * 32


# --- keys that are none -------------------------------------------------------------------------


def test_private_keys_of_the_wrong_size_are_refused() -> None:
    for suite in SUITES:
        for size in (0, suite.private_key_size - 1, suite.private_key_size + 1):
            with pytest.raises(IdentityError, match=f"not {size}"):
                keys.load_private(suite, bytes(size))


@pytest.mark.parametrize("scalar", [0, ORDER, ORDER + 1, 2**256 - 1])
def test_scalars_out_of_range_are_refused(scalar: int) -> None:
    with pytest.raises(IdentityError, match="out of the curve's range"):
        keys.load_private(Suite.P256, scalar.to_bytes(32, "big"))


def test_public_keys_of_the_wrong_size_are_refused() -> None:
    for suite in SUITES:
        for size in (0, suite.public_key_size - 1, suite.public_key_size + 1):
            with pytest.raises(KeyRecordMalformed, match=f"not {size}"):
                keys.load_public(suite, bytes(size))


def test_points_off_the_curve_are_refused() -> None:
    point = keys.public_bytes(Suite.P256, keys.generate(Suite.P256))
    bad = [bytes(65), b"\x04" + bytes(64), b"\x05" + point[1:], b"\x06" + point[1:]]
    bad.append(point[:-1] + bytes([point[-1] ^ 1]))
    for data in bad:
        with pytest.raises(KeyRecordMalformed, match="not a public key of suite P256"):
            keys.load_public(Suite.P256, data)


def test_an_ml_kem_key_with_coefficients_out_of_range_is_refused() -> None:
    """The modulus check of FIPS 203, section 7.2."""
    public = keys.public_bytes(Suite.MLKEM768_X25519, keys.generate(Suite.MLKEM768_X25519))
    with pytest.raises(KeyRecordMalformed):
        keys.load_public(Suite.MLKEM768_X25519, b"\xff" * 384 + public[384:])


LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]
"""Points whose multiples are few: 0, 1, -1, p, p + 1 and the two of order 8."""


@pytest.mark.parametrize("point", LOW_ORDER)
def test_nothing_is_sealed_to_a_point_of_low_order(point: str) -> None:
    """The shared secret would be zero for everybody (RFC 7748, section 6.1)."""
    with pytest.raises(KeyRecordMalformed, match="nothing can be sealed"):
        keys.wrap(Suite.X25519, bytes.fromhex(point), bytes(32), INFO)
    wrapped = bytes.fromhex(point) + bytes(48)
    with pytest.raises(WrapRefused):
        unwrap(Suite.X25519, keys.generate(Suite.X25519), wrapped, INFO)


# --- key ids ------------------------------------------------------------------------------------


def test_a_key_id_is_the_documented_hash(pair: tuple[Suite, bytes, bytes]) -> None:
    suite, _, public = pair
    expected = hashlib.sha256(b"CipherMQ/2 key id\0" + bytes([suite]) + public).digest()[:16]
    assert keys.key_id(suite, public) == expected


def test_one_key_has_another_id_in_another_suite() -> None:
    assert keys.key_id(Suite.X25519, bytes(32)) != keys.key_id(Suite.P256, bytes(32))
