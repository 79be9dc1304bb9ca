"""An identity on a client's machine, open: who it is, where its broker is, and its keys.

Its files are in `ciphermq.client.layout`. Loading reads disks and, with a passphrase, takes half a
second: not for an event loop's thread.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.client import layout
from ciphermq.client.layout import IdentitySettings
from ciphermq.client.onex import OnexReader
from ciphermq.client.ownkeys import OwnKeys
from ciphermq.client.trust import TrustFile
from ciphermq.custody import disk
from ciphermq.custody.face import Opener, Signer
from ciphermq.custody.files import FileSigner
from ciphermq.custody.keyring import Keyring
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import (
    CertificateError,
    ReceiverFault,
    RevocationListStale,
    SenderRevoked,
    UntrustedSender,
)
from ciphermq.model.suites import Suite
from ciphermq.net import tls
from ciphermq.pki import dates, keyfile, names
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier, key_sha256

if TYPE_CHECKING:
    from ciphermq.custody.pkcs11.pin import Pin
    from ciphermq.custody.pkcs11.token import Token


def read_secret(path: Path, passphrase: str | None, token: Token | None) -> bytes | None:
    """What opens the key files of the identity in `path`: under `passphrase`, or wrapped by
    `token`; None when they are in the clear. Raises as `Identity.load` does."""
    if (path / layout.HSM_WRAPPED).exists():
        from ciphermq.client import tokens

        return tokens.open_secret(path, token)
    return keyfile.read_password(path / layout.WRAPPED, passphrase, layout.PURPOSE)


class Identity:
    """An identity whose private keys are open. Made by `load`."""

    def __init__(self, path: Path, secret: bytes | None, token: Token | None = None) -> None:
        """See `load`. `secret` opens the key files, where they are encrypted; `token` has what is
        not in files."""
        self.path = path
        self.settings = IdentitySettings.read(path)
        self.certificate = layout.read_certificate(path)
        self.name = names.client_id_of(self.certificate)
        if self.name != self.settings.name:
            raise CertificateError(
                f"{path / layout.SETTINGS} is of {self.settings.name!r}, but the certificate "
                f"{path / layout.CERTIFICATE} is of {self.name!r}: put the right one in place"
            )
        self.signer = self._signer(self.certificate, secret, token)
        on_token = self.settings.custody == layout.PKCS11
        self.keys = OwnKeys(path / layout.SEALING, secret, token=token, on_token=on_token)
        self.trust = TrustFile(path / layout.TRUST)
        self.onex = OnexReader.load(path, self.settings.one_x, self.keyring)
        """Opens messages of CipherMQ 1.x; None: it takes none."""
        self._secret = secret
        self._token = token

    @classmethod
    def load(
        cls, path: Path | str, passphrase: str | None = None, *, pin: Pin | None = None
    ) -> Identity:
        """The identity in directory `path`.

        `pin` is that of its hardware token, where it has one; by default it comes from where
        ``identity.toml`` says. The token is called only where it must open the key files.

        Raises `IdentityNotFound`, `PassphraseError` when `passphrase` is wrong or missing,
        `ConfigError` for its settings, `TokenAway`, else another `IdentityError`.
        """
        path = Path(path)
        settings = IdentitySettings.read(path)
        token = None
        if settings.token is not None:
            from ciphermq.client import tokens

            token = tokens.open_token(path, settings.token, pin)
        return cls(path, read_secret(path, passphrase, token), token)

    def _signer(
        self, certificate: x509.Certificate, secret: bytes | None, token: Token | None
    ) -> Signer:
        chain = (certificate.public_bytes(Encoding.DER),)
        held = self.settings.token
        if token is None or held is None or held.signing_id is None:
            return FileSigner(keyfile.read_key(self.path / layout.KEY, secret), chain)
        from ciphermq.custody.pkcs11.signer import TokenSigner

        return TokenSigner(token, held.signing_id, chain)

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
        return self._new_verifier(self.ca_ders)

    def _new_verifier(self, authorities: tuple[bytes, ...]) -> ChainVerifier:
        verifier = ChainVerifier(authorities)
        for der in self.crl_ders:
            self.trust.note_crl(verifier.use_crl(der))
        return verifier

    def _whom_it_believes(self) -> tuple[tuple[bytes, ...], set[bytes]]:
        """Authorities and revocation lists on the disk."""
        return layout.read_authorities(self.path), set(self.crl_ders)

    def refresh(self) -> bool:
        """Take over what was renewed on the disk since it was read: the certificate and its key,
        authorities, revocation lists. Whether there was anything.

        Raises as `load` and `verifier` do; what can't be taken over leaves the former in place.
        """
        certificate = layout.read_certificate(self.path)
        renewed = certificate != self.certificate
        if renewed:
            if names.client_id_of(certificate) != self.name:
                raise CertificateError(
                    f"the certificate {self.path / layout.CERTIFICATE} is not of {self.name!r}"
                )
            self.signer = self._signer(certificate, self._secret, self._token)
            self.certificate = certificate
        lists = {crl.der for crl in self.verifier.revocation_lists}
        if self._whom_it_believes() != (self.ca_ders, lists):
            # Whoever installs a list has it on the disk and in use only at the end.
            with disk.locked(self.path / layout.LOCK):
                authorities, _ = self._whom_it_believes()
                self.verifier = self._new_verifier(authorities)
                self.ca_ders = authorities
            renewed = True
        return renewed

    def check(self, now_ms: int) -> None:
        """`CertificateError`, with what to do, when the own certificate does not count now;
        `ClockWrong` when the time can't be right.

        A stale revocation list is no reason: it is the receiver's to say what follows from it.
        """
        try:
            self.verifier.check_signer(self.signer.chain, now_ms, now_ms)
        except SenderRevoked as error:
            raise CertificateError(f"{error}: {layout.ANOTHER_KEY.format(self.name)}") from error
        except UntrustedSender as error:
            raise CertificateError(f"{error}: {self._renewal}") from error
        except RevocationListStale:
            pass
        # TLS forgives a certificate nothing, so neither does this.
        end_ms = dates.to_ms(self._tls_certificate.not_valid_after_utc)
        if now_ms > end_ms:
            raise CertificateError(
                f"{self._title} expired on {dates.spell(end_ms)}: {self._renewal}"
            )

    def check_token(self) -> None:
        """Log in to the hardware token, if there is one, and look for its present keys there: what
        is wrong is better told at the start than by the first message.

        Raises a kind of `TokenError`, or `TokenAway`. It waits for a device: not for an event loop.
        """
        if self._token is None:
            return
        from ciphermq.custody.pkcs11.opener import TokenOpener

        if isinstance(self.current_key, TokenOpener):
            self._token.check_private(self.current_key.object_id)
        if (held := self.settings.token) is not None and held.signing_id is not None:
            self._token.check_private(held.signing_id)

    def warnings(self, now_ms: int) -> list[str]:
        """Sentences about what ends soon, or has ended."""
        return layout.warnings(self.path, now_ms)

    def ssl_context(
        self, *, protocols: Iterable[str] = (tls.ALPN,), tls_1_2: bool = False
    ) -> ssl.SSLContext:
        """For connecting to the broker: own certificate, the broker's checked, TLS 1.3 unless
        `tls_1_2` lets it come with that.

        `protocols`: those to offer; none, to talk to it as clients of CipherMQ 1.x do."""
        certificate, key = layout.CERTIFICATE, layout.KEY
        if self.settings.signs_on_token:
            certificate, key = layout.TLS_CERTIFICATE, layout.TLS_KEY
        return tls.client_context(
            certificate=self.path / certificate,
            key=self.path / key,
            authority=self.path / layout.AUTHORITY,
            revocations=self.path / layout.REVOCATION_LIST,
            passphrase=self._secret.decode() if self._secret else None,
            protocols=protocols,
            tls_1_2=tls_1_2,
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
        own = self._key_sha256
        if client == self.name and known and known.pin != own.hex():
            # Its certificate has a new key, and nobody need tell it which. If it would not believe
            # its own record, it could not tell a key that a sender invented from one that it lost.
            self.trust.trust(client, own, now_ms)
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

    @property
    def _key_sha256(self) -> bytes:
        public_key = self.certificate.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)  # noqa: S101 - a signer has it
        return key_sha256(public_key)

    @property
    def _tls_certificate(self) -> x509.Certificate:
        if not self.settings.signs_on_token:
            return self.certificate
        return layout.read_certificate(self.path, layout.TLS_CERTIFICATE)

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
