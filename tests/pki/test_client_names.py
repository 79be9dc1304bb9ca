"""Who a certificate says its holder is, and what it may not say."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq.errors import CertificateError, UsageError
from ciphermq.pki import names, profiles
from ciphermq.pki.profiles import Issuer
from support import odd_certificates as odd


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return odd.authority()


def test_what_the_authority_issues_names_its_client(issuer: Issuer) -> None:
    made = profiles.client_certificate(
        issuer, "alice-1.test_X", odd.key().public_key(), odd.NOW_MS, 1000
    )
    assert names.client_id_of(made) == "alice-1.test_X"
    assert names.client_id_of(odd.der(made)) == "alice-1.test_X"
    assert names.may_sign(made)


def test_other_attributes_and_addresses_are_no_matter(issuer: Issuer) -> None:
    subject = odd.subject("alice", organisation="Acme")
    made = odd.certificate(issuer, subject, uris=["https://acme.example", "ciphermq:alice"])
    assert names.client_id_of(made) == "alice"


def test_the_alternative_name_may_be_missing(issuer: Issuer) -> None:
    assert names.client_id_of(odd.certificate(issuer, uris=None)) == "alice"


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        (odd.subject(), "exactly one CN, this one has 0"),
        (odd.subject("alice", "bob"), "exactly one CN, this one has 2"),
        (odd.subject("dead.alice"), "not beginning with 'dead.'"),
        (odd.subject("alice bob"), "is no client id"),
        (odd.subject("alice\n"), "is no client id"),
        (odd.subject("älice"), "is no client id"),
        (odd.subject("alice/../bob"), "is no client id"),
    ],
)
def test_a_name_that_is_no_client_id(issuer: Issuer, subject: x509.Name, sentence: str) -> None:
    with pytest.raises(CertificateError, match=sentence):
        names.client_id_of(odd.certificate(issuer, subject, uris=None))


def test_whoever_names_the_server_is_no_client(issuer: Issuer) -> None:
    own_key = odd.key().public_key()
    address = x509.IPAddress(ipaddress.ip_address("10.0.0.7"))
    hosts = x509.SubjectAlternativeName([x509.DNSName("Broker.example"), address])
    server = odd.certificate(
        issuer, "localhost", uris=None, public_key=own_key, extensions=[(hosts, False)]
    )
    other = x509.SubjectAlternativeName([x509.DNSName("elsewhere"), address])
    for wrong, sentence in [
        (server, "of the server's own key"),
        (odd.certificate(issuer, "alice", public_key=own_key), "of the server's own key"),
        (odd.certificate(issuer, "localhost", uris=None), "names 'localhost', which is this"),
        (odd.certificate(issuer, "BROKER.example", uris=None), "names 'broker.example'"),
        (odd.certificate(issuer, uris=None, extensions=[(other, False)]), r"names '10\.0\.0\.7'"),
    ]:
        with pytest.raises(CertificateError, match=sentence):
            names.check_not_server(odd.der(wrong), server)
    names.check_not_server(odd.der(odd.certificate(issuer)), server)


@pytest.mark.parametrize("uris", [["ciphermq:bob"], ["ciphermq:alice", "CIPHERMQ:bob"]])
def test_an_alternative_name_of_somebody_else(issuer: Issuer, uris: list[str]) -> None:
    with pytest.raises(CertificateError, match="don't agree"):
        names.client_id_of(odd.certificate(issuer, uris=uris))


@pytest.mark.parametrize(
    ("usages", "sentence"),
    [
        ([ExtendedKeyUsageOID.SERVER_AUTH], "server's certificate"),
        ([ExtendedKeyUsageOID.SERVER_AUTH, *odd.CLIENT], "server's certificate"),
        ([names.SIGNING_USAGE], "lacks the usage clientAuth"),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], "lacks the usage clientAuth"),
        (None, "names no usage"),
    ],
)
def test_a_certificate_that_is_no_client_s(
    issuer: Issuer, usages: list[x509.ObjectIdentifier] | None, sentence: str
) -> None:
    with pytest.raises(CertificateError, match=sentence):
        names.client_id_of(odd.certificate(issuer, usages=usages))


def test_certificates_of_1x_are_clients_where_they_are_let_in(issuer: Issuer) -> None:
    bare = odd.certificate(issuer, "sender_1", usages=None, uris=None)
    assert names.client_id_of(bare, usage_required=False) == "sender_1"
    assert not names.may_sign(bare)
    server = odd.certificate(issuer, usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    with pytest.raises(CertificateError, match="server's certificate"):
        names.client_id_of(server, usage_required=False)


def test_an_authority_is_no_client(issuer: Issuer) -> None:
    constraints = (x509.BasicConstraints(ca=True, path_length=None), True)
    with pytest.raises(CertificateError, match="authority's certificate"):
        names.client_id_of(odd.certificate(issuer, extensions=[constraints]))


def test_a_broker_s_certificate_could_not_be_a_client_s_name(issuer: Issuer) -> None:
    made = profiles.server_certificate(
        issuer, ["localhost"], odd.key().public_key(), odd.NOW_MS, 1000
    )
    with pytest.raises(CertificateError, match="no client id"):
        names.client_id_of(made)


@pytest.mark.parametrize("data", [b"", b"\x30\x03\x02\x01\x01", b"alice"])
def test_what_is_no_certificate_at_all(data: bytes) -> None:
    with pytest.raises(CertificateError, match="not a certificate"):
        names.client_id_of(data)


@pytest.mark.parametrize("name", [".", "..", "...", "", "dead.x", "a/b", "a" * 65])
def test_names_that_are_never_issued(name: str) -> None:
    with pytest.raises(UsageError, match="can't be a client id"):
        names.check_issuable(name)


def test_a_request_is_asked_for_its_name_only() -> None:
    assert names.request_name(odd.request("alice")) == "alice"
    with pytest.raises(CertificateError, match="exactly one CN"):
        names.request_name(odd.request(odd.subject("alice", "bob")))
    with pytest.raises(CertificateError, match=r"can't be granted: '\.\.' can't be"):
        names.request_name(odd.request(".."))
