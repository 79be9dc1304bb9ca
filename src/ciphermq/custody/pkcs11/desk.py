"""A session on one token, and the keys found through it. The owner's thread alone sits here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.exceptions import AttributeSensitive, AttributeTypeInvalid, PKCS11Error

from ciphermq.custody.pkcs11 import library
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.library import Stale, explained
from ciphermq.custody.pkcs11.owner import Owner
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.errors import TokenError, TokenKeyUnclear

_PARAMETERS: Final = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}
"""The curves that we have a use for, by the DER of their names, as CKA_EC_PARAMS has them."""
_MAY: Final = {
    "sign": Attribute.SIGN,
    "decrypt": Attribute.DECRYPT,
    "derive": Attribute.DERIVE,
}

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class KeyInfo(msgspec.Struct, frozen=True):
    """A private key on a token, as far as the token tells."""

    id: str
    """Hexadecimal."""
    label: str
    kind: str
    """``EC P-256``, ``RSA 2048``."""
    may: tuple[str, ...]
    """Of ``sign``, ``decrypt``, ``derive``."""
    extractable: bool
    made_here: bool
    """Made on the token, which never gave it out; else it was brought."""


class Desk:
    """An open session, logged in as the user where there is a PIN."""

    def __init__(self, address: Address, token: Any, session: Any, owner: Owner) -> None:
        """Made by `open_desk`."""
        self.address = address
        self._token = token
        self._session = session
        self._owner = owner
        self._private: dict[bytes, Any] = {}

    @contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """A call to the token: counted, its errors explained."""
        self._owner.count(what)
        with explained(str(self.address)):
            yield

    # --- keys -----------------------------------------------------------------------------------

    def private(self, key_id: bytes) -> Any:
        """The one private key of that id; remembered for as long as the session lives."""
        if key_id not in self._private:
            self._private[key_id] = self._only(ObjectClass.PRIVATE_KEY, key_id)
        return self._private[key_id]

    def public(self, key_id: bytes) -> PublicKey:
        """The public half of the key of that id, which the token must hold too."""
        found = self._only(ObjectClass.PUBLIC_KEY, key_id)
        with self.calling("read"):
            return _public_key(found, self.address)

    def private_keys(self) -> list[KeyInfo]:
        """All private keys that the user may see."""
        with self.calling("find"):
            found = list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            return [_describe(key) for key in found]

    def ids(self) -> set[bytes]:
        """Every key id in use, of whatever kind of object."""
        with self.calling("find"):
            return {_get(each, Attribute.ID, b"") for each in self._session.get_objects()}

    def answers(self) -> bool:
        """Whether the session lives, and the token is there to be asked."""
        try:
            with self.calling("find"):
                list(self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
                # Some remember the objects of a token that is gone.
                return TokenFlag.TOKEN_INITIALIZED in self._token.slot.get_token().flags
        except (Stale, TokenError):
            return False

    def _only(self, kind: ObjectClass, key_id: bytes) -> Any:
        with self.calling("find"):
            query = {Attribute.CLASS: kind, Attribute.ID: key_id}
            found = list(self._session.get_objects(query))
            if len(found) == 1:
                return found[0]
            names = [f"{_kind(key)} {_get(key, Attribute.LABEL, '')!r}" for key in found]
        what = "private" if kind is ObjectClass.PRIVATE_KEY else "public"
        if found:
            raise TokenKeyUnclear(
                f"{self.address} holds {len(found)} {what} keys of id {key_id.hex()}: "
                f"{'; '.join(names)}. Which one is meant can't be told: give each an id of its own"
            )
        others = sorted({info.id for info in self.private_keys()})
        raise TokenKeyUnclear(
            f"{self.address} holds no {what} key of id {key_id.hex()}; its private keys have "
            f"{', '.join(others) or 'none at all'}"
        )

    # --- changes: in a session of their own, which may write -----------------------------------

    def make_p256(self, key_id: bytes, label: str, *, may: Sequence[str]) -> None:
        """A P-256 key pair that never leaves the token."""
        private = {
            Attribute.SIGN: "sign" in may,
            Attribute.DERIVE: "derive" in may,
            **_NEVER_LEAVES,
        }
        public = {Attribute.VERIFY: "sign" in may, Attribute.DERIVE: "derive" in may}

        def make(session: Any) -> None:
            curve = session.create_domain_parameters(
                KeyType.EC,
                {Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")},
                local=True,
            )
            curve.generate_keypair(
                id=key_id,
                label=label,
                store=True,
                capabilities=0,
                public_template=public,
                private_template=private,
            )

        self._write(make)

    def make_rsa(self, key_id: bytes, label: str, bits: int) -> None:
        """An RSA key pair for decryption, which never leaves the token."""

        def make(session: Any) -> None:
            session.generate_keypair(
                KeyType.RSA,
                bits,
                id=key_id,
                label=label,
                store=True,
                capabilities=0,
                public_template={Attribute.ENCRYPT: True},
                private_template={Attribute.DECRYPT: True, **_NEVER_LEAVES},
            )

        self._write(make)

    def import_p256(self, key_id: bytes, label: str, scalar: bytes, point: bytes) -> None:
        """Put a private key that was made elsewhere on the token, for ECDH."""
        parameters = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")
        common = {
            Attribute.KEY_TYPE: KeyType.EC,
            Attribute.TOKEN: True,
            Attribute.ID: key_id,
            Attribute.LABEL: label,
            Attribute.EC_PARAMS: parameters,
            Attribute.DERIVE: True,
        }

        def bring(session: Any) -> None:
            session.create_object(
                {
                    **common,
                    Attribute.CLASS: ObjectClass.PRIVATE_KEY,
                    Attribute.PRIVATE: True,
                    Attribute.VALUE: scalar,
                    **_NEVER_LEAVES,
                }
            )
            session.create_object(
                {
                    **common,
                    Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                    Attribute.EC_POINT: b"\x04" + bytes([len(point)]) + point,
                }
            )

        self._write(bring)

    def destroy(self, key_id: bytes) -> None:
        """Delete both halves of the key of that id; no error when they are gone already."""
        self._private.pop(key_id, None)

        def delete(session: Any) -> None:
            for each in list(session.get_objects({Attribute.ID: key_id})):
                each.destroy()

        self._write(delete)

    def change_pin(self, old: Pin, new: Pin) -> None:
        """Replace the user's PIN."""
        self._write(lambda session: session.set_pin(old.reveal(), new.reveal()))

    def _write(self, change: Callable[[Any], None]) -> None:
        with self.calling("write"):
            # No PIN: a module is logged in, or not, as a whole.
            session = self._token.open(rw=True)
            try:
                change(session)
            finally:
                session.close()

    def close(self) -> None:
        """End the session, if the token still knows of it."""
        with suppress(PKCS11Error):  # that is why it is closed
            self._session.close()


