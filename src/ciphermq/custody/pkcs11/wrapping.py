"""Secrets of ours on disk, under a key-encryption key that a token holds.

A fresh 256-bit key encrypts the secret; the token's public key encrypts that key, on the host, and
only the token can open it. The file says all that is needed to do so but the PIN::

    CIPHERMQ TOKEN WRAPPED SECRET
        msgpack {format, method, purpose, label, serial, id, wrapped, nonce, sealed}

    method      rsa-oaep        RSAES-OAEP with SHA-1 and MGF1-SHA-1 (RFC 8017, section 7.1)
                rsa-pkcs1-v1.5  RSAES-PKCS1-v1_5 (section 7.2), for devices that lack OAEP
                p256            HPKE (RFC 9180) to the token's P-256 key, as batches use it
    sealed      AES-256-GCM of the secret; all other members but nonce are its associated data

SHA-1 in OAEP is what every device has, SoftHSM nothing else; OAEP does not rest on collisions.
PKCS#1 v1.5 can be opened without the key by who may ask a token often and sees how it refuses; so
it is used only where it was asked for by name. Here a file is opened at the start, once, and nobody
sees more than whether that worked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq import limits
from ciphermq.custody import disk, keys
from ciphermq.custody.armour import armour, strip_armour
from ciphermq.custody.files import HSM_WRAPPED
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import IdentityError, TokenError, WrapRefused
from ciphermq.model.suites import Suite

FILE: Final = "CipherMQ file"
"""Purpose of a whole file, such as the broker's at-rest key, that was wrapped as it was."""

_FORMAT: Final = 1
_KEY_SIZE: Final = 32
_INFO: Final = b"CipherMQ/2 token wrap\0"
_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303

Method = Literal["rsa-oaep", "rsa-pkcs1-v1.5", "p256"]


class Wrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds."""

    method: Method
    purpose: str
    """What the secret is: a file wrapped for one purpose does not open for another."""
    label: str
    """The token's, for who looks for it."""
    serial: str
    id: bytes
    """Of the key on the token."""
    wrapped: bytes
    nonce: Annotated[bytes, msgspec.Meta(min_length=12, max_length=12)]
    sealed: bytes
    format: int = _FORMAT

    def open(self, token: Token, purpose: str, what: str) -> bytes:
        """The secret. Raises `TokenAway`, a kind of `TokenError`, or `IdentityError` naming the
        file as `what` when it is not for this purpose, or does not open."""
        if self.purpose != purpose:
            raise IdentityError(f"{what} holds {self.purpose!r}, not {purpose!r}")
        try:
            key = self._open_key(token)
            return AESGCM(key).decrypt(self.nonce, self.sealed, self._bound())
        except (InvalidTag, WrapRefused, ValueError):
            raise IdentityError(
                f"{what} does not open with the key {self.id.hex()} on {token}: it was wrapped by "
                "another key, or is damaged"
            ) from None

    def _open_key(self, token: Token) -> bytes:
        if self.method == "p256":
            return TokenOpener.find(token, self.id).unwrap(self.wrapped, _INFO)
        return token.decrypt(self.id, self.wrapped, oaep=self.method == "rsa-oaep")

    def _bound(self) -> bytes:
        return msgspec.msgpack.encode(
            (self.format, self.method, self.purpose, self.label, self.serial, self.id, self.wrapped)
        )


def wrap(
    secret: bytes,
    token: Token,
    object_id: bytes,
    *,
    purpose: str,
    pkcs1: bool = False,
) -> bytes:
    """The content of a file from which only the key of that id on `token` gets `secret` back.

    The kind of key says how; `pkcs1` chooses PKCS#1 v1.5 for an RSA key. What was made is opened
    again before it is returned, so that nobody deletes a secret that the token can't give back.
    """
    public = token.public_key(object_id)
    key, nonce = os.urandom(_KEY_SIZE), os.urandom(12)
    method: Method
    if isinstance(public, rsa.RSAPublicKey):
        method = "rsa-pkcs1-v1.5" if pkcs1 else "rsa-oaep"
        wrapped = public.encrypt(key, padding.PKCS1v15() if pkcs1 else _OAEP)
    elif pkcs1:
        raise TokenError(
            f"the key {object_id.hex()} on {token} is no RSA key: PKCS#1 v1.5 is RSA's"
        )
    else:
        method = "p256"
        wrapped = keys.wrap(Suite.P256, TokenOpener.find(token, object_id).public_key, key, _INFO)
    address = token.address
    made = Wrapped(
        method=method,
        purpose=purpose,
        label=address.label,
        serial=address.serial,
        id=object_id,
        wrapped=wrapped,
        nonce=nonce,
        sealed=b"",
    )
    made = msgspec.structs.replace(
        made,
        sealed=AESGCM(key).encrypt(nonce, secret, made._bound()),  # noqa: SLF001 - our own
    )
    if made.open(token, purpose, "what was just wrapped") != secret:
        raise TokenError(f"{token} does not give back what its key {object_id.hex()} wrapped")
    return armour(HSM_WRAPPED, msgspec.msgpack.encode(made))


def decode(data: bytes, what: str) -> Wrapped:
    """The reverse of `wrap`, all but the opening; `IdentityError` naming the file as `what`."""
    try:
        found = msgspec.msgpack.decode(strip_armour(HSM_WRAPPED, data), type=Wrapped)
    except (ValueError, msgspec.DecodeError) as error:
        raise IdentityError(f"{what} is damaged ({error}): restore it from a backup") from error
    if found.format != _FORMAT:
        raise IdentityError(f"{what} has format {found.format}: upgrade this program")
    return found


def read(path: Path) -> Wrapped:
    """The wrapped secret in file `path`."""
    return decode(disk.read_private(path, limit=limits.MAX_KEY_FILE), str(path))
