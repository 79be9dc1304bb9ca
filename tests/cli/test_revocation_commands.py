"""`ciphermq ca revoke`, `ca list` and `ca crl`: what they do, say, and leave alone."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from ciphermq.cli.main import run
from ciphermq.client.identity import Identity
from ciphermq.pki import names, pem
from ciphermq.pki.authority import Authority, AuthorityDirectory
from ciphermq.pki.revocation import RevocationList
from cli.stored import run_json
from support.deployment import Deployment, make_deployment, now_ms

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CIPHERMQ_PASSPHRASE", "CIPHERMQ_IDENTITY"):
        monkeypatch.delenv(name, raising=False)
    made = make_deployment(tmp_path, ["alice", "bob"], port=7443)
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    return made


def said(capsys: Capture, status: int, *words: str) -> tuple[str, str]:
    capsys.readouterr()
    assert run([*words]) == status
    return capsys.readouterr()


def number(deployment: Deployment) -> int:
    return AuthorityDirectory(deployment.ca_dir).revocation_list().number


def test_a_client_is_revoked_everywhere_here(deployment: Deployment, capsys: Capture) -> None:
    assert run(["identity", "renew", "alice"]) == 0
    status, done = run_json(capsys, "ca", "revoke", "alice", "--reason", "keyCompromise")
    assert status == 0
    assert [(row["name"], row["use"], row["already"]) for row in done["revoked"]] == [
        ("alice", "client", False)
    ] * 2
    assert (done["revocation_list"]["number"], done["revocation_list"]["revoked"]) == (2, 2)
    newest = AuthorityDirectory(deployment.ca_dir).revocation_list()
    assert {names.spell_serial(serial) for serial in newest.serials} == {
        row["serial"] for row in done["revoked"]
    }
    directories = [deployment.server_dir, *map(deployment.identity, ("admin", "alice", "bob"))]
    assert sorted(done["installed"]) == sorted(map(str, directories))
    for directory in directories:
        assert pem.blocks("X509 CRL", (directory / "crl.pem").read_bytes()) == (newest.der,)


def test_it_says_what_it_did_and_what_comes_next(deployment: Deployment, capsys: Capture) -> None:
    serial = Identity.load(deployment.identity("alice")).certificate.serial_number
    out, err = said(capsys, 0, "ca", "revoke", "alice")
    assert f"Revoked: alice, serial {names.spell_serial(serial)}, valid until 20" in out
    assert "Issued revocation list 2, until 20" in out
    assert f"installed in {deployment.server_dir}\n" in out
    assert f"another machine needs {deployment.ca_dir / 'crl.pem'}" in out
    assert err == ""


def test_again_changes_nothing_but_puts_the_list_in_place(
    deployment: Deployment, capsys: Capture
) -> None:
    before = (deployment.server_dir / "crl.pem").read_bytes()
    assert run(["ca", "revoke", "alice"]) == 0
    # As if it had been stopped before it could.
    (deployment.server_dir / "crl.pem").write_bytes(before)
    out, _ = said(capsys, 0, "ca", "revoke", "alice")
    assert "Was revoked already: alice" in out
    assert "It is on revocation list 2" in out
    assert number(deployment) == 2
    assert (deployment.server_dir / "crl.pem").read_bytes() != before
    status, done = run_json(capsys, "ca", "revoke", "alice", "bob")
    assert status == 0
    assert [row["already"] for row in done["revoked"]] == [True, False]
    assert (done["revocation_list"]["number"], done["revocation_list"]["revoked"]) == (3, 2)


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["alice", "nobody"], 2, "'nobody' is no client that this authority certified"),
        (["0123456789abcdef"], 2, "ciphermq ca list"),
        (["alice", "--reason", "spite"], 2, "keyCompromise"),
        (["deployment/identities/alice/ca.crt"], 5, "the authority's own"),
    ],
)
def test_what_means_nothing_revokes_nothing(
    deployment: Deployment, capsys: Capture, words: list[str], status: int, why: str
) -> None:
    out, err = said(capsys, status, "ca", "revoke", *words)
    assert out == ""
    assert why in err
    assert number(deployment) == 1


def test_one_certificate_by_serial_or_file_leaves_the_others(
    deployment: Deployment, capsys: Capture
) -> None:
    older = Identity.load(deployment.identity("alice")).certificate.serial_number
    assert run(["identity", "renew", "alice"]) == 0
    newer = Identity.load(deployment.identity("alice")).certificate.serial_number
    _, err = said(capsys, 0, "ca", "revoke", names.spell_serial(older), "--reason", "superseded")
    assert f"alice still has a certificate that counts: {names.spell_serial(newer)}" in err
    rows = {row["serial"]: row for row in run_json(capsys, "ca", "list", "alice")[1]}
    revoked = rows[names.spell_serial(older)]
    assert (revoked["status"], revoked["reason"]) == ("revoked", "superseded")
    assert rows[names.spell_serial(newer)]["status"] == "valid"
    file = deployment.identity("alice") / "cert.pem"
    _, err = said(capsys, 0, "ca", "revoke", str(file))
    assert err == ""
    rows = {row["serial"]: row for row in run_json(capsys, "ca", "list", "alice")[1]}
    assert rows[names.spell_serial(newer)]["status"] == "revoked"


def test_the_broker_s_own_and_the_administrator_s(deployment: Deployment, capsys: Capture) -> None:
    server = str(deployment.server_dir / "server.crt")
    _, err = said(capsys, 0, "ca", "revoke", server, "admin")
    assert "the certificate the broker has now" in err
    assert "nobody is the administrator any more" in err


def test_the_list_of_what_was_issued(deployment: Deployment, capsys: Capture) -> None:
    assert run(["ca", "revoke", "bob", "--reason", "keyCompromise"]) == 0
    assert run(["ca", "revoke", "eadbeef", "--unknown"]) == 0
    status, rows = run_json(capsys, "ca", "list")
    assert status == 0
    assert [(row["name"], row["use"], row["status"], row["reason"]) for row in rows] == [
        ("CipherMQ server", "server", "valid", None),
        ("admin", "client", "valid", None),
        ("alice", "client", "valid", None),
        ("bob", "client", "revoked", "keyCompromise"),
        (None, None, "revoked", None),
    ]
    assert rows[4]["serial"] == "0eadbeef"
    out, _ = said(capsys, 0, "ca", "list")
    assert "(keyCompromise)" in out
    assert rows[0]["serial"] in out
    out, _ = said(capsys, 0, "ca", "list", "alice")
    assert len(out.splitlines()) == 2


def statuses(capsys: Capture) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in run_json(capsys, "identity", "list")[1]}


def test_an_identity_says_that_it_is_revoked(deployment: Deployment, capsys: Capture) -> None:
    assert run(["ca", "revoke", "alice"]) == 0
    assert statuses(capsys) == {"admin": "ok", "alice": "revoked", "bob": "ok"}
    out, err = said(capsys, 0, "identity", "show", "alice")
    assert re.search(r"^status +revoked$", out, re.MULTILINE)
    assert "has been revoked, says revocation list 2: it needs a new key" in err
    status, shown = run_json(capsys, "identity", "show", "alice")
    assert (status, shown["status"]) == (0, "revoked")
    assert "`ciphermq identity renew alice --new-key`" in shown["warnings"][0]
    assert run(["identity", "renew", "alice", "--new-key"]) == 0
    assert statuses(capsys)["alice"] == "ok"


def test_only_a_list_of_the_identity_s_own_authority_revokes_it(
    deployment: Deployment, capsys: Capture, tmp_path: Path
) -> None:
    serial = Identity.load(deployment.identity("alice")).certificate.serial_number
    stranger = make_deployment(tmp_path / "other", [])
    stranger.authority.issue_crl(now_ms=now_ms(), revoke=[serial])
    file = deployment.identity("alice") / "crl.pem"
    own = file.read_bytes()
    file.write_bytes((stranger.ca_dir / "crl.pem").read_bytes())
    assert statuses(capsys)["alice"] == "see warnings"
    # What counts is what lies there, whatever else the authority has issued since.
    assert run(["ca", "revoke", "alice"]) == 0
    assert statuses(capsys)["alice"] == "revoked"
    file.write_bytes(own)
    assert statuses(capsys)["alice"] == "ok"


def test_one_that_lives_elsewhere_is_judged_by_the_authority(
    deployment: Deployment, capsys: Capture
) -> None:
    shutil.rmtree(deployment.identity("alice"))
    assert statuses(capsys)["alice"] == "elsewhere"
    assert run(["ca", "revoke", "alice"]) == 0
    assert statuses(capsys)["alice"] == "revoked"


def test_who_was_revoked_is_not_renewed_by_mistake(deployment: Deployment, capsys: Capture) -> None:
    assert run(["ca", "revoke", "alice"]) == 0
    for words in (["alice"], ["alice", "--out", "alice.signed"]):
        _, err = said(capsys, 2, "identity", "renew", *words)
        assert "the key of 'alice' was taken back" in err
    assert run(["identity", "renew", "alice", "--new-key"]) == 0


def test_two_commands_at_once_leave_the_newer_list(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has issued its list, and the second is done before that is handed out."""
    issue = Authority.issue_crl
    inner = []

    def overtaken(self: Authority, **what: Any) -> RevocationList:
        made = issue(self, **what)
        if not inner:
            inner.append(True)
            inner.append(run(["ca", "revoke", "bob"]) == 0)
        return made

    monkeypatch.setattr(Authority, "issue_crl", overtaken)
    assert run(["ca", "revoke", "alice"]) == 0
    assert inner == [True, True]
    newest = AuthorityDirectory(deployment.ca_dir).revocation_list()
    assert (newest.number, len(newest.serials)) == (3, 2)
    for directory in (deployment.server_dir, deployment.identity("alice")):
        assert pem.blocks("X509 CRL", (directory / "crl.pem").read_bytes()) == (newest.der,)


