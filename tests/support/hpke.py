"""HPKE (RFC 9180) in base mode written a second time, from its text, for tests to compare with.

Only HMAC, Diffie-Hellman, ML-KEM's decapsulation and AES-GCM are taken from the library. Slow,
not constant in time, and checked itself by the vectors of the RFC's appendix A.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ciphermq.model.suites import Suite

KEM_IDS: Final = {Suite.P256: 0x0010, Suite.X25519: 0x0020, Suite.MLKEM768_X25519: 0x647A}
KEY_SIZES: Final = {0x0001: 16, 0x0002: 32}
"""AEAD id to key size: AES-128-GCM (in the RFC's vectors) and AES-256-GCM (ours)."""

AES_256_GCM: Final = 0x0002
_ENCAPSULATIONS: Final = {Suite.P256: 65, Suite.X25519: 32, Suite.MLKEM768_X25519: 1120}
_CURVE: Final = ec.SECP256R1()


def open_base(
    suite: Suite,
    private_key: bytes,
    sealed: bytes,
    info: bytes,
    aad: bytes = b"",
    aead: int = AES_256_GCM,
) -> bytes:
    """OpenBase (section 6.1) of ``enc | ciphertext``; `private_key` as the project stores it."""
    size = _ENCAPSULATIONS[suite]
    secret = decapsulate(suite, private_key, sealed[:size])
    key, nonce = key_schedule(suite, secret, info, aead)
    return AESGCM(key).decrypt(nonce, sealed[size:], aad)


def seal_base(
    suite: Suite, ephemeral: bytes, public_key: bytes, plaintext: bytes, info: bytes
) -> bytes:
    """SealBase with the ephemeral key given; not for the hybrid, whose randomness can't be."""
    secret, encapsulation = encapsulate(suite, ephemeral, public_key)
    key, nonce = key_schedule(suite, secret, info, AES_256_GCM)
    return encapsulation + AESGCM(key).encrypt(nonce, plaintext, b"")


def key_schedule(suite: Suite, secret: bytes, info: bytes, aead: int) -> tuple[bytes, bytes]:
    """Key and base nonce (section 5.1, mode 0)."""
    name = b"HPKE" + KEM_IDS[suite].to_bytes(2, "big") + b"\0\x01" + aead.to_bytes(2, "big")
    context = b"\0" + _extract(name, b"", b"psk_id_hash", b"")
    context += _extract(name, b"", b"info_hash", info)
    derived = _extract(name, secret, b"secret", b"")
    key = _expand(name, derived, b"key", context, KEY_SIZES[aead])
    return key, _expand(name, derived, b"base_nonce", context, 12)


def decapsulate(suite: Suite, private_key: bytes, encapsulation: bytes) -> bytes:
    """The shared secret (section 4.1; the hybrid: X-Wing's combiner, draft-connolly-cfrg-xwing)."""
    if suite is Suite.MLKEM768_X25519:
        key = x25519.X25519PrivateKey.from_private_bytes(private_key[64:])
        peer = encapsulation[1088:]
        post_quantum = mlkem.MLKEM768PrivateKey.from_seed_bytes(private_key[:64]).decapsulate(
            encapsulation[:1088]
        )
        classical = key.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
        own = key.public_key().public_bytes_raw()
        return hashlib.sha3_256(post_quantum + classical + peer + own + rb"\.//^" + b"\\").digest()
    shared, own = _diffie_hellman(suite, private_key, encapsulation)
    return _dhkem_secret(suite, shared, encapsulation + own)


def encapsulate(suite: Suite, ephemeral: bytes, public_key: bytes) -> tuple[bytes, bytes]:
    """Shared secret and encapsulation, for the two Diffie-Hellman suites."""
    shared, own = _diffie_hellman(suite, ephemeral, public_key)
    return _dhkem_secret(suite, shared, own + public_key), own


def _diffie_hellman(suite: Suite, private_key: bytes, peer: bytes) -> tuple[bytes, bytes]:
    """The shared point and one's own public key."""
    if suite is Suite.X25519:
        key = x25519.X25519PrivateKey.from_private_bytes(private_key)
        shared = key.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
        return shared, key.public_key().public_bytes_raw()
    scalar = ec.derive_private_key(int.from_bytes(private_key, "big"), _CURVE)
    point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, peer)
    own = scalar.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return scalar.exchange(ec.ECDH(), point), own


def _dhkem_secret(suite: Suite, shared: bytes, context: bytes) -> bytes:
    name = b"KEM" + KEM_IDS[suite].to_bytes(2, "big")
    return _expand(name, _extract(name, b"", b"eae_prk", shared), b"shared_secret", context, 32)


def _extract(name: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + name + label + ikm, "sha256")


def _expand(name: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    """One block of HKDF-Expand: no output here is over 32 bytes."""
    labelled = size.to_bytes(2, "big") + b"HPKE-v1" + name + label + info
    return hmac.digest(key, labelled + b"\x01", "sha256")[:size]
