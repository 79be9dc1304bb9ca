"""A token as the rest of the program sees it. Every method may be called from any thread, and
blocks until the token has answered; none may be called from an event loop's.

A session that has become useless (the token was pulled out and is back, another program reset it)
is replaced once, without a word. When that does not help, `TokenAway` is raised, and whoever has
time asks again later.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import KDF, MGF, Attribute, KeyType, Mechanism

from ciphermq import limits
from ciphermq.custody.guarded import Guarded
from ciphermq.custody.pkcs11 import library
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.desk import Desk, KeyInfo, PublicKey, open_desk
from ciphermq.custody.pkcs11.library import Stale
from ciphermq.custody.pkcs11.owner import Owner, owner_of
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.errors import PinError, TokenError, UsageError, WrapRefused

T = TypeVar("T")

_SECRET: Final = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
"""Of what ECDH gives: an object of the session, to be read and then destroyed."""
_P256_BYTES: Final = 32

_refused: Guarded[tuple[Address, Pin], str] = Guarded[tuple[Address, Pin], str]().kept_at_forks()
"""PINs that a token has refused in this process, or before it was forked, and what it said."""


class Token:
    """One token, with its PIN."""

    def __init__(
        self, address: Address, pin: Pin | None, *, timeout: float = limits.TOKEN_TIMEOUT
    ) -> None:
        """Does not call the token: it may be away just now. `pin`: None for what is public."""
        if not address.label and not address.serial:
            raise UsageError("which token? say its label or its serial number")
        self.address = address
        self._pin = pin
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<{self.address} of {self.address.module}>"

    def __str__(self) -> str:
        return str(self.address)

    def call_counts(self) -> dict[str, int]:
        """How often this process has called tokens through this one's module, by what for."""
        with owner_of(self.address.module).calls.lock() as calls:
            return dict(calls)

    # --- the private steps ----------------------------------------------------------------------

    def ecdh(self, key_id: bytes, point: bytes) -> bytes:
        """The x-coordinate, 32 bytes, that the private P-256 key makes of `point`, which is on the
        curve (uncompressed)."""

        def derive(desk: Desk) -> bytes:
            key = desk.private(key_id)
            with desk.calling("ecdh"):
                secret = key.derive_key(
                    KeyType.GENERIC_SECRET,
                    8 * _P256_BYTES,
                    mechanism=Mechanism.ECDH1_DERIVE,
                    mechanism_param=(KDF.NULL, None, point),
                    store=False,
                    template=_SECRET,
                )
                try:
                    shared: bytes = secret[Attribute.VALUE]
                finally:
                    secret.destroy()
            # Some devices drop leading zeros.
            return shared.rjust(_P256_BYTES, b"\0")

        return self._do(derive)

    def sign(self, key_id: bytes, digest: bytes) -> bytes:
        """The ECDSA signature over `digest`, DER, as the device happens to spell it."""

        def make(desk: Desk) -> bytes:
            key = desk.private(key_id)
            with desk.calling("sign"):
                raw: bytes = key.sign(digest, mechanism=Mechanism.ECDSA)
            half = len(raw) // 2
            r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
            return encode_dss_signature(r, s)

        return self._do(make)

    def decrypt(self, key_id: bytes, ciphertext: bytes, *, oaep: bool) -> bytes:
        """What the RSA key makes of `ciphertext`: OAEP with SHA-1, which every device has, or
        PKCS#1 v1.5. `WrapRefused` when it makes nothing of it, whatever the device calls that."""
        mechanism = Mechanism.RSA_PKCS_OAEP if oaep else Mechanism.RSA_PKCS
        parameters = (Mechanism.SHA_1, MGF.SHA1, None) if oaep else None

        def open_it(desk: Desk) -> bytes:
            key = desk.private(key_id)
            try:
                with desk.calling("decrypt"):
                    plaintext: bytes = key.decrypt(
                        ciphertext, mechanism=mechanism, mechanism_param=parameters
                    )
            except (Stale, TokenError) as error:
                lost = isinstance(error, Stale) and not desk.answers()
                if library.may_be_the_content(error) and not lost:
                    raise WrapRefused(f"{self.address} does not decrypt it: {error}") from error
                raise
            return plaintext

        return self._do(open_it)

    # --- looking --------------------------------------------------------------------------------

    def public_key(self, key_id: bytes) -> PublicKey:
        """The public half of the key of that id.

        Raises `TokenKeyUnclear`, which lists what there is.
        """
        return self._do(lambda desk: desk.public(key_id))

    def check_private(self, key_id: bytes) -> None:
        """That the token has the one private key of that id; raises as `public_key` does."""
        self._do(lambda desk: desk.private(key_id))

    def private_keys(self) -> list[KeyInfo]:
        """The private keys on it."""
        return self._do(Desk.private_keys)

    # --- changing -------------------------------------------------------------------------------

    def make_p256(self, label: str, *, may: Sequence[str], key_id: bytes | None = None) -> bytes:
        """Make a P-256 key for what it `may` (``derive``, ``sign``); its id."""
        return self._make(key_id, lambda desk, new: desk.make_p256(new, label, may=may))

    def make_rsa(self, label: str, bits: int, *, key_id: bytes | None = None) -> bytes:
        """Make an RSA key for decryption; its id. Takes a smart card minutes."""
        return self._make(key_id, lambda desk, new: desk.make_rsa(new, label, bits))

    def import_p256(
        self, label: str, scalar: bytes, point: bytes, *, key_id: bytes | None = None
    ) -> bytes:
        """Bring a P-256 key that was made elsewhere; its id."""
        return self._make(key_id, lambda desk, new: desk.import_p256(new, label, scalar, point))

    def destroy(self, key_id: bytes) -> None:
        """Delete the key of that id from the token, for ever."""
        self._do(lambda desk: desk.destroy(key_id))

    def change_pin(self, new: Pin) -> None:
        """Give the token the PIN `new` in place of the one that this was made with."""
        old = self._pin
        if old is None:
            raise UsageError("a PIN is changed by who knows the old one")
        self._do(lambda desk: desk.change_pin(old, new))
        self._pin = new

    def _make(self, key_id: bytes | None, make: Callable[[Desk, bytes], None]) -> bytes:
        def work(desk: Desk) -> bytes:
            used = desk.ids()
            new = key_id if key_id is not None else _free_id(used)
            if new in used:
                raise TokenError(
                    f"{self.address} has something of id {new.hex()} already: choose another id"
                )
            make(desk, new)
            return new

        return self._do(work, timeout=limits.TOKEN_KEY_TIMEOUT)

    # --- at the desk ----------------------------------------------------------------------------

    def _do(self, work: Callable[[Desk], T], *, timeout: float | None = None) -> T:
        owner = owner_of(self.address.module)
        limit = self._timeout if timeout is None else timeout
        return owner.do(lambda at: self._at_desk(at, work), timeout=limit)

    def _at_desk(self, owner: Owner, work: Callable[[Desk], T]) -> T:
        """In the owner's thread."""
        key = (self.address, self._pin is not None)
        desk = owner.desks.get(key)
        if desk is not None:
            try:
                result: T = work(desk)
            except Stale:
                # Pulled out, or put back since. Only a new session tells which.
                del owner.desks[key]
                desk.close()
            else:
                return result
        desk = owner.desks[key] = self._login(owner)
        try:
            return work(desk)
        except Stale as stale:
            del owner.desks[key]
            desk.close()
            raise library.away(f"{self.address} ({stale})") from stale

    def _login(self, owner: Owner) -> Desk:
        pin = self._pin
        if pin is None:
            return self._open(owner)
        known = (self.address, pin)
        with _refused.lock() as refused:
            said = refused.get(known)
        if said is not None:
            raise PinError(said)
        try:
            return self._open(owner)
        except PinError as error:
            with _refused.lock() as refused:
                refused[known] = str(error)
            raise

    def _open(self, owner: Owner) -> Desk:
        try:
            return open_desk(owner, self.address, self._pin)
        except Stale as stale:
            raise library.away(f"{self.address} ({stale})") from stale


def _free_id(used: set[bytes]) -> bytes:
    """A key id that nothing on the token has."""
    while (new := secrets.token_bytes(8)) in used:
        pass
    return new
