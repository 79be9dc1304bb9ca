"""`ciphermq identity` and `ciphermq ca`: made here or elsewhere, moved, renewed, looked at."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509

from ciphermq import limits
from ciphermq.cli.main import run
from ciphermq.client.identity import Identity
from ciphermq.directory import records
from ciphermq.errors import PassphraseError
from ciphermq.model.suites import Suite
from ciphermq.pki import names
from ciphermq.pki.authority import AuthorityDirectory
from ciphermq.pki.names import spell_serial
from ciphermq.pki.verify import key_sha256
from cli.stored import run_json
from support import odd_certificates as odd
from support.deployment import Deployment, make_deployment, now_ms
from support.terminal import Terminal

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """One with alice, on a machine where nothing else is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CIPHERMQ_PASSPHRASE", "CIPHERMQ_IDENTITY_PASSPHRASE", "CIPHERMQ_IDENTITY"):
        monkeypatch.delenv(name, raising=False)
    made = make_deployment(tmp_path, ["alice"], port=7443)
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    return made


@pytest.fixture
def laptop(tmp_path: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a client keeps its own identities; no deployment is known there."""
    return tmp_path / "config" / "ciphermq" / "identities"


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, commands run on the client's machine."""
    monkeypatch.delenv("CIPHERMQ_HOME")


def says(capsys: Capture, *words: object) -> str:
    """What a command that must succeed prints for people."""
    capsys.readouterr()
    assert run([*map(str, words)]) == 0
    return capsys.readouterr().out


def refuses(capsys: Capture, status: int, *words: object) -> str:
    """What a command that must fail says is wrong."""
    capsys.readouterr()
    assert run([*map(str, words)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ciphermq: ")
    assert err.count("\n") == 1
    return err


# --- add ------------------------------------------------------------------------------------------


def test_an_identity_to_the_letter(deployment: Deployment, capsys: Capture) -> None:
    status, (made,) = run_json(capsys, "identity", "add", "bob")
    assert status == 0
    bob = Identity.load(deployment.identity("bob"))
    assert made["name"] == bob.name == "bob"
    assert made["url"] == bob.url == "cmq://localhost:7443"
    assert bob.suite is bob.current_key.suite is Suite.MLKEM768_X25519
    assert names.client_id_of(bob.certificate) == "bob"
    assert names.may_sign(bob.certificate)
    days = bob.certificate.not_valid_after_utc - bob.certificate.not_valid_before_utc
    assert days.total_seconds() == 365 * limits.DAY + limits.CLOCK_SKEW
    assert stat.S_IMODE((bob.path / "key.pem").stat().st_mode) == 0o600
    assert not made["encrypted"]


def test_several_at_once_and_what_is_next(deployment: Deployment, capsys: Capture) -> None:
    said = says(capsys, "identity", "add", "bob", "carol", "--suite", "x25519")
    assert "Made bob in " in said
    assert "Made carol in " in said
    assert "ciphermq receive --identity bob\n" in said
    assert deployment.load("carol").current_key.suite is Suite.X25519


def test_keys_are_encrypted_when_there_is_a_passphrase(
    deployment: Deployment, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "phrase").write_text("bob's own\n")
    status, (made,) = run_json(
        capsys, "identity", "add", "bob", "--identity-passphrase-file", tmp_path / "phrase"
    )
    assert (status, made["encrypted"]) == (0, True)
    assert Identity.load(deployment.identity("bob"), "bob's own").name == "bob"
    with pytest.raises(PassphraseError):
        Identity.load(deployment.identity("bob"), "another")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["alice"], "is made already; nothing is overwritten"),
        (["admin"], "is made already"),
        (["dead.letters"], "not beginning with 'dead.'"),
        ([".."], "can't be a client id"),
        (["../bob"], "can't be a client id"),
        (["a b"], "can't be a client id"),
        (["bob", "--suite", "rsa"], "one of MLKEM768_X25519, X25519, P256"),
        (["bob", "--url", "http://localhost"], "must begin with cmq://"),
    ],
)
def test_what_can_t_be_made(
    deployment: Deployment, capsys: Capture, words: list[str], sentence: str
) -> None:
    before = {item.certificate for item in deployment.authority.issued()}
    assert sentence in refuses(capsys, 2, "identity", "add", *words)
    assert {item.certificate for item in deployment.authority.issued()} == before
    assert not deployment.identity("bob").exists()