def test_nobody_else_issues_a_list_while_one_is_handed_out(deployment: Deployment) -> None:
    with AuthorityDirectory(deployment.ca_dir).newest_list() as newest:
        other = threading.Thread(target=run, args=(["ca", "crl"],))
        other.start()
        other.join(0.3)
        assert number(deployment) == newest.number
    other.join(60)
    assert number(deployment) == newest.number + 1


def test_where_the_list_can_t_be_put_is_said_and_the_others_have_it(
    deployment: Deployment, capsys: Capture
) -> None:
    home, other = deployment.identity("alice"), deployment.identity("bob")
    (home / "identity.toml").write_text("name = = ")  # which is no reason to go without
    (other / "trust.json").write_text("damaged")
    out, err = said(capsys, 2, "ca", "revoke", "alice")
    assert "Revoked: alice" in out
    assert "Issued revocation list 2" in out
    assert "the revocation list is issued and counts, but could not be put into" in err
    assert f"{other} (" in err
    assert "repeat the command" in err
    for directory in (deployment.server_dir, home):
        newest = AuthorityDirectory(deployment.ca_dir).revocation_list()
        assert pem.blocks("X509 CRL", (directory / "crl.pem").read_bytes()) == (newest.der,)
    (other / "trust.json").unlink()
    out, _ = said(capsys, 0, "ca", "revoke", "alice")
    assert f"installed in {other}" in out
