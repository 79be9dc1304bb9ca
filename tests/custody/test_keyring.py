"""The keys of one identity."""

from __future__ import annotations

import pytest

from ciphermq.custody import keys
from ciphermq.custody.files import FileOpener
from ciphermq.custody.keyring import Keyring
from ciphermq.errors import KeyMissing
from ciphermq.model.suites import Suite


def opener(suite: Suite = Suite.X25519) -> FileOpener:
    return FileOpener(suite, keys.generate(suite))


def test_each_key_is_found_by_its_id() -> None:
    former, current = opener(), opener(Suite.P256)
    keyring = Keyring([former, current])
    assert keyring.find(former.key_id) is former
    assert keyring.find(current.key_id) is current
    assert list(keyring) == [former, current]
    assert current.key_id in keyring
    assert len(keyring) == 2


def test_a_key_that_is_not_here_names_those_that_are() -> None:
    here, gone = opener(), opener()
    keyring = Keyring([here, gone])
    keyring.remove(gone.key_id)
    keyring.remove(gone.key_id)
    assert gone.key_id not in keyring
    with pytest.raises(KeyMissing, match=f"{gone.key_id.hex()} .* {here.key_id.hex()}"):
        keyring.find(gone.key_id)
    with pytest.raises(KeyMissing, match="which has none"):
        Keyring().find(gone.key_id)


def test_the_same_key_twice_is_one() -> None:
    private = keys.generate(Suite.X25519)
    keyring = Keyring()
    for _ in range(2):
        keyring.add(FileOpener(Suite.X25519, private))
    assert len(keyring) == 1