def test_a_name_whose_key_is_elsewhere_is_not_given_away(
    deployment: Deployment, capsys: Capture
) -> None:
    deployment.identity("alice").rename(deployment.home / "moved")
    assert "with another key" in refuses(capsys, 2, "identity", "add", "alice")
    says(capsys, "identity", "add", "alice", "--replace")
    assert deployment.load("alice").name == "alice"


def test_no_deployment_here(deployment: Deployment, capsys: Capture, tmp_path: Path) -> None:
    said = refuses(capsys, 2, "identity", "add", "bob", "--home", tmp_path / "nowhere")
    assert "there is no authority in" in said
    said = refuses(
        capsys, 2, "identity", "add", "bob", "--home", tmp_path / "x", "--url", "cmq://h"
    )
    assert "there is no authority in" in said


# --- list and show --------------------------------------------------------------------------------


def test_the_list_says_how_each_one_is(
    deployment: Deployment, capsys: Capture, laptop: Path
) -> None:
    deployment.add("brief", lifetime=29 * limits.DAY)
    deployment.add("past", lifetime=-60)
    says(capsys, "identity", "request", "carol", "--to", laptop / "carol")
    deployment.authority.sign_request(odd.request("dave"), now_ms=now_ms())
    status, found = run_json(capsys, "identity", "list")
    assert status == 0
    assert {entry["name"]: entry["status"] for entry in found} == {
        "admin": "ok",
        "alice": "ok",
        "brief": "see warnings",
        "past": "expired",
        "carol": "waits for its certificate",
        "dave": "elsewhere",
    }
    said = says(capsys, "identity", "list")
    assert len(said.splitlines()) == 7
    (deployment.identity("brief") / "sealing" / "keys.json").write_text("{")
    status, found = run_json(capsys, "identity", "list")
    (damaged,) = [entry for entry in found if entry["name"] == "brief"]
    assert (status, len(found), damaged["status"]) == (0, 6, "unusable")
    assert "keys.json is damaged" in damaged["warnings"][0]
    assert "waits for its certificate" in said


def test_show_opens_no_key(deployment: Deployment, capsys: Capture) -> None:
    path = deployment.add("bob", passphrase="mine")
    status, shown = run_json(capsys, "identity", "show", "bob")
    assert status == 0
    assert shown["encrypted"]
    assert shown["directory"] == str(path)
    bob = Identity.load(path, "mine")
    assert shown["sealing_keys"] == [bob.current_key.key_id.hex()]
    assert shown["serial"] == spell_serial(bob.certificate.serial_number)
    end = datetime.fromisoformat(shown["not_after"])
    assert end == bob.certificate.not_valid_after_utc
    bob.rotate_key(now_ms())
    status, shown = run_json(capsys, "identity", "show", str(path))
    assert shown["sealing_keys"][0] == bob.current_key.key_id.hex()
    assert shown["key_record_version"] > 0


def test_show_warns(deployment: Deployment, capsys: Capture) -> None:
    deployment.add("brief", lifetime=29 * limits.DAY)
    assert run(["identity", "show", "brief"]) == 0
    assert "the certificate of 'brief' expires in 2" in capsys.readouterr().err
    assert "no identity 'nobody'" in refuses(capsys, 2, "identity", "show", "nobody")


# --- export and import ----------------------------------------------------------------------------


def test_one_file_is_all_that_another_machine_needs(
    deployment: Deployment,
    capsys: Capture,
    laptop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "phrase").write_text("for the road")
    words = ["identity", "export", "alice", "a.file", "--passphrase-file", tmp_path / "phrase"]
    status, done = run_json(capsys, *words)
    assert (status, done) == (
        0,
        {"file": "a.file", "encrypted": True, "keys_in_clear": False},
    )
    assert stat.S_IMODE(Path("a.file").stat().st_mode) == 0o600
    assert "nothing is overwritten" in refuses(capsys, 2, *words)
    away(monkeypatch)
    assert "--passphrase-file" in refuses(capsys, 2, "identity", "import", "a.file")
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "for the toad")
    assert "does not open" in refuses(capsys, 2, "identity", "import", "a.file")
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "for the road")
    status, taken = run_json(capsys, "identity", "import", "a.file")
    assert status == 0
    assert taken["directory"] == str(laptop / "alice")
    authority = deployment.authority.certificate
    assert taken["authority_fingerprint"] == authority.fingerprint(odd.hashes.SHA256()).hex()
    assert Identity.load(laptop / "alice").certificate == deployment.load("alice").certificate
    assert "nothing is overwritten" in refuses(capsys, 2, "identity", "import", "a.file")


