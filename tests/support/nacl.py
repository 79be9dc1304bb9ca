"""NaCl's boxes written a second time, from Bernstein's papers: a check on libsodium and on us.

Only what 1.x needs: Salsa20 and HSalsa20 ("Extending the Salsa20 nonce"), the secretbox and the
box ("Cryptography in NaCl"), the sealed box of libsodium's documentation. X25519 and Poly1305 are
OpenSSL's, BLAKE2b is Python's. Slow, and not careful with time: for tests only.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.poly1305 import Poly1305

_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_MASK = 0xFFFFFFFF
_COLUMNS = ((4, 0, 12, 7), (8, 4, 0, 9), (12, 8, 4, 13), (0, 12, 8, 18))


def _quarters(x: list[int], places: list[int]) -> None:
    """One quarter round on the four words at `places`."""
    for target, one, other, turn in _COLUMNS:
        target, one, other = (places[at // 4] for at in (target, one, other))
        total = (x[one] + x[other]) & _MASK
        x[target] ^= (total << turn | total >> 32 - turn) & _MASK


def _rounds(state: list[int]) -> list[int]:
    x = list(state)
    for _ in range(10):
        for start in range(4):  # a column, beginning on the diagonal
            _quarters(x, [(4 * (start + row) + start) % 16 for row in range(4)])
        for start in range(4):  # a row, likewise
            _quarters(x, [4 * start + (start + column) % 4 for column in range(4)])
    return x


def _state(key: bytes, block: bytes) -> list[int]:
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", block)
    return [
        *(_SIGMA[0], *k[:4], _SIGMA[1]),
        *(*n, _SIGMA[2]),
        *(*k[4:], _SIGMA[3]),
    ]


def hsalsa20(key: bytes, block: bytes) -> bytes:
    """A key out of a key and 16 bytes."""
    x = _rounds(_state(key, block))
    return struct.pack("<8I", *(x[at] for at in (0, 5, 10, 15, 6, 7, 8, 9)))


def xsalsa20(key: bytes, nonce: bytes, size: int) -> bytes:
    """The first `size` bytes of the stream."""
    key, short = hsalsa20(key, nonce[:16]), nonce[16:]
    stream = b""
    for count in range((size + 63) // 64):
        state = _state(key, short + struct.pack("<Q", count))
        mixed = _rounds(state)
        stream += struct.pack("<16I", *((a + b) & _MASK for a, b in zip(state, mixed, strict=True)))
    return stream[:size]


def secretbox(key: bytes, nonce: bytes, text: bytes) -> bytes:
    """Poly1305's tag, then the ciphertext."""
    stream = xsalsa20(key, nonce, 32 + len(text))
    ciphertext = bytes(a ^ b for a, b in zip(text, stream[32:], strict=True))
    return Poly1305.generate_tag(stream[:32], ciphertext) + ciphertext


def open_secretbox(key: bytes, nonce: bytes, box: bytes) -> bytes:
    """The reverse; `ValueError` when it does not open."""
    tag, ciphertext = box[:16], box[16:]
    stream = xsalsa20(key, nonce, 32 + len(ciphertext))
    if not hmac.compare_digest(tag, Poly1305.generate_tag(stream[:32], ciphertext)):
        raise ValueError("the box does not open")
    return bytes(a ^ b for a, b in zip(ciphertext, stream[32:], strict=True))


def x25519(private: bytes, public: bytes) -> bytes:
    """The shared point, as it is."""
    key = X25519PrivateKey.from_private_bytes(private)
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    """The public half."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sealed_box(version: str, receiver: bytes, text: bytes, ephemeral: bytes) -> bytes:
    """A session key sealed as 1.4 or 1.5 does, with this ephemeral private key."""
    public = public_of(ephemeral)
    key, nonce = _key_and_nonce(version, x25519(ephemeral, receiver), public, receiver)
    return public + secretbox(key, nonce, text)


def open_sealed_box(version: str, private: bytes, sealed: bytes) -> bytes:
    """The reverse; `ValueError` when it does not open."""
    public, box = sealed[:32], sealed[32:]
    key, nonce = _key_and_nonce(version, x25519(private, public), public, public_of(private))
    return open_secretbox(key, nonce, box)


def _key_and_nonce(
    version: str, shared: bytes, ephemeral: bytes, receiver: bytes
) -> tuple[bytes, bytes]:
    both = ephemeral + receiver
    if version == "ciphermq-1.4":
        return hsalsa20(shared, bytes(16)), hashlib.blake2b(both, digest_size=24).digest()
    return shared, hashlib.blake2b(both).digest()[:24]
