"""A receiver's P-256 key on a token."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ciphermq.custody import hpke, keys
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import TokenError, WrapRefused
from ciphermq.model.suites import SESSION_KEY_SIZE, Suite


class TokenOpener:
    """Opens session keys with one call to the token each (`ciphermq.custody.face.Opener`)."""

    suite: Final = Suite.P256
    blocking: Final = True

    def __init__(self, token: Token, object_id: bytes, public_key: bytes) -> None:
        """`object_id`: the key's id on the token; `public_key`: its point, uncompressed. The token
        is not called: it may be away now."""
        self.token = token
        self.object_id = object_id
        self.public_key = public_key
        self.key_id = keys.key_id(self.suite, public_key)

    def __repr__(self) -> str:
        return f"<P256 private key {self.key_id.hex()}, {self.object_id.hex()} on {self.token}>"

    @classmethod
    def find(cls, token: Token, object_id: bytes) -> TokenOpener:
        """The key of that id on `token`, if it can be a receiver's.

        Raises `TokenKeyUnclear`, `TokenError` for a key of another kind, or
        whose two halves don't belong together."""
        public = token.public_key(object_id)
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise TokenError(
                f"the key {object_id.hex()} on {token} can't be a receiver's: that must be on P-256"
            )
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        opener = cls(token, object_id, point)
        opener.check()
        return opener

    @classmethod
    def make(cls, token: Token, label: str = "CipherMQ receiver") -> TokenOpener:
        """A new key on `token`."""
        return cls.find(token, token.make_p256(label, may=("derive",)))

    def check(self) -> None:
        """Open something sealed to the public half: `TokenError` when the token can't."""
        probe = bytes(SESSION_KEY_SIZE)
        try:
            opened = self.unwrap(keys.wrap(self.suite, self.public_key, probe, b""), b"")
        except WrapRefused:
            opened = b""
        if opened != probe:
            raise TokenError(
                f"the key {self.object_id.hex()} on {self.token} does not open what is sealed to "
                "its public half: they are not a pair"
            )

    def unwrap(self, wrap: bytes, info: bytes) -> bytes:
        """See `ciphermq.custody.face.Opener`."""
        if len(wrap) != self.suite.wrap_size:
            raise WrapRefused(
                f"the session key does not open: {len(wrap)} bytes, not {self.suite.wrap_size}"
            )
        point = hpke.check_point(wrap[: hpke.POINT_SIZE])
        shared = self.token.ecdh(self.object_id, point)
        return hpke.open_sealed(shared, self.public_key, wrap, info)
