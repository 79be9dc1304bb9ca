"""Tokens: found, logged in to, asked; and what else than an answer may come."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pkcs11 import exceptions

from ciphermq import limits
from ciphermq.custody import keys, signatures
from ciphermq.custody.pkcs11 import library, survey
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.owner import owner_of
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.signer import TokenSigner, TokenSigningKey
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import (
    PinError,
    TokenAway,
    TokenError,
    TokenKeyUnclear,
    UsageError,
)
from ciphermq.model.suites import Suite
from support.faulty import Faults, put_between
from support.softhsm import SoftHsm, make_softhsm

SESSION_KEY = bytes(range(32))


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    return make_softhsm(tmp_path / "hsm", monkeypatch)


@pytest.fixture
def faults(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return put_between(monkeypatch)


def opens(opener: TokenOpener) -> bool:
    sealed = keys.wrap(Suite.P256, opener.public_key, SESSION_KEY, b"info")
    return opener.unwrap(sealed, b"info") == SESSION_KEY


def assert_runs(program: str, hsm: SoftHsm) -> str:
    """What `program` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **hsm.environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- beside another tool -------------------------------------------------------------------------


def test_a_key_of_pkcs11_tool_receives_and_signs(hsm: SoftHsm) -> None:
    hsm.make_ec("0a")
    token = hsm.token()
    assert opens(TokenOpener.find(token, b"\x0a"))
    key = TokenSigningKey.find(token, b"\x0a")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    assert request.sign(key, hashes.SHA256()).is_signature_valid


def test_pkcs11_tool_reads_a_key_of_ours(hsm: SoftHsm, tmp_path: Path) -> None:
    token = hsm.token()
    made = token.make_p256("made here", may=("derive", "sign"))
    shown = hsm.tool("--list-objects")
    assert made.hex() in shown
    assert "made here" in shown
    assert "never extractable" in shown
    der = tmp_path / "public.der"
    hsm.tool("--read-object", "--type", "pubkey", "--id", made.hex(), "--output-file", der)
    public = serialization.load_der_public_key(der.read_bytes())
    assert public == token.public_key(made)
    # And it uses it: what it signs is verified with what we read.
    data, signature = tmp_path / "data", tmp_path / "signature"
    data.write_bytes(hashes_of(b"by the other tool"))
    hsm.tool(
        "--sign", "--mechanism", "ECDSA", "--id", made.hex(), "--input-file", data,
        "--output-file", signature, "--signature-format", "openssl",
    )  # fmt: skip
    assert isinstance(public, ec.EllipticCurvePublicKey)
    spelled = signatures.canonical(signature.read_bytes(), public.curve)
    assert signatures.verifies(public, spelled, b"by the other tool")