def test_keys_in_the_clear_are_told_of(deployment: Deployment, capsys: Capture) -> None:
    assert run(["identity", "export", "alice"]) == 0
    out, err = capsys.readouterr()
    assert "holds private keys in the clear" in err
    assert "ciphermq identity import alice.identity" in out
    said = says(capsys, "identity", "import", "alice.identity", "--to", "there")
    assert "Compare it with `ciphermq ca status`" in said
    assert Identity.load(Path("there")).name == "alice"


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CIPHERMQ IDENTITY-----\nAAAA"])
def test_a_file_that_is_no_identity(
    deployment: Deployment, capsys: Capture, laptop: Path, content: bytes
) -> None:
    Path("odd").write_bytes(content)
    refuses(capsys, 2, "identity", "import", "odd")
    refuses(capsys, 2, "identity", "import", "missing")
    assert not laptop.exists()


# --- request and sign -----------------------------------------------------------------------------


def test_an_identity_made_where_it_lives(
    deployment: Deployment, capsys: Capture, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "carol's own")
    home = deployment.home
    away(monkeypatch)
    said = says(capsys, "identity", "request", "carol")
    assert "ciphermq ca sign carol.request" in said
    assert "ciphermq identity import carol.signed" in said
    asked = said
    assert b"PRIVATE" not in Path("carol.request").read_bytes()
    said = refuses(capsys, 2, "identity", "request", "carol")
    assert "nothing is overwritten" in said

    monkeypatch.delenv("CIPHERMQ_PASSPHRASE")
    status, done = run_json(capsys, "ca", "sign", "carol.request", "--home", home)
    assert records.fingerprint(bytes.fromhex(done["certificate_key"])) in asked
    assert (status, done["name"], done["file"]) == (0, "carol", "carol.signed")
    assert b"PRIVATE" not in Path("carol.signed").read_bytes()

    said = says(capsys, "identity", "import", "carol.signed")
    assert "Took over the certificate of carol" in said
    carol = Identity.load(laptop / "carol", "carol's own")
    carol.check(now_ms())
    assert carol.url == "cmq://localhost:7443"


