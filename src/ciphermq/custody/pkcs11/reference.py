"""The file that stands where a receiver's private key would, and says where on the token it is::

    CIPHERMQ TOKEN KEY    u8 suite | 16 bytes key id | public key | id on the token

It holds no secret. The public key is in it so that a receiver can start, and say who it is, while
its token is away; the token itself is named once, in ``identity.toml``.
"""

from __future__ import annotations

from typing import Final

from ciphermq import limits
from ciphermq.custody import files
from ciphermq.custody.armour import armour, strip_armour
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import IdentityError
from ciphermq.model.envelope import KEY_ID_SIZE
from ciphermq.model.suites import Suite

_HEAD: Final = 1 + KEY_ID_SIZE
_ID_AT: Final = _HEAD + Suite.P256.public_key_size


def encode(opener: TokenOpener) -> bytes:
    """The file's content."""
    head = bytes([opener.suite]) + opener.key_id
    return armour(files.REFERENCE, head + opener.public_key + opener.object_id)


def decode(data: bytes, what: str, token: Token | None) -> TokenOpener:
    """The key that `data` refers to, on `token`, which is not called.

    Raises `IdentityError`, naming the file as `what`."""
    try:
        content = strip_armour(files.REFERENCE, data)
    except ValueError as error:
        raise IdentityError(f"{what} is damaged: {error}") from error
    public_key, object_id = content[_HEAD:_ID_AT], content[_ID_AT:]
    if content[:1] != bytes([Suite.P256]) or not 0 < len(object_id) <= limits.MAX_TOKEN_KEY_ID:
        raise IdentityError(f"{what} is damaged: it names no key of a token")
    if token is None:
        raise IdentityError(
            f"the key of {what} is on a hardware token, and identity.toml names none: put its "
            "section [token] back"
        )
    opener = TokenOpener(token, object_id, public_key)
    if opener.key_id != content[1:_HEAD]:
        raise IdentityError(f"{what} is damaged: it does not hold the key that it names")
    return opener
