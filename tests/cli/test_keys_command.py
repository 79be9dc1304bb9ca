"""`ciphermq keys` with a broker, without one, and with a key that changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.client import enrol
from ciphermq.client.identity import Identity
from ciphermq.custody import onex
from ciphermq.model import keyrecord
from ciphermq.pki.verify import key_sha256
from cli.stored import run_json
from support.background import background_broker
from support.deployment import Deployment, make_deployment, now_ms
from support.terminal import Terminal

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    made = make_deployment(tmp_path, ["alice", "bob"])
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    monkeypatch.setenv("CIPHERMQ_IDENTITY", "alice")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CIPHERMQ_URL", "cmq://127.0.0.1:1")  # where nothing listens
    return made


@pytest.fixture
def broker(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A running one; bob has registered his key."""
    with background_broker(deployment) as broker:
        monkeypatch.setenv("CIPHERMQ_URL", broker.url)
        assert run(["keys", "renew", "--identity", "bob"]) == 0
        yield


def key_of(deployment: Deployment, name: str) -> str:
    certificate = deployment.load(name).certificate
    return key_sha256(certificate.public_key()).hex()  # type: ignore[arg-type]


def change_key(deployment: Deployment, name: str) -> None:
    """A new certificate key, and a record of it at the broker."""
    enrol.renew_with_new_key(
        deployment.identity(name),
        authority=deployment.authority,
        now_ms=now_ms(),
        passphrase=None,
    )
    assert run(["keys", "renew", "--identity", name]) == 0


# --- one's own ------------------------------------------------------------------------------------


def test_one_s_own_key_needs_no_broker(deployment: Deployment, capsys: Capture) -> None:
    alice = deployment.load("alice")
    status, shown = run_json(capsys, "keys", "show")
    assert status == 0
    assert shown["client"] == "alice"
    assert shown["key_id"] == alice.current_key.key_id.hex()
    assert shown["certificate_key"] == key_of(deployment, "alice")
    assert run_json(capsys, "keys", "show", "alice") == (0, shown)
    status, shown = run_json(capsys, "keys", "fingerprint")
    assert shown == {
        "client": "alice",
        "certificate_key": key_of(deployment, "alice"),
        "trusted": "own",
    }


def test_fingerprints_are_grouped_for_people(deployment: Deployment, capsys: Capture) -> None:
    assert run(["keys", "fingerprint", "--identity", "bob"]) == 0
    said = capsys.readouterr().out
    digits = key_of(deployment, "bob").upper()
    assert f"{digits[:4]} {digits[4:8]} " in said
    assert digits in said.replace(" ", "")


def test_a_renewal_without_a_broker_is_kept_for_later(
    deployment: Deployment, capsys: Capture
) -> None:
    status, done = run_json(capsys, "keys", "renew")
    assert (status, done["registered"]) == (4, False)
    assert run(["keys", "renew"]) == 4
    out, err = capsys.readouterr()
    assert "will be registered when it next receives" in out
    assert "not registered yet" in err
    kept = keyrecord.parse(deployment.load("alice").key_record(now_ms())).record
    assert kept.version > done["version"]


def test_a_renewal_is_registered(deployment: Deployment, broker: None, capsys: Capture) -> None:
    before = deployment.load("bob").current_key.key_id.hex()
    status, done = run_json(capsys, "keys", "renew", "--identity", "bob")
    assert (status, done["registered"], done["key_id"]) == (0, True, before)
    status, done = run_json(capsys, "keys", "renew", "--new-key", "--identity", "bob")
    assert (status, done["registered"]) == (0, True)
    assert done["key_id"] != before
    status, shown = run_json(capsys, "keys", "show", "bob")
    assert (status, shown["key_id"], shown["version"]) == (0, done["key_id"], done["version"])


# --- others ---------------------------------------------------------------------------------------