def hashes_of(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


def test_an_rsa_key_of_either_decrypts(hsm: SoftHsm) -> None:
    hsm.make_rsa("0b")
    token = hsm.token()
    ours = token.make_rsa("ours", 2048)
    for key_id in (b"\x0b", ours):
        for pkcs1 in (False, True):
            pin = Pin("271828")
            steps = list(survey.round_trip(hsm.address, pin, key_id, pkcs1=pkcs1))
            assert steps[0].startswith("loaded and initialised")
            assert steps[-1] == "compared: equal"


def test_a_round_trip_with_a_p256_key_goes_by_hpke(hsm: SoftHsm) -> None:
    made = hsm.token().make_p256("x", may=("derive",))
    steps = list(survey.round_trip(hsm.address, Pin("271828"), made))
    assert any("HPKE" in step for step in steps)
    assert steps[-1] == "compared: equal"


def test_a_signature_that_is_not_the_certificates_goes_nowhere(hsm: SoftHsm) -> None:
    token = hsm.token()
    mine, other = (token.make_p256("x", may=("sign",)) for _ in range(2))
    key = TokenSigningKey.find(token, mine)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    chain = (certificate.public_bytes(serialization.Encoding.DER),)
    assert TokenSigner(token, mine, chain).sign(b"data")
    with pytest.raises(TokenError, match="names another key"):
        TokenSigner(token, other, chain).sign(b"data")


# --- finding -------------------------------------------------------------------------------------


def test_what_is_there_is_told(hsm: SoftHsm) -> None:
    hsm.make_ec("0a")
    hsm.make_rsa("0b")
    signs = hsm.token().make_p256("certificate", may=("sign",), key_id=b"\x0c")
    found = survey.look(str(hsm.module))
    (token,) = (each for each in found.tokens if each.initialised)
    assert (token.label, token.pin_locked) == (hsm.label, False)
    assert "ECDH1_DERIVE" in token.mechanisms
    by_id = {key.id: key for key in hsm.token().private_keys()}
    assert survey.uses(by_id["0a"]) == ["receiver", "wrapping", "certificate"]
    assert survey.uses(by_id["0b"]) == ["wrapping"]
    assert survey.uses(by_id[signs.hex()]) == ["certificate"]
    assert (by_id["0a"].kind, by_id["0b"].kind) == ("EC P-256", "RSA 2048")
    by_serial = Token(Address(str(hsm.module), serial=token.serial), Pin("271828"))
    assert len(by_serial.private_keys()) == 3


def test_a_key_that_is_not_there_is_told_with_those_that_are(hsm: SoftHsm) -> None:
    token = hsm.token()
    with pytest.raises(TokenKeyUnclear, match=r"no private key of id 77.*none at all"):
        token.check_private(b"\x77")
    hsm.make_ec("0a")
    for look in (token.check_private, token.public_key, lambda _: token.ecdh(b"\x77", b"")):
        with pytest.raises(TokenKeyUnclear, match=r"id 77.*0a"):
            look(b"\x77")


def test_several_keys_of_one_id_are_an_error_that_lists_them(hsm: SoftHsm) -> None:
    hsm.make_ec("0a", label="the first")
    hsm.make_ec("0a", label="the second")
    with pytest.raises(TokenKeyUnclear) as caught:
        TokenOpener.find(hsm.token(), b"\x0a")
    assert "the first" in str(caught.value)
    assert "the second" in str(caught.value)
    with pytest.raises(TokenKeyUnclear, match="2 private keys"):
        hsm.token().check_private(b"\x0a")


def test_a_new_key_takes_nobodys_id(hsm: SoftHsm) -> None:
    token = hsm.token()
    made = token.make_p256("a", may=("sign",))
    with pytest.raises(TokenError, match="already"):
        token.make_p256("b", may=("sign",), key_id=made)
    with pytest.raises(TokenError, match="already"):
        token.make_rsa("b", 2048, key_id=made)
    token.destroy(made)
    token.destroy(made)
    assert token.private_keys() == []
    assert token.make_p256("b", may=("sign",), key_id=made) == made


def test_a_key_of_the_wrong_kind_is_refused_at_once(hsm: SoftHsm) -> None:
    hsm.make_rsa("0b")
    token = hsm.token()
    with pytest.raises(TokenError, match="must be on P-256"):
        TokenOpener.find(token, b"\x0b")
    with pytest.raises(TokenError, match="must be on P-256, P-384 or P-521"):
        TokenSigningKey.find(token, b"\x0b")
    only_signs = token.make_p256("s", may=("sign",))
    with pytest.raises((TokenError, TokenAway)):
        TokenOpener.find(token, only_signs)


def test_which_token_must_be_said(hsm: SoftHsm) -> None:
    with pytest.raises(UsageError, match="label or its serial"):
        Token(Address(str(hsm.module)), None)
    hsm.init_token(hsm.label)
    with pytest.raises(TokenError, match="several tokens are labelled 'test token'"):
        hsm.token().private_keys()
    with pytest.raises(TokenAway, match="'another' is not there"):
        Token(Address(str(hsm.module), "another"), Pin("1")).private_keys()


def test_a_module_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="no PKCS#11 module at"):
        Token(Address(str(tmp_path / "none.so"), "t"), None).private_keys()
    (tmp_path / "text.so").write_text("not a shared object")
    with pytest.raises(TokenError, match="refuses"):
        Token(Address(str(tmp_path / "text.so"), "t"), None).private_keys()


def test_a_module_that_fails_is_told(hsm: SoftHsm, faults: Faults) -> None:
    faults.once("get_slots", exceptions.GeneralError())
    with pytest.raises(TokenAway, match="general error"):
        survey.look(str(hsm.module))
    faults.once("get_token", exceptions.DeviceRemoved())
    assert len(survey.look(str(hsm.module)).tokens) == 1, "the other slot is shown all the same"


def test_the_modules_of_a_machine(monkeypatch: pytest.MonkeyPatch, hsm: SoftHsm) -> None:
    monkeypatch.setattr(library, "KNOWN_MODULES", (str(hsm.module), "/nowhere.so"))
    assert library.known() == [str(hsm.module)]
    monkeypatch.setenv(library.MODULE_VARIABLE, "/named.so")
    assert library.known() == ["/named.so"]


# --- the PIN -------------------------------------------------------------------------------------


def test_a_wrong_pin_is_tried_once(hsm: SoftHsm, faults: Faults) -> None:
    for _ in range(3):
        with pytest.raises(PinError, match="refuses the PIN") as caught:
            hsm.token("1111").private_keys()
        assert "1111" not in str(caught.value)
    assert faults.calls["open"] == 1, "three tries would have brought it near its lock"
    assert hsm.token().private_keys() == [], "the right one is another matter"


