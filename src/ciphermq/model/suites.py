"""The cryptographic suites a receiver's key can have.

A suite names the KEM; the rest is fixed: HPKE base mode (RFC 9180) with HKDF-SHA256 and
AES-256-GCM. The sizes are here, without any cryptography, because the batch's codec and the
broker need them to find where one part ends and the next begins.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SESSION_KEY_SIZE: Final = 32
TAG_SIZE: Final = 16


class Suite(IntEnum):
    """Numbers on the wire; never reused."""

    MLKEM768_X25519 = 1
    """Hybrid: stays secret if either ML-KEM-768 or X25519 does. The default."""
    X25519 = 2
    P256 = 3
    """For keys on a hardware token, which know the NIST curves only."""

    @property
    def public_key_size(self) -> int:
        """Bytes of a public key: ML-KEM's 1184 then X25519's 32; raw X25519; uncompressed point."""
        return _SIZES[self][0]

    @property
    def private_key_size(self) -> int:
        """Bytes of a stored private key: ML-KEM's 64-byte seed then X25519's 32; raw; scalar."""
        return _SIZES[self][1]

    @property
    def wrap_size(self) -> int:
        """Bytes of one wrapped session key: encapsulation, sealed key, tag."""
        return _SIZES[self][2] + SESSION_KEY_SIZE + TAG_SIZE


_SIZES: Final = {
    Suite.MLKEM768_X25519: (1184 + 32, 64 + 32, 1088 + 32),
    Suite.X25519: (32, 32, 32),
    Suite.P256: (65, 32, 65),
}
DEFAULT_SUITE: Final = Suite.MLKEM768_X25519
