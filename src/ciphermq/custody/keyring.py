"""All the private keys of one identity: the current one and those that it replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ciphermq.custody.face import Opener
from ciphermq.errors import KeyMissing


class Keyring:
    """Finds the opener for the key that a batch names."""

    def __init__(self, openers: Iterable[Opener] = ()) -> None:
        self._openers: dict[bytes, Opener] = {}
        for opener in openers:
            self.add(opener)

    def add(self, opener: Opener) -> None:
        """Take `opener` in; one of the same key id is replaced."""
        self._openers[opener.key_id] = opener

    def remove(self, key_id: bytes) -> None:
        """Forget a key that no batch can name any more. No error when it is not here."""
        self._openers.pop(key_id, None)

    def find(self, key_id: bytes) -> Opener:
        """The opener of that key; `KeyMissing`, which stops a receiver, when it is not here."""
        opener = self._openers.get(key_id)
        if opener is None:
            raise KeyMissing(
                f"the private key {key_id.hex()} is not on this machine, which has "
                f"{', '.join(map(bytes.hex, self._openers)) or 'none'}: restore it from a backup "
                "of this identity, or reject the batches that were sealed to it"
            )
        return opener

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._openers

    def __iter__(self) -> Iterator[Opener]:
        return iter(self._openers.values())

    def __len__(self) -> int:
        return len(self._openers)
