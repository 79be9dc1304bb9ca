"""An identity's own sealing keys: renewed in time, kept long enough, never lost track of."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.client import ownkeys
from ciphermq.client.ownkeys import OwnKeys
from ciphermq.errors import IdentityError, PassphraseError
from ciphermq.model import keyrecord
from ciphermq.model.keyrecord import KeyRecord
from ciphermq.model.suites import Suite
from support.sealing import DAY_MS, NOW_MS, MemoryAuthority, Party

BOB = MemoryAuthority().party("bob")
LIFE_MS = limits.KEY_RECORD_LIFETIME * 1000


@pytest.fixture
def keys(tmp_path: Path) -> OwnKeys:
    return OwnKeys.create(tmp_path / "sealing", Suite.X25519, None)


def record(keys: OwnKeys, now_ms: int = NOW_MS, party: Party = BOB) -> KeyRecord:
    made = keys.record(party.signer, "bob", now_ms, now_ms + LIFE_MS)
    return keyrecord.parse(made).record


def reopened(keys: OwnKeys) -> OwnKeys:
    return OwnKeys(keys.directory, None)


def test_the_first_key(keys: OwnKeys) -> None:
    assert keys.current.suite is Suite.X25519
    assert list(keys.keyring) == [keys.current]
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [keys.directory, *keys.directory.iterdir()]
    }
    assert modes.pop("sealing") == 0o700
    assert set(modes.values()) == {0o600}
    assert set(modes) == {f"{keys.current.key_id.hex()}.key", "keys.json"}


def test_a_record_is_of_the_current_key(keys: OwnKeys) -> None:
    made = record(keys)
    assert made.key_id == keys.current.key_id
    assert made.public_key == keys.current.public_key
    assert made.version == NOW_MS
    assert (made.not_before_ms, made.not_after_ms) == (NOW_MS, NOW_MS + LIFE_MS)


def test_a_record_is_used_for_half_of_its_life(keys: OwnKeys) -> None:
    first = record(keys)
    assert record(keys, NOW_MS + LIFE_MS // 2) == first
    assert record(reopened(keys), NOW_MS + LIFE_MS // 2) == first
    second = record(keys, NOW_MS + LIFE_MS // 2 + 1)
    assert second.version > first.version
    assert second.key_id == first.key_id


def test_another_certificate_takes_another_record(keys: OwnKeys) -> None:
    first = record(keys)
    renewed = MemoryAuthority().party("bob")
    second = record(keys, party=renewed)
    assert second.certificate_sha256 == renewed.signer.certificate_sha256
    assert second.version == first.version + 1


def test_a_clock_that_goes_back_does_not_bring_versions_back(keys: OwnKeys) -> None:
    first = record(keys)
    second = record(keys, NOW_MS - DAY_MS)
    assert second.version == first.version + 1
    assert second.not_before_ms == NOW_MS - DAY_MS


@settings(max_examples=12)  # each writes and syncs real files
@given(st.lists(st.integers(0, 10 * LIFE_MS), min_size=1, max_size=6))
def test_versions_rise_whatever_the_clock_does(
    tmp_path_factory: pytest.TempPathFactory, clock: list[int]
) -> None:
    keys = OwnKeys.create(tmp_path_factory.mktemp("own") / "keys", Suite.X25519, None)
    versions = []
    for step_ms in clock:
        now_ms = NOW_MS + step_ms
        made = keys.new_record(BOB.signer, "bob", now_ms, now_ms + LIFE_MS)
        versions.append(keyrecord.parse(made).record.version)
        keys = reopened(keys)
    assert versions == sorted(set(versions))


def test_a_new_key_is_taken_into_use_and_the_old_one_kept(keys: OwnKeys) -> None:
    old = keys.current
    first = record(keys)
    new = keys.rotate()
    assert keys.current is new
    assert new.suite is old.suite
    assert old.key_id in keys.keyring
    second = record(keys)
    assert (second.key_id, second.version) == (new.key_id, first.version + 1)
    again = reopened(keys)
    assert again.current.key_id == new.key_id
    assert again.keyring.find(old.key_id).public_key == old.public_key


def test_a_new_key_may_be_of_another_suite(keys: OwnKeys) -> None:
    assert keys.rotate(Suite.MLKEM768_X25519).suite is Suite.MLKEM768_X25519
    assert record(keys).suite is Suite.MLKEM768_X25519


def test_a_former_key_is_kept_until_no_batch_can_name_it(keys: OwnKeys) -> None:
    old = keys.current.key_id
    end_ms = record(keys).not_after_ms
    keys.rotate()
    last_ms = end_ms + (limits.MAX_MESSAGE_AGE + limits.DAY) * 1000
    assert keys.prune(last_ms) == []
    assert old in reopened(keys).keyring
    assert keys.prune(last_ms + 1) == [old]
    assert old not in keys.keyring
    assert old not in reopened(keys).keyring
    assert not (keys.directory / f"{old.hex()}.key").exists()
    # The current one stays, however old.
    assert keys.prune(NOW_MS * 2) == []


def test_a_process_notices_a_key_that_another_took_into_use(keys: OwnKeys) -> None:
    other = reopened(keys)
    record(keys)
    new = other.rotate()
    assert keys.current.key_id != new.key_id
    record(other)
    assert record(keys).key_id == new.key_id
    assert keys.current.key_id == new.key_id


def test_a_key_half_taken_into_use_does_no_harm(keys: OwnKeys) -> None:
    """Killed after the key's file and before the state: the file is there, nothing names it."""
    stray = ownkeys._write_new_key(keys.directory, Suite.X25519, None)
    again = reopened(keys)
    assert again.current.key_id == keys.current.key_id
    assert stray.key_id in again.keyring


def test_encrypted_keys_need_their_secret(tmp_path: Path) -> None:
    keys = OwnKeys.create(tmp_path / "sealing", Suite.X25519, b"secret")
    assert OwnKeys(keys.directory, b"secret").current.key_id == keys.current.key_id
    keys.rotate()
    assert len(OwnKeys(keys.directory, b"secret").keyring) == 2
    for wrong in (None, b"wrong"):
        with pytest.raises(PassphraseError):
            OwnKeys(keys.directory, wrong)


def test_a_lost_key_is_told_at_the_start(keys: OwnKeys) -> None:
    (keys.directory / f"{keys.current.key_id.hex()}.key").unlink()
    with pytest.raises(IdentityError, match=r"is missing: restore it from a backup"):
        reopened(keys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "is damaged"),
        ("", "is damaged"),
        ('{"current": "../../etc/passwd"}', "is damaged"),
        ('{"current": "00000000000000000000000000000000", "format": 2}', "upgrade this program"),
    ],
)
def test_a_damaged_state(keys: OwnKeys, text: str, sentence: str) -> None:
    path = keys.directory / "keys.json"
    path.write_text(text)
    with pytest.raises(IdentityError, match=sentence):
        reopened(keys)


def test_a_damaged_record_is_not_registered(keys: OwnKeys) -> None:
    record(keys)
    path = keys.directory / "record.pem"
    path.write_text("hello")
    with pytest.raises(IdentityError, match="remove it, a new one is made"):
        record(keys)
    path.unlink()
    assert record(keys).version == NOW_MS + 1


def test_a_record_that_is_none_any_more_is_made_anew(keys: OwnKeys) -> None:
    first = record(keys)
    from ciphermq.custody.armour import armour

    path = keys.directory / "record.pem"
    path.write_bytes(armour("CIPHERMQ KEY RECORD", b"of some other program"))
    assert record(keys).version == first.version + 1
