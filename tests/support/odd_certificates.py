"""Certificates, requests and lists that no authority of ours makes, for what must refuse them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ciphermq import limits
from ciphermq.pki import dates, names
from ciphermq.pki.profiles import Issuer

NOW_MS = 1_800_000_000_000
DAY_MS = limits.DAY * 1000
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH, names.SIGNING_USAGE)


def key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """A fresh key."""
    return ec.generate_private_key(curve or ec.SECP256R1())


def subject(*common_names: str, organisation: str | None = None) -> x509.Name:
    """A name with any number of CNs."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    if organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(attributes)


def certificate(
    issuer: Issuer,
    name: str | x509.Name = "alice",
    *,
    usages: Sequence[x509.ObjectIdentifier] | None = CLIENT,
    uris: Sequence[str] | None = ("ciphermq:alice",),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    public_key: Any = None,
    start_ms: int = NOW_MS - DAY_MS,
    end_ms: int = NOW_MS + 100 * DAY_MS,
) -> x509.Certificate:
    """A certificate of `issuer` with exactly these contents."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name) if isinstance(name, str) else name)
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key or key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates.from_ms(start_ms))
        .not_valid_after(dates.from_ms(end_ms))
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if uris is not None:
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer.key, hashes.SHA384())


def der(anything: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Its bytes."""
    return anything.public_bytes(Encoding.DER)


def authority(
    *,
    name: str = "another authority",
    start_ms: int = NOW_MS - DAY_MS,
    end_ms: int = NOW_MS + 1000 * DAY_MS,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (
        (x509.BasicConstraints(ca=True, path_length=None), True),
    ),
    with_key: ec.EllipticCurvePrivateKey | None = None,
) -> Issuer:
    """A self-signed authority; by default as bare as those of 1.x."""
    own = with_key or key(ec.SECP384R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject(name))
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates.from_ms(start_ms))
        .not_valid_after(dates.from_ms(end_ms))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Issuer(builder.sign(own, hashes.SHA384()), own)


def crl(
    issuer: Issuer,
    *,
    number: int | None = 1,
    revoked: Sequence[int] = (),
    start_ms: int = NOW_MS,
    days: int = 30,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    signed_by: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A revocation list with exactly these contents, as DER."""
    start = dates.from_ms(start_ms)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(start + timedelta(days=days))
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    return der(builder.sign(signed_by or issuer.key, hashes.SHA384()))


def request(
    name: str | x509.Name,
    with_key: Any = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateSigningRequest:
    """A certificate request that may ask for too much."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        subject(name) if isinstance(name, str) else name
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(with_key or key(), hashes.SHA256())
