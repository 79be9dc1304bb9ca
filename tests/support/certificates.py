"""Certificates of an authority of one's own, as files, for tests that only need TLS."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

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
        self._issue("server", server=True)

    def _issue(self, name: str, *, server: bool = False, days: tuple[int, int] = (-1, 365)) -> None:
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
        self.path(name, "crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.path(name, "key").write_bytes(pem)
        self.serial = certificate.serial_number

    def path(self, name: str, kind: str) -> Path:
        """Where a certificate or key is."""
        return self.directory / f"{name}.{kind}"

    def revoke_last(self) -> None:
        """Put the certificate issued last on the list."""
        self.renew_crl(self.serial)

    def renew_crl(self, *revoke: int) -> None:
        """Issue a list that is valid now."""
        self.authority.issue_crl(now_ms=int(time.time() * 1000), revoke=revoke)

    def server(self, name: str = "server", **overrides: Path) -> ssl.SSLContext:
        """A server's context."""
        return tls.server_context(**self._files(name) | overrides)

    def client(
        self, name: str, *, days: tuple[int, int] = (-1, 365), **overrides: Path
    ) -> ssl.SSLContext:
        """A client's context, its certificate valid from `days[0]` to `days[1]` from now."""
        if not self.path(name, "crt").exists():
            self._issue(name, days=days)
        return tls.client_context(**self._files(name) | overrides)

    def _files(self, name: str) -> dict[str, Path]:
        return {
            "certificate": self.path(name, "crt"),
            "key": self.path(name, "key"),
            "authority": self.authority.path / "ca.crt",
            "revocations": self.authority.path / "crl.pem",
        }
