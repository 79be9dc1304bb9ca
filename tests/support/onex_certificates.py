"""Certificates as the tools of CipherMQ 1.x make them, all in one directory::

    ca.crt  ca.key  server.crt  server.key  clients/NAME/client.crt  clients/NAME/client.key

ECDSA P-384, the client's id as CN, no extended key usage, no revocation list, and the authority's
key unencrypted beside the rest.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


def make_certificates(directory: Path, *clients: str) -> Path:
    """All of them; the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority = _name("CipherMQ CA")
    certificate = _builder(authority, authority, authority_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    _write(directory / "ca", certificate.sign(authority_key, hashes.SHA384()), authority_key)
    for name, stem in [
        ("localhost", directory / "server"),
        *((client, directory / "clients" / client / "client") for client in clients),
    ]:
        stem.parent.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        issued = _builder(_name(name), authority, key)
        if name == "localhost":
            names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            issued = issued.add_extension(x509.SubjectAlternativeName(names), critical=False)
        _write(stem, issued.sign(authority_key, hashes.SHA384()), key)
    return directory


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
    )


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    stem.with_suffix(".crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    stem.with_suffix(".key").write_bytes(pem)
