"""What a 1.x catalog has: public keys encrypted at rest as 1.x did it, and times as it wrote them.

The table ``public_keys`` holds, each in base64, a client's encrypted key, a nonce of 12 bytes and a
tag of 16. What 1.x runs encrypts with AES-256-GCM, what its document names is ChaCha20-Poly1305,
both under the 32 bytes of ``[encryption] aes_key`` and without associated data. What is read may
be either; what is written is what 1.x reads, so that the way back stays open.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.errors import CatalogError

_KEY_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_OWN_KEY_LABEL: Final = b"CipherMQ/2 at rest from a 1.x key\0"


class StoredKey(NamedTuple):
    """A row of ``public_keys`` without its client, as text."""

    ciphertext: str
    nonce: str
    tag: str


class OnexAtRestKey:
    """The ``aes_key`` of a 1.x configuration. Never printed."""

    def __init__(self, key: bytes) -> None:
        """`CatalogError` when these are not 32 bytes."""
        if len(key) != _KEY_SIZE:
            raise CatalogError(f"encryption.aes_key has {len(key)} bytes; {_KEY_SIZE} are needed")
        self._ciphers = (AESGCM(key), ChaCha20Poly1305(key))
        self._key = key

    def own_key(self) -> AtRestKey:
        """The key for what 1.x does not have (key records), where no other is configured.

        Derived, so that nothing of ours opens as something of 1.x's, nor the other way round."""
        hkdf = HKDF(algorithm=hashes.SHA256(), length=_KEY_SIZE, salt=None, info=_OWN_KEY_LABEL)
        return AtRestKey(hkdf.derive(self._key))

    def seal(self, public_key: bytes) -> StoredKey:
        """A row as 1.x writes it."""
        nonce = secrets.token_bytes(_NONCE_SIZE)
        sealed = self._ciphers[0].encrypt(nonce, public_key, None)
        return StoredKey(
            *(
                base64.b64encode(part).decode()
                for part in (sealed[:-_TAG_SIZE], nonce, sealed[-_TAG_SIZE:])
            )
        )

    def open(self, client: str, stored: StoredKey) -> bytes:
        """The reverse, for either cipher; `CatalogError` when it was changed or of another key."""
        try:
            ciphertext, nonce, tag = (base64.b64decode(part, validate=True) for part in stored)
        except (binascii.Error, ValueError):
            raise _unopened(client) from None
        for cipher in self._ciphers:
            try:
                found = cipher.decrypt(nonce, ciphertext + tag, None)
            except (InvalidTag, ValueError):
                continue
            if len(found) == _KEY_SIZE:
                return found
        raise _unopened(client)


def _unopened(client: str) -> CatalogError:
    return CatalogError(
        f"the stored 1.x key of {client!r} does not open: encryption.aes_key is not the one it was "
        "stored with, or something else changed the table public_keys; have the client register "
        "its key again"
    )


def timestamp(at_ms: int | None) -> str | None:
    """A time as 1.x stores it: RFC 3339 in UTC. Sorted as text they are in order of time."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