_NEVER_LEAVES: Final = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}


def open_desk(owner: Owner, address: Address, pin: Pin | None) -> Desk:
    """A session on the token at `address`. Raises `TokenAway`, `PinError`, `TokenError`."""
    token = find_token(owner, address)
    with explained(str(address)):
        try:
            owner.count("login")
            session = token.open(user_pin=pin.reveal() if pin is not None else None)
        except pkcs11.UserAlreadyLoggedIn:
            session = token.open()
    return Desk(address, token, session, owner)


def find_token(owner: Owner, address: Address) -> Any:
    """The one token that fits. `TokenAway` when none does, `TokenError` when several do."""
    try:
        found = [token for token in tokens(owner) if _fits(address, token)]
        if not found:
            owner.begin_anew()
            found = [token for token in tokens(owner) if _fits(address, token)]
    except Stale as stale:
        raise library.away(str(address)) from stale
    if not found:
        raise library.away(str(address))
    if len(found) > 1:
        serials = ", ".join(serial_of(token) for token in found)
        raise TokenError(
            f"several tokens are labelled {address.label!r}, with the serial numbers {serials}: "
            "say which by its serial number"
        )
    return found[0]


def _fits(address: Address, token: Any) -> bool:
    return (not address.label or token.label == address.label) and (
        not address.serial or serial_of(token) == address.serial
    )


