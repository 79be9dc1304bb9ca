"""An identity on a client's machine, open: who it is, where its broker is, and its keys.

Its files are in `ciphermq.client.layout`. Loading reads disks and, with a passphrase, takes half a
second: not for an event loop's thread.
"""

from __future__ import annotations

import ssl
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.client import layout
from ciphermq.client.layout import IdentitySettings
from ciphermq.client.onex import OnexReader
from ciphermq.client.ownkeys import OwnKeys
from ciphermq.client.trust import TrustFile
from ciphermq.custody import disk
from ciphermq.custody.face import Opener
from ciphermq.custody.files import FileSigner
from ciphermq.custody.keyring import Keyring
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import (
    CertificateError,
    ReceiverFault,
    RevocationListStale,
    UntrustedSender,
)
from ciphermq.model.suites import Suite
from ciphermq.net import tls
from ciphermq.pki import dates, keyfile, names
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier, key_sha256


class Identity:
    """An identity whose private keys are open. Made by `load`."""

    def __init__(self, path: Path, secret: bytes | None) -> None:
        """See `load`. `secret` opens the key files, where they are encrypted."""
        self.path = path
        self.settings = IdentitySettings.read(path)
        self.certificate = layout.read_certificate(path)
        self.name = names.client_id_of(self.certificate)
        if self.name != self.settings.name:
            raise CertificateError(
                f"{path / layout.SETTINGS} is of {self.settings.name!r}, but the certificate "
                f"{path / layout.CERTIFICATE} is of {self.name!r}: put the right one in place"
            )
        key = keyfile.read_key(path / layout.KEY, secret)
        self._key_sha256 = key_sha256(key.public_key())
        self.signer = FileSigner(key, (self.certificate.public_bytes(Encoding.DER),))
        self.keys = OwnKeys(path / layout.SEALING, secret)
        self.trust = TrustFile(path / layout.TRUST)
        self.onex = OnexReader.load(path, self.settings.one_x, self.keyring)
        """Opens messages of CipherMQ 1.x; None: it takes none."""
        self._secret = secret

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Identity:
        """The identity in directory `path`.

        Raises `IdentityNotFound`, `PassphraseError` when `passphrase` is wrong or missing,
        `ConfigError` for its settings, else another `IdentityError`.
        """
        path = Path(path)
        IdentitySettings.read(path)
        secret = keyfile.read_password(path / layout.WRAPPED, passphrase, layout.PURPOSE)
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
        return layout.read_authorities(self.path)

    @property
    def crl_ders(self) -> tuple[bytes, ...]:
        """The revocation lists on disk, one for each authority."""
        return layout.read_revocation_lists(self.path)

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
        return layout.warnings(self.path, now_ms)

    def ssl_context(self, *, onex: bool = False) -> ssl.SSLContext:
        """For connecting to the broker: TLS 1.3, own certificate, the broker's checked.

        `onex`: to talk to it as clients of CipherMQ 1.x do."""
        return tls.client_context(
            certificate=self.path / layout.CERTIFICATE,
            key=self.path / layout.KEY,
            authority=self.path / layout.AUTHORITY,
            revocations=self.path / layout.REVOCATION_LIST,
            passphrase=self._secret.decode() if self._secret else None,
            protocols=() if onex else (tls.ALPN,),
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

    def accept(self, record: bytes, client: str, now_ms: int) -> VerifiedRecord:
        """The key record of `client`, verified against all that is remembered; `TrustFile.accept`
        says what it raises."""
        known = self.trust.known(client)
        if client == self.name and known and known.pin != self._key_sha256.hex():
            # Its certificate has a new key, and nobody need tell it which. If it would not believe
            # its own record, it could not tell a key that a sender invented from one that it lost.
            self.trust.trust(client, self._key_sha256, now_ms)
        return self.trust.accept(
            record, expected_client=client, verifier=self.verifier, now_ms=now_ms
        )

    def install_crl(self, der: bytes) -> bool:
        """Judge by this newer revocation list from now on, and keep it; False when it is known.

        Raises `RevocationListStale` when it is not of our authority, or an old one.
        """
        crl = RevocationList(der, self.verifier.authorities)
        if der in self.crl_ders:
            return False
        with disk.locked(self.path / layout.LOCK):
            self.trust.note_crl(crl)
            self.verifier.use_crl(der, lowest=crl.number)
            layout.write_revocation_lists(self.path, crl)
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
