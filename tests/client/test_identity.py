"""An identity as its client loads it."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.client import enrol, layout, places
from ciphermq.client.identity import Identity
from ciphermq.client.layout import IdentitySettings
from ciphermq.custody.passphrase import CHEAP
from ciphermq.errors import (
    CertificateError,
    ConfigError,
    IdentityError,
    IdentityNotFound,
    PassphraseError,
    RevocationListStale,
    UsageError,
)
from ciphermq.model import keyrecord
from ciphermq.model.suites import Suite
from ciphermq.pki.authority import Authority
from support.deployment import Deployment, make_deployment, now_ms

DAY_MS = limits.DAY * 1000


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path, ["alice"], suite=Suite.X25519)


@pytest.fixture
def alice(deployment: Deployment) -> Path:
    return deployment.identity("alice")


def test_an_identity_knows_who_and_where_it_is(deployment: Deployment, alice: Path) -> None:
    loaded = Identity.load(alice)
    assert loaded.name == "alice"
    assert loaded.url == "cmq://localhost:0"
    assert loaded.server_name is None
    assert loaded.suite is Suite.X25519
    assert loaded.current_key.key_id in loaded.keyring
    loaded.check(now_ms())
    assert loaded.warnings(now_ms()) == []
    info = loaded.verifier.check_signer(loaded.signer.chain, now_ms(), now_ms())
    assert info.client_id == "alice"


def test_what_is_secret_is_private(alice: Path) -> None:
    Identity.load(alice).key_record(now_ms())
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [alice, *alice.rglob("*")]}
    public = {"cert.pem", "ca.crt", "crl.pem", "identity.toml"}
    for path, mode in modes.items():
        expected = 0o700 if path.is_dir() else 0o644 if path.name in public else 0o600
        assert mode == expected, path


def test_a_key_that_others_may_read_is_not_used(alice: Path) -> None:
    (alice / "key.pem").chmod(0o644)
    with pytest.raises(IdentityError, match=r"key\.pem is open to others \(mode 0644\)"):
        Identity.load(alice)


def test_a_passphrase_locks_every_private_key(deployment: Deployment) -> None:
    path = deployment.add("bob", passphrase="open sesame")
    assert b"ENCRYPTED" in (path / "key.pem").read_bytes()
    for key in (path / "sealing").glob("*.key"):
        assert b"ENCRYPTED" in key.read_bytes()
    loaded = Identity.load(path, "open sesame")
    loaded.key_record(now_ms())
    loaded.rotate_key(now_ms())
    assert len(Identity.load(path, "open sesame").keyring) == 2
    assert isinstance(loaded.ssl_context(), ssl.SSLContext)
    with pytest.raises(PassphraseError, match="does not open"):
        Identity.load(path, "open sesam")
    with pytest.raises(PassphraseError, match="CIPHERMQ_PASSPHRASE"):
        Identity.load(path)


def test_the_tls_context_is_strict(alice: Path) -> None:
    context = Identity.load(alice).ssl_context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


# --- key records ----------------------------------------------------------------------------------


def test_others_accept_its_key_record(deployment: Deployment, alice: Path) -> None:
    record = Identity.load(alice).key_record(now_ms())
    admin = deployment.load("admin")
    found = admin.trust.accept(
        record, expected_client="alice", verifier=admin.verifier, now_ms=now_ms()
    )
    assert found.key_id == Identity.load(alice).current_key.key_id


def test_a_new_key_has_a_new_record(alice: Path) -> None:
    loaded = Identity.load(alice)
    first = keyrecord.parse(loaded.key_record(now_ms())).record
    second = keyrecord.parse(loaded.rotate_key(now_ms())).record
    assert second.version > first.version
    assert second.key_id != first.key_id
    assert loaded.current_key.key_id == second.key_id


def test_former_keys_go_when_nothing_can_name_them_any_more(deployment: Deployment) -> None:
    loaded = Identity.load(deployment.add("bob", at_ms=now_ms()))
    loaded.key_record(now_ms())
    old = loaded.current_key.key_id
    loaded.rotate_key(now_ms())
    later = now_ms() + 100 * DAY_MS
    # A clock that jumped ahead is no reason to delete a key.
    loaded.key_record(later)
    assert old in loaded.keyring
    loaded.install_crl(deployment.authority.issue_crl(now_ms=later).der)
    loaded.key_record(later)
    assert old not in loaded.keyring
    assert len(Identity.load(loaded.path).keyring) == 1


def test_a_record_does_not_outlive_its_certificate(deployment: Deployment) -> None:
    path = deployment.add("brief", lifetime=5 * limits.DAY)
    loaded = Identity.load(path)
    said = keyrecord.parse(loaded.make_key_record(now_ms())).record
    end_ms = int(loaded.certificate.not_valid_after_utc.timestamp() * 1000)
    assert said.not_after_ms == end_ms
    # Even after the end a record can be made, and is refused by whoever sees it.
    late = keyrecord.parse(loaded.make_key_record(end_ms + DAY_MS)).record
    assert late.not_after_ms == late.not_before_ms + 1


# --- what ends ------------------------------------------------------------------------------------


def test_it_warns_for_thirty_days(deployment: Deployment) -> None:
    path = deployment.add("brief", lifetime=29 * limits.DAY)
    loaded = Identity.load(path)
    assert loaded.warnings(now_ms())[0].startswith("the certificate of 'brief' expires in 2")
    assert layout.warnings(path, now_ms()) == loaded.warnings(now_ms())
    later = now_ms() + 21 * DAY_MS
    assert any("revocation list 1 expires" in sentence for sentence in loaded.warnings(later))


@pytest.mark.parametrize("age", [366, -2])
def test_a_certificate_out_of_its_time_is_told_before_connecting(tmp_path: Path, age: int) -> None:
    deployment = make_deployment(tmp_path, suite=Suite.X25519)
    loaded = Identity.load(deployment.add("old"))
    with pytest.raises(CertificateError, match=r"is valid from .*identity renew old"):
        loaded.check(now_ms() + age * DAY_MS)


def test_a_revoked_certificate_is_told_before_connecting(
    deployment: Deployment, alice: Path
) -> None:
    deployment.revoke("alice")
    loaded = Identity.load(alice)
    loaded.check(now_ms())
    loaded.install_crl(deployment.authority.revocation_list().der)
    with pytest.raises(CertificateError, match="is revoked"):
        loaded.check(now_ms())


def test_a_stale_list_is_no_reason_not_to_connect(alice: Path) -> None:
    Identity.load(alice).check(now_ms() + 40 * DAY_MS)


# --- revocation lists -----------------------------------------------------------------------------


def test_a_newer_list_is_kept_and_an_older_one_refused(deployment: Deployment, alice: Path) -> None:
    first = deployment.authority.revocation_list().der
    second = deployment.authority.issue_crl(now_ms=now_ms()).der
    loaded = Identity.load(alice)
    assert loaded.verifier.crl_number == 1
    assert loaded.install_crl(second)
    assert not loaded.install_crl(second)
    assert loaded.verifier.crl_number == 2
    assert Identity.load(alice).crl_ders == (second,)
    with pytest.raises(RevocationListStale, match="1 is older than 2"):
        loaded.install_crl(first)


def test_an_old_list_put_back_on_the_disk_is_noticed(deployment: Deployment, alice: Path) -> None:
    old = (alice / "crl.pem").read_bytes()
    Identity.load(alice).install_crl(deployment.authority.issue_crl(now_ms=now_ms()).der)
    (alice / "crl.pem").write_bytes(old)
    with pytest.raises(RevocationListStale, match="1 is older than 2"):
        _ = Identity.load(alice).verifier


def test_a_list_of_another_authority_is_not_kept(tmp_path: Path, alice: Path) -> None:
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=now_ms())
    with pytest.raises(RevocationListStale, match="not signed by our authority"):
        Identity.load(alice).install_crl(other.revocation_list().der)


def test_the_lists_of_two_authorities_live_side_by_side(tmp_path: Path, alice: Path) -> None:
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=now_ms())
    with (alice / "ca.crt").open("ab") as file:
        file.write(other.certificate_pem)
    loaded = Identity.load(alice)
    assert len(loaded.ca_ders) == 2
    loaded.install_crl(other.revocation_list().der)
    loaded.install_crl(other.issue_crl(now_ms=now_ms()).der)
    numbers = sorted(crl.number for crl in Identity.load(alice).verifier.revocation_lists)
    assert numbers == [1, 2]


# --- what is wrong with a directory ---------------------------------------------------------------


def test_no_identity_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityNotFound, match="`ciphermq identity import`"):
        Identity.load(tmp_path)
    with pytest.raises(IdentityNotFound):
        Identity.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["cert.pem", "ca.crt", "key.pem"])
def test_a_file_is_missing_or_nonsense(alice: Path, name: str) -> None:
    (alice / name).write_bytes(b"nonsense")
    with pytest.raises(IdentityError):
        _ = Identity.load(alice).verifier
    (alice / name).unlink()
    with pytest.raises(IdentityError, match=name.replace(".", r"\.")):
        _ = Identity.load(alice).verifier


def test_a_certificate_of_somebody_else(deployment: Deployment, alice: Path) -> None:
    bob = deployment.add("bob")
    for name in ("cert.pem", "identity.toml"):
        kept = (alice / name).read_bytes()
        (alice / name).write_bytes((bob / name).read_bytes())
        with pytest.raises(CertificateError, match="put the right one in place"):
            Identity.load(alice)
        (alice / name).write_bytes(kept)
    (alice / "key.pem").write_bytes((bob / "key.pem").read_bytes())
    with pytest.raises(CertificateError, match="not that of the certificate"):
        Identity.load(alice)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "name"),
        ('name = "alice"', "url"),
        ('name = "a b"\nurl = ""', "not a client id"),
        ('name = "alice"\nurl = ""\nsuite = "RSA"', r"not one of MLKEM768_X25519, X25519, P256"),
        ('name = "alice"\nurl = ""\ncolour = "red"', "colour"),
        ('name = "alice"\nurl = "cmq://\\u001b[2J"', r"url = 'cmq://\\x1b\[2J' has control"),
        ('name = "alice"\nurl = ""\nserver_name = "\\u009b"', "server_name = .* has control"),
        ("name = " + "[" * 10_000, "recursion"),
        ("name = ", "Invalid value"),
        ("\udcff", "utf-8"),
    ],
)
def test_wrong_settings_are_named(alice: Path, text: str, sentence: str) -> None:
    (alice / "identity.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=sentence):
        Identity.load(alice)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    settings = IdentitySettings("alice", "cmq://[::1]:7443", 'quo"ted\\', "P256")
    settings.write(tmp_path)
    assert IdentitySettings.read(tmp_path) == settings


# --- where identities are -------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "ciphermq" / "identities"


def test_a_name_is_looked_for_in_the_deployment_then_in_one_s_own(
    deployment: Deployment, alice: Path, own: Path
) -> None:
    assert places.user_directory() == own
    assert places.find("alice", deployment.home) == alice
    assert places.find("admin", deployment.home) == deployment.home / "admin"
    assert places.find(str(alice), Path("nowhere")) == alice
    enrol.request(own / "carol", name="carol", cost=CHEAP)
    assert places.find("carol", deployment.home) == own / "carol"
    assert places.find("carol", Path("nowhere")) == own / "carol"
    assert list(places.known(deployment.home)) == [
        deployment.home / "admin",
        alice,
        own / "carol",
    ]


def test_what_is_not_found_says_where_it_was_looked_for(deployment: Deployment, own: Path) -> None:
    with pytest.raises(IdentityNotFound) as caught:
        places.find("bob", deployment.home)
    assert str(deployment.home / "identities" / "bob") in str(caught.value)
    assert str(own / "bob") in str(caught.value)
    with pytest.raises(IdentityNotFound):
        places.find("../admin", deployment.home)


def test_nobody_named_means_the_only_one(tmp_path: Path, deployment: Deployment, own: Path) -> None:
    with pytest.raises(UsageError, match=r"admin, alice: say --identity NAME"):
        places.find(None, deployment.home)
    with pytest.raises(IdentityNotFound, match="`ciphermq init`"):
        places.find(None, tmp_path)
    enrol.request(own / "carol", name="carol", cost=CHEAP)
    assert places.find(None, tmp_path) == own / "carol"
