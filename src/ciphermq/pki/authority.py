"""The certificate authority: a directory that is needed only to issue, and best kept offline.

::

    ca.crt          its certificate: everybody's anchor
    ca.key          its private key (P-384), PEM under a random password
    ca.pass         that password under scrypt of the passphrase; absent: the key is in the clear
    crl.pem         the newest revocation list; its number rises with each
    issued/         every certificate it ever issued: a number that rises, and the serial

Each command takes the directory's lock, so two of them can't issue one name to two keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq import limits
from ciphermq.custody import disk, signatures
from ciphermq.custody.passphrase import STRONG, Cost
from ciphermq.errors import AuthorityError, CertificateError, RevocationListStale
from ciphermq.pki import dates, keyfile, names, pem, profiles
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier

CERTIFICATE: Final = "ca.crt"
KEY: Final = "ca.key"
REVOCATION_LIST: Final = "crl.pem"
_WRAPPED: Final = "ca.pass"
_ISSUED: Final = "issued"
_LOCK: Final = ".lock"
_PURPOSE: Final = "CipherMQ authority key"

_PEM: Final = serialization.Encoding.PEM
_DER: Final = serialization.Encoding.DER
_PublicKey = ec.EllipticCurvePublicKey


class Issued(NamedTuple):
    """A certificate that the authority issued."""

    name: str
    """A client's id; `profiles.SERVER_COMMON_NAME` for a server's."""
    is_client: bool
    certificate: x509.Certificate

    @property
    def only_connects(self) -> bool:
        """Whether it is a client's second certificate, for TLS alone."""
        return self.is_client and names.only_connects(self.certificate)

    @property
    def not_after_ms(self) -> int:
        """When it ends."""
        return dates.to_ms(self.certificate.not_valid_after_utc)


class AuthorityDirectory:
    """What can be read of an authority without its passphrase."""

    def __init__(self, path: Path) -> None:
        """Raises `AuthorityError` when there is no authority at `path`."""
        self.path = path
        try:
            text = (path / CERTIFICATE).read_bytes()
            self.certificate = x509.load_pem_x509_certificate(text)
        except FileNotFoundError:
            raise AuthorityError(
                f"there is no authority in {path}: make one with `ciphermq init`, or say where "
                "the deployment is with --home"
            ) from None
        except (OSError, *names.UNREADABLE) as error:
            raise AuthorityError(f"{path / CERTIFICATE} can't be read: {error}") from error

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate, for everybody."""
        return self.certificate.public_bytes(_PEM)

    @property
    def encrypted(self) -> bool:
        """Whether its key needs a passphrase."""
        return (self.path / _WRAPPED).exists()

    def revocation_list(self) -> RevocationList:
        """The newest list; `AuthorityError` when it is missing or not this authority's."""
        path = self.path / REVOCATION_LIST
        try:
            crl = x509.load_pem_x509_crl(path.read_bytes())
            return RevocationList(crl.public_bytes(_DER), [self.certificate])
        except (OSError, RevocationListStale, *names.UNREADABLE) as error:
            raise AuthorityError(
                f"{path} can't be used ({error}): restore it from a backup; a new list in its "
                "place would forget who is revoked"
            ) from error

    @contextmanager
    def newest_list(self) -> Iterator[RevocationList]:
        """The newest list, and nobody issues another until the block ends: for who hands it out.
        Raises as `revocation_list`."""
        with self._locked():
            yield self.revocation_list()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with disk.locked(self.path / _LOCK):
            yield

    def revocations(self) -> list[x509.RevokedCertificate]:
        """What is on the newest list, by date and reason; raises as `revocation_list`."""
        return list(x509.load_der_x509_crl(self.revocation_list().der))

    def issued(self) -> list[Issued]:
        """Every certificate ever issued, oldest first."""
        found = []
        for path in sorted((self.path / _ISSUED).glob("*.crt")):
            try:
                found.append(issued_as(x509.load_pem_x509_certificate(path.read_bytes())))
            except (OSError, *names.UNREADABLE) as error:
                raise AuthorityError(f"{path} can't be read: {error}") from error
        return found

    def newest(self, name: str, *, only_connects: bool = False) -> Issued | None:
        """The certificate that client `name` got last, if it is not revoked; of those for TLS
        alone where it `only_connects`, else of the others."""
        revoked = self.revocation_list().serials
        for item in reversed(self.issued()):
            if item.is_client and item.name == name and item.only_connects == only_connects:
                return None if item.certificate.serial_number in revoked else item
        return None


