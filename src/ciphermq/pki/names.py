"""What a certificate says about its holder: the client id, and what its key may do.

A client's certificate has one CN, the client id; where it has a URI ``ciphermq:NAME`` among its
alternative names, both must agree. Its extended key usage names clientAuth, and `SIGNING_USAGE`
when the key may sign batches and key records: a key that may only do TLS cannot sign.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ciphermq.errors import CertificateError, UsageError
from ciphermq.model import ids

SIGNING_USAGE: Final = x509.ObjectIdentifier("2.25.272402170948052064726047398667311455824")
"""Extended key usage: may sign CipherMQ batches and key records. An arc that needs no registry
(ITU-T X.667: 2.25 and a UUID as a number)."""

COMPANION: Final = x509.ObjectIdentifier(f"{SIGNING_USAGE.dotted_string}.1")
"""Attribute of a certificate request: the SHA-256 of another key, in hexadecimal, for which the
same client wants a certificate that only connects."""

URI_SCHEME: Final = "ciphermq:"

UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What `cryptography` raises for certificates, lists and requests that are not well formed, some
of it only when the part that is wrong is asked for."""


def load(der: bytes) -> x509.Certificate:
    """The certificate in `der`; `CertificateError` when there is none."""
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise CertificateError(f"not a certificate: {error}") from error


def spell_serial(serial: int) -> str:
    """A serial number as ``openssl x509`` spells it, but for its capitals: in whole bytes."""
    digits = f"{serial:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def check_issuable(name: str) -> str:
    """`name`, if a certificate and a directory may be made for it; else `UsageError`."""
    ids.check_client_id(name)
    if not name.strip("."):
        raise UsageError(f"{name!r} can't be a client id: it would name a directory's parent")
    return name


def client_id_of(certificate: x509.Certificate | bytes, *, usage_required: bool = True) -> str:
    """The client id that `certificate` (or its DER) authenticates.

    `usage_required` is False where certificates of CipherMQ 1.x are let in, which have no
    extended key usage at all; one that has it must name clientAuth all the same.
    Raises `CertificateError` with the rule it breaks.
    """
    if isinstance(certificate, bytes):
        certificate = load(certificate)
    try:
        name = _one_common_name(certificate.subject)
        _check_is_client(certificate, name, usage_required)
        _check_alternative_name(certificate, name)
    except UNREADABLE as error:
        raise CertificateError(f"the certificate can't be read: {error}") from error
    return name


def check_not_server(certificate: bytes, server: x509.Certificate) -> None:
    """`CertificateError` for a client's `certificate` (DER) that is `server`'s own, or that names
    its host.

    Certificates of CipherMQ 1.x name no usage, so whoever has the server's could be its client
    ``localhost``; and a client that may call itself by the server's name could be it to others."""
    try:
        presented = load(certificate)
        same_key = presented.public_key() == server.public_key()
        shared = sorted(_hosts(presented) & _hosts(server))
    except UNREADABLE as error:
        raise CertificateError(f"the certificate can't be read: {error}") from error
    if same_key:
        raise CertificateError("the certificate is of the server's own key, which is no client's")
    if shared:
        raise CertificateError(
            f"the certificate names {shared[0]!r}, which is this server: no client may be called so"
        )


def _hosts(certificate: x509.Certificate) -> set[str]:
    """All that the certificate's holder may call itself as a host."""
    found = {
        str(name.value).lower()
        for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    }
    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return found
    found.update(name.lower() for name in others.get_values_for_type(x509.DNSName))
    found.update(map(str, others.get_values_for_type(x509.IPAddress)))
    return found


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether the certificate's key may sign batches and key records."""
    try:
        usages = _extended_usages(certificate)
    except UNREADABLE:
        return False
    return usages is not None and SIGNING_USAGE in usages


def only_connects(certificate: x509.Certificate) -> bool:
    """Whether it is a client's second certificate: for TLS, and by its own word not for signing.
    One of CipherMQ 1.x, which has no extended key usage, says nothing of the kind."""
    try:
        usages = _extended_usages(certificate)
    except UNREADABLE:
        return False
    return usages is not None and SIGNING_USAGE not in usages


def request_name(request: x509.CertificateSigningRequest) -> str:
    """The client id that `request` asks for: its one CN. Nothing else in it is believed."""
    try:
        return check_issuable(_one_common_name(request.subject))
    except UNREADABLE as error:
        raise CertificateError(f"the request's subject can't be read: {error}") from error
    except UsageError as error:
        raise CertificateError(f"the request can't be granted: {error}") from error


def _one_common_name(subject: x509.Name) -> str:
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) != 1:
        raise CertificateError(f"a client has exactly one CN, this one has {len(found)}")
    name = found[0].value
    if not isinstance(name, str) or not ids.is_client_id(name):
        raise CertificateError(
            f"CN {name!r} is no client id: 1 to 64 letters, digits, '.', '_' or '-', "
            f"not beginning with '{ids.DEAD_PREFIX}'"
        )
    return name


def _check_is_client(certificate: x509.Certificate, name: str, usage_required: bool) -> None:
    if _is_authority(certificate):
        raise CertificateError(f"{name!r} is an authority's certificate, not a client's")
    usages = _extended_usages(certificate)
    if usages is None:
        if usage_required:
            raise CertificateError(f"the certificate of {name!r} names no usage (clientAuth)")
        return
    # A stolen server key must not open queues, whatever else its certificate allows.
    if ExtendedKeyUsageOID.SERVER_AUTH in usages:
        raise CertificateError(f"{name!r} has a server's certificate, which is no client's")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise CertificateError(f"the certificate of {name!r} lacks the usage clientAuth")


def _check_alternative_name(certificate: x509.Certificate, name: str) -> None:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    for uri in uris:
        if uri.lower().startswith(URI_SCHEME) and uri != URI_SCHEME + name:
            raise CertificateError(f"CN {name!r} and alternative name {uri!r} don't agree")


def _extended_usages(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier] | None:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return None
    return frozenset(extension.value)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return extension.value.ca
