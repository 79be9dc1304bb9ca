"""HPKE around a token's ECDH: the RFC's vectors, and `cryptography`'s own suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hpke as reference
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.custody import hpke, keys
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.errors import WrapRefused
from ciphermq.model.suites import Suite
from support.softhsm import make_softhsm

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "hpke_rfc9180.json").read_text())
(VECTOR,) = (each for each in VECTORS["vectors"] if each["suite"] == "P256")
CURVE = ec.SECP256R1()


def member(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


def point_of(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def test_the_rfcs_vector_in_software() -> None:
    private = ec.derive_private_key(int.from_bytes(member("skRm"), "big"), CURVE)
    peer = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, member("enc"))
    check_vector(private.exchange(ec.ECDH(), peer))


def test_the_rfcs_vector_with_its_key_on_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_softhsm(tmp_path / "hsm", monkeypatch).token()
    key_id = token.import_p256("RFC 9180, A.3.1", member("skRm"), member("pkRm"))
    assert point_of(token.public_key(key_id)) == member("pkRm")  # type: ignore[arg-type]
    check_vector(token.ecdh(key_id, member("enc")))
    # Imported or not, it is a receiver's key as any other.
    opener = TokenOpener.find(token, key_id)
    assert opener.public_key == member("pkRm")
    (about,) = token.private_keys()
    assert not about.extractable
    assert not about.made_here


def check_vector(shared: bytes) -> None:
    aead = int(VECTOR["aead_id"])
    secret = hpke.shared_secret(shared, member("enc"), member("pkRm"))
    assert hpke.key_schedule(secret, member("info"), aead) == (member("key"), member("base_nonce"))
    opened = hpke.open_sealed(
        shared,
        member("pkRm"),
        member("enc") + member("ct"),
        member("info"),
        aad=member("aad"),
        aead=aead,
    )
    assert opened == member("pt")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_it_equals_cryptographys_suite(plaintext: bytes, info: bytes) -> None:
    private = ec.generate_private_key(CURVE)
    suite = reference.Suite(
        reference.KEM.P256, reference.KDF.HKDF_SHA256, reference.AEAD.AES_256_GCM
    )
    sealed = suite.encrypt(plaintext, private.public_key(), info)
    enc = sealed[: hpke.POINT_SIZE]
    peer = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, enc)
    shared = private.exchange(ec.ECDH(), peer)
    own = point_of(private.public_key())
    assert hpke.open_sealed(shared, own, sealed, info) == plaintext
    with pytest.raises(WrapRefused):
        hpke.open_sealed(shared, own, sealed, info + b"!")
    with pytest.raises(WrapRefused):
        hpke.open_sealed(shared, own, sealed, info, aad=b"!")


@given(st.binary(min_size=65, max_size=65))
def test_no_point_off_the_curve_gets_to_a_token(point: bytes) -> None:
    with pytest.raises(WrapRefused):
        hpke.check_point(point)


def test_a_point_on_the_curve_does() -> None:
    point = keys.public_bytes(Suite.P256, keys.generate(Suite.P256))
    assert hpke.check_point(point) == point
