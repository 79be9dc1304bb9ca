"""The authority: what it issues, to whom, and how its key is kept."""

from __future__ import annotations

import ipaddress
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq import limits
from ciphermq.custody import armour, passphrase
from ciphermq.errors import AuthorityError, CertificateError, PassphraseError, UsageError
from ciphermq.pki import keyfile, names, onex, profiles
from ciphermq.pki.authority import Authority, AuthorityDirectory, key_beneath, load_request
from ciphermq.pki.verify import ChainVerifier
from support import odd_certificates as odd
from support.odd_certificates import DAY_MS, NOW_MS

YEAR_MS = 365 * DAY_MS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", passphrase=None, now_ms=NOW_MS)


def public_key() -> ec.EllipticCurvePublicKey:
    return odd.key().public_key()


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


# --- its own key ----------------------------------------------------------------------------------


def test_its_key_is_p384_and_its_first_list_is_number_one(authority: Authority) -> None:
    key = authority.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    first = authority.revocation_list()
    assert first.number == 1
    assert first.serials == set()
    assert first.next_update_ms == NOW_MS + 30 * DAY_MS
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_two_authorities_are_not_taken_for_one_another(tmp_path: Path) -> None:
    made = [
        Authority.create(tmp_path / name, passphrase=None, now_ms=NOW_MS).certificate.subject
        for name in ("a", "b")
    ]
    assert made[0] != made[1]


def test_one_from_elsewhere_is_adopted(tmp_path: Path) -> None:
    onex.make(tmp_path / "certs", ["bob"], hosts=["localhost"], now_ms=NOW_MS)
    files = tmp_path / "certs"
    certificate = x509.load_pem_x509_certificate((files / "ca.crt").read_bytes())
    key = keyfile.read_key(files / "ca.key", None)
    home = tmp_path / "ca"
    cheap = passphrase.CHEAP
    adopted = Authority.adopt(home, certificate, key, passphrase="p", now_ms=NOW_MS, cost=cheap)
    assert (adopted.encrypted, adopted.revocation_list().number) == (True, 1)
    issued = adopted.issue_client("alice", public_key(), now_ms=NOW_MS)
    crl = adopted.revocation_list().der
    verifier = ChainVerifier([certificate.public_bytes(serialization.Encoding.DER)], crl)
    chain = [issued.public_bytes(serialization.Encoding.DER)]
    assert verifier.check_signer(chain, NOW_MS, NOW_MS).client_id == "alice"
    with pytest.raises(FileExistsError):
        Authority.adopt(home, certificate, key, passphrase=None, now_ms=NOW_MS)


def test_what_is_no_authority_is_not_adopted(tmp_path: Path) -> None:
    onex.make(tmp_path / "certs", [], hosts=["localhost"], now_ms=NOW_MS)
    files, home = tmp_path / "certs", tmp_path / "ca"
    certificate = x509.load_pem_x509_certificate((files / "server.crt").read_bytes())
    with pytest.raises(AuthorityError, match="the key is not that of"):
        Authority.adopt(home, certificate, odd.key(), passphrase=None, now_ms=NOW_MS)
    key = keyfile.read_key(files / "server.key", None)
    with pytest.raises(CertificateError, match="is not an authority's certificate"):
        Authority.adopt(home, certificate, key, passphrase=None, now_ms=NOW_MS)
    assert not home.exists()


def test_its_files_are_private(authority: Authority) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [authority.path, *authority.path.iterdir()]
    }
    assert modes["ca"] == modes["issued"] == 0o700
    assert modes["ca.key"] == 0o600
    assert modes["ca.crt"] == modes["crl.pem"] == 0o644


