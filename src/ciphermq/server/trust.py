"""Whom the server believes and who it is: the files of its ``[tls]`` section."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq.errors import ConfigError, IdentityError, RevocationListStale
from ciphermq.net import tls
from ciphermq.pki import authority, dates, names
from ciphermq.pki.names import UNREADABLE
from ciphermq.pki.verify import ChainVerifier
from ciphermq.settings import TlsSection


class Trust(NamedTuple):
    """The server's certificate, and what it judges its clients by."""

    context: ssl.SSLContext
    verifier: ChainVerifier
    certificate: x509.Certificate
    stray_key: str | None
    """That the authority's private key is where it should not be, in words for the operator."""

    def check_client(self, certificate: bytes) -> None:
        """`CertificateError` for one (DER) that is this server's, and no client's."""
        names.check_not_server(certificate, self.certificate)

    def warnings(self, now_ms: int) -> list[str]:
        """What ends soon, in words for the operator."""
        certificate = dates.certificate_warning(
            self.certificate, "the server's certificate", now_ms
        )
        lists = [crl.warning(now_ms) for crl in self.verifier.revocation_lists]
        return [warning for warning in (certificate, *lists) if warning]


def load(files: TlsSection, *, tls_1_2: bool = False) -> Trust:
    """Read the files; with `tls_1_2` clients of 1.x may come with that.

    `IdentityError` or `ConfigError` naming the one that can't be used."""
    stray_key = _look_for_authority_key(files)
    context = tls.server_context(
        certificate=files.cert_path,
        key=files.key_path,
        authority=files.ca_cert_path,
        revocations=files.crl_path,
        tls_1_2=tls_1_2,
    )
    authorities = _certificates(files.ca_cert_path)
    ders = [certificate.public_bytes(Encoding.DER) for certificate in authorities]
    verifier = ChainVerifier(ders)
    if files.crl_path is not None:
        try:
            crl = x509.load_pem_x509_crl(files.crl_path.read_bytes())
            verifier.use_crl(crl.public_bytes(Encoding.DER))
        except (OSError, RevocationListStale, *UNREADABLE) as error:
            raise IdentityError(f"the revocation list {files.crl_path}: {error}") from error
    return Trust(context, verifier, _certificates(files.cert_path)[0], stray_key)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, *UNREADABLE) as error:
        raise IdentityError(f"the certificate {path} can't be read: {error}") from error


def _look_for_authority_key(files: TlsSection) -> str | None:
    """Whoever breaks into the server must not find the key that makes identities: `ConfigError`,
    or where that is allowed, a sentence about it."""
    for directory in {path.parent for path in (files.cert_path, files.key_path)}:
        found = authority.key_beneath(directory)
        if found is None:
            continue
        danger = (
            f"the authority's private key {found} lies in the server's own directory: move "
            "the authority's directory to another machine, or at least elsewhere"
        )
        if not files.allow_authority_key:
            raise ConfigError(danger)
        return danger
    return None
