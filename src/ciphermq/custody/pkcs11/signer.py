"""A certificate's key on a token."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from ciphermq.custody import signatures
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import CertificateError, TokenError


class TokenSigner:
    """Signs batches and key records with one call to the token each
    (`ciphermq.custody.face.Signer`)."""

    blocking: Final = True

    def __init__(self, token: Token, object_id: bytes, chain: tuple[bytes, ...]) -> None:
        """The token is not called: it may be away now. Raises `CertificateError` for what is no
        certificate, `TokenError` for one whose key can't sign here."""
        if not chain:
            raise CertificateError("a signer needs its certificate")
        try:
            public_key = x509.load_der_x509_certificate(chain[0]).public_key()
        except ValueError as error:
            raise CertificateError(f"the signer's certificate can't be read: {error}") from error
        self._public_key = _checked(public_key, object_id, token)
        self._key = TokenSigningKey(token, object_id, self._public_key)
        self.chain = chain
        self.certificate_sha256 = hashlib.sha256(chain[0]).digest()

    def __repr__(self) -> str:
        return f"<signer with {self._key!r}>"

    def sign(self, data: bytes) -> bytes:
        """See `ciphermq.custody.face.Signer`. `TokenError` when the key there is another than the
        certificate's, or the device has failed: what it makes is verified before anybody sees it.
        """
        signature = signatures.sign(self._key, data)
        if not signatures.verifies(self._public_key, signature, data):
            raise TokenError(
                f"what {self._key!r} signs does not verify with the certificate: "
                "token.signing_key in identity.toml names another key, or the device is faulty"
            )
        return signature


class TokenSigningKey(ec.EllipticCurvePrivateKey):
    """What `cryptography` takes for a private key, to sign a certificate request with."""

    def __init__(
        self, token: Token, object_id: bytes, public_key: ec.EllipticCurvePublicKey
    ) -> None:
        """Does not call the token."""
        self._token = token
        self._object_id = object_id
        self._public_key = public_key

    @classmethod
    def find(cls, token: Token, object_id: bytes) -> TokenSigningKey:
        """The key of that id on `token`, if a certificate's can be there and it signs.

        Raises `TokenKeyUnclear`, `TokenError`."""
        public = _checked(token.public_key(object_id), object_id, token)
        key = cls(token, object_id, public)
        probe = b"CipherMQ asks whether this key signs"
        if not signatures.verifies(public, signatures.sign(key, probe), probe):
            raise TokenError(
                f"what the key {object_id.hex()} on {token} signs does not verify with its public "
                "half: they are not a pair"
            )
        return key

    def __repr__(self) -> str:
        return f"<key {self._object_id.hex()} on {self._token}>"

    def __copy__(self) -> TokenSigningKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenSigningKey:
        return self

    @property
    def object_id(self) -> bytes:
        """The key's id on the token."""
        return self._object_id

    @property
    def curve(self) -> ec.EllipticCurve:
        """Of its public half."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Bits."""
        return self.curve.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""
        return self._public_key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA: hashed here, signed there."""
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, utils.Prehashed):
            digest = bytes(data)
        else:
            hasher = hashes.Hash(algorithm)
            hasher.update(data)
            digest = hasher.finalize()
        return self._token.sign(self._object_id, digest)

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Not with a key that signs."""
        raise TokenError(f"{self!r} signs, and does nothing else")

    def private_numbers(self) -> NoReturn:
        """The token keeps them."""
        raise TokenError(f"{self!r} never leaves its token")

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """The token keeps them."""
        raise TokenError(f"{self!r} never leaves its token")


def _checked(public: object, object_id: bytes, token: Token) -> ec.EllipticCurvePublicKey:
    if (
        not isinstance(public, ec.EllipticCurvePublicKey)
        or public.curve.name not in signatures.CURVES
    ):
        raise TokenError(
            f"the key {object_id.hex()} on {token} can't be a certificate's: that must be on "
            "P-256, P-384 or P-521"
        )
    return public
