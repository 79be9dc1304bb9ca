"""HPKE's receiving side for DHKEM(P-256, HKDF-SHA256), around a Diffie-Hellman made elsewhere.

`cryptography` opens HPKE with a private key in memory. With the key on a token the one private
step, ECDH, happens there; this is the rest (RFC 9180, base mode, section 4.1 and 5.1), in the same
suite: HKDF-SHA256 and AES-256-GCM. It is held to the RFC's vectors and to `cryptography` by tests.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq.errors import WrapRefused

POINT_SIZE: Final = 65
"""An uncompressed P-256 point, as sent: 0x04, x, y."""

AES_128_GCM: Final = 0x0001
AES_256_GCM: Final = 0x0002
_KEY_SIZES: Final = {AES_128_GCM: 16, AES_256_GCM: 32}

_VERSION: Final = b"HPKE-v1"
_KEM: Final = b"KEM\x00\x10"
_CURVE: Final = ec.SECP256R1()
_MODE_BASE: Final = b"\x00"


def check_point(point: bytes) -> bytes:
    """`point`, if it is on the curve; else `WrapRefused`.

    Before it goes to a token: one that does not check gives its key away to who sends points of
    other curves.
    """
    try:
        if len(point) != POINT_SIZE:
            raise ValueError("wrong size")
        ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
    except ValueError:
        raise WrapRefused("the session key does not open: it holds no point of P-256") from None
    return bytes(point)


def open_sealed(
    shared: bytes,
    public_key: bytes,
    sealed: bytes,
    info: bytes,
    *,
    aad: bytes = b"",
    aead: int = AES_256_GCM,
) -> bytes:
    """The plaintext of `sealed` (``enc | ciphertext``).

    `shared` is the x-coordinate that ECDH of our private key with enc gave, 32 bytes; `public_key`
    is our own, uncompressed. Raises `WrapRefused` when it does not open.
    """
    enc, ciphertext = sealed[:POINT_SIZE], sealed[POINT_SIZE:]
    key, nonce = key_schedule(shared_secret(shared, enc, public_key), info, aead)
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        raise WrapRefused("the session key does not open: it was not sealed to this key") from None


def shared_secret(shared: bytes, enc: bytes, public_key: bytes) -> bytes:
    """DHKEM's ExtractAndExpand (section 4.1)."""
    prk = _extract(_KEM, b"", b"eae_prk", shared)
    return _expand(_KEM, prk, b"shared_secret", enc + public_key, 32)


def key_schedule(secret: bytes, info: bytes, aead: int = AES_256_GCM) -> tuple[bytes, bytes]:
    """Key and base nonce (section 5.1, base mode); the nonce of the first message is the base."""
    suite = b"HPKE\x00\x10\x00\x01" + aead.to_bytes(2, "big")
    context = (
        _MODE_BASE
        + _extract(suite, b"", b"psk_id_hash", b"")
        + _extract(suite, b"", b"info_hash", info)
    )
    prk = _extract(suite, secret, b"secret", b"")
    key = _expand(suite, prk, b"key", context, _KEY_SIZES[aead])
    return key, _expand(suite, prk, b"base_nonce", context, 12)


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    """LabeledExtract (section 4)."""
    return hmac.digest(salt or bytes(32), _VERSION + suite + label + material, "sha256")


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    """LabeledExpand (section 4); nothing here needs more than HKDF's first block of 32 bytes."""
    assert size <= 32  # noqa: S101 - ours to know
    labelled = size.to_bytes(2, "big") + _VERSION + suite + label + info
    return hmac.digest(prk, labelled + b"\x01", "sha256")[:size]
