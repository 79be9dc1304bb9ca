"""An identity on a client's machine: who it is, where its broker is, and its keys.

::

    identity.toml           name, url, server_name, suite: may be edited
    cert.pem  key.pem       the certificate and its key; the key signs and does TLS
    key.pass                what the passphrase opens; absent: the keys are in the clear
    ca.crt    crl.pem       whom it believes, and whom no longer
    sealing/                the keys that messages are sealed to
    trust.json              what it has learnt about others
    request.pem             while it waits for its certificate: what the authority is to sign

Files with secrets are 0600 in a directory of 0700. Loading reads disks and, with a passphrase,
takes half a second: not for an event loop's thread.
"""

from __future__ import annotations

import json
import ssl
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.client.ownkeys import OwnKeys
from ciphermq.client.trust import TrustFile
from ciphermq.custody import disk
from ciphermq.custody.face import Opener
from ciphermq.custody.files import FileSigner
from ciphermq.custody.keyring import Keyring
from ciphermq.errors import (
    CertificateError,
    ConfigError,
    IdentityError,
    IdentityNotFound,
    ReceiverFault,
    RevocationListStale,
    UntrustedSender,
)
from ciphermq.model import ids
from ciphermq.model.suites import DEFAULT_SUITE, Suite
from ciphermq.net import tls
from ciphermq.pki import dates, keyfile, names, pem
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier

SETTINGS: Final = "identity.toml"
CERTIFICATE: Final = "cert.pem"
KEY: Final = "key.pem"
WRAPPED: Final = "key.pass"
AUTHORITY: Final = "ca.crt"
REVOCATION_LIST: Final = "crl.pem"
SEALING: Final = "sealing"
TRUST: Final = "trust.json"
REQUEST: Final = "request.pem"
PURPOSE: Final = "CipherMQ identity key"
LOCK: Final = ".lock"


class IdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``identity.toml``."""

    name: str
    url: str
    """The broker's address, ``cmq://host:port``; empty while it waits for its certificate."""
    server_name: str = ""
    """What the broker's certificate must be for; empty: the host in `url`."""
    suite: str = DEFAULT_SUITE.name

    @classmethod
    def read(cls, directory: Path) -> IdentitySettings:
        """Raises `IdentityNotFound` when there is no identity, `ConfigError` for a bad value."""
        path = directory / SETTINGS
        try:
            return cls.parse(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise IdentityNotFound(
                f"there is no identity in {directory}: make one with `ciphermq identity add`, or "
                "take over a file from its maker with `ciphermq identity import`"
            ) from None
        except OSError as error:
            raise IdentityError(f"{path} can't be read: {error.strerror}") from error

    @classmethod
    def parse(cls, text: bytes, where: str) -> IdentitySettings:
        """Raises `ConfigError`, which names `where`."""
        try:
            settings = msgspec.convert(tomllib.loads(text.decode()), cls)
        except (ValueError, msgspec.ValidationError) as error:
            raise ConfigError(f"{where}: {error}") from error
        if not ids.is_client_id(settings.name):
            raise ConfigError(f"{where}: name = {settings.name!r} is not a client id")
        if settings.suite not in Suite.__members__:
            allowed = ", ".join(Suite.__members__)
            raise ConfigError(f"{where}: suite = {settings.suite!r} is not one of {allowed}")
        return settings

    def to_toml(self) -> bytes:
        """The file's text."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        # For such strings JSON's spelling is TOML's.
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
        ]
        return "\n".join(["# A CipherMQ identity.", *lines, ""]).encode()

    def write(self, directory: Path) -> None:
        """Write ``identity.toml``, in place of the one that is there."""
        disk.write_file(directory / SETTINGS, self.to_toml(), mode=disk.PUBLIC, replace=True)


class Identity:
    """An identity whose private keys are open. Made by `load`."""

    def __init__(self, path: Path, secret: bytes | None) -> None:
        """See `load`. `secret` opens the key files, where they are encrypted."""
        self.path = path
        self.settings = IdentitySettings.read(path)
        self.certificate = read_certificate(path)
        self.name = names.client_id_of(self.certificate)
        if self.name != self.settings.name:
            raise CertificateError(
                f"{path / SETTINGS} is of {self.settings.name!r}, but {path / CERTIFICATE} is of "
                f"{self.name!r}: put the right certificate in place"
            )
        key = keyfile.read_key(path / KEY, secret)
        self.signer = FileSigner(key, (self.certificate.public_bytes(Encoding.DER),))
        self.keys = OwnKeys(path / SEALING, secret)
        self.trust = TrustFile(path / TRUST)
        self._secret = secret

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Identity:
        """The identity in directory `path`.

        Raises `IdentityNotFound`, `PassphraseError` when `passphrase` is wrong or missing,
        `ConfigError` for its settings, else another `IdentityError`.
        """
        path = Path(path)
        IdentitySettings.read(path)
        secret = keyfile.read_password(path / WRAPPED, passphrase, PURPOSE)
        return cls(path, secret)

    @property
    def url(self) -> str:
        """The broker's address."""
        return self.settings.url

    @property
    def server_name(self) -> str | None:
        """What the broker's certificate must be for; None: the host in `url`."""
        return self.settings.server_name or None

    @property
    def suite(self) -> Suite:
        """Of sealing keys made from now on."""
        return Suite[self.settings.suite]

    @property
    def keyring(self) -> Keyring:
        """Opens what was sealed to this identity, with its present key or a former one."""
        return self.keys.keyring

    @property
    def current_key(self) -> Opener:
        """The key that others are told to seal to."""
        return self.keys.current

    @cached_property
    def ca_ders(self) -> tuple[bytes, ...]:
        """The certificates of the authorities it believes."""
        return read_authorities(self.path)

    @property
    def crl_ders(self) -> tuple[bytes, ...]:
        """The revocation lists on disk, one for each authority."""
        return read_revocation_lists(self.path)

    @cached_property
    def verifier(self) -> ChainVerifier:
        """Judges certificates by this identity's authorities and newest revocation lists.

        Raises `RevocationListStale` when a list on disk is older than one seen before.
        """
        verifier = ChainVerifier(self.ca_ders)
        for der in self.crl_ders:
            self.trust.note_crl(verifier.use_crl(der))
        return verifier

    def check(self, now_ms: int) -> None:
        """`CertificateError`, with what to do, when the own certificate does not count now;
        `ClockWrong` when the time can't be right.

        A stale revocation list is no reason: it is the receiver's to say what follows from it.
        """
        try:
            self.verifier.check_signer(self.signer.chain, now_ms, now_ms)
        except UntrustedSender as error:
            raise CertificateError(f"{error}: {self._renewal}") from error
        except RevocationListStale:
            pass
        # TLS forgives a certificate nothing, so neither does this.
        end_ms = dates.to_ms(self.certificate.not_valid_after_utc)
        if now_ms > end_ms:
            raise CertificateError(
                f"{self._title} expired on {dates.spell(end_ms)}: {self._renewal}"
            )

    def warnings(self, now_ms: int) -> list[str]:
        """Sentences about what ends soon, or has ended."""
        found = [dates.certificate_warning(self.certificate, self._title, now_ms)]
        for der in self.ca_ders:
            authority = names.load(der)
            found.append(dates.certificate_warning(authority, "the authority", now_ms))
        found += [crl.warning(now_ms) for crl in self.verifier.revocation_lists]
        return [sentence for sentence in found if sentence]

    def ssl_context(self) -> ssl.SSLContext:
        """For connecting to the broker: TLS 1.3, own certificate, the broker's checked."""
        return tls.client_context(
            certificate=self.path / CERTIFICATE,
            key=self.path / KEY,
            authority=self.path / AUTHORITY,
            revocations=self.path / REVOCATION_LIST,
            passphrase=self._secret.decode() if self._secret else None,
        )

    def key_record(self, now_ms: int) -> bytes:
        """The key record to register: the last one while it is good, else a new one."""
        record = self.keys.record(self.signer, self.name, now_ms, self._record_end(now_ms))
        self._prune(now_ms)
        return record

    def make_key_record(self, now_ms: int) -> bytes:
        """A new key record of the current key, for `limits.KEY_RECORD_LIFETIME`."""
        return self.keys.new_record(self.signer, self.name, now_ms, self._record_end(now_ms))

    def rotate_key(self, now_ms: int) -> bytes:
        """Take a new sealing key into use; the record of it. The former key is kept for as long
        as batches sealed to it may come."""
        self.keys.rotate(self.suite)
        self._prune(now_ms)
        return self.make_key_record(now_ms)

    def install_crl(self, der: bytes) -> bool:
        """Judge by this newer revocation list from now on, and keep it; False when it is known.

        Raises `RevocationListStale` when it is not of our authority, or an old one.
        """
        crl = RevocationList(der, self.verifier.authorities)
        if der in self.crl_ders:
            return False
        with disk.locked(self.path / LOCK):
            self.trust.note_crl(crl)
            self.verifier.use_crl(der, lowest=crl.number)
            write_revocation_lists(self.path, crl)
        return True

    def _prune(self, now_ms: int) -> None:
        """Delete former keys that no batch can name any more, if the time can be believed."""
        try:
            self.verifier.check_signer(self.signer.chain, now_ms, now_ms)
        except (UntrustedSender, ReceiverFault):
            # A clock that runs years ahead would otherwise delete keys that are still needed;
            # certificate and list both being current says that it doesn't.
            return
        self.keys.prune(now_ms)

    @property
    def _title(self) -> str:
        return f"the certificate of {self.name!r}"

    @property
    def _renewal(self) -> str:
        return (
            f"renew it with `ciphermq identity renew {self.name}` where the authority is, or have "
            "it signed anew with `ciphermq identity request`"
        )

    def _record_end(self, now_ms: int) -> int:
        """A record can't outlive the certificate that signs it."""
        end_ms = dates.to_ms(self.certificate.not_valid_after_utc)
        return max(now_ms + 1, min(now_ms + limits.KEY_RECORD_LIFETIME * 1000, end_ms))


def read_certificate(directory: Path) -> x509.Certificate:
    """The identity's own certificate."""
    path = directory / CERTIFICATE
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        if (directory / REQUEST).exists():
            raise IdentityError(
                f"{directory} waits for its certificate: send {directory / REQUEST} to whoever "
                "runs the authority (`ciphermq ca sign`) and take the answer over with "
                "`ciphermq identity import`"
            ) from None
        raise IdentityError(f"{path} is missing: restore it from a backup") from None
    except (OSError, *names.UNREADABLE) as error:
        raise IdentityError(f"{path} can't be read: {error}") from error


def read_authorities(directory: Path) -> tuple[bytes, ...]:
    """The authorities' certificates in ``ca.crt``, DER."""
    path = directory / AUTHORITY
    try:
        found = pem.blocks("CERTIFICATE", path.read_bytes())
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error
    if not found:
        raise IdentityError(f"{path} holds no certificate: get it from the authority again")
    return found


def read_revocation_lists(directory: Path) -> tuple[bytes, ...]:
    """The revocation lists in ``crl.pem``, DER; none when the file is missing."""
    path = directory / REVOCATION_LIST
    try:
        return pem.blocks("X509 CRL", path.read_bytes()) if path.exists() else ()
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error


def write_revocation_lists(directory: Path, new: RevocationList) -> None:
    """Put `new` into ``crl.pem``, in the place of that authority's former list."""
    others = [
        der
        for der in read_revocation_lists(directory)
        if x509.load_der_x509_crl(der).issuer != new.issuer.subject
    ]
    text = b"".join(pem.block("X509 CRL", der) for der in [*others, new.der])
    disk.write_file(directory / REVOCATION_LIST, text, mode=disk.PUBLIC, replace=True)
