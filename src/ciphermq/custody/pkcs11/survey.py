"""What is there: modules, slots, tokens, keys; and one round trip with a key, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pkcs11 import TokenFlag
from pkcs11.exceptions import PKCS11Error

from ciphermq.custody import keys
from ciphermq.custody.pkcs11 import desk, library
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.desk import KeyInfo
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.owner import Owner, owner_of
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import TokenAway, TokenError, WrapRefused
from ciphermq.model.suites import SESSION_KEY_SIZE, Suite

_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303


class TokenInfo(msgspec.Struct, frozen=True):
    """A slot, and the token in it."""

    slot: str
    label: str
    serial: str
    model: str
    initialised: bool
    pin_locked: bool
    pin_last_try: bool
    """Whether the next wrong PIN locks it."""
    mechanisms: list[str]
    """Those that we have a use for."""


class ModuleInfo(msgspec.Struct, frozen=True):
    """A PKCS#11 module on this machine, and what is plugged in."""

    path: str
    description: str
    tokens: list[TokenInfo]
    fault: str = ""
    """Why nothing is known of it; empty: it answered."""


def look(path: str) -> ModuleInfo:
    """The module at `path` with its tokens; asks no PIN. Raises `TokenAway`, or a kind of
    `TokenError`."""
    try:
        return owner_of(path).do(_look)
    except library.Stale as stale:
        raise TokenAway(f"{stale}: see whether the device is plugged in") from stale


def look_at_all(paths: Iterable[str]) -> list[ModuleInfo]:
    """Each of the modules `paths`; what is wrong with one hides no other. Raises what `look` does
    when there is only that one."""
    known = list(paths)
    if len(known) == 1:
        return [look(known[0])]
    found = []
    for path in known:
        try:
            found.append(look(path))
        except (TokenAway, TokenError) as error:
            found.append(ModuleInfo(path, "", [], fault=str(error)))
    return found


def uses(key: KeyInfo) -> list[str]:
    """What a key on a token may be here."""
    found = []
    if key.kind == "EC P-256" and "derive" in key.may:
        found += ["receiver", "wrapping"]
    if key.kind in {"EC P-256", "EC P-384", "EC P-521"} and "sign" in key.may:
        found.append("certificate")
    if key.kind.startswith("RSA") and "decrypt" in key.may:
        found.append("wrapping")
    return found


def round_trip(address: Address, pin: Pin, key_id: bytes, *, pkcs1: bool = False) -> Iterator[str]:
    """Encrypt on the host with the public half of a key, decrypt on the token; a sentence a step.

    `pkcs1`: with PKCS#1 v1.5 in place of OAEP, for an RSA key. Raises `TokenAway` or a kind of
    `TokenError`."""
    about = look(address.module)
    yield f"loaded and initialised {about.path} ({about.description})"
    token = Token(address, pin)
    found = token.private_keys()
    yield f"opened a serial session on {address} and logged in as its user"
    token.check_private(key_id)
    public = token.public_key(key_id)
    kind = next(key.kind for key in found if key.id == key_id.hex())
    yield f"found one private and one public key of id {key_id.hex()}: {kind}"
    if isinstance(public, rsa.RSAPublicKey):
        yield from _round_trip_rsa(token, key_id, public, pkcs1=pkcs1)
    else:
        yield from _round_trip_p256(token, key_id)
    yield "compared: equal"


def _round_trip_rsa(
    token: Token, key_id: bytes, public: rsa.RSAPublicKey, *, pkcs1: bool
) -> Iterator[str]:
    exponent = public.public_numbers().e
    yield f"read the modulus ({public.key_size} bits) and the public exponent ({exponent})"
    yield "built the public key on the host"
    secret = os.urandom(SESSION_KEY_SIZE)
    how = "PKCS#1 v1.5" if pkcs1 else "OAEP"
    sealed = public.encrypt(secret, padding.PKCS1v15() if pkcs1 else _OAEP)
    yield f"encrypted {len(secret)} random bytes on the host ({how}); the device can't"
    try:
        _compare(token.decrypt(key_id, sealed, oaep=not pkcs1), secret, token)
    except WrapRefused as error:
        raise TokenError(f"{error}: its key {key_id.hex()} is faulty, or can't do {how}") from error
    yield "decrypted them on the device"


def _round_trip_p256(token: Token, key_id: bytes) -> Iterator[str]:
    opener = TokenOpener.find(token, key_id)
    yield "read the public point, and built the public key on the host"
    secret = os.urandom(SESSION_KEY_SIZE)
    sealed = keys.wrap(Suite.P256, opener.public_key, secret, b"round trip")
    yield f"sealed {len(secret)} random bytes on the host (HPKE, as batches are)"
    _compare(opener.unwrap(sealed, b"round trip"), secret, token)
    yield "made the ECDH on the device, and opened them with what it gave"


def _compare(got: bytes, expected: bytes, token: Token) -> None:
    if got != expected:
        raise TokenError(f"{token} gave back something else than was encrypted to its key")


def _look(owner: Owner) -> ModuleInfo:
    module = owner.module()
    with library.explained(f"the module {owner.path}"):
        found = []
        for slot in module.get_slots(token_present=True):
            try:
                token = slot.get_token()
            except PKCS11Error:
                continue  # pulled out since, or not for us to read
            flags = token.flags
            found.append(
                TokenInfo(
                    slot=f"{slot.slot_id:#x}",
                    label=token.label,
                    serial=desk.serial_of(token),
                    model=token.model,
                    initialised=TokenFlag.TOKEN_INITIALIZED in flags,
                    pin_locked=TokenFlag.USER_PIN_LOCKED in flags,
                    pin_last_try=TokenFlag.USER_PIN_FINAL_TRY in flags,
                    mechanisms=sorted(desk.mechanisms_of(token)),
                )
            )
        version = ".".join(map(str, module.library_version))
    description = f"{module.manufacturer_id}, {module.library_description} {version}"
    return ModuleInfo(owner.path, description, found)
