"""Secrets under a token's key, references to keys there, and PINs."""

from __future__ import annotations

import pickle
from pathlib import Path
from traceback import TracebackException
from typing import Any, get_args

import msgspec
import pytest
from pkcs11 import exceptions

from ciphermq.custody.armour import armour, strip_armour
from ciphermq.custody.files import HSM_WRAPPED, REFERENCE, is_elsewhere, is_wrapped
from ciphermq.custody.pkcs11 import pin as pins
from ciphermq.custody.pkcs11 import reference, wrapping
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import (
    ConfigError,
    IdentityError,
    PinError,
    TokenAway,
    TokenError,
    TokenKeyUnclear,
)
from support.faulty import put_between
from support.softhsm import SoftHsm, make_softhsm

SECRET = b"what the disk must not show"
PURPOSE = "a test"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    return make_softhsm(tmp_path / "hsm", monkeypatch)


KINDS: dict[str, dict[str, Any]] = {
    "rsa-oaep": {"rsa": True},
    "rsa-pkcs1-v1.5": {"rsa": True, "pkcs1": True},
    "p256": {"rsa": False},
}


@pytest.mark.parametrize("method", get_args(wrapping.Method))
def test_a_wrapped_secret_opens_with_its_key_alone(hsm: SoftHsm, method: str) -> None:
    token = hsm.token()
    kind = KINDS[method]
    made = [
        token.make_rsa("k", 2048) if kind["rsa"] else token.make_p256("k", may=("derive",))
        for _ in range(2)
    ]
    text = wrapping.wrap(SECRET, token, made[0], purpose=PURPOSE, pkcs1=kind.get("pkcs1", False))
    assert is_wrapped(text)
    assert SECRET not in strip_armour(HSM_WRAPPED, text)
    wrapped = wrapping.decode(text, "the file")
    assert wrapped.method == method
    assert wrapped.open(token, PURPOSE, "the file") == SECRET
    with pytest.raises(IdentityError, match="the file holds 'a test', not 'another'"):
        wrapped.open(token, "another", "the file")
    for name, value in (
        ("id", made[1]),
        ("label", "other"),
        ("serial", "other"),
        ("nonce", bytes(12)),
        ("sealed", wrapped.sealed[:-1] + bytes([wrapped.sealed[-1] ^ 1])),
        ("sealed", b""),
        ("wrapped", wrapped.wrapped[:-1] + bytes([wrapped.wrapped[-1] ^ 1])),
    ):
        changed = msgspec.structs.replace(wrapped, **{name: value})
        # Whatever the token calls it, one sentence: neither a reason to wait for the token, nor
        # one to tell what of it did not fit.
        with pytest.raises(IdentityError, match=r"the file does not open with the key"):
            changed.open(token, PURPOSE, "the file")
    assert wrapped.open(token, PURPOSE, "the file") == SECRET


def test_the_method_can_not_be_changed(hsm: SoftHsm) -> None:
    token = hsm.token()
    made = token.make_rsa("k", 2048)
    methods: list[wrapping.Method] = ["rsa-oaep", "rsa-pkcs1-v1.5"]
    for pkcs1, other in ((False, methods[1]), (True, methods[0])):
        text = wrapping.wrap(SECRET, token, made, purpose=PURPOSE, pkcs1=pkcs1)
        changed = msgspec.structs.replace(wrapping.decode(text, "it"), method=other)
        with pytest.raises(IdentityError, match="does not open with the key"):
            changed.open(token, PURPOSE, "the file")


@pytest.mark.parametrize(
    "error",
    [exceptions.EncryptedDataInvalid(), exceptions.GeneralError(), exceptions.FunctionFailed()],
    ids=lambda error: type(error).__name__,
)
def test_a_token_that_does_not_decrypt_is_not_away(
    hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    faults = put_between(monkeypatch)
    token = hsm.token()
    wrapped = wrapping.decode(
        wrapping.wrap(SECRET, token, token.make_rsa("k", 2048), purpose=PURPOSE), "it"
    )
    faults.always("decrypt", error)
    with pytest.raises(IdentityError, match="it was wrapped by another key, or is damaged"):
        wrapped.open(token, PURPOSE, "the file")
    for name in ("decrypt", "*"):
        faults.always(name, exceptions.GeneralError())
    with pytest.raises(TokenAway):
        wrapped.open(token, PURPOSE, "the file")
    faults.mend()
    assert wrapped.open(token, PURPOSE, "the file") == SECRET


def test_each_wrapping_has_a_key_of_its_own(hsm: SoftHsm) -> None:
    token = hsm.token()
    made = token.make_p256("k", may=("derive",))
    texts = {wrapping.wrap(SECRET, token, made, purpose=PURPOSE) for _ in range(3)}
    assert len(texts) == 3


def test_pkcs1_is_for_rsa(hsm: SoftHsm) -> None:
    token = hsm.token()
    made = token.make_p256("k", may=("derive",))
    with pytest.raises(TokenError, match="is no RSA key"):
        wrapping.wrap(SECRET, token, made, purpose=PURPOSE, pkcs1=True)
    with pytest.raises(TokenKeyUnclear):
        wrapping.wrap(SECRET, token, b"\x77", purpose=PURPOSE)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xc1", msgspec.msgpack.encode({"method": "rot13"}), msgspec.msgpack.encode([])],
)
def test_what_is_no_wrapped_secret_is_told(content: bytes) -> None:
    with pytest.raises(IdentityError, match=r"my\.key is damaged"):
        wrapping.decode(armour(HSM_WRAPPED, content), "my.key")
    with pytest.raises(IdentityError, match=r"my\.key is damaged"):
        wrapping.decode(b"text", "my.key")