class Authority(AuthorityDirectory):
    """An authority whose key is open: it issues."""

    def __init__(self, path: Path, key: ec.EllipticCurvePrivateKey) -> None:
        """See `open` and `create`."""
        super().__init__(path)
        if key.public_key() != self.certificate.public_key():
            raise AuthorityError(f"{path / KEY} is not the key of {path / CERTIFICATE}")
        self._issuer = profiles.Issuer(self.certificate, key)

    @classmethod
    def open(cls, path: Path, passphrase: str | None) -> Authority:
        """Raises `PassphraseError` for a wrong or missing passphrase, else `AuthorityError`."""
        directory = AuthorityDirectory(path)
        password = keyfile.read_password(path / _WRAPPED, passphrase, _PURPOSE)
        return cls(directory.path, keyfile.read_key(path / KEY, password))

    @classmethod
    def create(
        cls, path: Path, *, passphrase: str | None, now_ms: int, cost: Cost = STRONG
    ) -> Authority:
        """Make an authority in the new directory `path`, with its first revocation list.

        Without a `passphrase` its key is in the clear: for demonstrations and tests.
        """
        key = keyfile.new_key(ec.SECP384R1())
        certificate = profiles.authority_certificate(key, now_ms)
        return cls._keep_in(path, certificate, key, passphrase, now_ms, cost)

    @classmethod
    def adopt(
        cls,
        path: Path,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        *,
        passphrase: str | None,
        now_ms: int,
        cost: Cost = STRONG,
    ) -> Authority:
        """As `create`, for an authority that was made elsewhere and never issued a list.

        What it has certified so far is not known here: those names are free to be given again.
        Raises `AuthorityError` when `key` is not that of `certificate`, `CertificateError` when
        that is no authority's.
        """
        if key.public_key() != certificate.public_key():
            raise AuthorityError(
                f"the key is not that of {certificate.subject.rfc4514_string()!r}: name the "
                "certificate and the private key of the same authority"
            )
        ChainVerifier([certificate.public_bytes(_DER)])
        return cls._keep_in(path, certificate, key, passphrase, now_ms, cost)

    @classmethod
    def _keep_in(
        cls,
        path: Path,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        passphrase: str | None,
        now_ms: int,
        cost: Cost,
    ) -> Authority:
        first = profiles.revocation_list(profiles.Issuer(certificate, key), 1, (), now_ms)
        with disk.new_directory(path) as directory:
            password = None
            if passphrase is not None:
                password = keyfile.new_password()
                keyfile.write_password(directory / _WRAPPED, password, passphrase, _PURPOSE, cost)
            keyfile.write_key(directory / KEY, key, password)
            disk.make_private_directory(directory / _ISSUED)
            for name, data in (
                (REVOCATION_LIST, first.public_bytes(_PEM)),
                (CERTIFICATE, certificate.public_bytes(_PEM)),
            ):
                disk.write_file(directory / name, data, mode=disk.PUBLIC)
        return cls(path, key)

    def issue_client(
        self,
        name: str,
        public_key: _PublicKey,
        *,
        now_ms: int,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
        replace: bool = False,
        only_connects: bool = False,
    ) -> x509.Certificate:
        """A client's certificate, `lifetime` in seconds.

        `only_connects`: a second one of the same name, for TLS alone, whose key can't sign; for who
        keeps the key that signs where TLS can't reach it. Each kind has its own last key.

        Raises `AuthorityError` when the last certificate of `name`, ended or not, is for another
        key and is not revoked: whoever got one could take over the name of who has it. With
        `replace` it is issued all the same. Raises it always when `public_key` was taken back:
        whoever stole it would have the name again.
        """
        with self._locked():
            last = self.newest(name, only_connects=only_connects)
            if last and last.certificate.public_key() != public_key and not replace:
                raise AuthorityError(
                    f"{name!r} has a certificate with another key (serial "
                    f"{names.spell_serial(last.certificate.serial_number)}, until "
                    f"{dates.spell(last.not_after_ms)}). "
                    "If that key is lost and this is its owner asking, repeat the command with "
                    "--replace"
                )
            self._check_not_taken_back(name, public_key)
            issued = profiles.client_certificate(
                self._issuer, name, public_key, now_ms, lifetime, signs=not only_connects
            )
            return self._keep(issued)

    def issue_server(
        self,
        hosts: Iterable[str],
        public_key: _PublicKey,
        *,
        now_ms: int,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
    ) -> x509.Certificate:
        """A server's certificate for these host names and addresses."""
        with self._locked():
            return self._keep(
                profiles.server_certificate(
                    self._issuer, tuple(hosts), public_key, now_ms, lifetime
                )
            )

    def sign_request(
        self,
        request: x509.CertificateSigningRequest,
        *,
        now_ms: int,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
        replace: bool = False,
    ) -> x509.Certificate:
        """A client's certificate for a key that was made elsewhere.

        Only the name and the key are taken from `request`; what else it asks for is ignored.
        Raises `CertificateError` for a bad name, key or proof of possession.
        """
        name = names.request_name(request)
        key = request_key(request)
        return self.issue_client(name, key, now_ms=now_ms, lifetime=lifetime, replace=replace)

    def sign_companion(
        self,
        request: x509.CertificateSigningRequest,
        companion: x509.CertificateSigningRequest,
        *,
        now_ms: int,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
        replace: bool = False,
    ) -> x509.Certificate:
        """The certificate for TLS alone that goes with that of `request`.

        Raises `CertificateError` when `request` does not name the key of `companion`, and
        `AuthorityError` when it is not of the key that the name was certified for.
        """
        name, key = check_companion(request, companion)
        first = self.newest(name)
        if first is None or first.certificate.public_key() != request_key(request):
            raise AuthorityError(
                f"{name!r} has no certificate for the key of this request: a second one, for TLS "
                "alone, goes with that"
            )
        return self.issue_client(
            name, key, now_ms=now_ms, lifetime=lifetime, replace=replace, only_connects=True
        )

    def issue_crl(
        self,
        *,
        now_ms: int,
        revoke: Iterable[int] = (),
        reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    ) -> RevocationList:
        """The next revocation list: all of the last one's entries, and the serials `revoke`.

        What is revoked already keeps its date and its reason. The list is on the disk, whole and
        synced, when this returns. Raises `RevocationListStale` when it would be too long to use.
        """
        with self._locked():
            last = self.revocation_list()
            entries = {entry.serial_number: entry for entry in self.revocations()}
            for serial in revoke:
                entries.setdefault(serial, profiles.revoked_entry(serial, now_ms, reason))
            crl = profiles.revocation_list(self._issuer, last.number + 1, entries.values(), now_ms)
            new = RevocationList(crl.public_bytes(_DER), [self.certificate])
            path = self.path / REVOCATION_LIST
            disk.write_file(path, crl.public_bytes(_PEM), mode=disk.PUBLIC, replace=True)
            return new

    def _check_not_taken_back(self, name: str, public_key: _PublicKey) -> None:
        """`AuthorityError` when all that was certified of this key for `name` is revoked."""
        serials = {
            item.certificate.serial_number
            for item in self.issued()
            if item.is_client and item.name == name and item.certificate.public_key() == public_key
        }
        if serials and serials <= self.revocation_list().serials:
            raise AuthorityError(
                f"the key of {name!r} was taken back: every certificate it had is revoked (serial "
                f"{names.spell_serial(max(serials))}). Make a new identity, or a new request, "
                "whose key nobody has"
            )

    def _keep(self, certificate: x509.Certificate) -> x509.Certificate:
        issued = self.path / _ISSUED
        number = 1 + max((int(path.stem.split("-")[0]) for path in issued.glob("*.crt")), default=0)
        path = issued / f"{number:06}-{certificate.serial_number:x}.crt"
        disk.write_file(path, certificate.public_bytes(_PEM), mode=disk.PUBLIC)
        return certificate


