"""Keys of 1.x: files, registration, fingerprints, seals."""

from __future__ import annotations

import base64
import hashlib
import logging
import stat
from pathlib import Path

import pytest

from ciphermq.custody import onex
from ciphermq.custody.onex import OnexKey
from ciphermq.directory.onex import check_pinned
from ciphermq.errors import (
    IdentityError,
    KeyNotPinned,
    KeyRecordMalformed,
    PinnedKeyChanged,
    WrapRefused,
)
from ciphermq.model.onex import SessionSeal

OTHER = {SessionSeal.V1_4: SessionSeal.V1_5, SessionSeal.V1_5: SessionSeal.V1_4}


@pytest.fixture
def key() -> OnexKey:
    return OnexKey(hashlib.sha256(b"a test's key").digest())


def test_a_pair_is_made_as_1_x_has_it(tmp_path: Path) -> None:
    key = OnexKey.create(tmp_path / "keys")
    private, public = (
        tmp_path / "keys" / name for name in ("receiver_private.key", "receiver_public.key")
    )
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert len(base64.b64decode(private.read_bytes(), validate=True)) == 32
    assert OnexKey.load(private).public_key == key.public_key
    assert onex.load_public_key(public) == key.public_key
    assert onex.read_public_key(public.read_text()) == key.public_key


def test_a_pair_is_never_written_over(tmp_path: Path) -> None:
    OnexKey.create(tmp_path)
    before = (tmp_path / "receiver_private.key").read_bytes()
    with pytest.raises(IdentityError, match="there already"):
        OnexKey.create(tmp_path)
    assert (tmp_path / "receiver_private.key").read_bytes() == before


def test_a_pair_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "receiver_private.key").symlink_to(tmp_path / "nowhere" / "key")
    with pytest.raises(IdentityError):
        OnexKey.create(tmp_path)


def test_white_space_around_a_key_is_let_pass(tmp_path: Path, key: OnexKey) -> None:
    path = tmp_path / "k"
    path.touch(0o600)
    path.write_text(f"\n {onex.write_public_key(key._private)}\r\n")
    assert OnexKey.load(path).public_key == key.public_key


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_key_that_others_can_read_is_warned_about(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    OnexKey.create(tmp_path)
    path = tmp_path / "receiver_private.key"
    path.chmod(mode)
    with caplog.at_level(logging.WARNING, logger="ciphermq"):
        OnexKey.load(path)
    assert ("chmod 600" in caplog.text) == (mode != 0o600)


@pytest.mark.parametrize("content", [b"", b"A" * 43, b"AAAA", b"!" * 44, b"\xff" * 32, b"A" * 88])
def test_a_file_that_holds_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "receiver_private.key"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match="no private key"):
        OnexKey.load(path)
    with pytest.raises(IdentityError, match="no public key"):
        onex.load_public_key(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="missing"):
        OnexKey.load(tmp_path / "nothing")
    with pytest.raises(IdentityError, match="can't be read"):
        OnexKey.load(tmp_path)


def test_a_private_key_is_never_shown(key: OnexKey) -> None:
    shown = f"{key!r} {key}"
    assert onex.fingerprint(key.public_key) in shown
    assert key._private.hex() not in shown
    assert onex.write_public_key(key._private) not in shown


def test_a_private_key_of_another_length() -> None:
    with pytest.raises(IdentityError, match="not 31"):
        OnexKey(bytes(31))


# --- as registered --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "A" * 43 + "!",
        "A" * 44,
        "A" * 43 + "=",  # all zero: whatever is sealed to it, anyone can open
        base64.b64encode(b"\1" + bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        "ключ",
        base64.b64encode(b"\7" * 32).decode() + "\n",
    ],
)
def test_what_is_no_public_key_is_not_registered(text: str) -> None:
    with pytest.raises(KeyRecordMalformed, match="no public key"):
        onex.read_public_key(text)


def test_nothing_is_sealed_to_a_key_of_low_order() -> None:
    for how in SessionSeal:
        for low in (bytes(32), b"\1" + bytes(31)):
            with pytest.raises(KeyRecordMalformed, match="nothing can be sealed"):
                onex.seal(how, low, bytes(32))
        with pytest.raises(KeyRecordMalformed):
            onex.seal(how, bytes(31), bytes(32))


def test_a_key_is_sealed_to_only_under_its_pinned_fingerprint(key: OnexKey) -> None:
    public = key.public_key
    fingerprint = hashlib.sha256(public).hexdigest()
    assert check_pinned("bob", public, fingerprint) == public
    assert check_pinned("bob", public, fingerprint.upper()) == public
    with pytest.raises(KeyNotPinned, match=fingerprint):
        check_pinned("bob", public, None)
    with pytest.raises(PinnedKeyChanged, match="0000"):
        check_pinned("bob", public, "0" * 64)


# --- seals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", SessionSeal)
def test_a_seal_opens_as_what_it_was_made(how: SessionSeal, key: OnexKey) -> None:
    session_key = bytes(range(32))
    sealed = onex.seal(how, key.public_key, session_key)
    assert len(sealed) == onex.SEALED_SIZE == 80
    assert key.unseal(how, sealed) == session_key
    assert onex.seal(how, key.public_key, session_key) != sealed
    with pytest.raises(WrapRefused, match=f"was sealed as {how.value}"):
        key.unseal(OTHER[how], sealed)


@pytest.mark.parametrize("how", SessionSeal)
def test_every_changed_byte_of_a_seal_is_noticed(how: SessionSeal, key: OnexKey) -> None:
    sealed = onex.seal(how, key.public_key, bytes(32))
    # The top bit of the ephemeral key too, which X25519 itself leaves out (RFC 7748, section 5).
    for at, bit in [*((at, 1) for at in range(len(sealed))), (31, 0x80)]:
        changed = bytearray(sealed)
        changed[at] ^= bit
        with pytest.raises(WrapRefused, match="not sealed to this key"):
            key.unseal(how, bytes(changed))


@pytest.mark.parametrize("how", SessionSeal)
@pytest.mark.parametrize("size", [0, 32, 79, 81])
def test_a_seal_of_another_length(how: SessionSeal, size: int, key: OnexKey) -> None:
    with pytest.raises(WrapRefused, match=f"not {size}"):
        key.unseal(how, bytes(size))


@pytest.mark.parametrize("how", SessionSeal)
def test_a_seal_for_another_key(how: SessionSeal, key: OnexKey) -> None:
    sealed = onex.seal(how, OnexKey(bytes(range(32))).public_key, bytes(32))
    with pytest.raises(WrapRefused, match="not sealed to this key"):
        key.unseal(how, sealed)