def test_a_request_to_renew(
    deployment: Deployment, capsys: Capture, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = deployment.home
    away(monkeypatch)
    says(capsys, "identity", "request", "carol")
    says(capsys, "ca", "sign", "carol.request", "--home", home)
    says(capsys, "identity", "import", "carol.signed")
    before = Identity.load(laptop / "carol").certificate
    said = says(capsys, "identity", "request", "carol", "again")
    assert "has its keys already" in said
    says(capsys, "ca", "sign", "again", "again.signed", "--home", home)
    says(capsys, "identity", "import", "again.signed")
    after = Identity.load(laptop / "carol").certificate
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number


def test_an_answer_without_a_request_here(
    deployment: Deployment, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(capsys, "identity", "request", "carol", "--to", "elsewhere")
    says(capsys, "ca", "sign", "carol.request")
    assert "no identity 'carol'" in refuses(capsys, 2, "identity", "import", "carol.signed")
    says(capsys, "identity", "import", "carol.signed", "--to", "elsewhere")


def test_what_the_authority_does_not_sign(deployment: Deployment, capsys: Capture) -> None:
    def request_file(request: x509.CertificateSigningRequest) -> str:
        Path("r").write_bytes(request.public_bytes(odd.Encoding.PEM))
        return "r"

    assert "with another key" in refuses(
        capsys, 2, "ca", "sign", request_file(odd.request("alice"))
    )
    says(capsys, "ca", "sign", "r", "--replace")
    refuses(capsys, 5, "ca", "sign", request_file(odd.request("dead.x")))
    refuses(capsys, 5, "ca", "sign", request_file(odd.request("..")))
    said = refuses(capsys, 5, "ca", "sign", request_file(odd.request("bob")), "--name", "carol")
    assert "asks for the name 'bob', not for 'carol'" in said
    asked = odd.request("bob")
    said = refuses(capsys, 5, "ca", "sign", request_file(asked), "--fingerprint", "ab" * 32)
    assert "has another fingerprint" in said
    digest = key_sha256(asked.public_key()).hex()  # type: ignore[arg-type]
    done = run_json(capsys, "ca", "sign", "r", "--name", "bob", "--fingerprint", digest)[1]
    assert done["certificate_key"] == digest
    assert "nothing is overwritten" in refuses(capsys, 2, "ca", "sign", "r")
    Path("r").write_text("hello")
    assert "not a certificate request" in refuses(capsys, 5, "ca", "sign", "r")


# --- renew ----------------------------------------------------------------------------------------


def test_a_renewal_here(deployment: Deployment, capsys: Capture) -> None:
    before = deployment.load("alice").certificate
    status, done = run_json(capsys, "identity", "renew", "alice")
    after = deployment.load("alice").certificate
    assert (status, done["name"], done["file"]) == (0, "alice", None)
    serials = [spell_serial(each.serial_number) for each in (before, after)]
    assert done["serial"] == serials[1] != serials[0]
    assert after.public_key() == before.public_key()
    said = says(capsys, "identity", "renew", "alice", "--new-key")
    assert "ciphermq keys trust alice" in said
    assert deployment.load("alice").certificate.public_key() != before.public_key()


def test_a_renewal_of_one_that_lives_elsewhere(
    deployment: Deployment, capsys: Capture, laptop: Path
) -> None:
    says(capsys, "identity", "request", "carol", "--to", "elsewhere")
    says(capsys, "ca", "sign", "carol.request", "first")
    says(capsys, "identity", "import", "first", "--to", "elsewhere")
    before = Identity.load("elsewhere").certificate
    said = says(capsys, "identity", "renew", "carol")
    assert "ciphermq identity import carol.signed" in said
    says(capsys, "identity", "import", "carol.signed", "--to", "elsewhere")
    assert Identity.load("elsewhere").certificate != before
    assert "renew it where it lives" in refuses(
        capsys, 2, "identity", "renew", "carol", "--new-key"
    )
    assert "never certified" in refuses(capsys, 2, "identity", "renew", "nobody")


# --- the authority itself -------------------------------------------------------------------------


def test_the_next_list_goes_where_it_is_needed(deployment: Deployment, capsys: Capture) -> None:
    status, done = run_json(capsys, "ca", "crl")
    assert status == 0
    assert (done["number"], done["revoked"]) == (2, 0)
    newest = AuthorityDirectory(deployment.ca_dir).revocation_list()
    assert newest.number == 2
    assert (deployment.server_dir / "crl.pem").read_bytes() == (
        deployment.ca_dir / "crl.pem"
    ).read_bytes()
    for name in ("admin", "alice"):
        assert deployment.load(name).verifier.crl_number == 2
    assert len(done["installed"]) == 3
    assert "Issued revocation list 3" in says(capsys, "ca", "crl")


def test_the_broker_s_certificate_is_renewed(deployment: Deployment, capsys: Capture) -> None:
    path = deployment.server_dir / "server.crt"
    before = x509.load_pem_x509_certificate(path.read_bytes())
    status, done = run_json(capsys, "ca", "server")
    after = x509.load_pem_x509_certificate(path.read_bytes())
    assert status == 0
    assert done["hosts"] == ["localhost", "127.0.0.1", "::1"]
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number
    said = says(capsys, "ca", "server", "--host", "queue.example.org")
    assert "for queue.example.org" in said


def test_the_authority_says_how_it_is(deployment: Deployment, capsys: Capture) -> None:
    status, about = run_json(capsys, "ca", "status")
    assert status == 0
    certificate = deployment.authority.certificate
    assert about["fingerprint"] == certificate.fingerprint(odd.hashes.SHA256()).hex()
    assert about["clients"] == 2
    assert about["certificates"] == 3
    assert about["revocation_list"]["number"] == 1
    assert about["warnings"] == []
    deployment.add("brief", lifetime=29 * limits.DAY)
    assert run(["ca", "status"]) == 0
    out, err = capsys.readouterr()
    assert "crl_number" in out
    assert "run `ciphermq identity renew brief`" in err


def test_an_authority_under_a_passphrase(
    deployment: Deployment, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phrase").write_text("the authority's")
    home = tmp_path / "second"
    says(capsys, "init", home, "--passphrase-file", tmp_path / "phrase")
    words = ["identity", "add", "bob", "--home", home]
    assert "CIPHERMQ_PASSPHRASE" in refuses(capsys, 2, *words)
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "wrong")
    assert "does not open" in refuses(capsys, 2, *words)
    assert not (home / "identities" / "bob").exists()
    with Terminal(*words, cwd=tmp_path, env={"CIPHERMQ_PASSPHRASE": "the authority's"}) as terminal:
        terminal.expect("New passphrase for the keys of 'bob' (empty: none):")
        terminal.type("bob's", hidden=True)
        terminal.expect("Repeat for confirmation:")
        terminal.type("not bob's", hidden=True)
        terminal.expect("don't match")
        terminal.expect("(empty: none):")
        terminal.type("", hidden=True)
        assert terminal.wait() == 0
    assert run_json(capsys, "ca", "status", "--home", home)[1]["encrypted"]
    assert Identity.load(home / "identities" / "bob").name == "bob"
