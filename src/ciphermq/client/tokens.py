"""An identity's hardware token: opened as its settings say, and what of a new one goes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq.client import layout
from ciphermq.client.layout import IdentitySettings, TokenSettings
from ciphermq.custody.pkcs11 import pin as pins
from ciphermq.custody.pkcs11 import wrapping
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.signer import TokenSigningKey
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import IdentityError, TokenAway, TokenError
from ciphermq.model.suites import Suite

SECRET_PURPOSE: Final = "CipherMQ identity key"  # noqa: S105 - what it is for
"""Of the password that a token opens instead of a passphrase."""


def open_token(path: Path, settings: TokenSettings, pin: Pin | None = None) -> Token:
    """The token of the identity in directory `path`; it is not called yet.

    `pin`: by default from where the settings say. Raises `PinError` when it is not there."""
    return Token(settings.address(), pin or pins.read(settings.pin, path))


def open_secret(path: Path, token: Token | None) -> bytes:
    """What opens the key files of the identity in `path`, unwrapped by `token`: once, at the
    start. Raises `TokenAway`, a kind of `TokenError`, or `IdentityError`."""
    file = path / layout.HSM_WRAPPED
    if token is None:
        raise IdentityError(
            f"{file} is to be opened by a hardware token, and identity.toml names none: put its "
            "section [token] back"
        )
    return wrapping.read(file).open(token, SECRET_PURPOSE, str(file))


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """What of a new identity is to be on a token."""

    token: Token
    pin_source: str = pins.PROMPT
    sealing: bool = True
    """Whether the key that messages are sealed to is there,"""
    sealing_id: bytes | None = None
    """and its id, if it is there already; None: it is made."""
    signing: bool = False
    """Whether the certificate's key is there,"""
    signing_id: bytes | None = None
    """and its id, as above."""
    _made: list[bytes] = field(default_factory=list, repr=False)

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Delete the keys that were made in the block when it raises: nobody would know them."""
        self._made.clear()
        try:
            yield
        except BaseException:
            for key_id in self._made:
                with suppress(TokenError, TokenAway):
                    self.token.destroy(key_id)
            raise

    def find_sealing_key(self) -> TokenOpener:
        """The receiver's key, made if it must be; checked by opening something."""
        if self.sealing_id is not None:
            return TokenOpener.find(self.token, self.sealing_id)
        opener = TokenOpener.make(self.token)
        self._made.append(opener.object_id)
        return opener

    def find_signing_key(self) -> TokenSigningKey:
        """The certificate's key, made if it must be; checked by signing something."""
        if self.signing_id is not None:
            return TokenSigningKey.find(self.token, self.signing_id)
        made = self.token.make_p256("CipherMQ certificate", may=("sign",))
        self._made.append(made)
        return TokenSigningKey.find(self.token, made)

    def applied_to(
        self, settings: IdentitySettings, key: ec.EllipticCurvePrivateKey
    ) -> IdentitySettings:
        """`settings` of an identity that is made by this plan, whose certificate has `key`."""
        address = self.token.address
        section = TokenSettings(
            module=address.module,
            label=address.label,
            serial=address.serial,
            pin=self.pin_source,
            signing_key=key.object_id.hex() if isinstance(key, TokenSigningKey) else "",
        )
        if not self.sealing:
            return msgspec.structs.replace(settings, token=section)
        return msgspec.structs.replace(
            settings, token=section, custody=layout.PKCS11, suite=Suite.P256.name
        )