def test_a_child_does_not_try_it_again_either(hsm: SoftHsm) -> None:
    program = f"""
        import os
        from ciphermq.custody.pkcs11 import desk
        from ciphermq.custody.pkcs11.address import Address
        from ciphermq.custody.pkcs11.pin import Pin
        from ciphermq.custody.pkcs11.token import Token
        from ciphermq.errors import PinError
        real, tries = desk.open_desk, []
        from ciphermq.custody.pkcs11 import token
        token.open_desk = lambda *words: (tries.append(1), real(*words))[1]
        wrong = Token(Address({str(hsm.module)!r}, {hsm.label!r}), Pin("1111"))
        def refused():
            try:
                wrong.private_keys()
            except PinError:
                return True
        assert refused()
        child = os.fork()
        if child == 0:
            os._exit(0 if refused() and len(tries) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    assert_runs(program, hsm)


def test_a_locked_token_is_told(hsm: SoftHsm, faults: Faults) -> None:
    faults.once("open", exceptions.PinLocked())
    with pytest.raises(PinError, match="locked"):
        hsm.token().private_keys()


def test_a_second_login_is_none(hsm: SoftHsm, faults: Faults) -> None:
    """Another part of the program may have logged in: the module is then, for all of it."""
    faults.once("open", exceptions.UserAlreadyLoggedIn())
    with pytest.raises(TokenKeyUnclear):
        hsm.token().public_key(b"\x01")


# --- away, and back ------------------------------------------------------------------------------

GONE = [
    exceptions.DeviceRemoved(),
    exceptions.DeviceError(),
    exceptions.TokenNotPresent(),
    exceptions.SessionHandleInvalid(),
    exceptions.SessionClosed(),
    exceptions.UserNotLoggedIn(),
    exceptions.ObjectHandleInvalid(),
    exceptions.GeneralError(),
]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_session_that_died_is_replaced_without_a_word(
    hsm: SoftHsm, faults: Faults, error: Exception
) -> None:
    opener = TokenOpener.make(hsm.token())
    faults.once("derive_key", error)
    assert opens(opener)


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_token_that_is_away_is_said_to_be_and_is_survived(
    hsm: SoftHsm, faults: Faults, error: Exception
) -> None:
    opener = TokenOpener.make(hsm.token())
    faults.always("*", error)
    for _ in range(3):
        with pytest.raises(TokenAway):
            opens(opener)
    faults.mend()
    assert opens(opener)


def test_a_token_is_taken_away_at_any_single_call(hsm: SoftHsm, faults: Faults) -> None:
    """Whichever call it happens at: told, or not noticed; and all is well afterwards."""
    opener = TokenOpener.make(hsm.token())
    faults.calls.clear()
    with hsm_reset(faults):
        assert opens(opener)
    names = set(faults.calls)
    assert {"derive_key", "get_attribute", "destroy", "open", "get_slots"} <= names
    for name in sorted(names):
        faults.once("derive_key", exceptions.DeviceRemoved())
        faults.once(name, exceptions.DeviceRemoved())
        with contextlib.suppress(TokenAway):
            assert opens(opener)
        faults.mend()
        assert opens(opener), name


class hsm_reset:  # noqa: N801 - a word in a sentence
    """Make the next call find its session dead."""

    def __init__(self, faults: Faults) -> None:
        faults.once("derive_key", exceptions.SessionHandleInvalid())

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    "look", [Token.private_keys, lambda token: token.public_key(b"\x0a")], ids=["keys", "public"]
)
def test_a_token_is_taken_away_while_one_looks(
    hsm: SoftHsm, faults: Faults, look: Callable[[Token], object]
) -> None:
    hsm.make_ec("0a")
    token = hsm.token()
    look(token)
    faults.once("get_attribute", exceptions.DeviceRemoved())
    look(token)
    faults.always("get_attribute", exceptions.DeviceRemoved())
    with pytest.raises(TokenAway):
        look(token)
    hsm.make_ec("0a")
    with pytest.raises(TokenAway):
        token.public_key(b"\x0a")  # there are two, and it can't be told which


def test_what_the_token_refuses_is_no_reason_to_wait(hsm: SoftHsm, faults: Faults) -> None:
    opener = TokenOpener.make(hsm.token())
    faults.once("derive_key", exceptions.MechanismInvalid())
    with pytest.raises(TokenError, match="mechanism invalid"):
        opens(opener)
    assert opens(opener)


# --- slow ----------------------------------------------------------------------------------------


def test_a_call_that_hangs_is_given_up(hsm: SoftHsm, faults: Faults) -> None:
    opener = TokenOpener.make(hsm.token())
    goes_on = threading.Event()
    faults.always("derive_key", lambda: goes_on.wait(60) and None)
    impatient = TokenOpener(hsm.token(timeout=0.05), opener.object_id, opener.public_key)
    before = faults.calls["derive_key"]
    for _ in range(3):
        with pytest.raises(TokenAway, match="has not answered within"):
            opens(impatient)
    faults.mend()
    goes_on.set()
    assert opens(opener), "the owner is free again"
    # The one that hung and the last; fewer where the machine was too slow to begin the first.
    assert faults.calls["derive_key"] <= before + 2, "what nobody waited for was not begun"


def test_calls_from_many_threads_come_one_by_one(hsm: SoftHsm, faults: Faults) -> None:
    opener = TokenOpener.make(hsm.token())
    inside, most, callers = [], [], set()

    def enter() -> None:
        callers.add(threading.current_thread().name)
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    faults.always("*", enter)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(opens(opener))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert max(most) == 1
    assert callers == {f"ciphermq token {hsm.module}"}


def test_one_session_serves_all(hsm: SoftHsm, faults: Faults) -> None:
    opener = TokenOpener.make(hsm.token())
    assert opens(opener)
    before = faults.calls.copy()
    others = [TokenOpener(hsm.token(), opener.object_id, opener.public_key) for _ in range(3)]
    assert all(opens(each) for each in others)
    spent = faults.calls - before
    assert spent == {"derive_key": 3, "get_attribute": 3, "destroy": 3}


def test_calls_are_counted_by_what_they_are_for(hsm: SoftHsm) -> None:
    token = hsm.token()
    opener = TokenOpener.make(token)
    before = token.call_counts()
    for _ in range(5):
        assert opens(opener)
    after = token.call_counts()
    assert after["ecdh"] - before["ecdh"] == 5
    assert {what for what in after if after[what] != before.get(what, 0)} == {"ecdh"}


def test_an_owners_errors_are_the_callers(hsm: SoftHsm) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        owner_of(str(hsm.module)).do(fail)
    assert owner_of(str(hsm.module)) is owner_of(str(hsm.module))
    assert owner_of(str(hsm.module)).do(lambda owner: owner.path) == str(hsm.module)


# --- forks ---------------------------------------------------------------------------------------


def test_a_child_has_an_owner_of_its_own(hsm: SoftHsm) -> None:
    """Parent and child use one token, each through its own copy of the module."""
    made = hsm.token().make_p256("x", may=("derive",))
    program = f"""
        import os, sys
        from ciphermq.custody import keys
        from ciphermq.custody.pkcs11.address import Address
        from ciphermq.custody.pkcs11.opener import TokenOpener
        from ciphermq.custody.pkcs11.pin import Pin
        from ciphermq.custody.pkcs11.token import Token
        token = Token(Address({str(hsm.module)!r}, {hsm.label!r}), Pin("271828"))
        opener = TokenOpener.find(token, bytes.fromhex({made.hex()!r}))
        def works():
            opener.check()
            return True
        assert works()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(0 if works() else 1)
            assert works()
            assert os.waitpid(child, 0)[1] == 0
        assert works()
    """
    assert_runs(program, hsm)


# --- really away ---------------------------------------------------------------------------------


def test_a_token_that_is_really_pulled_out_and_put_back(hsm: SoftHsm) -> None:
    """No layer of ours in between: SoftHSM itself misses its token, and finds it again."""
    opener = TokenOpener.make(hsm.token())
    for _ in range(2):
        assert opens(opener)
        hsm.pull_out()
        for _ in range(3):
            with pytest.raises(TokenAway, match="is not there: plug it in"):
                opens(opener)
        hsm.put_back()
        assert opens(opener)


def test_a_token_that_is_not_there_at_the_start_is_said_to_be_away(hsm: SoftHsm) -> None:
    made = hsm.token().make_p256("x", may=("derive",))
    public = TokenOpener.find(hsm.token(), made).public_key
    program = f"""
        import sys
        from ciphermq.custody import keys
        from ciphermq.custody.pkcs11.address import Address
        from ciphermq.custody.pkcs11.opener import TokenOpener
        from ciphermq.custody.pkcs11.pin import Pin
        from ciphermq.custody.pkcs11.token import Token
        from ciphermq.errors import TokenAway
        token = Token(Address({str(hsm.module)!r}, "not there"), Pin("271828"))
        opener = TokenOpener(token, bytes.fromhex({made.hex()!r}), bytes.fromhex({public.hex()!r}))
        try:
            opener.check()
        except TokenAway as away:
            print(away)
    """
    assert "is not there: plug it in" in assert_runs(program, hsm)


def test_limits_make_sense() -> None:
    assert limits.TOKEN_POLL < limits.TOKEN_TIMEOUT < limits.TOKEN_KEY_TIMEOUT
    assert limits.TOKEN_SESSION_KEY_LIFETIME > limits.NACK_BACKOFF_MOST
