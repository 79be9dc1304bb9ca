"""What goes into each kind of certificate, and into a revocation list.

Everything begins `limits.CLOCK_SKEW` in the past: TLS forgives a slow clock nothing.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ciphermq import limits
from ciphermq.errors import AuthorityError, UsageError
from ciphermq.pki import dates, names

SERVER_COMMON_NAME: Final = "CipherMQ server"
"""Holds a space, so that it could never be a client id."""

_SKEW: Final = timedelta(seconds=limits.CLOCK_SKEW)
_HASH: Final = hashes.SHA384()
_HOST_NAME: Final = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")


class Issuer(NamedTuple):
    """An authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def authority_certificate(key: ec.EllipticCurvePrivateKey, now_ms: int) -> x509.Certificate:
    """A self-signed authority, named at random so that no two are taken for one another."""
    subject = _name(f"CipherMQ authority {secrets.token_hex(4)}")
    now = dates.from_ms(now_ms)
    builder = (
        _builder(subject, subject, key.public_key(), now - _SKEW)
        .not_valid_after(now + timedelta(seconds=limits.AUTHORITY_LIFETIME))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    return builder.sign(key, _HASH)


def client_certificate(
    issuer: Issuer,
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    now_ms: int,
    lifetime: int,
    *,
    signs: bool = True,
) -> x509.Certificate:
    """A certificate with which `name` connects and, where it `signs`, signs, for `lifetime`
    seconds."""
    uri = x509.UniformResourceIdentifier(names.URI_SCHEME + names.check_issuable(name))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *[names.SIGNING_USAGE] * signs]
    return _end_entity(issuer, name, public_key, [uri], usages, now_ms, lifetime)


def onex_client_certificate(
    issuer: Issuer, name: str, public_key: ec.EllipticCurvePublicKey, now_ms: int, lifetime: int
) -> x509.Certificate:
    """A client's certificate as CipherMQ 1.x has it: the id as CN, no extended key usage. It
    connects where such are let in, and signs nothing."""
    return _end_entity(issuer, names.check_issuable(name), public_key, [], [], now_ms, lifetime)


def server_certificate(
    issuer: Issuer,
    hosts: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    now_ms: int,
    lifetime: int,
) -> x509.Certificate:
    """A certificate for a broker at `hosts`: for TLS servers only, never for a client."""
    if not hosts:
        raise UsageError("a server's certificate needs at least one host name or address")
    alternatives = [_host(host) for host in dict.fromkeys(hosts)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    return _end_entity(
        issuer, SERVER_COMMON_NAME, public_key, alternatives, usages, now_ms, lifetime
    )


def revocation_list(
    issuer: Issuer, number: int, revoked: Iterable[x509.RevokedCertificate], now_ms: int
) -> x509.CertificateRevocationList:
    """A complete list, good for `limits.CRL_LIFETIME`."""
    now = dates.from_ms(now_ms)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - _SKEW)
        .next_update(now + timedelta(seconds=limits.CRL_LIFETIME))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_issuer_id(issuer), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, _HASH)


def revoked_entry(
    serial: int, now_ms: int, reason: x509.ReasonFlags = x509.ReasonFlags.unspecified
) -> x509.RevokedCertificate:
    """A line of a revocation list."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial)
    builder = builder.revocation_date(dates.from_ms(now_ms))
    if reason is not x509.ReasonFlags.unspecified:  # which is said by not saying it (RFC 5280)
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def _end_entity(
    issuer: Issuer,
    common_name: str,
    public_key: ec.EllipticCurvePublicKey,
    alternatives: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
    now_ms: int,
    lifetime: int,
) -> x509.Certificate:
    now = dates.from_ms(now_ms)
    end = issuer.certificate.not_valid_after_utc
    if not issuer.certificate.not_valid_before_utc <= now < end:
        raise AuthorityError(
            f"the authority is valid from {issuer.certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{end:%Y-%m-%d}, and today is {now:%Y-%m-%d}: set the clock, or make a new authority"
        )
    builder = (
        _builder(_name(common_name), issuer.certificate.subject, public_key, now - _SKEW)
        .not_valid_after(min(now + timedelta(seconds=lifetime), end))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(_issuer_id(issuer), critical=False)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer.key, _HASH)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issuer_id(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    """`host` as clients will look for it: an address, or else a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if len(host) > limits.MAX_NAME or not _HOST_NAME.fullmatch(host):
        raise UsageError(
            f"{host!r} is neither an IP address nor a host name (without port; a name in other "
            "letters than a to z in its xn-- spelling)"
        )
    return x509.DNSName(host.rstrip("."))
