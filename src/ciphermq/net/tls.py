"""TLS contexts for both sides: a certificate from each, a revocation list checked.

TLS 1.3 only, but for clients of CipherMQ 1.x, where 1.2 is allowed.

Brokers issue no session tickets: a resumed session would skip the certificates, and so escape a
newer revocation list.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ciphermq.errors import CertificateError, IdentityError, PassphraseError

ALPN: Final = "cmq/2"
"""The protocol's name in TLS (RFC 7301)."""
TLS_1_3: Final = "TLSv1.3"
_TLS_1_2_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Forward secrecy and AEAD, as TLS 1.3 has them always."""


def server_context(
    *,
    certificate: Path,
    key: Path,
    authority: Path,
    revocations: Path | None,
    passphrase: str | None = None,
    protocols: Iterable[str] = (ALPN,),
    tls_1_2: bool = False,
    anonymous: bool = False,
) -> ssl.SSLContext:
    """A server's context, which demands a client certificate of `authority`.

    `certificate` holds the chain, leaf first; all files are PEM. Without `revocations` nobody is
    shut out. `tls_1_2` lets clients of CipherMQ 1.x come with that; `Listener` lets in no others.
    `anonymous` lets clients without any certificate in; one that comes must be good all the same.
    Raises `IdentityError` and its kinds, naming the file.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, authority, revocations, protocols)
    _load_own(context, certificate, key, passphrase)
    context.verify_mode = ssl.CERT_OPTIONAL if anonymous else ssl.CERT_REQUIRED
    context.num_tickets = 0
    if tls_1_2:
        _allow_1_2(context)
    return context


def client_context(
    *,
    certificate: Path | None,
    key: Path | None,
    authority: Path,
    revocations: Path | None,
    passphrase: str | None = None,
    protocols: Iterable[str] = (ALPN,),
    tls_1_2: bool = False,
) -> ssl.SSLContext:
    """A client's context, which checks the server's name, authority and revocation.

    `certificate` and `key` may be missing together, where a server lets anybody in. `protocols`:
    those it offers; none for the text protocol of 1.x.

    Raises as `server_context` does.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authority, revocations, protocols)
    if certificate is not None and key is not None:
        _load_own(context, certificate, key, passphrase)
    if tls_1_2:
        _allow_1_2(context)
    return context


def onex_client_context(
    *, certificate: Path, key: Path, authority: Path, check_name: bool, only_1_2: bool = False
) -> ssl.SSLContext:
    """The context of a client of CipherMQ 1.x: TLS 1.2 or 1.3, the server's authority checked
    always, its name where `check_name` says so, revocation not: 1.x has none.

    Raises as `server_context` does.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authority, None, ())
    context.check_hostname = check_name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if only_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, certificate, key, None)
    return context


def _allow_1_2(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2_CIPHERS)
    # In 1.2 tickets are another option. Renegotiation is a way to change who one is.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION


def _context(
    side: int, authority: Path, revocations: Path | None, protocols: Iterable[str]
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if offered := list(protocols):
        context.set_alpn_protocols(offered)
    _believe(context, authority, "authority's certificate")
    if revocations is not None:
        believed = context.cert_store_stats()["x509"]
        _believe(context, revocations, "revocation list")
        # OpenSSL believes every certificate that it finds there. Lists are public and travel by
        # roads that nobody guards: who could change one would be an authority.
        if context.cert_store_stats()["x509"] != believed:
            raise IdentityError(
                f"the revocation list {revocations} holds a certificate, which would make its "
                "owner an authority: only lists belong there"
            )
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _believe(context: ssl.SSLContext, path: Path, what: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except FileNotFoundError:
        raise IdentityError(f"the {what} {path} doesn't exist") from None
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(f"the {what} {path} can't be read: {error}") from error


def _load_own(
    context: ssl.SSLContext, certificate: Path, key: Path, passphrase: str | None
) -> None:
    def password() -> str:
        # Called only for an encrypted key: without this OpenSSL would ask on the terminal.
        if passphrase is None:
            raise PassphraseError(
                f"the private key {key} is encrypted, and no passphrase was given"
            )
        return passphrase

    for path in (certificate, key):
        if not path.is_file():
            raise IdentityError(f"{path} doesn't exist or isn't a file")
    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"the private key {key} is not that of {certificate}") from error
        if error.reason in {"BAD_DECRYPT", "BAD_PASSWORD_READ"} or passphrase is not None:
            raise PassphraseError(f"the passphrase doesn't open the private key {key}") from error
        raise IdentityError(f"{certificate} with {key} can't be used: {error}") from error
    except OSError as error:
        raise IdentityError(f"{certificate} with {key} can't be read: {error}") from error
