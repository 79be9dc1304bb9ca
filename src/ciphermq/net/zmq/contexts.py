"""TLS contexts for ZeroMQ: `net.tls`, with the name of our protocol in them."""

from __future__ import annotations

import ssl
from pathlib import Path

from ciphermq.errors import UsageError
from ciphermq.net import tls
from ciphermq.wire.tlszmq.parts import ALPN

PathLike = str | Path


def server_context(
    *,
    certificate: PathLike,
    key: PathLike,
    authority: PathLike,
    revocations: PathLike | None = None,
    passphrase: str | None = None,
    anonymous: bool = False,
    tls_1_2: bool = False,
) -> ssl.SSLContext:
    """For a `TlsRouter`: clients must have a certificate of `authority`.

    All files are PEM, `certificate` the chain with the leaf first. Without `revocations`, the
    authority's revocation list, nobody is shut out. `anonymous` lets clients without a certificate
    in, `tls_1_2` those that can't do TLS 1.3.

    Raises `IdentityError` and its kinds, naming the file.
    """
    return tls.server_context(
        certificate=Path(certificate),
        key=Path(key),
        authority=Path(authority),
        revocations=None if revocations is None else Path(revocations),
        passphrase=passphrase,
        protocols=(ALPN,),
        anonymous=anonymous,
        tls_1_2=tls_1_2,
    )


def client_context(
    *,
    authority: PathLike,
    certificate: PathLike | None = None,
    key: PathLike | None = None,
    revocations: PathLike | None = None,
    passphrase: str | None = None,
    tls_1_2: bool = False,
) -> ssl.SSLContext:
    """For a `TlsDealer` or `TlsReq`, which checks the server's certificate: its authority, its
    name, and with `revocations` whether it was revoked.

    `certificate` and `key` are the client's own; without them only a server that allows `anonymous`
    clients lets it in. Raises `IdentityError` and its kinds, naming the file.
    """
    if (certificate is None) is not (key is None):
        raise UsageError("a certificate and its key come together, or not at all")
    return tls.client_context(
        certificate=None if certificate is None else Path(certificate),
        key=None if key is None else Path(key),
        authority=Path(authority),
        revocations=None if revocations is None else Path(revocations),
        passphrase=passphrase,
        protocols=(ALPN,),
        tls_1_2=tls_1_2,
    )
