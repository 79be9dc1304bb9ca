"""Identities made here and elsewhere, moved, renewed, and what must not come of it."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.client import bundle, enrol, view
from ciphermq.client.identity import Identity
from ciphermq.custody import armour
from ciphermq.custody.passphrase import CHEAP
from ciphermq.errors import (
    AuthorityError,
    CertificateError,
    ConfigError,
    IdentityError,
    PassphraseError,
    RevocationListStale,
    UsageError,
)
from ciphermq.model.suites import Suite
from ciphermq.pki.authority import Authority, load_request
from ciphermq.pki.verify import key_sha256
from support.deployment import Deployment, make_deployment, now_ms

DAY_MS = limits.DAY * 1000
URL = "cmq://queue.example.org:7443"


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path, ["alice"], suite=Suite.X25519)


@pytest.fixture
def alice(deployment: Deployment) -> Path:
    return deployment.identity("alice")


def certificate_key(path: Path) -> bytes:
    key = Identity.load(path).certificate.public_key()
    return key_sha256(key)  # type: ignore[arg-type]


def bundle_of(text: bytes, phrase: str | None = None) -> bundle.Bundle:
    return bundle.unpack(text, phrase)


# --- made beside the authority --------------------------------------------------------------------


def test_nothing_is_overwritten(deployment: Deployment, alice: Path) -> None:
    before = bundle.collect(alice)
    with pytest.raises(FileExistsError):
        deployment.add("alice")
    assert bundle.collect(alice) == before


def test_an_identity_that_the_authority_refuses_leaves_nothing(
    deployment: Deployment, alice: Path
) -> None:
    moved = alice.rename(alice.with_name("moved"))
    with pytest.raises(AuthorityError, match="another key"):
        deployment.add("alice")
    assert [path.name for path in moved.parent.iterdir()] == ["moved"]


@pytest.mark.parametrize("name", ["..", ".", "dead.letters", "a/b"])
def test_names_that_would_be_paths(deployment: Deployment, name: str) -> None:
    with pytest.raises(UsageError, match="can't be a client id"):
        deployment.add(name)


# --- made where it lives --------------------------------------------------------------------------


def requested(tmp_path: Path, name: str = "carol", passphrase: str | None = None) -> Path:
    path = tmp_path / "laptop" / name
    enrol.request(path, name=name, passphrase=passphrase, suite=Suite.X25519, cost=CHEAP)
    return path


def signed(deployment: Deployment, path: Path) -> bytes:
    """What ``ciphermq ca sign`` does with the request that `path` sent."""
    asked = load_request((path / "request.pem").read_bytes())
    certificate = deployment.authority.sign_request(asked, now_ms=now_ms())
    return enrol.answer(deployment.authority, certificate, URL, "queue.example.org")


def test_only_the_request_leaves_the_machine(tmp_path: Path, deployment: Deployment) -> None:
    path = requested(tmp_path, passphrase="mine")
    with pytest.raises(IdentityError, match="waits for its certificate"):
        Identity.load(path, "mine")
    assert view.describe(path, now_ms())["status"] == "waits for its certificate"
    answer = signed(deployment, path)
    assert b"PRIVATE" not in (path / "request.pem").read_bytes() + answer
    enrol.install_certificate(bundle_of(answer), path, now_ms())
    loaded = Identity.load(path, "mine")
    loaded.check(now_ms())
    assert (loaded.name, loaded.url, loaded.server_name) == ("carol", URL, "queue.example.org")
    assert loaded.suite is Suite.X25519
    assert not (path / "request.pem").exists()
    assert stat.S_IMODE((path / "key.pem").stat().st_mode) == 0o600


def test_an_answer_to_somebody_else_s_request(tmp_path: Path, deployment: Deployment) -> None:
    carol, dave = requested(tmp_path), requested(tmp_path, "dave")
    answer = bundle_of(signed(deployment, dave))
    with pytest.raises(CertificateError, match="is for 'dave', not for 'carol'"):
        enrol.install_certificate(answer, carol, now_ms())
    again = bundle_of(signed(deployment, requested(tmp_path / "other")))
    with pytest.raises(CertificateError, match="for another key than the one in"):
        enrol.install_certificate(again, carol, now_ms())
    renamed = msgspec.structs.replace(answer, name="carol")
    with pytest.raises(CertificateError, match="not for 'carol'"):
        enrol.install_certificate(renamed, carol, now_ms())
    assert not (carol / "cert.pem").exists()
    assert not (carol / "ca.crt").exists()


def test_an_answer_whose_authority_did_not_sign_it(tmp_path: Path, deployment: Deployment) -> None:
    path = requested(tmp_path)
    answer = bundle_of(signed(deployment, path))
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=now_ms())
    forged = msgspec.structs.replace(
        answer, files={**answer.files, "ca.crt": other.certificate_pem}
    )
    with pytest.raises(CertificateError, match="does not lead to our authority"):
        enrol.install_certificate(forged, path, now_ms())
    assert not (path / "cert.pem").exists()


def test_a_renewal_on_the_own_machine_keeps_the_key(tmp_path: Path, deployment: Deployment) -> None:
    path = requested(tmp_path)
    enrol.install_certificate(bundle_of(signed(deployment, path)), path, now_ms())
    before = Identity.load(path).certificate
    enrol.request_again(path, None)
    assert load_request((path / "request.pem").read_bytes()).public_key() == before.public_key()
    # It goes on working until the answer comes.
    assert Identity.load(path).certificate == before
    enrol.install_certificate(bundle_of(signed(deployment, path)), path, now_ms())
    after = Identity.load(path).certificate
    assert after != before
    assert after.public_key() == before.public_key()
    assert Identity.load(path).url == URL


def test_an_answer_can_t_change_whom_an_identity_believes(
    tmp_path: Path, deployment: Deployment
) -> None:
    path = requested(tmp_path)
    enrol.install_certificate(bundle_of(signed(deployment, path)), path, now_ms())
    enrol.request_again(path, None)
    other = make_deployment(tmp_path / "elsewhere", suite=Suite.X25519)
    before = bundle.collect(path)
    with pytest.raises(CertificateError, match=r"does not lead to our authority.*new identity"):
        enrol.install_certificate(bundle_of(signed(other, path)), path, now_ms())
    assert bundle.collect(path) == before


def test_an_answer_with_an_old_revocation_list(tmp_path: Path, deployment: Deployment) -> None:
    path = requested(tmp_path)
    enrol.install_certificate(bundle_of(signed(deployment, path)), path, now_ms())
    enrol.request_again(path, None)
    old = bundle_of(signed(deployment, path))
    Identity.load(path).install_crl(deployment.authority.issue_crl(now_ms=now_ms()).der)
    with pytest.raises(RevocationListStale, match="older"):
        enrol.install_certificate(old, path, now_ms())


# --- renewed --------------------------------------------------------------------------------------


def test_a_renewal_keeps_the_key_and_takes_the_newest_list(
    deployment: Deployment, alice: Path
) -> None:
    before, key = Identity.load(alice).certificate, certificate_key(alice)
    deployment.authority.issue_crl(now_ms=now_ms())
    enrol.renew(alice, authority=deployment.authority, now_ms=now_ms() + 300 * DAY_MS)
    loaded = Identity.load(alice)
    assert certificate_key(alice) == key
    assert loaded.certificate.not_valid_after_utc > before.not_valid_after_utc
    assert loaded.verifier.crl_number == 2


def test_a_renewal_with_a_new_key_keeps_the_passphrase(deployment: Deployment) -> None:
    path = deployment.add("bob", passphrase="mine")
    before = Identity.load(path, "mine").certificate
    with pytest.raises(PassphraseError):
        enrol.renew_with_new_key(
            path, authority=deployment.authority, now_ms=now_ms(), passphrase="wrong"
        )
    enrol.renew_with_new_key(
        path, authority=deployment.authority, now_ms=now_ms(), passphrase="mine"
    )
    loaded = Identity.load(path, "mine")
    assert loaded.certificate.public_key() != before.public_key()
    # And from then on the new key is the one that is renewed.
    enrol.renew(path, authority=deployment.authority, now_ms=now_ms())


def test_a_renewal_of_an_identity_that_lives_elsewhere(
    tmp_path: Path, deployment: Deployment
) -> None:
    path = requested(tmp_path)
    enrol.install_certificate(bundle_of(signed(deployment, path)), path, now_ms())
    renewed = enrol.renew_elsewhere("carol", authority=deployment.authority, now_ms=now_ms())
    answer = enrol.answer(deployment.authority, renewed.certificate, URL)
    enrol.install_certificate(bundle_of(answer), path, now_ms())
    assert Identity.load(path).certificate == renewed.certificate
    with pytest.raises(AuthorityError, match="never certified 'nobody'"):
        enrol.renew_elsewhere("nobody", authority=deployment.authority, now_ms=now_ms())


# --- moved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phrase", [None, "for the road"])
@pytest.mark.parametrize("own", [None, "its own"])
def test_an_export_holds_all_that_a_client_needs(
    tmp_path: Path, deployment: Deployment, phrase: str | None, own: str | None
) -> None:
    path = deployment.add("bob", passphrase=own)
    before = Identity.load(path, own)
    record = before.key_record(now_ms())
    before.trust.trust("carol", bytes(32), now_ms())
    text = enrol.export(path, phrase, CHEAP)
    assert bundle.needs_passphrase(text) == (phrase is not None)
    target = tmp_path / "laptop" / "bob"
    enrol.import_identity(bundle_of(text, phrase), target, now_ms())
    after = Identity.load(target, own)
    assert (after.name, after.url) == (before.name, before.url)
    assert after.current_key.key_id == before.current_key.key_id
    assert after.key_record(now_ms()) == record
    assert after.trust.clients() == before.trust.clients()
    assert after.verifier.crl_number == 1
    for file in target.rglob("*"):
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == stat.S_IMODE((path / file.relative_to(target)).stat().st_mode), file


def test_an_export_under_a_passphrase_shows_nothing(alice: Path) -> None:
    text = enrol.export(alice, "for the road", CHEAP)
    inside = armour.strip_armour("CIPHERMQ ENCRYPTED IDENTITY", text)
    assert b"alice" not in inside
    assert b"PRIVATE" not in inside
    with pytest.raises(PassphraseError, match="does not open"):
        bundle.unpack(text, "for the rood")
    with pytest.raises(PassphraseError, match="give the passphrase"):
        bundle.unpack(text)


def test_an_import_takes_nobody_s_place(deployment: Deployment, alice: Path) -> None:
    exported = bundle_of(enrol.export(alice))
    before = bundle.collect(alice)
    with pytest.raises(FileExistsError):
        enrol.import_identity(exported, alice, now_ms())
    assert bundle.collect(alice) == before


def test_lock_files_and_strangers_are_not_exported(alice: Path) -> None:
    Identity.load(alice).key_record(now_ms())
    (alice / "notes.txt").write_text("mine")
    (alice / "sealing" / "old.key.bak").write_text("mine")
    assert set(bundle_of(enrol.export(alice)).files) == {
        "identity.toml",
        "cert.pem",
        "key.pem",
        "ca.crt",
        "crl.pem",
        "sealing/keys.json",
        "sealing/record.pem",
        "trust.json",
        f"sealing/{Identity.load(alice).current_key.key_id.hex()}.key",
    }


def test_parts_that_do_not_fit_each_other(
    tmp_path: Path, deployment: Deployment, alice: Path
) -> None:
    exported = bundle_of(enrol.export(alice))
    bob = bundle_of(enrol.export(deployment.add("bob")))
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=now_ms())
    for files in (
        {"cert.pem": bob.files["cert.pem"]},
        {"identity.toml": bob.files["identity.toml"]},
        {"ca.crt": other.certificate_pem},
        {"ca.crt": b"nothing"},
        {"cert.pem": b"nothing"},
        {"identity.toml": b"nothing"},
    ):
        mixed = msgspec.structs.replace(exported, files={**exported.files, **files})
        with pytest.raises((IdentityError, ConfigError)):
            enrol.import_identity(mixed, tmp_path / "new", now_ms())
        assert not (tmp_path / "new").exists()


# --- the file -------------------------------------------------------------------------------------


def test_names_that_would_leave_the_directory(tmp_path: Path, alice: Path) -> None:
    exported = bundle_of(enrol.export(alice))
    for name in (
        "../evil",
        "/etc/passwd",
        "sealing/../../evil",
        "sealing/x.key",
        "sealing",
        ".bashrc",
        "",
        "key.pem/../../evil",
        "cert.pem\0",
    ):
        content = msgspec.structs.replace(exported, files={**exported.files, name: b"x"})
        text = armour.armour("CIPHERMQ IDENTITY", msgspec.msgpack.encode(content))
        with pytest.raises(IdentityError, match="no part of an identity"):
            bundle.unpack(text)


def test_an_answer_holds_no_secret(alice: Path) -> None:
    exported = bundle_of(enrol.export(alice))
    with pytest.raises(IdentityError, match="no part of a certificate"):
        bundle.pack("certificate", "alice", exported.files)
    text = armour.armour("CIPHERMQ CERTIFICATE", msgspec.msgpack.encode(exported))
    with pytest.raises(IdentityError, match=r"'CIPHERMQ CERTIFICATE', but holds a identity"):
        bundle.unpack(text)


def test_what_is_too_large(alice: Path) -> None:
    exported = bundle_of(enrol.export(alice))
    files = {**exported.files, "key.pem": b"x" * (limits.MAX_KEY_FILE + 1)}
    large = msgspec.structs.replace(exported, files=files)
    text = armour.armour("CIPHERMQ IDENTITY", msgspec.msgpack.encode(large))
    with pytest.raises(IdentityError, match=r"key\.pem in the file has 65537 bytes"):
        bundle.unpack(text)
    with pytest.raises(IdentityError, match="an identity at most"):
        bundle.unpack(b" " * (limits.MAX_IDENTITY_FILE + 1))
    many = {f"sealing/{index:032x}.key": b"" for index in range(limits.MAX_IDENTITY_PARTS)}
    crowded = msgspec.structs.replace(exported, files={**exported.files, **many})
    text = armour.armour("CIPHERMQ IDENTITY", msgspec.msgpack.encode(crowded))
    with pytest.raises(IdentityError, match="is damaged"):
        bundle.unpack(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "upgrade this program"),
        ({"name": "../evil"}, "not a client id"),
        ({"files": {}}, r"lacks ca\.crt, cert\.pem, crl\.pem"),
        ({"kind": "something"}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_what_is_not_as_it_should_be(
    alice: Path, changes: dict[str, object], sentence: str
) -> None:
    exported = msgspec.structs.asdict(bundle_of(enrol.export(alice)))
    content = msgspec.msgpack.encode({**exported, **changes})
    with pytest.raises(IdentityError, match=sentence):
        bundle.unpack(armour.armour("CIPHERMQ IDENTITY", content))


@pytest.mark.parametrize("text", [b"", b"hello", armour.armour("CERTIFICATE", b"x")])
def test_what_is_no_identity_at_all(text: bytes) -> None:
    with pytest.raises(IdentityError, match="a file that `ciphermq identity export`"):
        bundle.unpack(text)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else_than_be_refused(data: bytes) -> None:
    for label in ("CIPHERMQ IDENTITY", "CIPHERMQ CERTIFICATE", "CIPHERMQ ENCRYPTED IDENTITY"):
        with pytest.raises(IdentityError):
            bundle.unpack(armour.armour(label, data), "phrase")


def test_fingerprints_are_of_the_whole_certificate(deployment: Deployment) -> None:
    certificate = deployment.authority.certificate
    digest = enrol.fingerprint_of(certificate)
    assert digest == enrol.fingerprint_of(
        x509.load_pem_x509_certificate(deployment.authority.certificate_pem)
    )
    assert len(digest) == 32
