"""The second certificate of an identity whose certificate's key is on a token.

Python's TLS can't use a key on a token. So such an identity has two certificates of one name: the
first, whose key never leaves the token, signs batches and key records; the second, whose key is in
a file, only connects. It lacks the signing usage, so whoever steals that file can neither seal in
its owner's name nor offer another key for it.

Both are asked for at once. The first request names the second's key in an attribute, and so vouches
for it: the authority's operator compares one fingerprint, as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ciphermq.client import layout
from ciphermq.client.bundle import Bundle
from ciphermq.client.layout import IdentitySettings
from ciphermq.errors import CertificateError, IdentityError
from ciphermq.pki import names
from ciphermq.pki.authority import key_digest, load_companion


def request(
    name: str, key: ec.EllipticCurvePrivateKey, tls_key: ec.EllipticCurvePrivateKey | None
) -> bytes:
    """The request of client `name` (PEM): for its `key`, and a second one behind it for a
    certificate for TLS alone where there is a `tls_key`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if tls_key is None:
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    # The key that is certified for signing vouches for the other one.
    named = key_digest(tls_key.public_key()).encode()
    first = builder.add_attribute(names.COMPANION, named).sign(key, hashes.SHA256())
    second = builder.sign(tls_key, hashes.SHA256())
    return first.public_bytes(Encoding.PEM) + second.public_bytes(Encoding.PEM)


def checked(
    answered: Bundle,
    path: Path,
    settings: IdentitySettings,
    authorities: Sequence[bytes],
    now_ms: int,
) -> x509.Certificate | None:
    """The answer's certificate for TLS alone, if it is that and for our key.

    None when none is needed; `CertificateError` when it lacks one that is."""
    if not settings.signs_on_token:
        return None
    text = answered.files.get(layout.TLS_CERTIFICATE)
    if text is None:
        raise CertificateError(
            "the answer has one certificate, and this identity needs a second one for TLS: have "
            "the request signed by the same version of this program"
        )
    second = _load(text)
    _check_path(second, settings.name, authorities, now_ms)
    if not names.only_connects(second):
        raise CertificateError("the answer's second certificate may sign: it is for TLS alone")
    if second.public_key() != _tls_public_key(path):
        raise CertificateError(f"the answer's second certificate is not for the TLS key of {path}")
    return second


def _tls_public_key(path: Path) -> object:
    """The public half of the key for TLS, from what holds no secret."""
    try:
        if (path / layout.TLS_CERTIFICATE).exists():
            return layout.read_certificate(path, layout.TLS_CERTIFICATE).public_key()
        request = load_companion((path / layout.REQUEST).read_bytes())
    except (OSError, *names.UNREADABLE) as error:
        raise IdentityError(f"the public key of {path} can't be read: {error}") from error
    return request.public_key() if request is not None else None


def _check_path(
    certificate: x509.Certificate, name: str, authorities: Sequence[bytes], now_ms: int
) -> None:
    """That `certificate`, which only connects, is for `name` and of one of `authorities`."""
    if names.client_id_of(certificate) != name:
        raise CertificateError(f"the certificate is not for {name!r}")
    for der in authorities:
        authority = names.load(der)
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise CertificateError(f"the certificate of {name!r} for TLS is of another authority")


def _load(text: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text)
    except names.UNREADABLE as error:
        raise CertificateError(f"the answer's certificate can't be read: {error}") from error
