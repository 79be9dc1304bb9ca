"""TLS contexts for ZeroMQ: `net.tls`, with the name of our protocol in them.

What is wrong with a certificate is otherwise told by the *other* side, in few words: so what can be
seen here is said here, to the logger ``ciphermq.zmq``, before anybody is refused.
"""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq import limits
from ciphermq.client import layout
from ciphermq.errors import PassphraseError, UsageError
from ciphermq.net import tls
from ciphermq.pki import dates, keyfile, names, pem
from ciphermq.telemetry import get_logger
from ciphermq.wire.tlszmq.parts import ALPN

if TYPE_CHECKING:
    from ciphermq.client.identity import Identity

PathLike = str | Path

_ENCRYPTED: Final = b"ENCRYPTED"

_log = get_logger("zmq")


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
    authority's revocation list, nobody is shut out; with one that has expired everybody is.
    `passphrase` opens the key, or the ``key.pass`` beside it. `anonymous` lets clients without a
    certificate in, `tls_1_2` those that can't do TLS 1.3.

    Raises `IdentityError` and its kinds, naming the file. A certificate or list that has expired,
    or will soon, and a certificate that is no server's, are logged as warnings.
    """
    certificate, key = Path(certificate), Path(key)
    context = tls.server_context(
        certificate=certificate,
        key=key,
        authority=Path(authority),
        revocations=_path(revocations),
        passphrase=_password(key, passphrase),
        protocols=(ALPN,),
        anonymous=anonymous,
        tls_1_2=tls_1_2,
    )
    _warn_of_certificate(certificate, ExtendedKeyUsageOID.SERVER_AUTH, "server")
    _warn_of_list(_path(revocations))
    return context


def client_context(
    *,
    identity: Identity | PathLike | None = None,
    authority: PathLike | None = None,
    certificate: PathLike | None = None,
    key: PathLike | None = None,
    revocations: PathLike | None = None,
    passphrase: str | None = None,
    tls_1_2: bool = False,
) -> ssl.SSLContext:
    """For a `TlsDealer` or `TlsReq`, which checks the server's certificate: its authority, its
    name, and with `revocations` whether it was revoked.

    Either `identity`, as `ciphermq.connect` takes it: the directory that ``ciphermq identity add``
    has made, its name, or one that is loaded; it brings certificate, key, authority and list. Its
    `passphrase` is by default $CIPHERMQ_PASSPHRASE, and stretching it takes half a second: on an
    event loop, make the context in a thread. Or `authority`, and where the server wants to know its
    client (it does unless it is `anonymous`) the client's own `certificate` and `key`, all PEM.

    Raises `UsageError` for anything in between; `IdentityError` and its kinds, naming the file; for
    an identity whose key files a hardware token opens, `TokenAway`, too. What has expired, or will
    soon, is logged as a warning.
    """
    if identity is not None:
        if (authority, certificate, key, revocations) != (None, None, None, None):
            raise UsageError(
                "an identity brings its certificate, key, authority and revocation list: give it "
                "or them, not both"
            )
        return _of_identity(identity, passphrase, tls_1_2=tls_1_2)
    if authority is None:
        raise UsageError("whom is the client to believe? Give an identity, or an authority")
    if (certificate is None) is not (key is None):
        raise UsageError("a certificate and its key come together, or not at all")
    context = tls.client_context(
        certificate=_path(certificate),
        key=_path(key),
        authority=Path(authority),
        revocations=_path(revocations),
        passphrase=None if key is None else _password(Path(key), passphrase),
        protocols=(ALPN,),
        tls_1_2=tls_1_2,
    )
    if certificate is not None:
        _warn_of_certificate(Path(certificate), ExtendedKeyUsageOID.CLIENT_AUTH, "client")
    _warn_of_list(_path(revocations))
    return context


def _of_identity(
    identity: Identity | PathLike, passphrase: str | None, *, tls_1_2: bool
) -> ssl.SSLContext:
    # Late: who has files of his own needs nothing of the queue's client.
    from ciphermq.client.connecting import load_identity
    from ciphermq.client.identity import Identity

    if not isinstance(identity, Identity):
        identity = load_identity(identity, passphrase)
    elif passphrase is not None:
        raise UsageError("this identity is open already: it needs no passphrase")
    context = identity.ssl_context(protocols=(ALPN,), tls_1_2=tls_1_2)
    for sentence in identity.warnings(_now_ms()):
        _log.warning(sentence, directory=str(identity.path))
    return context


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _password(key: Path, passphrase: str | None) -> str | None:
    """What opens the PEM file `key`. An identity's is under a random password, and that under the
    passphrase, beside it (`pki.keyfile`)."""
    wrapped = key.parent / layout.WRAPPED
    try:
        encrypted = _ENCRYPTED in key.read_bytes()
    except OSError:
        return passphrase  # whoever loads it says what is wrong
    if not encrypted:
        return None
    if (key.parent / layout.HSM_WRAPPED).exists():
        raise PassphraseError(
            f"the private key {key} is opened by a hardware token: "
            f"say client_context(identity={str(key.parent)!r}) instead"
        )
    if passphrase is None or not wrapped.exists():
        return passphrase
    password = keyfile.read_password(wrapped, passphrase, layout.PURPOSE)
    return None if password is None else password.decode()


# --- what ends, or is not what it should be -----------------------------------------------------


def _warn_of_certificate(path: Path, usage: x509.ObjectIdentifier, whose: str) -> None:
    # OpenSSL has read it: what else may be odd about it is no reason to stop.
    with suppress(*names.UNREADABLE):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        _warn(dates.certificate_warning(certificate, f"the certificate in {path}", _now_ms()))
        with suppress(x509.ExtensionNotFound):
            usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            if usage not in usages:
                _warn(
                    f"the certificate in {path} is not for a {whose} (its extended key usage), so "
                    "the other side will refuse it"
                )


def _warn_of_list(path: Path | None) -> None:
    if path is None:
        return
    with suppress(*names.UNREADABLE):
        for der in pem.blocks("X509 CRL", path.read_bytes()):
            if (end := x509.load_der_x509_crl(der).next_update_utc) is not None:
                what, notice = f"the revocation list in {path}", limits.CRL_WARNING * 1000
                said = dates.ending(what, dates.to_ms(end), notice, _now_ms())
                _warn(said and f"{said}: with an expired one nobody is let in")


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        _log.warning(sentence)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
