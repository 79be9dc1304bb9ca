"""Certificate keys on disk: PKCS #8 PEM under a random password, and that under a passphrase.

The PEM format's own way from passphrase to key is a few thousand rounds of PBKDF2, which a
graphics card tries millions of times a second. So the PEM password is 256 random bits, and
what the passphrase opens, through scrypt, is that password, in a file of its own. OpenSSL and
Python's ``ssl`` read the PEM file as it is.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq import limits
from ciphermq.custody import disk, passphrase, signatures
from ciphermq.custody.armour import armour, strip_armour
from ciphermq.errors import IdentityError, PassphraseError

_WRAPPED_LABEL: Final = "CIPHERMQ WRAPPED PASSWORD"


def new_password() -> bytes:
    """256 random bits in printable characters, which every PEM reader takes."""
    return base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=")


def write_password(
    path: Path,
    password: bytes,
    phrase: str,
    purpose: str,
    cost: passphrase.Cost = passphrase.STRONG,
) -> None:
    """Write `password` to `path` so that only the passphrase `phrase` opens it."""
    box = passphrase.seal(passphrase.to_bytes(phrase), password, purpose.encode(), cost)
    disk.write_file(path, armour(_WRAPPED_LABEL, box))


def read_password(path: Path, phrase: str | None, purpose: str) -> bytes | None:
    """The password that the passphrase opens; None when there is none to open.

    Raises `PassphraseError` when `phrase` is wrong, or is missing although it is needed.
    """
    if not path.exists():
        return None
    if phrase is None:
        raise PassphraseError(
            f"{path.parent} is encrypted: give its passphrase at the prompt, with "
            "--passphrase-file, or in CIPHERMQ_PASSPHRASE"
        )
    try:
        box = strip_armour(_WRAPPED_LABEL, disk.read_private(path, limit=limits.MAX_KEY_FILE))
    except ValueError as error:
        raise PassphraseError(f"{path} is damaged ({error}): restore it from a backup") from error
    return passphrase.open_box(passphrase.to_bytes(phrase), box, purpose.encode(), str(path.parent))


def new_key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """A fresh key; see ``docs/decisions/0001`` for which curve is for whom."""
    return ec.generate_private_key(curve)


def write_key(
    path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None, *, replace: bool = False
) -> None:
    """Write `key` as PEM, mode 0600, encrypted when there is a `password`."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    disk.write_file(path, pem, replace=replace)


def read_key(path: Path, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    """The private key in `path`. A password that it does not need is not looked at.

    Raises `IdentityError` when there is none that can be used, `PassphraseError` when the
    password is not its own.
    """
    pem = disk.read_private(path, limit=limits.MAX_KEY_FILE)
    try:
        key = serialization.load_pem_private_key(pem, password if b"ENCRYPTED" in pem else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in pem:
            raise PassphraseError(f"{path} does not open with that passphrase") from error
        raise IdentityError(f"{path} holds no usable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in signatures.CURVES:
        raise IdentityError(f"the key in {path} is not on P-256, P-384 or P-521")
    return key
