"""Files of several certificates or revocation lists, as OpenSSL reads them (RFC 7468)."""

from __future__ import annotations

import base64
import binascii
import re

from ciphermq.custody.armour import armour
from ciphermq.errors import IdentityError


def block(label: str, der: bytes) -> bytes:
    """One block of PEM."""
    return armour(label, der)


def blocks(label: str, text: bytes) -> tuple[bytes, ...]:
    """What is in each block of `label`; other text around them is skipped, as everywhere."""
    pattern = rf"-----BEGIN {label}-----([A-Za-z0-9+/=\s]*)-----END {label}-----".encode()
    try:
        return tuple(
            base64.b64decode(b"".join(body.split()), validate=True)
            for body in re.findall(pattern, text)
        )
    except binascii.Error as error:
        raise IdentityError(f"a damaged {label.lower()} block: {error}") from error