def test_the_passphrase_opens_its_key_and_no_other_does(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    made = Authority.create(path, passphrase="höchst geheim", now_ms=NOW_MS, cost=passphrase.CHEAP)
    assert made.encrypted
    # The same letters, typed on another keyboard.
    opened = Authority.open(path, "ho\u0308chst geheim")
    assert opened.issue_client("alice", public_key(), now_ms=NOW_MS)
    with pytest.raises(PassphraseError, match="does not open"):
        Authority.open(path, "hoechst geheim")
    with pytest.raises(PassphraseError, match="--passphrase-file"):
        Authority.open(path, None)
    with pytest.raises(PassphraseError, match="empty"):
        Authority.open(path, "")
    with pytest.raises(PassphraseError, match="empty"):
        Authority.create(tmp_path / "other", passphrase="", now_ms=NOW_MS)
    assert not (tmp_path / "other").exists()


def test_neither_of_its_two_files_alone_opens_the_key(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    Authority.create(path, passphrase="secret", now_ms=NOW_MS, cost=passphrase.CHEAP)
    pem = (path / "ca.key").read_bytes()
    assert b"ENCRYPTED PRIVATE KEY" in pem
    with pytest.raises(ValueError):  # the passphrase is not the PEM file's password
        serialization.load_pem_private_key(pem, b"secret")
    (path / "ca.pass").unlink()
    with pytest.raises(PassphraseError):
        Authority.open(path, "secret")


def test_the_passphrase_is_strong_by_default(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    Authority.create(path, passphrase="secret", now_ms=NOW_MS)
    box = armour.strip_armour("CIPHERMQ WRAPPED PASSWORD", (path / "ca.pass").read_bytes())
    assert passphrase.STRONG == (1 << 17, 8, 1)
    assert box.startswith(b"CMQP" + bytes([1, 17, 8, 1]))  # version, log2 n, r, p


def test_a_damaged_wrapped_password(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    Authority.create(path, passphrase="secret", now_ms=NOW_MS, cost=passphrase.CHEAP)
    (path / "ca.pass").write_text("hello")
    with pytest.raises(PassphraseError, match="restore it from a backup"):
        Authority.open(path, "secret")


def test_no_authority_there(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"no authority in .*`ciphermq init`"):
        AuthorityDirectory(tmp_path)
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(AuthorityError, match="can't be read"):
        AuthorityDirectory(tmp_path)


def test_the_key_of_another_authority(tmp_path: Path, authority: Authority) -> None:
    other = Authority.create(tmp_path / "other", passphrase=None, now_ms=NOW_MS)
    (authority.path / "ca.key").write_bytes((other.path / "ca.key").read_bytes())
    with pytest.raises(AuthorityError, match="is not the key of"):
        Authority.open(authority.path, None)


def test_a_key_that_others_may_read(authority: Authority) -> None:
    (authority.path / "ca.key").chmod(0o644)
    with pytest.raises(Exception, match=r"mode 0644.*chmod 600"):
        Authority.open(authority.path, None)


def test_a_broker_can_look_whether_an_authority_s_key_is_beneath_it(
    tmp_path: Path, authority: Authority
) -> None:
    assert key_beneath(tmp_path) == authority.path / "ca.key"
    (tmp_path / "server").mkdir()
    assert key_beneath(tmp_path / "server") is None


# --- clients --------------------------------------------------------------------------------------


def test_a_client_s_certificate_to_the_letter(authority: Authority) -> None:
    key = public_key()
    made = authority.issue_client("alice", key, now_ms=NOW_MS)
    assert made.public_key() == key
    assert made.subject.rfc4514_string() == "CN=alice"
    alternative = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternative) == [x509.UniformResourceIdentifier("ciphermq:alice")]
    assert usages(made) == {ExtendedKeyUsageOID.CLIENT_AUTH, names.SIGNING_USAGE}
    assert names.SIGNING_USAGE.dotted_string.startswith("2.25.")
    assert made.not_valid_after_utc.timestamp() * 1000 == NOW_MS + YEAR_MS
    # It counts already for a machine whose clock is slow.
    skew_ms = limits.CLOCK_SKEW * 1000
    assert made.not_valid_before_utc.timestamp() * 1000 == NOW_MS - skew_ms


def test_what_it_issues_is_trusted_and_kept(authority: Authority) -> None:
    made = authority.issue_client("alice", public_key(), now_ms=NOW_MS)
    judge = ChainVerifier([odd.der(authority.certificate)], authority.revocation_list().der)
    assert judge.check_signer([odd.der(made)], NOW_MS, NOW_MS).client_id == "alice"
    assert [item.certificate for item in authority.issued()] == [made]
    newest = authority.newest("alice")
    assert newest is not None
    assert newest.certificate == made
    assert authority.newest("bob") is None


@pytest.mark.parametrize("name", ["dead.alice", "..", "a b", "x" * 65, ""])
def test_names_it_does_not_issue(authority: Authority, name: str) -> None:
    with pytest.raises(UsageError):
        authority.issue_client(name, public_key(), now_ms=NOW_MS)
    assert authority.issued() == []


def test_a_second_key_can_t_take_over_a_name(authority: Authority) -> None:
    first, second = public_key(), public_key()
    authority.issue_client("alice", first, now_ms=NOW_MS)
    with pytest.raises(AuthorityError, match=r"'alice' has a certificate with another key.*--repl"):
        authority.issue_client("alice", second, now_ms=NOW_MS)
    authority.issue_client("alice", first, now_ms=NOW_MS)
    authority.issue_client("alice", second, now_ms=NOW_MS, replace=True)
    # From then on the new key renews, and the old one does not.
    authority.issue_client("alice", second, now_ms=NOW_MS)
    with pytest.raises(AuthorityError):
        authority.issue_client("alice", first, now_ms=NOW_MS)


def test_a_name_is_free_again_when_its_certificate_is_revoked(authority: Authority) -> None:
    made = authority.issue_client("alice", public_key(), now_ms=NOW_MS)
    with pytest.raises(AuthorityError):  # not even when it has ended
        authority.issue_client("alice", public_key(), now_ms=NOW_MS + 2 * YEAR_MS)
    authority.issue_crl(now_ms=NOW_MS, revoke=[made.serial_number])
    assert authority.newest("alice") is None
    authority.issue_client("alice", public_key(), now_ms=NOW_MS)


def test_an_authority_takes_nobody_s_place(authority: Authority) -> None:
    with pytest.raises(FileExistsError):
        Authority.create(authority.path, passphrase=None, now_ms=NOW_MS)
    assert Authority.open(authority.path, None).certificate == authority.certificate


def test_nothing_outlives_the_authority(authority: Authority) -> None:
    end_ms = int(authority.certificate.not_valid_after_utc.timestamp() * 1000)
    made = authority.issue_client("alice", public_key(), now_ms=end_ms - DAY_MS)
    assert made.not_valid_after_utc == authority.certificate.not_valid_after_utc
    for now_ms in (end_ms, NOW_MS - DAY_MS):
        with pytest.raises(AuthorityError, match="set the clock, or make a new authority"):
            authority.issue_client("bob", public_key(), now_ms=now_ms)


# --- requests -------------------------------------------------------------------------------------


def test_a_request_is_signed_for_its_name_and_key_only(authority: Authority) -> None:
    key = odd.key()
    greedy = odd.request(
        "alice",
        key,
        extensions=[
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName([x509.DNSName("queue.example.org")]), False),
        ],
    )
    made = authority.sign_request(greedy, now_ms=NOW_MS)
    assert made.public_key() == key.public_key()
    assert names.client_id_of(made) == "alice"
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert usages(made) == {ExtendedKeyUsageOID.CLIENT_AUTH, names.SIGNING_USAGE}
    alternative = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == []


def test_a_request_without_proof_that_its_maker_has_the_key(authority: Authority) -> None:
    honest = odd.request("alice").public_bytes(serialization.Encoding.DER)
    tampered = load_request(honest.replace(b"alice", b"mitch"))
    with pytest.raises(CertificateError, match="not signed by the key it names"):
        authority.sign_request(tampered, now_ms=NOW_MS)


def test_a_request_for_a_name_that_has_another_key(authority: Authority) -> None:
    authority.sign_request(odd.request("alice"), now_ms=NOW_MS)
    with pytest.raises(AuthorityError, match="another key"):
        authority.sign_request(odd.request("alice"), now_ms=NOW_MS)
    authority.sign_request(odd.request("alice"), now_ms=NOW_MS, replace=True)


def test_requests_for_what_is_never_issued(authority: Authority) -> None:
    with pytest.raises(CertificateError, match="exactly one CN"):
        authority.sign_request(odd.request(odd.subject("a", "b")), now_ms=NOW_MS)
    with pytest.raises(CertificateError, match="no client id"):
        authority.sign_request(odd.request("dead.alice"), now_ms=NOW_MS)
    weak = odd.request("alice", rsa.generate_private_key(65537, 2048))
    with pytest.raises(CertificateError, match="must be on P-256, P-384 or P-521"):
        authority.sign_request(weak, now_ms=NOW_MS)
    assert authority.issued() == []


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(CertificateError, match="not a certificate request"):
        load_request(data)


# --- brokers --------------------------------------------------------------------------------------


def test_a_broker_s_certificate_is_for_servers_only_and_for_its_hosts(authority: Authority) -> None:
    hosts = ["queue.example.org", "*.example.org", "10.0.0.5", "[::1]", "localhost.", "10.0.0.5"]
    made = authority.issue_server(hosts, public_key(), now_ms=NOW_MS)
    assert usages(made) == {ExtendedKeyUsageOID.SERVER_AUTH}
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == [
        "queue.example.org",
        "*.example.org",
        "localhost",
    ]
    assert found.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.5"),
        ipaddress.ip_address("::1"),
    ]
    with pytest.raises(CertificateError):
        names.client_id_of(made)
    assert [item.is_client for item in authority.issued()] == [False]


@pytest.mark.parametrize(
    "host", ["", "a b", "host:7443", "-x", "bücher.example", "x" * 256, "a..b"]
)
def test_what_is_no_host(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError, match="neither an IP address nor a host name"):
        authority.issue_server([host], public_key(), now_ms=NOW_MS)


def test_a_broker_without_hosts(authority: Authority) -> None:
    with pytest.raises(UsageError, match="at least one host"):
        authority.issue_server([], public_key(), now_ms=NOW_MS)


# --- revocation lists -----------------------------------------------------------------------------


def test_each_list_has_a_higher_number_and_forgets_nobody(authority: Authority) -> None:
    second = authority.issue_crl(now_ms=NOW_MS, revoke=[5])
    third = authority.issue_crl(now_ms=NOW_MS + 20 * DAY_MS, revoke=[7, 5])
    assert (second.number, second.serials) == (2, {5})
    assert (third.number, third.serials) == (3, {5, 7})
    assert authority.revocation_list().der == third.der
    assert third.next_update_ms == NOW_MS + 50 * DAY_MS


def test_a_lost_list_is_not_replaced_by_one_that_forgets(authority: Authority) -> None:
    (authority.path / "crl.pem").unlink()
    with pytest.raises(AuthorityError, match="would forget who is revoked"):
        authority.issue_crl(now_ms=NOW_MS)
    (authority.path / "crl.pem").write_bytes(b"nonsense")
    with pytest.raises(AuthorityError, match="restore it from a backup"):
        authority.issue_crl(now_ms=NOW_MS)


def test_openssl_believes_all_of_it(authority: Authority) -> None:
    """With the strictest checks that OpenSSL has, as newer Pythons use by default."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
    context.load_verify_locations(authority.path / "ca.crt")
    context.load_verify_locations(authority.path / "crl.pem")
    assert context.cert_store_stats() == {"x509": 1, "crl": 1, "x509_ca": 1}


def test_extensions_are_those_that_strict_verifiers_ask_for(authority: Authority) -> None:
    for made in (
        authority.issue_client("alice", public_key(), now_ms=NOW_MS),
        authority.issue_server(["localhost"], public_key(), now_ms=NOW_MS),
    ):
        usage = made.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature
        assert not usage.value.key_cert_sign
        own = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        theirs = authority.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
        assert own.key_identifier == theirs.key_identifier


def test_serial_numbers_differ(authority: Authority) -> None:
    issuer = profiles.Issuer(authority.certificate, odd.key())
    serials = {
        profiles.client_certificate(issuer, "a", public_key(), NOW_MS, 60).serial_number
        for _ in range(20)
    }
    assert len(serials) == 20
