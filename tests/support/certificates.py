"""Certificates of an authority of one's own, as files, for tests that only need TLS."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ciphermq.net import tls
from ciphermq.pki.authority import Authority

DAY_MS = 86_400_000


class Certificates:
    """An authority in `directory`, and what it issues, each ``NAME.crt`` with ``NAME.key``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create(
            directory / "ca", passphrase=None, now_ms=int(time.time() * 1000) - 400 * DAY_MS
        )
        self.renew_crl()
        self.issue("server", server=True)

    def issue(self, name: str, *, server: bool = False, days: tuple[int, int] = (-1, 365)) -> None:
        """A certificate valid from `days[0]` to `days[1]` from now, for a server or a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        now_ms = int(time.time() * 1000) + days[0] * DAY_MS
        lifetime = (days[1] - days[0]) * DAY_MS // 1000
        public = key.public_key()
        certificate = (
            self.authority.issue_server(
                ["localhost", "127.0.0.1"], public, now_ms=now_ms, lifetime=lifetime
            )
            if server
            else self.authority.issue_client(name, public, now_ms=now_ms, lifetime=lifetime)
        )
        self._write(name, certificate, key)
        self.serial = certificate.serial_number

    def issue_nameless(self, name: str) -> None:
        """A client's certificate of our authority whose subject is no client id."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        ca = self.authority.path
        ca_key = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "not a client")]))
            .issuer_name(self.authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
            .sign(ca_key, hashes.SHA384())
        )
        self._write(name, certificate, key)

    def encrypted(self, name: str, passphrase: bytes, path: Path) -> Path:
        """A copy of a private key, under a passphrase."""
        key = serialization.load_pem_private_key(self.path(name, "key").read_bytes(), None)
        path.write_bytes(
            key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
            )
        )
        return path

    def _write(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.path(name, "crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.path(name, "key").write_bytes(pem)

    def path(self, name: str, kind: str) -> Path:
        """Where a certificate or key is."""
        return self.directory / f"{name}.{kind}"

    def revoke_last(self) -> None:
        """Put the certificate issued last on the list."""
        self.renew_crl(self.serial)

    def renew_crl(self, *revoke: int, at_ms: int | None = None) -> None:
        """Issue a list that is valid now, or from `at_ms`."""
        self.authority.issue_crl(now_ms=at_ms or int(time.time() * 1000), revoke=revoke)

    def server(self, name: str = "server", **overrides: Any) -> ssl.SSLContext:
        """A server's context."""
        return tls.server_context(**self._files(name) | overrides)

    def client(
        self, name: str, *, days: tuple[int, int] = (-1, 365), **overrides: Path
    ) -> ssl.SSLContext:
        """A client's context, its certificate valid from `days[0]` to `days[1]` from now."""
        if not self.path(name, "crt").exists():
            self.issue(name, days=days)
        return tls.client_context(**self._files(name) | overrides)

    def _files(self, name: str) -> dict[str, Any]:
        return {
            "certificate": self.path(name, "crt"),
            "key": self.path(name, "key"),
            "authority": self.authority.path / "ca.crt",
            "revocations": self.authority.path / "crl.pem",
        }
