"""How identities come about: made beside the authority, or on their own machine by a request;
moved, and renewed.

Private keys leave the machine that made them only in an export. An identity that is made where it
lives sends its request out and takes the authority's answer in, and neither holds a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.client import bundle, companion, layout
from ciphermq.client.bundle import Bundle
from ciphermq.client.identity import read_secret
from ciphermq.client.layout import IdentitySettings
from ciphermq.client.ownkeys import OwnKeys
from ciphermq.client.trust import TrustFile
from ciphermq.custody import disk
from ciphermq.custody.passphrase import STRONG, Cost
from ciphermq.errors import (
    AuthorityError,
    CertificateError,
    IdentityError,
    RevocationListStale,
    UntrustedSender,
    UsageError,
)
from ciphermq.model.suites import DEFAULT_SUITE, Suite
from ciphermq.pki import dates, keyfile, names, pem
from ciphermq.pki.authority import Authority, AuthorityDirectory, load_request
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier

if TYPE_CHECKING:
    from ciphermq.client.tokens import TokenPlan
    from ciphermq.custody.pkcs11.pin import Pin

KEY_CURVE: Final = ec.SECP256R1()
"""For clients and servers; ``docs/decisions/0001`` has the figures."""


def create(
    path: Path,
    *,
    name: str,
    url: str,
    authority: Authority,
    now_ms: int,
    server_name: str = "",
    passphrase: str | None = None,
    suite: Suite = DEFAULT_SUITE,
    lifetime: int = limits.CERTIFICATE_LIFETIME,
    replace: bool = False,
    cost: Cost = STRONG,
    plan: TokenPlan | None = None,
) -> x509.Certificate:
    """Make the identity `name` in the new directory `path`, certified by `authority`.

    Its certificate is for `lifetime` seconds. Its keys are encrypted when there is a
    `passphrase`; those that `plan` says are on a token. Raises `FileExistsError` when there is
    something at `path`, `AuthorityError` as `Authority.issue_client` does.
    """
    settings = IdentitySettings(names.check_issuable(name), url, server_name, suite.name)
    with _undone_on_failure(plan), disk.new_directory(path) as directory:
        made = _write_keys(directory, settings, passphrase, cost, plan)
        certificate = authority.issue_client(
            name, made.key.public_key(), now_ms=now_ms, lifetime=lifetime, replace=replace
        )
        second = None
        if made.tls_key is not None:
            second = authority.issue_client(
                name,
                made.tls_key.public_key(),
                now_ms=now_ms,
                lifetime=lifetime,
                replace=replace,
                only_connects=True,
            )
        parts = _public_parts(authority, certificate, made.settings, second)
        for part, data in parts.items():
            disk.write_file(directory / part, data, mode=disk.PUBLIC, replace=True)
    return certificate


def request(
    path: Path,
    *,
    name: str,
    passphrase: str | None = None,
    suite: Suite = DEFAULT_SUITE,
    cost: Cost = STRONG,
    plan: TokenPlan | None = None,
) -> bytes:
    """Make the identity `name` in the new directory `path`, all but its certificate.

    Returns the request (PEM) for the authority to sign, two of them where `plan` has the first
    one's key on a token. Raises `FileExistsError`.
    """
    settings = IdentitySettings(names.check_issuable(name), "", "", suite.name)
    with _undone_on_failure(plan), disk.new_directory(path) as directory:
        made = _write_keys(directory, settings, passphrase, cost, plan)
        text = companion.request(name, made.key, made.tls_key)
        disk.write_file(directory / layout.REQUEST, text, mode=disk.PUBLIC)
    return text


def request_again(path: Path, passphrase: str | None, pin: Pin | None = None) -> bytes:
    """A request for the key that the identity in `path` has already: to renew its certificate."""
    settings = IdentitySettings.read(path)
    token = None
    if settings.token is not None:
        from ciphermq.client import tokens

        token = tokens.open_token(path, settings.token, pin)
    secret = read_secret(path, passphrase, token)
    key: ec.EllipticCurvePrivateKey
    tls_key = None
    if token is not None and settings.token is not None and settings.token.signing_id is not None:
        from ciphermq.custody.pkcs11.signer import TokenSigningKey

        key = TokenSigningKey.find(token, settings.token.signing_id)
        tls_key = keyfile.read_key(path / layout.TLS_KEY, secret)
    else:
        key = keyfile.read_key(path / layout.KEY, secret)
    text = companion.request(settings.name, key, tls_key)
    disk.write_file(path / layout.REQUEST, text, mode=disk.PUBLIC, replace=True)
    return text


def answer(
    authority: AuthorityDirectory,
    certificate: x509.Certificate,
    url: str,
    server_name: str = "",
    second: x509.Certificate | None = None,
) -> bytes:
    """What the authority gives back for a request or a renewal: no secret, and all else.

    `second`: the certificate for TLS alone, where there is one."""
    name = names.client_id_of(certificate)
    settings = IdentitySettings(name, url, server_name)
    parts = _public_parts(authority, certificate, settings, second)
    return bundle.pack("certificate", name, parts)


def renew(path: Path, *, authority: Authority, now_ms: int) -> Renewed:
    """A new certificate for the key that the identity in `path` has, or for both of its keys."""
    name = IdentitySettings.read(path).name
    certificate = authority.issue_client(name, _own_public_key(path), now_ms=now_ms)
    second = None
    if (path / layout.TLS_CERTIFICATE).exists():
        key = _signable(layout.read_certificate(path, layout.TLS_CERTIFICATE).public_key(), name)
        second = authority.issue_client(name, key, now_ms=now_ms, only_connects=True)
    _write_public(path, authority, certificate, second)
    return Renewed(certificate, second)


def renew_elsewhere(name: str, *, authority: Authority, now_ms: int) -> Renewed:
    """A new certificate for the client `name`, whose keys are on another machine; two where it has
    a second one for TLS alone that counts.

    Raises `AuthorityError` when the authority never certified that name.
    """
    known = [
        item
        for item in authority.issued()
        if item.is_client and item.name == name and not item.only_connects
    ]
    if not known:
        raise AuthorityError(
            f"the authority never certified {name!r}: make it with `ciphermq identity add`, or "
            "where it is to live with `ciphermq identity request`"
        )
    key = _signable(known[-1].certificate.public_key(), name)
    certificate = authority.issue_client(name, key, now_ms=now_ms)
    known_second = authority.newest(name, only_connects=True)
    second = None
    if known_second is not None:
        tls_key = _signable(known_second.certificate.public_key(), name)
        second = authority.issue_client(name, tls_key, now_ms=now_ms, only_connects=True)
    return Renewed(certificate, second)


def renew_with_new_key(
    path: Path, *, authority: Authority, now_ms: int, passphrase: str | None
) -> Renewed:
    """A new certificate and a new key for the identity in `path`, under the same passphrase.

    Everybody who pinned the old key must run ``ciphermq keys trust``. Raises `UsageError` where
    a token holds that key, or opens its file.
    """
    settings = IdentitySettings.read(path)
    name = settings.name
    if settings.signs_on_token or (path / layout.HSM_WRAPPED).exists():
        raise UsageError(
            f"a token keeps the certificate's key of {name!r}: for another key, make the identity "
            "anew, and certify it with --replace"
        )
    secret = keyfile.read_password(path / layout.WRAPPED, passphrase, layout.PURPOSE)
    key = keyfile.new_key(KEY_CURVE)
    certificate = authority.issue_client(name, key.public_key(), now_ms=now_ms, replace=True)
    # Stopped between the two writes, key and certificate don't fit, and loading says so; the same
    # command again puts it right.
    keyfile.write_key(path / layout.KEY, key, secret, replace=True)
    _write_public(path, authority, certificate)
    return Renewed(certificate)


def export(path: Path, passphrase: str | None = None, cost: Cost = STRONG) -> bytes:
    """All of the identity in `path` as one file's text, under `passphrase` where one is given.

    Keys that are encrypted already stay so, under the identity's own passphrase.
    """
    name = names.client_id_of(layout.read_certificate(path))
    return bundle.pack("identity", name, bundle.collect(path), passphrase, cost)


def import_identity(exported: Bundle, path: Path, now_ms: int) -> None:
    """Unpack an exported identity into the new directory `path`, if it is one.

    Raises `FileExistsError`, and `IdentityError` or `CertificateError` when its parts don't fit.
    """
    with disk.new_directory(path) as directory:
        for part, data in exported.files.items():
            target = directory / part
            disk.make_private_directory(target.parent)
            mode = disk.PUBLIC if part in bundle.PUBLIC_PARTS else disk.PRIVATE
            disk.write_file(target, data, mode=mode)
        if IdentitySettings.read(directory).name != exported.name:
            raise IdentityError("the file's settings are of another identity than the file")
        certificate = layout.read_certificate(directory)
        _check_certificate(certificate, exported.name, layout.read_authorities(directory), now_ms)


def install_certificate(answered: Bundle, path: Path, now_ms: int) -> x509.Certificate:
    """Take an authority's answer over into the identity in `path`, which made the request.

    Raises `CertificateError` when it is for another name or key, or when the identity believes
    another authority already: an answer must not be able to change whom it believes.
    """
    settings = IdentitySettings.read(path)
    if answered.name != settings.name:
        raise CertificateError(f"the answer is for {answered.name!r}, not for {settings.name!r}")
    with disk.locked(path / layout.LOCK):
        authority_pem = answered.files[layout.AUTHORITY]
        known = path / layout.AUTHORITY
        first = not known.exists()
        authorities = (
            pem.blocks("CERTIFICATE", authority_pem) if first else layout.read_authorities(path)
        )
        certificate = _load(answered.files[layout.CERTIFICATE])
        verifier = _check_certificate(certificate, settings.name, authorities, now_ms)
        if certificate.public_key() != _own_public_key(path):
            raise CertificateError(
                f"the answer is for another key than the one in {path}: make a new request with "
                "`ciphermq identity request` and have that one signed"
            )
        second = companion.checked(answered, path, settings, authorities, now_ms)
        if first:
            disk.write_file(known, authority_pem, mode=disk.PUBLIC)
        for der in pem.blocks("X509 CRL", answered.files[layout.REVOCATION_LIST]):
            crl = verifier.use_crl(der)
            TrustFile(path / layout.TRUST).note_crl(crl)
            layout.write_revocation_lists(path, crl)
        if not settings.url:
            told = IdentitySettings.parse(answered.files[layout.SETTINGS], "the answer")
            msgspec.structs.replace(settings, url=told.url, server_name=told.server_name).write(
                path
            )
        _write_certificate(path, certificate, second)
    return certificate


def install_crl(path: Path, crl: RevocationList) -> None:
    """Put the authority's new list into the identity in `path`, which need not be open."""
    with disk.locked(path / layout.LOCK):
        TrustFile(path / layout.TRUST).note_crl(crl)
        layout.write_revocation_lists(path, crl)


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate: what two people compare to know that they mean the same one."""
    return certificate.fingerprint(hashes.SHA256())


def _undone_on_failure(plan: TokenPlan | None) -> AbstractContextManager[None]:
    return plan.undone_on_failure() if plan is not None else nullcontext()


class Renewed(NamedTuple):
    """A client's new certificate, and its second one, for TLS alone, where it has that."""

    certificate: x509.Certificate
    second: x509.Certificate | None = None


