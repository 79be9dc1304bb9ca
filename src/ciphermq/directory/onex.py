"""Whether a key of CipherMQ 1.x may be sealed to.

Such a key is bare: its owner has not signed it, so a server can give out one of its own and read
along. The only remedy is a person who has compared its fingerprint with its owner's, by another
way than the server. Without that nothing is sealed to it.
"""

from __future__ import annotations

import hmac

from ciphermq.custody.onex import fingerprint
from ciphermq.errors import KeyNotPinned, PinnedKeyChanged


def check_pinned(client: str, public_key: bytes, pinned: str | None) -> bytes:
    """`public_key`, if `pinned` is its fingerprint.

    Raises `KeyNotPinned` without a fingerprint, `PinnedKeyChanged` for another."""
    found = fingerprint(public_key)
    if pinned is None:
        raise KeyNotPinned(
            f"{client!r} has a key of CipherMQ 1.x, for which nobody vouches. Ask its owner for "
            f"the fingerprint, by another way than this server; if it is {found}, confirm it"
        )
    if not hmac.compare_digest(found, pinned.lower()):
        raise PinnedKeyChanged(
            f"the 1.x key of {client!r} has the fingerprint {found}, and {pinned} was confirmed: "
            "ask its owner which of the two it is; the server may have put another in its place"
        )
    return public_key
