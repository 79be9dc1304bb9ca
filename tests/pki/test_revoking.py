"""Taking certificates back: what a word means, what goes on the list, and what stays there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ciphermq.errors import AuthorityError, CertificateError, UsageError
from ciphermq.pki import keyfile, onex, revoking
from ciphermq.pki.authority import Authority
from support import odd_certificates as odd
from support.odd_certificates import DAY_MS, NOW_MS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", passphrase=None, now_ms=NOW_MS)


def issue(authority: Authority, name: str) -> x509.Certificate:
    return authority.issue_client(name, odd.key().public_key(), now_ms=NOW_MS, replace=True)


def serials(authority: Authority, *words: str, unknown: bool = False) -> list[int]:
    return [target.serial for target in revoking.find(authority, words, unknown=unknown)]


# --- what is meant --------------------------------------------------------------------------------


def test_a_name_means_all_its_certificates_and_no_other_s(authority: Authority) -> None:
    first, second = issue(authority, "alice"), issue(authority, "alice")
    issue(authority, "alice2")
    authority.issue_server(["alice"], odd.key().public_key(), now_ms=NOW_MS)
    assert serials(authority, "alice") == [first.serial_number, second.serial_number]


def test_a_serial_is_taken_in_every_usual_spelling(authority: Authority) -> None:
    made, _ = issue(authority, "alice"), issue(authority, "alice")
    digits = f"{made.serial_number:040x}"
    colons = ":".join(digits[at : at + 2] for at in range(0, 40, 2))
    for word in (f"{made.serial_number:x}", digits.upper(), f"0x{digits}", colons.upper()):
        assert serials(authority, word) == [made.serial_number]


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_a_file_means_the_certificate_in_it(
    authority: Authority, tmp_path: Path, encoding: serialization.Encoding
) -> None:
    made, _ = issue(authority, "alice"), issue(authority, "alice")
    file = tmp_path / "some.crt"
    file.write_bytes(made.public_bytes(encoding))
    assert serials(authority, str(file)) == [made.serial_number]


def test_a_client_may_be_called_as_a_number_is_written(authority: Authority) -> None:
    made = issue(authority, "beef")
    assert serials(authority, "beef") == [made.serial_number]


def test_what_is_named_twice_is_meant_once(authority: Authority) -> None:
    made = issue(authority, "alice")
    assert serials(authority, "alice", f"{made.serial_number:x}", "alice") == [made.serial_number]


@pytest.mark.parametrize("word", ["bob", "beef", "alice.crt", "", "x" * 5000, "a\0b", "CA", "0x"])
def test_a_word_that_means_nothing(authority: Authority, word: str) -> None:
    issue(authority, "alice")
    with pytest.raises(AuthorityError, match="is no client that this authority certified"):
        revoking.find(authority, ["alice", word])


def test_the_server_is_no_client(authority: Authority) -> None:
    made = authority.issue_server(["localhost"], odd.key().public_key(), now_ms=NOW_MS)
    with pytest.raises(AuthorityError):
        revoking.find(authority, ["CipherMQ server"])
    assert serials(authority, f"{made.serial_number:x}") == [made.serial_number]


def test_files_of_others_and_of_nobody(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=NOW_MS)
    file = tmp_path / "file"
    file.write_bytes(issue(other, "alice").public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="file"):
        revoking.find(authority, [str(file)])
    file.write_text("nonsense")
    with pytest.raises(CertificateError, match="holds no certificate of the authority"):
        revoking.find(authority, [str(file)])
    with pytest.raises(CertificateError, match="the authority's own"):
        revoking.find(authority, [str(authority.path / "ca.crt")])


def test_an_adopted_authority_needs_the_file_or_an_unknown_serial(tmp_path: Path) -> None:
    onex.make(tmp_path / "certs", ["bob"], hosts=["localhost"], now_ms=NOW_MS)
    files = tmp_path / "certs"
    certificate = x509.load_pem_x509_certificate((files / "ca.crt").read_bytes())
    key = keyfile.read_key(files / "ca.key", None)
    adopted = Authority.adopt(tmp_path / "ca", certificate, key, passphrase=None, now_ms=NOW_MS)
    path = files / onex.CLIENTS / "bob" / "client.crt"
    bob = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
    assert serials(adopted, str(path)) == [bob]
    for words in (["bob"], [f"{bob:x}"]):
        with pytest.raises(AuthorityError, match="--unknown"):
            revoking.find(adopted, words)
    assert serials(adopted, f"{bob:x}", unknown=True) == [bob]
    with pytest.raises(AuthorityError):  # a name is no serial, whatever is let in
        revoking.find(adopted, ["bob"], unknown=True)
    adopted.issue_crl(now_ms=NOW_MS, revoke=[bob])
    (row,) = revoking.standing(adopted)
    assert (row.serial, row.issued, row.revoked_ms, row.reason) == (bob, None, NOW_MS, None)


# --- what goes on the list ------------------------------------------------------------------------


def test_the_reason_and_the_day_stay_as_they_were_first(authority: Authority) -> None:
    alice, bob = issue(authority, "alice"), issue(authority, "bob")
    stolen = revoking.reason_named("keycompromise")
    authority.issue_crl(now_ms=NOW_MS, revoke=[alice.serial_number], reason=stolen)
    left = revoking.reason_named("cessationOfOperation")
    both = [alice.serial_number, bob.serial_number]
    newest = authority.issue_crl(now_ms=NOW_MS + DAY_MS, revoke=both, reason=left)
    assert (newest.number, newest.serials) == (3, set(both))
    later = authority.issue_crl(now_ms=NOW_MS + 2 * DAY_MS)
    assert (later.number, later.serials) == (4, set(both))
    found = {row.issued.name: row for row in revoking.standing(authority) if row.issued}
    assert (found["alice"].revoked_ms, found["alice"].reason) == (NOW_MS, "keyCompromise")
    later_ms = NOW_MS + DAY_MS
    assert (found["bob"].revoked_ms, found["bob"].reason) == (later_ms, "cessationOfOperation")


def test_reasons_there_are_and_are_not() -> None:
    assert revoking.reason_named("SUPERSEDED") is x509.ReasonFlags.superseded
    for name in ("certificateHold", "removeFromCRL", "cACompromise", ""):
        with pytest.raises(UsageError, match="must be one of unspecified, keyCompromise"):
            revoking.reason_named(name)


def test_openssl_reads_the_list_as_it_is_meant(authority: Authority) -> None:
    made = issue(authority, "alice")
    stolen = revoking.reason_named("keyCompromise")
    authority.issue_crl(now_ms=NOW_MS, revoke=[made.serial_number], reason=stolen)
    words = ["openssl", "crl", "-in", "crl.pem", "-noout", "-text", "-CAfile", "ca.crt"]
    done = subprocess.run(words, cwd=authority.path, capture_output=True, text=True, check=True)
    assert "verify OK" in done.stdout + done.stderr
    assert f"{made.serial_number:040X}" in done.stdout
    assert "Key Compromise" in done.stdout


def test_standing_is_valid_expired_or_revoked(authority: Authority) -> None:
    issue(authority, "alice")
    bob = issue(authority, "bob")
    authority.issue_crl(now_ms=NOW_MS, revoke=[bob.serial_number])
    rows = revoking.standing(authority)
    assert [row.state(NOW_MS) for row in rows] == ["valid", "revoked"]
    assert [row.state(NOW_MS + 400 * DAY_MS) for row in rows] == ["expired", "revoked"]


# --- what was taken back does not come again ------------------------------------------------------


def test_a_key_that_was_taken_back_is_certified_no_more(authority: Authority) -> None:
    stolen = odd.key().public_key()
    made = authority.issue_client("alice", stolen, now_ms=NOW_MS)
    authority.issue_crl(now_ms=NOW_MS, revoke=[made.serial_number])
    for replace in (False, True):
        with pytest.raises(AuthorityError, match=r"the key of 'alice' was taken back"):
            authority.issue_client("alice", stolen, now_ms=NOW_MS, replace=replace)
    authority.issue_client("alice", odd.key().public_key(), now_ms=NOW_MS)


def test_a_key_goes_on_when_only_its_older_certificate_is_revoked(authority: Authority) -> None:
    key = odd.key().public_key()
    older = authority.issue_client("alice", key, now_ms=NOW_MS)
    authority.issue_client("alice", key, now_ms=NOW_MS)
    authority.issue_crl(now_ms=NOW_MS, revoke=[older.serial_number])
    authority.issue_client("alice", key, now_ms=NOW_MS)
