"""A receiver's key pairs: made, spelled as bytes, named, and put to use with HPKE.

HPKE (RFC 9180) is in base mode with HKDF-SHA256 and AES-256-GCM; the suite names the KEM::

    suite              public key (bytes)                        private key (bytes)
    MLKEM768_X25519    ML-KEM-768 (1184) | X25519 (32)           ML-KEM seed (64) | X25519 (32)
    X25519             X25519 (32)                               X25519 (32)
    P256               uncompressed point (65)                   scalar, big-endian (32)

    key id = first 16 bytes of SHA-256("CipherMQ/2 key id" | 0 | u8 suite | public key)

A key id is bound to its suite and key: nobody can show another key of the same id.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ciphermq.errors import IdentityError, KeyRecordMalformed, WrapRefused
from ciphermq.model.envelope import KEY_ID_SIZE
from ciphermq.model.suites import SESSION_KEY_SIZE, Suite

PrivateKey = hpke.MLKEM768X25519PrivateKey | x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = hpke.MLKEM768X25519PublicKey | x25519.X25519PublicKey | ec.EllipticCurvePublicKey

_KEY_ID_LABEL: Final = b"CipherMQ/2 key id\0"
_MLKEM_PUBLIC: Final = 1184
_MLKEM_SEED: Final = 64
_P256: Final = ec.SECP256R1()
_HPKE: Final = {
    suite: hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    for suite, kem in (
        (Suite.MLKEM768_X25519, hpke.KEM.MLKEM768_X25519),
        (Suite.X25519, hpke.KEM.X25519),
        (Suite.P256, hpke.KEM.P256),
    )
}


def key_id(suite: Suite, public_key: bytes) -> bytes:
    """The 16 bytes by which batches and key records name this key."""
    digest = hashlib.sha256(_KEY_ID_LABEL + bytes([suite]) + public_key).digest()
    return digest[:KEY_ID_SIZE]


def generate(suite: Suite) -> bytes:
    """A new private key's bytes."""
    if suite is Suite.P256:
        key = ec.generate_private_key(_P256)
        return key.private_numbers().private_value.to_bytes(suite.private_key_size, "big")
    x25519_key = x25519.X25519PrivateKey.generate().private_bytes_raw()
    if suite is Suite.X25519:
        return x25519_key
    return mlkem.MLKEM768PrivateKey.generate().private_bytes_raw() + x25519_key


def load_private(suite: Suite, data: bytes) -> PrivateKey:
    """The key that `data` spells; `IdentityError` when it is no private key of `suite`."""
    if len(data) != suite.private_key_size:
        raise IdentityError(
            f"a private key of suite {suite.name} has {suite.private_key_size} bytes, "
            f"not {len(data)}"
        )
    if suite is Suite.X25519:
        return x25519.X25519PrivateKey.from_private_bytes(data)
    if suite is Suite.P256:
        try:
            return ec.derive_private_key(int.from_bytes(data, "big"), _P256)
        except ValueError:
            raise IdentityError("a private key of suite P256 is out of the curve's range") from None
    return hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(data[:_MLKEM_SEED]),
        x25519.X25519PrivateKey.from_private_bytes(data[_MLKEM_SEED:]),
    )


def public_bytes(suite: Suite, private_key: bytes) -> bytes:
    """The public half of a private key's bytes; `IdentityError` as in `load_private`."""
    key = load_private(suite, private_key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, x25519.X25519PrivateKey):
        return key.public_key().public_bytes_raw()
    mlkem_key = mlkem.MLKEM768PrivateKey.from_seed_bytes(private_key[:_MLKEM_SEED])
    x25519_key = x25519.X25519PrivateKey.from_private_bytes(private_key[_MLKEM_SEED:])
    return mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()


@lru_cache(maxsize=1024)
def load_public(suite: Suite, data: bytes) -> PublicKey:
    """The key that `data` spells; `KeyRecordMalformed` when it is no public key of `suite`.

    Remembered, because a sender seals to the same few keys over and over."""
    if len(data) != suite.public_key_size:
        raise KeyRecordMalformed(
            f"a public key of suite {suite.name} has {suite.public_key_size} bytes, not {len(data)}"
        )
    try:
        if suite is Suite.X25519:
            return x25519.X25519PublicKey.from_public_bytes(data)
        if suite is Suite.P256:
            return ec.EllipticCurvePublicKey.from_encoded_point(_P256, data)
        return hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(data[:_MLKEM_PUBLIC]),
            x25519.X25519PublicKey.from_public_bytes(data[_MLKEM_PUBLIC:]),
        )
    except ValueError as error:
        raise KeyRecordMalformed(f"not a public key of suite {suite.name}: {error}") from error


def wrap(suite: Suite, public_key: bytes, session_key: bytes, info: bytes) -> bytes:
    """The session key, sealed so that only the owner of `public_key` opens it.

    Raises `KeyRecordMalformed` when nothing can be sealed to that key."""
    key = load_public(suite, public_key)
    try:
        return _HPKE[suite].encrypt(session_key, key, info)
    except ValueError as error:
        # A public key of low order would make a shared secret that everybody knows.
        raise KeyRecordMalformed(f"nothing can be sealed to this {suite.name} key") from error


def unwrap(suite: Suite, private_key: PrivateKey, wrapped: bytes, info: bytes) -> bytes:
    """The session key that `wrap` sealed; `WrapRefused` when it does not open."""
    try:
        session_key = _HPKE[suite].decrypt(wrapped, private_key, info)
    except (InvalidTag, ValueError):
        raise WrapRefused("the session key does not open: it was not sealed to this key") from None
    if len(session_key) != SESSION_KEY_SIZE:
        raise WrapRefused(f"the session key has {len(session_key)} bytes, not {SESSION_KEY_SIZE}")
    return session_key