class _Made(NamedTuple):
    """A new identity's keys."""

    settings: IdentitySettings
    key: ec.EllipticCurvePrivateKey
    """The certificate's."""
    tls_key: ec.EllipticCurvePrivateKey | None
    """For TLS alone, where `key` is on a token."""


def _write_keys(
    directory: Path,
    settings: IdentitySettings,
    passphrase: str | None,
    cost: Cost,
    plan: TokenPlan | None,
) -> _Made:
    secret = None
    if passphrase is not None:
        secret = keyfile.new_password()
        keyfile.write_password(directory / layout.WRAPPED, secret, passphrase, layout.PURPOSE, cost)
    key: ec.EllipticCurvePrivateKey
    tls_key = None
    if plan is not None and plan.signing:
        key, tls_key = plan.find_signing_key(), keyfile.new_key(KEY_CURVE)
        keyfile.write_key(directory / layout.TLS_KEY, tls_key, secret)
    else:
        key = keyfile.new_key(KEY_CURVE)
        keyfile.write_key(directory / layout.KEY, key, secret)
    if plan is not None:
        settings = plan.applied_to(settings, key)
    if plan is not None and plan.sealing:
        OwnKeys.create_on_token(directory / layout.SEALING, plan.find_sealing_key())
    else:
        OwnKeys.create(directory / layout.SEALING, Suite[settings.suite], secret)
    settings.write(directory)
    return _Made(settings, key, tls_key)