def test_a_later_format_is_told(hsm: SoftHsm) -> None:
    token = hsm.token()
    made = token.make_p256("k", may=("derive",))
    wrapped = wrapping.decode(wrapping.wrap(SECRET, token, made, purpose=PURPOSE), "it")
    later = armour(HSM_WRAPPED, msgspec.msgpack.encode(msgspec.structs.replace(wrapped, format=2)))
    with pytest.raises(IdentityError, match="format 2: upgrade"):
        wrapping.decode(later, "it")


# --- references ----------------------------------------------------------------------------------


def test_a_reference_leads_to_its_key_without_asking_the_token(hsm: SoftHsm) -> None:
    opener = TokenOpener.make(hsm.token())
    text = reference.encode(opener)
    assert is_elsewhere(text)
    found = reference.decode(text, "it", hsm.token())
    assert (found.key_id, found.object_id) == (opener.key_id, opener.object_id)
    assert found.public_key == opener.public_key
    found.check()


def test_a_damaged_reference_is_told(hsm: SoftHsm) -> None:
    token = hsm.token()
    opener = TokenOpener(token, b"\x01", b"\x04" + bytes(64))
    content = strip_armour(REFERENCE, reference.encode(opener))
    for changed in (b"", content[:80], b"\x02" + content[1:], content + bytes(64)):
        with pytest.raises(IdentityError, match="it is damaged"):
            reference.decode(armour(REFERENCE, changed), "it", token)
    other = content[:20] + bytes([content[20] ^ 1]) + content[21:]
    with pytest.raises(IdentityError, match="does not hold the key that it names"):
        reference.decode(armour(REFERENCE, other), "it", token)
    with pytest.raises(IdentityError, match=r"identity\.toml names none"):
        reference.decode(armour(REFERENCE, content), "it", None)
    with pytest.raises(IdentityError, match="it is damaged"):
        reference.decode(b"text", "it", token)


# --- PINs ----------------------------------------------------------------------------------------


def test_a_refused_pin_is_in_no_traceback(hsm: SoftHsm) -> None:
    secret = "161803398"
    token = Token(hsm.address, Pin(secret))
    for _ in range(2):
        with pytest.raises(PinError) as caught:
            token.private_keys()
        # As reporters of crashes show it, with all that the frames held.
        shown = TracebackException.from_exception(caught.value, capture_locals=True)
        own = [frame for frame in shown.stack if "custody/pkcs11" in frame.filename]
        assert own
        assert not [frame for frame in own if secret in str(frame.locals)]


def test_a_pin_shows_nowhere() -> None:
    pin = Pin("314159")
    for shown in (repr(pin), str(pin), f"{pin}", f"{[pin]}"):
        assert "314159" not in shown
    with pytest.raises(TypeError, match="not stored"):
        pickle.dumps(pin)
    assert pin.reveal() == "314159"


@pytest.mark.parametrize("value", ["", "1" * 65, "12\n34", "\x00"])
def test_what_is_no_pin(value: str) -> None:
    with pytest.raises(PinError) as caught:
        Pin(value)
    assert value not in str(caught.value) or not value


def test_where_a_pin_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pin"
    file.write_text("2718\nnot this\n")
    file.chmod(0o600)
    monkeypatch.setenv("MY_PIN", "3141")
    assert pins.read("file:pin", tmp_path).reveal() == "2718"
    assert pins.read(f"file:{file}", Path("/")).reveal() == "2718"
    assert pins.read("env:MY_PIN", tmp_path).reveal() == "3141"
    monkeypatch.delenv("CIPHERMQ_PIN", raising=False)
    with pytest.raises(PinError, match="CIPHERMQ_PIN, or at the prompt"):
        pins.read("prompt", tmp_path)
    with pytest.raises(PinError, match=r"\$OTHER"):
        pins.read("env:OTHER", tmp_path)
    monkeypatch.setenv("CIPHERMQ_PIN", "1618")
    assert pins.read("prompt", tmp_path).reveal() == "1618"


def test_a_pins_file_is_private_and_text(tmp_path: Path) -> None:
    file = tmp_path / "pin"
    file.write_bytes(b"2718\n")
    file.chmod(0o644)
    with pytest.raises(IdentityError, match="open to others"):
        pins.read_file(file)
    file.chmod(0o600)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(PinError, match="not text"):
        pins.read_file(file)
    with pytest.raises(IdentityError, match="missing"):
        pins.read("file:none", tmp_path)


@pytest.mark.parametrize("source", ["1234", "env:", "file:", "", "Env:PIN", "file:a\nb"])
def test_what_is_no_pins_source(source: str) -> None:
    with pytest.raises(ConfigError, match="never the PIN itself"):
        pins.check_source(source, "identity.toml")
