"""Keys of CipherMQ 1.x: raw X25519, and session keys sealed to them.

Two versions seal a session key in two ways, and can't read each other. E and R are the ephemeral
and the receiver's public key, e is the ephemeral private key::

    ciphermq-1.4    E ‖ XSalsa20-Poly1305 under HSalsa20(X25519(e, R), 0),
                    nonce = BLAKE2b-192(E ‖ R)                  libsodium's crypto_box_seal
    ciphermq-1.5    E ‖ XSalsa20-Poly1305 under X25519(e, R) itself,
                    nonce = the first 24 bytes of BLAKE2b-512(E ‖ R)

1.5 leaves out the HSalsa20 that turns a shared point into a key; the one inside XSalsa20, which
takes in the nonce, is in both. The box is as in NaCl: the 16 bytes of Poly1305, then the
ciphertext. Neither says who sealed it.

On disk a key is the base64 of its 32 bytes: ``receiver_private.key``, ``receiver_public.key``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import stat
from pathlib import Path
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import IdentityError, KeyRecordMalformed, WrapRefused
from ciphermq.model.onex import SessionSeal
from ciphermq.model.suites import SESSION_KEY_SIZE
from ciphermq.telemetry import get_logger

KEY_SIZE: Final = 32
SEALED_SIZE: Final = KEY_SIZE + 16 + SESSION_KEY_SIZE
PRIVATE_FILE: Final = "receiver_private.key"
PUBLIC_FILE: Final = "receiver_public.key"

_NONCE_SIZE: Final = 24
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

_log = get_logger("custody")


class OnexKey:
    """A receiver's private key, in this process's memory."""

    def __init__(self, private_key: bytes) -> None:
        """`IdentityError` when these are not 32 bytes."""
        if len(private_key) != KEY_SIZE:
            raise IdentityError(
                f"a private key of CipherMQ 1.x has {KEY_SIZE} bytes, not {len(private_key)}"
            )
        self._private = private_key
        self.public_key: bytes = bindings.crypto_scalarmult_base(private_key)

    def __repr__(self) -> str:
        return f"<1.x private key of {fingerprint(self.public_key)}>"

    @classmethod
    def load(cls, path: Path) -> OnexKey:
        """The key in file `path`; `IdentityError` when there is none.

        1.x wrote it as open as the umask was, so that is warned about and not refused."""
        key = cls(_read(path, "private key"))
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _OTHERS:
            _log.warning(
                f"the private key {path} is open to others (mode {mode:04o}); close it with: "
                f"chmod 600 {path}"
            )
        return key

    @classmethod
    def create(cls, directory: Path) -> OnexKey:
        """Make a pair of key files in `directory`, made when missing, as 1.x names them.

        `IdentityError` when there are such files already: what was sealed to them needs them."""
        key = cls(secrets.token_bytes(KEY_SIZE))
        disk.make_private_directory(directory)
        for name, data, mode in (
            (PRIVATE_FILE, key._private, disk.PRIVATE),
            (PUBLIC_FILE, key.public_key, disk.PUBLIC),
        ):
            try:
                disk.write_file(directory / name, base64.b64encode(data), mode=mode)
            except FileExistsError:
                raise IdentityError(
                    f"{directory / name} is there already; another key could not open what was "
                    "sealed to it"
                ) from None
            except OSError as error:
                raise IdentityError(
                    f"{directory / name} can't be written: {error.strerror}"
                ) from error
        return key

    def unseal(self, how: SessionSeal, sealed: bytes) -> bytes:
        """The session key that `seal` sealed `how`; `WrapRefused` when it does not open."""
        if len(sealed) != SEALED_SIZE:
            raise WrapRefused(
                f"a sealed session key of 1.x has {SEALED_SIZE} bytes, not {len(sealed)}"
            )
        try:
            return self._unseal(how, sealed)
        except CryptoError:
            raise WrapRefused(self._why_not(how, sealed)) from None

    def _unseal(self, how: SessionSeal, sealed: bytes) -> bytes:
        if how is SessionSeal.V1_4:
            return bindings.crypto_box_seal_open(sealed, self.public_key, self._private)
        ephemeral, box = sealed[:KEY_SIZE], sealed[KEY_SIZE:]
        shared = bindings.crypto_scalarmult(self._private, ephemeral)
        return bindings.crypto_secretbox_open(box, _nonce(ephemeral, self.public_key), shared)

    def _why_not(self, how: SessionSeal, sealed: bytes) -> str:
        """Whether the other version made it. Only said, never used: what a stranger sends must
        not choose how it is read."""
        other = SessionSeal.V1_5 if how is SessionSeal.V1_4 else SessionSeal.V1_4
        try:
            self._unseal(other, sealed)
        except CryptoError:
            return f"the session key does not open as {how}: it was not sealed to this key"
        return f"the session key was sealed as {other}, and {how} is configured for its sender"


def seal(how: SessionSeal, public_key: bytes, session_key: bytes) -> bytes:
    """The session key, sealed so that only the owner of `public_key` opens it.

    Raises `KeyRecordMalformed` when nothing can be sealed to that key."""
    try:
        if how is SessionSeal.V1_4:
            return bindings.crypto_box_seal(session_key, public_key)
        return seal_as_1_5(public_key, session_key, secrets.token_bytes(KEY_SIZE))
    except (CryptoError, ValueError) as error:
        # A public key of low order would make a shared secret that everybody knows.
        raise KeyRecordMalformed("nothing can be sealed to this X25519 key") from error


def seal_as_1_5(public_key: bytes, session_key: bytes, ephemeral_private: bytes) -> bytes:
    """What `seal` does for 1.5, with the ephemeral key given instead of drawn, for vectors.

    Nothing else may call it: one ephemeral key twice is one key and nonce twice."""
    ephemeral = bindings.crypto_scalarmult_base(ephemeral_private)
    shared = bindings.crypto_scalarmult(ephemeral_private, public_key)
    return ephemeral + bindings.crypto_secretbox(session_key, _nonce(ephemeral, public_key), shared)


def _nonce(ephemeral: bytes, public_key: bytes) -> bytes:
    return hashlib.blake2b(ephemeral + public_key).digest()[:_NONCE_SIZE]


# --- public keys ------------------------------------------------------------------------------


def read_public_key(text: str) -> bytes:
    """A public key as 1.x clients register it, in base64; `KeyRecordMalformed` if it is none."""
    try:
        data = _decode(text.encode())
        bindings.crypto_scalarmult(bytes([1] * KEY_SIZE), data)
    except (ValueError, CryptoError) as error:
        raise KeyRecordMalformed(
            f"this is no public key of CipherMQ 1.x ({KEY_SIZE} bytes of X25519 in base64): {error}"
        ) from error
    return data


def load_public_key(path: Path) -> bytes:
    """The public key in file `path`; `IdentityError` when there is none."""
    return _read(path, "public key")


def write_public_key(public_key: bytes) -> str:
    """The reverse of `read_public_key`."""
    return base64.b64encode(public_key).decode()


def fingerprint(public_key: bytes) -> str:
    """What two people compare: ``base64 -d receiver_public.key | sha256sum`` shows it too."""
    return hashlib.sha256(public_key).hexdigest()


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_KEY_FILE)
    except FileNotFoundError:
        raise IdentityError(f"the {what} {path} is missing") from None
    except OSError as error:
        raise IdentityError(f"the {what} {path} can't be read: {error.strerror}") from error
    try:
        return _decode(data.strip())
    except ValueError as error:
        raise IdentityError(
            f"{path} is no {what} of CipherMQ 1.x ({KEY_SIZE} bytes in base64): {error}"
        ) from None


def _decode(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(data) != KEY_SIZE:
        raise ValueError(f"it has {len(data)} bytes")
    return data
