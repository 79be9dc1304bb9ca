"""Where clients of 1.x have their keys: a receiver its own, a sender those of its receivers."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final, NamedTuple

from ciphermq.custody import disk, onex
from ciphermq.custody.onex import PRIVATE_FILE, OnexKey
from ciphermq.errors import IdentityError, PinnedKeyChanged
from ciphermq.settings.onexclient import Generation

_OF_1_5: Final = Path("../../create_ca_key/Rust_Key_Maker_X25519")
"""Where the receivers of 1.5 look, from their own directory on, and only there."""
_PLACES: Final = (Path("keys"), Path("certs"), Path(), _OF_1_5)


class OwnKey(NamedTuple):
    """A receiver's private key, and where it was."""

    key: OnexKey
    path: Path
    of_1_5: bool
    """Whether only a receiver of 1.5 would have found it."""


def find_own_key(base: Path, given: Path | None) -> OwnKey:
    """The key in the file `given`, or in the first of 1.x's places under `base` that has one.

    Raises `IdentityError` when there is none."""
    if given is not None:
        return OwnKey(OnexKey.load(given), given, of_1_5=False)
    for place in _PLACES:
        path = base / place / PRIVATE_FILE
        if path.exists():
            return OwnKey(OnexKey.load(path), path, of_1_5=place == _OF_1_5)
    places = ", ".join(str(base / place / PRIVATE_FILE) for place in _PLACES)
    raise IdentityError(
        f"there is no private key; it was looked for in {places}. Name it with --key, or make "
        f"a pair with `ciphermq keys make --out {base / _PLACES[0]}`"
    )


class ReceiversKeys:
    """The public keys of receivers, each in a file of its own, as it was last given out.

    Nobody vouches for what a server gives out. What can be told is that it is not the same any
    more: that is when somebody may have put himself in the middle.
    """

    def __init__(self, base: Path, generation: Generation, *, accept_new: bool) -> None:
        self._directory = base / ("certs" if generation is Generation.V1_4_0 else "keys")
        self._accept_new = accept_new

    def path(self, receiver: str) -> Path:
        """The file of `receiver`, whose name is a client's id and so no path."""
        return self._directory / f"{receiver}_public.key"

    def load(self, receiver: str) -> bytes | None:
        """The key that was given out before; None if none was. `IdentityError` for a bad file."""
        path = self.path(receiver)
        return onex.load_public_key(path) if path.exists() else None

    def take(self, receiver: str, key: bytes) -> bool:
        """Remember the key that the server gives out now; whether it is another than before.

        `PinnedKeyChanged` for another one, unless new ones were said to be accepted."""
        before = self.load(receiver)
        if before is not None and hmac.compare_digest(before, key):
            return False
        if before is not None and not self._accept_new:
            raise PinnedKeyChanged(
                f"the key of {receiver!r} had the fingerprint {onex.fingerprint(before)}, and the "
                f"server now gives out {onex.fingerprint(key)}. Ask its owner, by another way than "
                "the server, which of the two it is; if it is the new one, say --accept-new-keys "
                f"once, otherwise somebody reads along ({self.path(receiver)})"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        text = onex.write_public_key(key).encode()
        disk.write_file(self.path(receiver), text, mode=disk.PUBLIC, replace=True)
        return before is not None
