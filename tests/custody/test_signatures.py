"""ECDSA: what verifies, and that each signature has one spelling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.custody import signatures

WYCHEPROOF = json.loads((Path(__file__).parents[1] / "vectors" / "wycheproof.json").read_text())
CURVES = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1(), "secp521r1": ec.SECP521R1()}
HASHES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}


@pytest.fixture(scope="module", params=sorted(CURVES))
def key(request: pytest.FixtureRequest) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[request.param])


def test_every_curve_for_certificates_is_here() -> None:
    assert set(CURVES) == signatures.CURVES


@given(data=st.binary(max_size=100))
def test_what_is_signed_verifies_and_nothing_else(
    key: ec.EllipticCurvePrivateKey, data: bytes
) -> None:
    signature = signatures.sign(key, data)
    assert signatures.verifies(key.public_key(), signature, data)
    assert not signatures.verifies(key.public_key(), signature, data + b"\0")
    other = ec.generate_private_key(key.curve)
    assert not signatures.verifies(other.public_key(), signature, data)


def test_the_hash_is_the_curves(key: ec.EllipticCurvePrivateKey) -> None:
    signature = signatures.sign(key, b"data")
    key.public_key().verify(signature, b"data", ec.ECDSA(HASHES[key.curve.name]))


def test_the_lower_s_is_the_one_that_counts(key: ec.EllipticCurvePrivateKey) -> None:
    order = key.curve.group_order
    for number in range(20):
        data = bytes([number])
        r, s = decode_dss_signature(signatures.sign(key, data))
        assert s <= order // 2
        twin = encode_dss_signature(r, order - s)
        key.public_key().verify(twin, data, ec.ECDSA(HASHES[key.curve.name]))
        assert not signatures.verifies(key.public_key(), twin, data)
        assert signatures.verifies(key.public_key(), signatures.canonical(twin, key.curve), data)


def test_other_encodings_of_a_good_signature_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    signature = signatures.sign(key, b"data")
    start = 2 if signature[1] < 0x80 else 3
    length, inner = signature[1:start], signature[start:]
    size = len(inner)
    integer, rest = inner[: 2 + inner[1]], inner[2 + inner[1] :]
    wider = bytes([2, integer[1] + 1, 0]) + integer[2:]
    others = [
        signature + b"\0",
        b"\0" + signature,
        b"\x30\x82" + size.to_bytes(2, "big") + inner,
        b"\x30\x80" + inner + b"\0\0",
        b"\x31" + length + inner,
        b"\x30" + der_length(size + 1) + wider + rest,
        b"\x30" + der_length(size + 2) + inner + b"\x05\x00",
        b"\x30" + der_length(len(integer)) + integer,
        signature[:-1],
        b"",
        b"\x30\x00",
    ]
    for other in others:
        assert not signatures.verifies(key.public_key(), other, b"data"), other.hex()


def der_length(size: int) -> bytes:
    return bytes([size]) if size < 0x80 else bytes([0x81, size])


def test_values_out_of_range_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    order = key.curve.group_order
    r, s = decode_dss_signature(signatures.sign(key, b"data"))
    for bad in ((0, s), (r, 0), (0, 0), (order, s), (r + order, s), (r, s + order), (r, order)):
        assert not signatures.verifies(key.public_key(), encode_dss_signature(*bad), b"data"), bad
    assert not signatures.verifies(key.public_key(), encode_dss_signature(1, 1), b"data")


def test_a_key_on_another_curve_verifies_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    signature = key.sign(b"data", ec.ECDSA(hashes.SHA256()))
    assert not signatures.verifies(key.public_key(), signature, b"data")


CASES = [
    pytest.param(group["publicKey"], test, id=f"{group['file'][6:15]}-{test['tcId']}")
    for group in WYCHEPROOF["ecdsa"]
    for test in group["tests"]
]


@pytest.mark.parametrize(("point", "test"), CASES)
def test_wycheproof(point: str, test: dict[str, str]) -> None:
    """Theirs allow either `s`; ours must be spelt with the lower first."""
    curve = ec.SECP256R1() if len(point) == 130 else ec.SECP384R1()
    key = ec.EllipticCurvePublicKey.from_encoded_point(curve, bytes.fromhex(point))
    signature, message = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
    if test["result"] == "valid":
        canonical = signatures.canonical(signature, curve)
        assert signatures.verifies(key, canonical, message)
        assert signatures.verifies(key, signature, message) == (canonical == signature)
    else:
        assert not signatures.verifies(key, signature, message)
