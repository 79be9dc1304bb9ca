"""Encryption of keys at rest, and the key file it takes.

AES-256-GCM with a random nonce a record. The associated data bind the ciphertext to its row::

    "CipherMQ/2 at rest" ‖ 0 ‖ u16 length ‖ client id ‖ u64 version       a key record
    "CipherMQ/2 at rest 1.x" ‖ 0 ‖ u16 length ‖ client id                 a 1.x client's key

so whoever can write the database, but has not the key, can neither read a record nor move one
under another client's name or version. A stolen disk without the key file shows none.

The key file is one line of text, 64 hexadecimal digits, mode 0600; or that under a key which a
hardware token holds.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.custody.files import is_wrapped
from ciphermq.errors import CatalogError, IdentityError

Unwrap = Callable[[Path], bytes]
"""What a file holds that a hardware token wrapped."""

_LABEL: Final = b"CipherMQ/2 at rest\0"
_ONEX_LABEL: Final = b"CipherMQ/2 at rest 1.x\0"
_CHECK_LABEL: Final = b"CipherMQ/2 at rest check\0"
_NONCE_SIZE: Final = 12
_KEY_SIZE: Final = 32
_KEY_TEXT: Final = re.compile(rb"([0-9a-fA-F]{64})\s*")


class AtRestKey:
    """The key; seals and opens records. Never printed."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_SIZE:
            raise CatalogError(f"an at-rest key has {_KEY_SIZE} bytes, not {len(key)}")
        self._cipher = AESGCM(key)

    @classmethod
    def create(cls, path: Path) -> AtRestKey:
        """Make a new key file (mode 0600); `CatalogError` when there is one already."""
        key = secrets.token_bytes(_KEY_SIZE)
        try:
            disk.write_file(path, key.hex().encode() + b"\n")
        except FileExistsError:
            raise CatalogError(
                f"{path}: there is an at-rest key already; a new one could not open what the "
                "catalog holds"
            ) from None
        except OSError as error:
            raise CatalogError(
                f"{path}: the at-rest key can't be written: {error.strerror}"
            ) from error
        return cls(key)

    @classmethod
    def load(cls, path: Path, unwrap: Unwrap | None = None) -> AtRestKey:
        """Read a key file; `CatalogError` when missing, malformed or open to others.

        `unwrap` opens one that a hardware token wrapped, and raises why it can't."""
        try:
            text = disk.read_private(path, limit=limits.MAX_KEY_FILE)
        except IdentityError as error:
            raise CatalogError(f"the at-rest key (storage.at_rest_key_path): {error}") from error
        if is_wrapped(text):
            if unwrap is None:
                raise CatalogError(
                    f"{path} is to be opened by a hardware token, and none is configured: say "
                    "which in a section [token]"
                )
            text = unwrap(path)
        match = _KEY_TEXT.fullmatch(text)
        if match is None:
            raise CatalogError(f"{path}: not an at-rest key (64 hexadecimal digits were expected)")
        return cls(bytes.fromhex(match[1].decode()))

    def seal(self, client: str, version: int, record: bytes) -> bytes:
        """``nonce ‖ ciphertext ‖ tag`` of `record`."""
        return self._seal(record, _associated(client, version))

    def open(self, client: str, version: int, sealed: bytes) -> bytes:
        """The reverse of `seal`; `CatalogError` when it was changed, moved or of another key."""
        return self._open(client, sealed, _associated(client, version))

    def seal_onex(self, client: str, public_key: bytes) -> bytes:
        """As `seal`, of a 1.x client's public key."""
        return self._seal(public_key, _ONEX_LABEL + _named(client))

    def open_onex(self, client: str, sealed: bytes) -> bytes:
        """The reverse of `seal_onex`, as `open`."""
        return self._open(client, sealed, _ONEX_LABEL + _named(client))

    def _seal(self, data: bytes, associated: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, data, associated)

    def _open(self, client: str, sealed: bytes, associated: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], associated)
        except (InvalidTag, ValueError):
            raise CatalogError(
                f"the stored key record of {client!r} does not open: the catalog was changed by "
                "something other than this server; have the client register its key again"
            ) from None

    def check_value(self) -> bytes:
        """What a new catalog keeps, so that another key is noticed at the start."""
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, b"", _CHECK_LABEL)

    def matches(self, check: bytes) -> bool:
        """Whether `check` was made with this key."""
        try:
            self._cipher.decrypt(check[:_NONCE_SIZE], check[_NONCE_SIZE:], _CHECK_LABEL)
        except (InvalidTag, ValueError):
            return False
        return True


def _associated(client: str, version: int) -> bytes:
    return _LABEL + _named(client) + struct.pack(">Q", version)


def _named(client: str) -> bytes:
    name = client.encode()
    return struct.pack(">H", len(name)) + name