def test_a_key_is_fetched_verified_and_remembered(
    deployment: Deployment, broker: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_json(capsys, "keys", "list") == (0, [])
    status, shown = run_json(capsys, "keys", "show", "bob")
    assert status == 0
    assert shown["key_id"] == deployment.load("bob").current_key.key_id.hex()
    assert shown["certificate_key"] == key_of(deployment, "bob")
    assert shown["trusted"] == "on first sight"
    monkeypatch.setenv("CIPHERMQ_URL", "cmq://127.0.0.1:1")
    assert run(["keys", "show", "bob"]) == 0
    out, err = capsys.readouterr()
    assert "on first sight" in out
    assert "could not be asked" in err
    status, offline = run_json(capsys, "keys", "show", "bob", "--offline")
    assert (status, offline["version"]) == (0, shown["version"])
    status, (entry,) = run_json(capsys, "keys", "list")
    assert (entry["client"], entry["certificate_key"]) == ("bob", key_of(deployment, "bob"))
    assert run(["keys", "list"]) == 0
    assert key_of(deployment, "bob")[:16] in capsys.readouterr().out


def test_a_stranger_s_fingerprint_is_asked_for_once(
    deployment: Deployment, broker: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, error = run_json(capsys, "keys", "fingerprint", "bob", "--offline")
    assert (status, error["error"]) == (5, "unknown-receiver")
    expected = {
        "client": "bob",
        "certificate_key": key_of(deployment, "bob"),
        "trusted": "on first sight",
    }
    assert run_json(capsys, "keys", "fingerprint", "bob") == (0, expected)
    monkeypatch.setenv("CIPHERMQ_URL", "cmq://127.0.0.1:1")
    assert run_json(capsys, "keys", "fingerprint", "bob") == (0, expected)


def test_nobody_of_that_name(deployment: Deployment, broker: None, capsys: Capture) -> None:
    status, error = run_json(capsys, "keys", "show", "nobody")
    assert (status, error["error"]) == (5, "unknown-receiver")
    assert "nobody named 'nobody' has registered a key" in error["message"]


def test_never_seen_and_no_broker(deployment: Deployment, capsys: Capture) -> None:
    assert run(["keys", "show", "bob"]) == 5
    assert "nothing is remembered of 'bob'" in capsys.readouterr().err


# --- a changed certificate key --------------------------------------------------------------------


def test_a_changed_key_is_shown_with_its_reason(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    assert run(["keys", "show", "bob"]) == 0
    old = key_of(deployment, "bob")
    change_key(deployment, "bob")
    new = key_of(deployment, "bob")
    capsys.readouterr()
    assert run(["keys", "show", "bob", "--json"]) == 5
    out, err = capsys.readouterr()
    assert f'"certificate_key": "{old}"' in out
    assert f'"refused_key": "{new}"' in out
    assert "certificate-key-changed" in err
    assert f"ciphermq keys trust bob --fingerprint {new}" in err


def test_it_is_trusted_by_its_fingerprint(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    assert run(["keys", "show", "bob"]) == 0
    change_key(deployment, "bob")
    new = key_of(deployment, "bob")
    status, done = run_json(capsys, "keys", "trust", "bob", "--fingerprint", new)
    assert (status, done["trusted"]) == (0, "by hand")
    status, shown = run_json(capsys, "keys", "show", "bob")
    assert (status, shown["certificate_key"], shown["trusted"]) == (0, new, "by hand")


def test_a_wrong_fingerprint_lets_nobody_in(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    assert run(["keys", "trust", "bob", "--fingerprint", "ab" * 32]) == 0
    assert run(["keys", "show", "bob"]) == 5
    assert run(["keys", "trust", "bob", "--fingerprint", "abc"]) == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err


def test_it_is_not_trusted_where_nobody_can_compare(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    capsys.readouterr()
    assert run(["keys", "trust", "bob"]) == 2
    assert "say --fingerprint" in capsys.readouterr().err
    assert run_json(capsys, "keys", "list") == (0, [])


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 130)])
def test_a_person_compares(
    deployment: Deployment, broker: None, capsys: Capture, answer: str, status: int
) -> None:
    assert run(["keys", "show", "bob"]) == 0
    old = key_of(deployment, "bob")
    change_key(deployment, "bob")
    new = key_of(deployment, "bob")
    with Terminal("keys", "trust", "bob", cwd=deployment.home) as terminal:
        terminal.expect("bob had the key")
        terminal.expect("bob shows the key")
        terminal.expect("Did bob tell you this fingerprint itself? [y/N]:")
        assert new in terminal.output.replace(" ", "").lower()
        terminal.type(answer)
        assert terminal.wait() == status
    known = Identity.load(deployment.identity("alice")).trust.known("bob")
    assert known is not None
    assert (known.pin, known.by_hand) == ((new, True) if answer == "y" else (old, False))


def test_a_broker_that_goes_back_to_an_old_record_is_found_out(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    """As if the broker had been restored from a backup, or wished to harm."""
    trust = deployment.load("alice").trust
    bob = deployment.load("bob")
    verifier = deployment.load("alice").verifier
    future = bob.make_key_record(now_ms())
    trust.accept(future, expected_client="bob", verifier=verifier, now_ms=now_ms())
    assert run(["keys", "show", "bob"]) == 5
    assert "keys renew" in capsys.readouterr().err
    assert run(["keys", "renew", "--identity", "bob"]) == 0
    assert run(["keys", "show", "bob"]) == 0


# --- CipherMQ 1.x ---------------------------------------------------------------------------------


def test_a_1x_key_is_trusted_by_its_fingerprint_only(
    deployment: Deployment, capsys: Capture
) -> None:
    assert run(["keys", "trust", "bob", "--one-x"]) == 2
    assert "--fingerprint" in capsys.readouterr().err
    digest = "ab" * 32
    status, told = run_json(capsys, "keys", "trust", "bob", "--one-x", "--fingerprint", digest)
    assert (status, told["one_x_key"]) == (0, digest)
    trust = deployment.load("alice").trust
    assert trust.onex_pin("bob") == digest
    # It says nothing about the key that bob signs with.
    assert trust.known("bob") is None


def test_a_1x_key_is_offered_only_where_it_is_enabled(
    deployment: Deployment, broker: None, capsys: Capture
) -> None:
    assert run(["keys", "offer"]) == 2
    assert "enable [one_x]" in capsys.readouterr().err


def test_a_1x_key_is_offered(
    deployment: Deployment, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = deployment.identity("alice")
    assert run(["keys", "make", "--out", str(directory / "one_x")]) == 0
    with (directory / "identity.toml").open("a") as file:
        file.write('\n[one_x]\nenabled = true\ndialect = "ciphermq-1.4"\n')
    monkeypatch.setenv("CIPHERMQ_ONE_X__ENABLED", "true")
    with background_broker(deployment) as broker:
        monkeypatch.setenv("CIPHERMQ_URL", broker.url)
        status, told = run_json(capsys, "keys", "offer")
    made = onex.load_public_key(directory / "one_x" / "receiver_public.key")
    assert (status, told["fingerprint"]) == (0, onex.fingerprint(made))
