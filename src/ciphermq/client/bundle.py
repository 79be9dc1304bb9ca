"""An identity, or only its certificate, as one file that travels between machines.

The file is armoured text; what is inside is a msgpack map ``{format, kind, name, files}``::

    CIPHERMQ IDENTITY              kind "identity": certificate, keys, authority, list, settings
    CIPHERMQ ENCRYPTED IDENTITY    the same, in a box that a passphrase opens
    CIPHERMQ CERTIFICATE           kind "certificate": an authority's answer; holds no secret

Whoever imports such a file does not know yet what is in it. So its size is checked before it is
read, its names against a list before any becomes a path, and each part by its own bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from ciphermq import limits
from ciphermq.client import layout, ownkeys
from ciphermq.custody import passphrase
from ciphermq.custody.armour import armour, label_of, strip_armour
from ciphermq.custody.onex import PRIVATE_FILE, PUBLIC_FILE
from ciphermq.errors import IdentityError, PassphraseError
from ciphermq.model import ids

_FORMAT: Final = 1
_PLAIN: Final = "CIPHERMQ IDENTITY"
_ENCRYPTED: Final = "CIPHERMQ ENCRYPTED IDENTITY"
_CERTIFICATE: Final = "CIPHERMQ CERTIFICATE"
_BOX_LABEL: Final = b"CipherMQ/2 exported identity\0"

PUBLIC_PARTS: Final = {
    layout.SETTINGS: limits.MAX_KEY_FILE,
    layout.CERTIFICATE: limits.MAX_KEY_FILE,
    layout.AUTHORITY: limits.MAX_KEY_FILE,
    layout.REVOCATION_LIST: 2 * limits.MAX_CRL,
    layout.TLS_CERTIFICATE: limits.MAX_KEY_FILE,
}
"""Parts that others may see, each with its greatest size."""

_SECRET_PARTS: Final = {
    layout.KEY: limits.MAX_KEY_FILE,
    layout.WRAPPED: limits.MAX_KEY_FILE,
    layout.HSM_WRAPPED: limits.MAX_KEY_FILE,
    layout.TLS_KEY: limits.MAX_KEY_FILE,
    layout.TRUST: limits.MAX_TRUST_FILE,
    f"{layout.SEALING}/{ownkeys.STATE}": limits.MAX_KEY_FILE,
    f"{layout.SEALING}/{ownkeys.RECORD}": limits.MAX_KEY_FILE,
    f"{layout.ONEX}/{PRIVATE_FILE}": limits.MAX_KEY_FILE,
    f"{layout.ONEX}/{PUBLIC_FILE}": limits.MAX_KEY_FILE,
}
_SEALING_KEY: Final = re.compile(rf"{layout.SEALING}/[0-9a-f]{{32}}\{ownkeys.KEY_SUFFIX}")
_ALWAYS: Final = PUBLIC_PARTS.keys() - {layout.TLS_CERTIFICATE}
_NEEDED: Final = {
    "certificate": _ALWAYS,
    "identity": {*_ALWAYS, f"{layout.SEALING}/{ownkeys.STATE}"},
}


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in such a file. Its parts' names and sizes are checked, their content is not."""

    kind: Literal["identity", "certificate"]
    name: str
    files: Annotated[dict[str, bytes], msgspec.Meta(max_length=limits.MAX_IDENTITY_PARTS)]
    format: int = _FORMAT


def part_limit(name: str) -> int | None:
    """Greatest size of the part called `name`; None when an identity has no such part."""
    if _SEALING_KEY.fullmatch(name):
        return limits.MAX_KEY_FILE
    return PUBLIC_PARTS.get(name) or _SECRET_PARTS.get(name)


def collect(directory: Path) -> dict[str, bytes]:
    """The parts of the identity in `directory`; lock files and strangers stay behind."""
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if part_limit(name) is not None and path.is_file():
            files[name] = path.read_bytes()
    return files


def pack(
    kind: Literal["identity", "certificate"],
    name: str,
    files: Mapping[str, bytes],
    phrase: str | None = None,
    cost: passphrase.Cost = passphrase.STRONG,
) -> bytes:
    """The file's text; under the passphrase `phrase` where one is given."""
    content = msgspec.msgpack.encode(_checked(Bundle(kind, name, dict(files))))
    if kind == "certificate":
        return armour(_CERTIFICATE, content)
    if phrase is None:
        return armour(_PLAIN, content)
    box = passphrase.seal(passphrase.to_bytes(phrase), content, _BOX_LABEL, cost)
    return armour(_ENCRYPTED, box)


def needs_passphrase(text: bytes) -> bool:
    """Whether `unpack` needs one."""
    return label_of(text) == _ENCRYPTED


def unpack(text: bytes, phrase: str | None = None) -> Bundle:
    """What `pack` was given. Raises `PassphraseError`, or `IdentityError` when it is no such file,
    is damaged, or holds what an identity does not."""
    if len(text) > limits.MAX_IDENTITY_FILE:
        raise IdentityError(
            f"the file has {len(text)} bytes, an identity at most {limits.MAX_IDENTITY_FILE}"
        )
    label = label_of(text)
    if label not in {_PLAIN, _ENCRYPTED, _CERTIFICATE}:
        raise IdentityError(
            "this is no identity: a file that `ciphermq identity export` or `ciphermq ca sign` "
            "made was expected"
        )
    try:
        content = strip_armour(label, text)
        if label == _ENCRYPTED:
            if phrase is None:
                raise PassphraseError("the file is encrypted: give the passphrase it was made with")
            key = passphrase.to_bytes(phrase)
            content = passphrase.open_box(key, content, _BOX_LABEL, "the exported identity")
        bundle = msgspec.msgpack.decode(content, type=Bundle)
    except (ValueError, msgspec.DecodeError) as error:
        raise IdentityError(f"the file is damaged ({error}): get it again") from error
    if (bundle.kind == "certificate") != (label == _CERTIFICATE):
        raise IdentityError(f"the file says it is a {label!r}, but holds a {bundle.kind}")
    return _checked(bundle)


def read(path: Path) -> bytes:
    """The text of such a file, as far as its size allows."""
    try:
        with path.open("rb") as file:
            return file.read(limits.MAX_IDENTITY_FILE + 1)
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error


def _checked(bundle: Bundle) -> Bundle:
    if bundle.format != _FORMAT:
        raise IdentityError(f"the file has format {bundle.format}: upgrade this program")
    if not ids.is_client_id(bundle.name):
        raise IdentityError(f"{bundle.name!r} is not a client id")
    for name, data in bundle.files.items():
        most = part_limit(name)
        # A name is a path below the new directory: none but the known ones may become one.
        if most is None or (bundle.kind == "certificate" and name not in PUBLIC_PARTS):
            raise IdentityError(f"the file holds {name!r}, which is no part of {_a(bundle)}")
        if len(data) > most:
            raise IdentityError(f"{name} in the file has {len(data)} bytes; {most} at most")
    missing = _NEEDED[bundle.kind] - bundle.files.keys()
    if bundle.kind == "identity" and layout.TLS_KEY not in bundle.files:
        missing |= {layout.KEY} - bundle.files.keys()
    if missing:
        raise IdentityError(f"the file lacks {', '.join(sorted(missing))}: have it made again")
    return bundle


def _a(bundle: Bundle) -> str:
    return "an identity" if bundle.kind == "identity" else "a certificate"
