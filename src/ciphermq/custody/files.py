"""Private keys that are held in this process's memory, and a receiver's key as a file.

The file is one PEM block (RFC 7468) with one of two labels::

    CIPHERMQ PRIVATE KEY              u8 suite | 16 bytes key id | private key
    CIPHERMQ ENCRYPTED PRIVATE KEY    u8 suite | 16 bytes key id | box of the private key

The box is that of `ciphermq.custody.passphrase`; what stands before it is its label, so it opens
only as the key it says it is. The key id is checked when the key is loaded: a damaged file is told
at once, not by the batches that it fails to open.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq import limits
from ciphermq.custody import disk, keys, passphrase, signatures
from ciphermq.custody.armour import armour, label_of, strip_armour
from ciphermq.errors import CertificateError, IdentityError, PassphraseError
from ciphermq.model.envelope import KEY_ID_SIZE
from ciphermq.model.suites import Suite

REFERENCE: Final = "CIPHERMQ TOKEN KEY"
"""Label of what stands where such a file would, when the key is on a hardware token."""

HSM_WRAPPED: Final = "CIPHERMQ TOKEN WRAPPED SECRET"
"""Label of a secret under a key that a token holds (`ciphermq.custody.pkcs11.wrapping`)."""

_PLAIN: Final = "CIPHERMQ PRIVATE KEY"
_ENCRYPTED: Final = "CIPHERMQ ENCRYPTED PRIVATE KEY"
_BOX_LABEL: Final = b"CipherMQ/2 private key\0"
_HEAD: Final = 1 + KEY_ID_SIZE


class FileOpener:
    """A receiver's private key that was read from a file into memory."""

    blocking: Final = False

    def __init__(self, suite: Suite, private_key: bytes) -> None:
        """`IdentityError` when `private_key` is none of `suite`."""
        self._key = keys.load_private(suite, private_key)
        self._bytes = private_key
        self.suite = suite
        self.public_key = keys.public_bytes(suite, private_key)
        self.key_id = keys.key_id(suite, self.public_key)

    def __repr__(self) -> str:
        return f"<{self.suite.name} private key {self.key_id.hex()}>"

    def private_bytes(self) -> bytes:
        """The key itself, to be encrypted otherwise."""
        return self._bytes

    def unwrap(self, wrap: bytes, info: bytes) -> bytes:
        """See `ciphermq.custody.face.Opener`."""
        return keys.unwrap(self.suite, self._key, wrap, info)

    @classmethod
    def load(cls, path: Path, secret: bytes | None = None) -> FileOpener:
        """The key in file `path`, which `secret` opens if it is encrypted.

        Raises `PassphraseError` when the passphrase is missing or wrong, else `IdentityError`."""
        data = disk.read_private(path, limit=limits.MAX_KEY_FILE)
        return decode_key(data, str(path), secret)


class FileSigner:
    """A certificate's private key that was read from a file into memory."""

    blocking: Final = False

    def __init__(self, private_key: ec.EllipticCurvePrivateKey, chain: tuple[bytes, ...]) -> None:
        """`CertificateError` when the key is not that of the chain's first certificate, or is on
        a curve that can't sign here."""
        if not chain:
            raise CertificateError("a signer needs its certificate")
        if private_key.curve.name not in signatures.CURVES:
            raise CertificateError(
                f"the certificate's key is on {private_key.curve.name}; it must be on P-256, "
                "P-384 or P-521"
            )
        try:
            public_key = x509.load_der_x509_certificate(chain[0]).public_key()
        except ValueError as error:
            raise CertificateError(f"the signer's certificate can't be read: {error}") from error
        if public_key != private_key.public_key():
            raise CertificateError("the private key is not that of the certificate beside it")
        self._key = private_key
        self.chain = chain
        self.certificate_sha256 = hashlib.sha256(chain[0]).digest()

    def sign(self, data: bytes) -> bytes:
        """See `ciphermq.custody.face.Signer`."""
        return signatures.sign(self._key, data)


def encode_key(
    suite: Suite,
    private_key: bytes,
    secret: bytes | None = None,
    cost: passphrase.Cost = passphrase.STRONG,
) -> bytes:
    """A receiver's private key as a file's content, encrypted when there is a `secret`."""
    head = bytes([suite]) + keys.key_id(suite, keys.public_bytes(suite, private_key))
    if secret is None:
        return armour(_PLAIN, head + private_key)
    box = passphrase.seal(secret, private_key, _BOX_LABEL + head, cost)
    return armour(_ENCRYPTED, head + box)


def decode_key(data: bytes, what: str, secret: bytes | None = None) -> FileOpener:
    """The reverse of `encode_key`; `what` names the file in errors, which are `IdentityError`s.

    A `secret` that is not needed is not looked at."""
    encrypted = is_encrypted(data, what)
    try:
        content = strip_armour(_ENCRYPTED if encrypted else _PLAIN, data)
    except ValueError as error:
        raise IdentityError(f"{what} is damaged: {error}") from error
    try:
        suite = Suite(content[0])
    except (ValueError, IndexError):
        raise IdentityError(f"{what} holds a key of a suite that this program lacks") from None
    head, private_key = content[:_HEAD], content[_HEAD:]
    if encrypted:
        if secret is None:
            raise PassphraseError(f"{what} is encrypted: give its passphrase")
        private_key = passphrase.open_box(secret, private_key, _BOX_LABEL + head, what)
    try:
        opener = FileOpener(suite, private_key)
    except IdentityError as error:
        raise IdentityError(f"{what} is damaged: {error}") from error
    if opener.key_id != head[1:]:
        raise IdentityError(f"{what} is damaged: it does not hold the key that it names")
    return opener


def is_elsewhere(data: bytes) -> bool:
    """Whether a key file's content only says where on a token the key is
    (`ciphermq.custody.pkcs11.reference`)."""
    return label_of(data) == REFERENCE


def is_wrapped(data: bytes) -> bool:
    """Whether a file's content is to be opened by a token."""
    return label_of(data) == HSM_WRAPPED


def is_encrypted(data: bytes, what: str) -> bool:
    """Whether a key file's content needs a passphrase; `IdentityError` when it is none."""
    label = label_of(data)
    if label not in (_PLAIN, _ENCRYPTED):
        raise IdentityError(f"{what} is not a CipherMQ private key file")
    return label == _ENCRYPTED
