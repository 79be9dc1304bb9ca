"""`ciphermq hsm`, and identities on a token from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq.catalog import AtRestKey
from ciphermq.catalog.configured import configured_catalog
from ciphermq.cli.main import run
from ciphermq.client import layout
from ciphermq.client.identity import Identity
from ciphermq.client.layout import IdentitySettings
from ciphermq.custody.pkcs11 import library
from ciphermq.errors import CatalogError, ConfigError
from ciphermq.settings import load_server_settings
from cli.live import broker, deployment, receive, send
from cli.stored import run_json
from support.broker import Broker
from support.deployment import Deployment, now_ms
from support.softhsm import PIN, SoftHsm, make_softhsm
from support.terminal import Terminal

__all__ = ["broker", "deployment"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """A token, which commands find, with its PIN."""
    made = make_softhsm(tmp_path / "hsm", monkeypatch)
    monkeypatch.setenv("CIPHERMQ_PKCS11_MODULE", str(made.module))
    monkeypatch.setenv("CIPHERMQ_PIN", PIN)
    monkeypatch.chdir(tmp_path)
    return made


def says(capsys: Capture, *words: object) -> str:
    capsys.readouterr()
    status = run([*map(str, words)])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert PIN not in out + err
    return out


def refuses(capsys: Capture, status: int, *words: object) -> str:
    capsys.readouterr()
    got = run([*map(str, words)])
    out, err = capsys.readouterr()
    assert got == status, out + err
    assert PIN not in out + err
    return err


# --- list, make-key, roundtrip --------------------------------------------------------------------


def test_the_walk_through(hsm: SoftHsm, capsys: Capture) -> None:
    said = says(capsys, "hsm", "list")
    assert str(hsm.module) in said
    assert "test token" in said
    assert "ciphermq hsm list --token LABEL" in said
    status, made = run_json(capsys, "hsm", "make-key", "--type", "rsa", "--bits", "2048")
    assert (status, made["kind"], made["uses"]) == (0, "RSA 2048", ["wrapping"])
    said = says(capsys, "hsm", "roundtrip", "--id", made["id"])
    assert [line.partition(".")[0] for line in said.splitlines()] == list("12345678")
    assert "logged in as its user" in said
    assert "the modulus (2048 bits) and the public exponent (65537)" in said
    assert said.endswith("8. compared: equal\n")
    assert "PKCS#1 v1.5" in says(capsys, "hsm", "roundtrip", "--id", made["id"], "--pkcs1")
    said = says(capsys, "hsm", "make-key", "--id", "0a")
    assert said == "Made the key 0a (EC P-256) on the token 'test token'.\n"
    says(capsys, "hsm", "make-key", "--id", "0b", "--sign", "--token", "test token")
    status, found = run_json(capsys, "hsm", "list", "--token", "test token")
    assert {key["id"]: key["uses"] for key in found["keys"]} == {
        made["id"]: ["wrapping"],
        "0a": ["receiver", "wrapping"],
        "0b": ["certificate"],
    }
    assert "never" in says(capsys, "hsm", "list", "--token", "test token")
    status, found = run_json(capsys, "hsm", "roundtrip", "--id", "0a")
    assert (status, found["equal"]) == (0, True)


def test_a_module_that_is_broken_hides_no_other(
    hsm: SoftHsm, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = hsm.directory / "broken.so"
    broken.write_bytes(b"no module")
    monkeypatch.delenv("CIPHERMQ_PKCS11_MODULE")
    monkeypatch.setattr(library, "KNOWN_MODULES", (str(broken), str(hsm.module)))
    said = says(capsys, "hsm", "list")
    assert f"{broken}\n  can't be used: the module {broken}" in said
    assert hsm.label in said
    _, found = run_json(capsys, "hsm", "list")
    assert [bool(each["fault"]) for each in found["modules"]] == [True, False]
    # Nor need one say which it is, where only one shows the token.
    says(capsys, "hsm", "make-key", "--id", "0a", "--token", hsm.label)
    assert "say --module" in refuses(capsys, 2, "hsm", "make-key", "--token", "other")
    # Alone, it is what is wrong.
    assert str(broken) in refuses(capsys, 2, "hsm", "list", "--module", broken)


def test_what_can_not_be(hsm: SoftHsm, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPHERMQ_PIN", "9999")
    said = refuses(capsys, 2, "hsm", "list", "--token", "test token")
    assert "refuses the PIN" in said
    assert "9999" not in said
    monkeypatch.setenv("CIPHERMQ_PIN", PIN)
    # A token that is away may come, a PIN that was refused may not: services tell them apart.
    assert "no token 'other'" in refuses(
        capsys, 4, "hsm", "roundtrip", "--id", "01", "--token", "other"
    )
    assert "no public key of id 77" in refuses(capsys, 2, "hsm", "roundtrip", "--id", "77").replace(
        "private", "public"
    )
    assert "no key's id" in refuses(capsys, 2, "hsm", "roundtrip", "--id", "xyz")
    assert "--type is p256" in refuses(capsys, 2, "hsm", "make-key", "--type", "dsa")
    says(capsys, "hsm", "make-key", "--id", "0a")
    assert "already" in refuses(capsys, 2, "hsm", "make-key", "--id", "0a")
    assert "no PKCS#11 module at" in refuses(capsys, 2, "hsm", "list", "--module", "/nowhere.so")
    monkeypatch.delenv("CIPHERMQ_PIN")
    said = refuses(capsys, 2, "hsm", "list", "--token", "test token")
    assert "--pin-file or in CIPHERMQ_PIN" in said


def test_tokens_of_one_label_are_told_apart_by_their_numbers(hsm: SoftHsm, capsys: Capture) -> None:
    hsm.init_token(hsm.label)
    said = refuses(capsys, 2, "hsm", "make-key", "--token", hsm.label)
    assert "several tokens are labelled" in said
    assert "there are several tokens" in refuses(capsys, 2, "hsm", "make-key")
    _, found = run_json(capsys, "hsm", "list")
    serials = [each["serial"] for each in found["modules"][0]["tokens"] if each["initialised"]]
    assert len(serials) == 2
    for number, serial in enumerate(serials):
        assert serial in said
        says(capsys, "hsm", "make-key", "--id", f"0{number}", "--token", serial)
        _, found = run_json(capsys, "hsm", "list", "--token", serial)
        assert [key["id"] for key in found["keys"]] == [f"0{number}"]


def test_a_pin_comes_from_a_file_or_the_prompt(
    hsm: SoftHsm, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIPHERMQ_PIN")
    file = Path("pin")
    file.write_text(f"{PIN}\n")
    file.chmod(0o600)
    says(capsys, "hsm", "make-key", "--id", "0a", "--pin-file", "pin")
    file.chmod(0o644)
    assert "open to others" in refuses(
        capsys, 2, "hsm", "make-key", "--id", "0b", "--pin-file", "pin"
    )
    with Terminal("hsm", "list", "--token", hsm.label, cwd=Path()) as terminal:
        terminal.expect("PIN of the token")
        terminal.type(PIN, hidden=True)
        assert terminal.wait() == 0
        assert "0a" in terminal.output
        assert PIN not in terminal.output


def test_no_option_takes_a_pin(capsys: Capture) -> None:
    """A command line is there for every process of the machine to read."""
    for words in (["hsm", "list"], ["hsm", "wrap"], ["identity", "add"], ["receive"]):
        capsys.readouterr()
        run([*words, "--help"])
        assert "--pin " not in capsys.readouterr().out


# --- identities -----------------------------------------------------------------------------------


def test_from_an_identity_on_a_token_to_its_messages(
    hsm: SoftHsm, deployment: Deployment, broker: Broker, capsys: Capture
) -> None:
    said = says(capsys, "identity", "add", "carol", "--token", hsm.label, "--signing-key", "new")
    assert "Its receiving key is on the token 'test token'" in said
    assert "Python's TLS can't use it" in said
    status, about = run_json(capsys, "identity", "show", "carol")
    assert (status, about["suite"]) == (0, "P256")
    assert about["token"]["keeps"] == ["sealing", "signing"]
    assert "test token: sealing, signing" in says(capsys, "identity", "show", "carol")
    says(capsys, "keys", "renew", "--identity", "carol")
    Path("lines").write_text("one\ntwo\n")
    assert send("carol", "lines") == 0
    got = says(capsys, "receive", "--raw", "--identity", "carol", "--wait", "0.3")
    assert got == "one\ntwo\n"
    assert run(["send", "bob", "lines", "--identity", "carol"]) == 0
    assert receive("--raw") == 0
    assert capsys.readouterr().out.endswith("one\ntwo\n")
    says(capsys, "keys", "renew", "--new-key", "--identity", "carol")
    says(capsys, "identity", "renew", "carol")
    assert send("carol", "lines") == 0
    assert says(capsys, "receive", "--raw", "-i", "carol", "--wait", "0.3") == "one\ntwo\n"


def test_a_terminal_shows_that_a_token_is_waited_for(
    hsm: SoftHsm, deployment: Deployment, broker: Broker, capsys: Capture
) -> None:
    says(capsys, "identity", "add", "carol", "--token", hsm.label, "--no-passphrase")
    says(capsys, "keys", "renew", "--identity", "carol")
    Path("lines").write_text("one\n")
    assert send("carol", "lines") == 0
    capsys.readouterr()
    hsm.pull_out()
    assert run(["receive", "--raw", "--identity", "carol", "--wait", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ciphermq: messages wait for a token: the token 'test token'")
    assert len(err.splitlines()) == 1  # however often it was looked for
    hsm.put_back()
    got = says(capsys, "receive", "--raw", "--identity", "carol", "--count", "1", "--wait", "60")
    assert got == "one\n"


def test_a_request_from_another_machine(
    hsm: SoftHsm, deployment: Deployment, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = deployment.home
    monkeypatch.delenv("CIPHERMQ_HOME")
    says(capsys, "hsm", "make-key", "--id", "0a")
    says(capsys, "hsm", "make-key", "--id", "0b", "--sign")
    keys = ("--key", "0a", "--signing-key", "0b", "--pin-source", "env:CIPHERMQ_PIN")
    said = says(capsys, "identity", "request", "dora", "--token", hsm.label, *keys, "--to", "dora")
    assert "Python's TLS can't use it" in said
    said = says(capsys, "ca", "sign", "dora.request", "--home", home)
    assert "a second certificate, for TLS alone" in said
    says(capsys, "identity", "import", "dora.signed", "--to", "dora")
    dora = Identity.load("dora")
    dora.check(now_ms())
    settings = IdentitySettings.read(Path("dora"))
    assert settings.token is not None
    assert settings.token.signing_key == "0b"
    again = says(capsys, "identity", "request", "dora", "again", "--to", "dora")
    assert "has its keys already" in again
    # Nobody may slip a request of his own behind it.
    says(capsys, "identity", "request", "dora", "other", "--to", "second")
    text = Path("dora.request").read_text()
    first = text[: text.index("-----BEGIN", 10)]
    Path("forged").write_text(first + Path("other").read_text())
    assert "is not the one that 'dora' made" in refuses(
        capsys, 5, "ca", "sign", "forged", "forged.signed", "--home", home
    )


def test_options_that_need_a_token(hsm: SoftHsm, deployment: Deployment, capsys: Capture) -> None:
    for option in ("--key", "--signing-key"):
        said = refuses(capsys, 2, "identity", "add", "carol", option, "0a")
        assert f"{option} names a key on a token" in said
    said = refuses(capsys, 2, "identity", "add", "c", "d", "--token", hsm.label, "--key", "0a")
    assert "one identity's" in said
    said = refuses(
        capsys, 2, "identity", "add", "c", "--token", hsm.label, "--pin-source", PIN + "x"
    )
    assert "never the PIN itself" in said
    assert not deployment.identity("c").exists()


# --- wrapping -------------------------------------------------------------------------------------


def test_an_identitys_files_and_back(
    hsm: SoftHsm, deployment: Deployment, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(capsys, "hsm", "make-key", "--type", "rsa", "--bits", "2048", "--id", "0c")
    said = says(capsys, "hsm", "wrap", "--identity", "alice", "--id", "0c")
    assert "is now opened by the key 0c on the token 'test token', and by nothing else" in said
    path = deployment.identity("alice")
    assert (path / layout.HSM_WRAPPED).exists()
    Identity.load(path).ssl_context()
    _, about = run_json(capsys, "identity", "show", "alice")
    assert (about["encrypted"], about["token"]["keeps"]) == (True, ["files"])
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "mine")
    assert "under its passphrase" in says(capsys, "hsm", "unwrap", "--identity", "alice")
    Identity.load(path, "mine")
    says(capsys, "hsm", "wrap", "--identity", "alice", "--id", "0c", "--pkcs1")
    said = says(capsys, "hsm", "unwrap", "--identity", "alice", "--no-passphrase")
    assert "in the clear" in said
    monkeypatch.delenv("CIPHERMQ_PASSPHRASE")
    Identity.load(path)


@pytest.mark.parametrize("kind", ["rsa", "p256"])
def test_the_at_rest_key_and_back(
    hsm: SoftHsm, deployment: Deployment, capsys: Capture, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    key = deployment.server_dir / "at-rest.key"
    before = key.read_bytes()
    says(capsys, "hsm", "make-key", "--type", kind, "--bits", "2048", "--id", "0c")
    said = says(capsys, "hsm", "wrap", key, "--id", "0c")
    assert "a section [token]" in said
    assert before.strip() not in key.read_bytes()
    assert "wrapped already" in refuses(capsys, 2, "hsm", "wrap", key, "--id", "0c")
    with pytest.raises(CatalogError, match=r"a section \[token\]"):
        configured_catalog(load_server_settings(deployment.config))
    text = deployment.config.read_text()
    section = f'\n[token]\nmodule_path = "{hsm.module}"\n'
    deployment.config.write_text(text + section)
    with pytest.raises(ConfigError, match="a label or a serial"):
        configured_catalog(load_server_settings(deployment.config))
    deployment.config.write_text(text + section + f'label = "{hsm.label}"\npin = "env:SRV_PIN"\n')
    monkeypatch.setenv("SRV_PIN", PIN)
    configured_catalog(load_server_settings(deployment.config))
    says(capsys, "hsm", "unwrap", key, "--out", "plain")
    assert Path("plain").read_bytes() == before
    says(capsys, "hsm", "unwrap", key)
    assert key.read_bytes() == before
    AtRestKey.load(key)


def test_wrap_needs_one_thing_to_wrap(
    hsm: SoftHsm, deployment: Deployment, capsys: Capture
) -> None:
    assert "one of the two" in refuses(capsys, 2, "hsm", "wrap", "--id", "0c")
    assert "one of the two" in refuses(
        capsys, 2, "hsm", "wrap", "file", "--identity", "alice", "--id", "0c"
    )
    assert "--out is for a file" in refuses(
        capsys, 2, "hsm", "unwrap", "--identity", "alice", "--out", "there"
    )
    says(capsys, "hsm", "make-key", "--type", "p256", "--id", "0c")
    file = Path("secret")
    file.write_bytes(b"x")
    file.chmod(0o600)
    assert "is no RSA key" in refuses(capsys, 2, "hsm", "wrap", file, "--id", "0c", "--pkcs1")
    assert file.read_bytes() == b"x"