def load_request(data: bytes) -> x509.CertificateSigningRequest:
    """The certificate request in `data`, PEM or DER; `CertificateError` when there is none."""
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_csr(data)
        return x509.load_der_x509_csr(data)
    except names.UNREADABLE as error:
        raise CertificateError(f"not a certificate request: {error}") from error


def load_companion(data: bytes) -> x509.CertificateSigningRequest | None:
    """The second request in `data`, for a certificate for TLS alone; None when there is none."""
    found = pem.blocks("CERTIFICATE REQUEST", data)
    if len(found) > 2:
        raise CertificateError(f"a file has one request or two, this one has {len(found)}")
    return load_request(found[1]) if found[1:] else None


def check_companion(
    request: x509.CertificateSigningRequest, companion: x509.CertificateSigningRequest
) -> tuple[str, _PublicKey]:
    """Name and key of `companion`, if it is the one that the maker of `request` vouches for.

    Raises `CertificateError`. Without this, who carries the file could put a key of his own beside
    a genuine request, and connect as its maker.
    """
    # Who only passes the request on could have put another digest into it.
    request_key(request)
    name, key = names.request_name(request), request_key(companion)
    if names.request_name(companion) != name or companion_named(request) != key_digest(key):
        raise CertificateError(
            f"the second request in the file is not the one that {name!r} made with the first: "
            "have both made anew with `ciphermq identity request`"
        )
    return name, key


def companion_named(request: x509.CertificateSigningRequest) -> str | None:
    """The digest of the key for TLS that the maker of `request` has beside this one."""
    try:
        return request.attributes.get_attribute_for_oid(names.COMPANION).value.decode()
    except (x509.AttributeNotFound, *names.UNREADABLE):
        return None


def key_digest(key: _PublicKey) -> str:
    """How a request names the key of its companion."""
    spki = key.public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def request_key(request: x509.CertificateSigningRequest) -> _PublicKey:
    """The key that `request` is for; `CertificateError` when its maker has not shown to have it,
    or when it is none that may sign batches."""
    try:
        key, proven = request.public_key(), request.is_signature_valid
    except names.UNREADABLE as error:
        raise CertificateError(f"the request can't be read: {error}") from error
    # Without this, a stranger's public key could be certified under one's own name.
    if not proven:
        raise CertificateError("the request is not signed by the key it names")
    if not isinstance(key, _PublicKey) or key.curve.name not in signatures.CURVES:
        raise CertificateError("the request's key must be on P-256, P-384 or P-521")
    return key


def key_beneath(directory: Path) -> Path | None:
    """An authority's private key somewhere in `directory`, which a broker must not hold."""
    return next(directory.rglob(KEY), None)


def issued_as(certificate: x509.Certificate) -> Issued:
    """A certificate of an authority, and whose it is."""
    try:
        return Issued(names.client_id_of(certificate), True, certificate)
    except CertificateError:
        return Issued(profiles.SERVER_COMMON_NAME, False, certificate)
