"""Whom the server believes and who it is: the files of its ``[tls]`` section."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.errors import (
    CertificateError,
    ClockWrong,
    ConfigError,
    IdentityError,
    RevocationListStale,
)
from ciphermq.net import tls
from ciphermq.pki import authority, dates, names, pem
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

    def judge(self, certificate: bytes, *, issuer: bool) -> None:
        """`CertificateError` for a client's (DER) that counts no more: it is revoked, or where the
        `issuer` is asked for, none of the authorities has issued it."""
        loaded = names.load(certificate)
        self.verifier.check_not_revoked(loaded)
        if issuer:
            self.verifier.check_issued_here(loaded)

    def check_dates(self, path: Path, now_ms: int) -> None:
        """Refuse what nobody could connect to: a wrong clock or outlived files. `path` is the
        certificate's. Raises `ClockWrong`, `CertificateError` or `RevocationListStale`."""
        begins_ms = dates.to_ms(self.certificate.not_valid_before_utc)
        ends_ms = dates.to_ms(self.certificate.not_valid_after_utc)
        if now_ms < begins_ms - limits.CLOCK_SKEW * 1000:
            raise ClockWrong(
                f"{path} is valid from {dates.spell(begins_ms)}, but this machine's clock says "
                f"{dates.spell(now_ms)}: set the clock"
            )
        if now_ms > ends_ms:
            raise CertificateError(
                f"{path} expired on {dates.spell(ends_ms)} (this machine's clock says "
                f"{dates.spell(now_ms)}): renew it where the authority is"
            )
        for crl in self.verifier.revocation_lists:
            crl.check_current(now_ms)

    def warnings(self, now_ms: int) -> list[str]:
        """What ends soon or is revoked, in words for the operator."""
        found = [
            dates.certificate_warning(self.certificate, "the server's certificate", now_ms),
            *[crl.warning(now_ms) for crl in self.verifier.revocation_lists],
        ]
        try:
            self.verifier.check_not_revoked(self.certificate)
        except CertificateError as error:
            found.append(f"clients refuse this server: {error}; run `ciphermq ca server`")
        return [warning for warning in found if warning]


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
            lists = pem.blocks("X509 CRL", files.crl_path.read_bytes())
            if not lists:
                raise RevocationListStale("there is no list in it")
            for der in lists:
                verifier.use_crl(der)
        except (OSError, RevocationListStale, IdentityError) as error:
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
