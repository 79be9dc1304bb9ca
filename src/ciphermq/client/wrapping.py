"""An identity's private files under a key that a hardware token holds, in place of a passphrase.

The files are encrypted with a random password in either case; what changes is who opens that. The
password's new wrapping is on disk before the old one goes, and files that are still in the clear
are read as such, so that stopping in the middle loses nothing: the same command again ends it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ciphermq import limits
from ciphermq.client import layout
from ciphermq.client.layout import IdentitySettings, TokenSettings
from ciphermq.client.ownkeys import KEY_SUFFIX
from ciphermq.client.tokens import SECRET_PURPOSE, open_secret
from ciphermq.custody import disk, passphrase
from ciphermq.custody.files import decode_key, encode_key, is_elsewhere, is_wrapped
from ciphermq.custody.passphrase import STRONG, Cost
from ciphermq.custody.pkcs11 import wrapping
from ciphermq.custody.pkcs11.pin import PROMPT
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import UsageError
from ciphermq.pki import keyfile


def wrap_identity(
    path: Path,
    token: Token,
    key_id: bytes,
    *,
    phrase: str | None,
    pin_source: str = PROMPT,
    pkcs1: bool = False,
) -> None:
    """From now on the token opens the private files of the identity in `path`, with its key of
    that id. `phrase` opens them now, where they are encrypted.

    Raises `UsageError` when the identity has another token already, or another key there opens it.
    """
    with disk.locked(path / layout.LOCK):
        settings = IdentitySettings.read(path)
        held = settings.token
        if held is not None and held.address() != token.address:
            raise UsageError(f"the identity {settings.name!r} uses {held.address()} already")
        secret: bytes | None
        if (path / layout.HSM_WRAPPED).exists():
            # Stopped in the middle, the same command ends it; another key was meant otherwise.
            known = wrapping.read(path / layout.HSM_WRAPPED)
            if known.id != key_id:
                raise UsageError(
                    f"the identity {settings.name!r} is opened by the key {known.id.hex()} "
                    "already: unwrap it first"
                )
            secret = open_secret(path, token)
        else:
            secret = keyfile.read_password(path / layout.WRAPPED, phrase, layout.PURPOSE)
            secret = secret if secret is not None else keyfile.new_password()
            text = wrapping.wrap(secret, token, key_id, purpose=SECRET_PURPOSE, pkcs1=pkcs1)
            disk.write_file(path / layout.HSM_WRAPPED, text)
        if held is None:
            address = token.address
            section = TokenSettings(address.module, address.label, address.serial, pin_source)
            msgspec.structs.replace(settings, token=section).write(path)
        _rewrite(path, secret, secret)
        (path / layout.WRAPPED).unlink(missing_ok=True)


def unwrap_identity(path: Path, token: Token, *, phrase: str | None, cost: Cost = STRONG) -> None:
    """The reverse: from now on `phrase` opens them; None: they are in the clear.

    The identity forgets its token when nothing else of it is there: it starts without a PIN."""
    with disk.locked(path / layout.LOCK):
        if not (path / layout.HSM_WRAPPED).exists():
            raise UsageError(f"{path} is not opened by a token")
        secret = open_secret(path, token)
        # Also with a phrase: wrapping that was stopped in the middle left some in the clear.
        _rewrite(path, secret, secret if phrase is not None else None)
        if phrase is not None:
            (path / layout.WRAPPED).unlink(missing_ok=True)
            keyfile.write_password(path / layout.WRAPPED, secret, phrase, layout.PURPOSE, cost)
        (path / layout.HSM_WRAPPED).unlink()
        settings = IdentitySettings.read(path)
        if not _uses_token(path, settings):
            msgspec.structs.replace(settings, token=None).write(path)


def _uses_token(path: Path, settings: IdentitySettings) -> bool:
    """Whether a key of the identity is on its token: the certificate's, or one to receive with."""
    return (
        settings.custody == layout.PKCS11
        or settings.signs_on_token
        or any(
            is_elsewhere(disk.read_private(file, limit=limits.MAX_KEY_FILE))
            for file in (path / layout.SEALING).glob(f"*{KEY_SUFFIX}")
        )
    )


def _rewrite(path: Path, before: bytes | None, after: bytes | None) -> None:
    """The private files, which `before` opens where they are encrypted, under `after`."""
    for name in (layout.KEY, layout.TLS_KEY):
        if (path / name).exists():
            key = keyfile.read_key(path / name, before)
            keyfile.write_key(path / name, key, after, replace=True)
    for file in sorted((path / layout.SEALING).glob(f"*{KEY_SUFFIX}")):
        data = disk.read_private(file, limit=limits.MAX_KEY_FILE)
        if not is_elsewhere(data):
            opener = decode_key(data, str(file), before)
            text = encode_key(opener.suite, opener.private_bytes(), after, passphrase.CHEAP)
            disk.write_file(file, text, replace=True)


def wrap_file(path: Path, to: Path, token: Token, key_id: bytes, *, pkcs1: bool = False) -> None:
    """Put the file `path` under a key of the token, in `to`, which may be the same."""
    data = disk.read_private(path, limit=limits.MAX_KEY_FILE)
    if is_wrapped(data):
        raise UsageError(f"{path} is wrapped already")
    text = wrapping.wrap(data, token, key_id, purpose=wrapping.FILE, pkcs1=pkcs1)
    disk.write_file(to, text, replace=to == path)


def unwrap_file(path: Path, to: Path, token: Token) -> None:
    """The reverse."""
    data = wrapping.read(path).open(token, wrapping.FILE, str(path))
    disk.write_file(to, data, replace=to == path)