def _own_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The certificate key's public half, which needs no passphrase."""
    try:
        if (path / layout.CERTIFICATE).exists():
            key = layout.read_certificate(path).public_key()
        else:
            key = load_request((path / layout.REQUEST).read_bytes()).public_key()
    except (OSError, *names.UNREADABLE) as error:
        raise IdentityError(f"the public key of {path} can't be read: {error}") from error
    return _signable(key, str(path))


def _signable(key: object, whose: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateError(f"the key of {whose} must be on P-256, P-384 or P-521")
    return key


def _load(text: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text)
    except names.UNREADABLE as error:
        raise CertificateError(f"the answer's certificate can't be read: {error}") from error


def _check_certificate(
    certificate: x509.Certificate, name: str, authorities: Sequence[bytes], now_ms: int
) -> ChainVerifier:
    """That `certificate` is for `name` and of one of `authorities`, whatever the date."""
    if names.client_id_of(certificate) != name:
        raise CertificateError(f"the certificate is not for {name!r}")
    verifier = ChainVerifier(authorities)
    start_ms = dates.to_ms(certificate.not_valid_before_utc)
    try:
        verifier.check_signer([certificate.public_bytes(Encoding.DER)], start_ms, now_ms)
    except RevocationListStale:
        pass  # there is no list yet: whether it is revoked is asked at each use
    except UntrustedSender as error:
        raise CertificateError(
            f"{error}. If {name!r} is to move to another authority, make a new identity"
        ) from error
    return verifier


def _write_public(
    path: Path,
    authority: Authority,
    certificate: x509.Certificate,
    second: x509.Certificate | None = None,
) -> None:
    install_crl(path, authority.revocation_list())
    with disk.locked(path / layout.LOCK):
        _write_certificate(path, certificate, second)


def _write_certificate(
    path: Path, certificate: x509.Certificate, second: x509.Certificate | None
) -> None:
    for name, each in ((layout.TLS_CERTIFICATE, second), (layout.CERTIFICATE, certificate)):
        if each is not None:
            text = each.public_bytes(Encoding.PEM)
            disk.write_file(path / name, text, mode=disk.PUBLIC, replace=True)
    (path / layout.REQUEST).unlink(missing_ok=True)


def _public_parts(
    authority: AuthorityDirectory,
    certificate: x509.Certificate,
    settings: IdentitySettings,
    second: x509.Certificate | None = None,
) -> dict[str, bytes]:
    parts = {
        layout.SETTINGS: settings.to_toml(),
        layout.CERTIFICATE: certificate.public_bytes(Encoding.PEM),
        layout.AUTHORITY: authority.certificate_pem,
        layout.REVOCATION_LIST: pem.block("X509 CRL", authority.revocation_list().der),
    }
    if second is not None:
        parts[layout.TLS_CERTIFICATE] = second.public_bytes(Encoding.PEM)
    return parts