def tokens(owner: Owner) -> list[Any]:
    """Every initialised token that is there now."""
    module = owner.module()
    with explained(f"the module {owner.path}"):
        found = []
        for slot in module.get_slots(token_present=True):
            try:
                token = slot.get_token()
            except PKCS11Error:
                continue  # pulled out since, or not for us to read
            if TokenFlag.TOKEN_INITIALIZED in token.flags:
                found.append(token)
    return found


def serial_of(token: Any) -> str:
    """A token's serial number as text."""
    serial: bytes = token.serial
    return serial.decode("ascii", "replace").strip()


def mechanisms_of(token: Any) -> set[str]:
    """Those of a token's mechanisms that we have a use for, by their PKCS#11 names."""
    wanted = (
        Mechanism.ECDH1_DERIVE,
        Mechanism.ECDSA,
        Mechanism.RSA_PKCS_OAEP,
        Mechanism.RSA_PKCS,
        Mechanism.EC_KEY_PAIR_GEN,
        Mechanism.RSA_PKCS_KEY_PAIR_GEN,
    )
    with explained("the token"):
        has = token.slot.get_mechanisms()
    return {mechanism.name for mechanism in wanted if mechanism in has}


def _public_key(key: Any, address: Address) -> PublicKey:
    if key.key_type is KeyType.RSA:
        return rsa.RSAPublicNumbers(
            int.from_bytes(key[Attribute.PUBLIC_EXPONENT], "big"),
            int.from_bytes(key[Attribute.MODULUS], "big"),
        ).public_key()
    curve = _PARAMETERS.get(key[Attribute.EC_PARAMS]) if key.key_type is KeyType.EC else None
    if curve is None:
        raise TokenError(
            f"the key {key.id.hex()} on {address} is neither RSA nor on P-256, P-384 or P-521"
        )
    try:
        point = _point(key[Attribute.EC_POINT], curve)
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except ValueError as error:
        raise TokenError(
            f"the key {key.id.hex()} on {address} has no usable public point: {error}"
        ) from error


def _point(value: bytes, curve: ec.EllipticCurve) -> bytes:
    """CKA_EC_POINT is the point in a DER OCTET STRING; some devices leave out the wrapping."""
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return value if len(value) == size else value[-size:]


def _describe(key: Any) -> KeyInfo:
    return KeyInfo(
        id=_get(key, Attribute.ID, b"").hex(),
        label=_get(key, Attribute.LABEL, ""),
        kind=_kind(key),
        may=tuple(name for name, attribute in _MAY.items() if _get(key, attribute, False)),
        extractable=bool(_get(key, Attribute.EXTRACTABLE, False)),
        made_here=bool(_get(key, Attribute.LOCAL, False)),
    )


def _kind(key: Any) -> str:
    if key.key_type is KeyType.RSA:
        return f"RSA {8 * len(_get(key, Attribute.MODULUS, b''))}"
    if key.key_type is KeyType.EC:
        curve = _PARAMETERS.get(_get(key, Attribute.EC_PARAMS, b""))
        return f"EC P-{curve.key_size}" if curve is not None else "EC, another curve"
    return str(getattr(key.key_type, "name", key.key_type))


def _get(key: Any, attribute: Attribute, otherwise: Any) -> Any:
    """An attribute that some devices don't tell."""
    try:
        return key[attribute]
    except (AttributeTypeInvalid, AttributeSensitive):
        return otherwise
