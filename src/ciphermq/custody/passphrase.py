"""Secrets under a passphrase: scrypt (RFC 7914), then AES-256-GCM.

::

    box = magic "CMQP" | u8 version = 1 | u8 log2 n | u8 r | u8 p | salt[16] | nonce[12] | sealed

The header up to the nonce and the caller's label are authenticated, so neither can be changed
and a box made for one purpose does not open for another.
"""

from __future__ import annotations

import os
import struct
import unicodedata
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ciphermq import limits
from ciphermq.errors import PassphraseError

_HEAD: Final = struct.Struct(">4s B B B B 16s 12s")
_MAGIC: Final = b"CMQP"
_VERSION: Final = 1
_TAG: Final = 16


class Cost(NamedTuple):
    """What one guess at a passphrase costs: n and r memory (128 * n * r bytes), p passes."""

    n: int
    r: int
    p: int


STRONG: Final = Cost(n=1 << 17, r=8, p=1)
"""128 MiB and about half a second a guess; the strongest that OWASP recommends."""

CHEAP: Final = Cost(n=1 << 4, r=8, p=1)
"""Only where the "passphrase" is 32 random bytes, which nobody guesses, and in tests."""


def seal(passphrase: bytes, secret: bytes, label: bytes, cost: Cost = STRONG) -> bytes:
    """`secret` in a box that only `passphrase` and the same `label` open."""
    salt, nonce = os.urandom(16), os.urandom(12)
    head = _HEAD.pack(_MAGIC, _VERSION, cost.n.bit_length() - 1, cost.r, cost.p, salt, nonce)
    return head + AESGCM(_derive(passphrase, salt, cost)).encrypt(nonce, secret, head + label)


def open_box(passphrase: bytes, box: bytes, label: bytes, what: str) -> bytes:
    """What `seal` put in. `what` names the box in errors, all of which are `PassphraseError`."""
    if len(box) < _HEAD.size + _TAG:
        raise PassphraseError(f"{what} is cut short: get it again from where it was made")
    magic, version, log_n, r, p, salt, nonce = _HEAD.unpack_from(box)
    if magic != _MAGIC or version != _VERSION:
        raise PassphraseError(f"{what} is of a kind this program doesn't know")
    memory = r << log_n + 7  # 128 * n * r
    if not (log_n and 0 < memory <= limits.MAX_SCRYPT_MEMORY and 0 < p <= limits.MAX_SCRYPT_PASSES):
        raise PassphraseError(
            f"{what} asks for scrypt n=2^{log_n} r={r} p={p}, beyond reason: it is damaged"
        )
    try:
        key = _derive(passphrase, salt, Cost(1 << log_n, r, p))
    except (MemoryError, ValueError) as error:
        # What OpenSSL says also of combinations that scrypt does not have.
        raise PassphraseError(
            f"{what} asks for scrypt n=2^{log_n} r={r} p={p}, which can't be done here: it is "
            "damaged, or there is too little memory"
        ) from error
    try:
        return AESGCM(key).decrypt(nonce, box[_HEAD.size :], box[: _HEAD.size] + label)
    except InvalidTag:
        raise PassphraseError(f"the passphrase does not open {what}: try again") from None


def to_bytes(phrase: str) -> bytes:
    """A typed passphrase as bytes, the same from every keyboard (RFC 8265 section 4.2)."""
    _check_not_empty(phrase)
    return unicodedata.normalize("NFC", phrase).encode()


def _check_not_empty(passphrase: bytes | str) -> None:
    # What the empty passphrase locks would look encrypted and be open to all.
    if not passphrase:
        raise PassphraseError("the passphrase is empty: give one, or say that you want none")


def _derive(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    _check_not_empty(passphrase)
    return Scrypt(salt=salt, length=32, n=cost.n, r=cost.r, p=cost.p).derive(passphrase)
