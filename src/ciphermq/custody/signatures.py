"""ECDSA as batches and key records use it: one hash a curve, one spelling a signature.

The hash is as strong as the curve: SHA-256 with P-256, SHA-384 with P-384, SHA-512 with P-521.
A signature is DER, with the lower of the two values that `s` may have. Anyone can turn an ECDSA
signature (r, s) into the equally valid (r, n - s) without any key, so a broker could give one
batch two sets of bytes; when only the lower is taken, every byte of a batch is its sender's.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

_ALGORITHMS: Final = {
    "secp256r1": ec.ECDSA(hashes.SHA256()),
    "secp384r1": ec.ECDSA(hashes.SHA384()),
    "secp521r1": ec.ECDSA(hashes.SHA512()),
}
CURVES: Final = frozenset(_ALGORITHMS)
"""The curves that a certificate's key may be on."""


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """The signature of `key`, which is on one of `CURVES`, over `data`."""
    return canonical(key.sign(data, _ALGORITHMS[key.curve.name]), key.curve)


def verifies(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is what `sign` could have made with the private half of `key`."""
    algorithm = _ALGORITHMS.get(key.curve.name)
    if algorithm is None:
        return False
    try:
        if canonical(signature, key.curve) != signature:
            return False
        key.verify(signature, data, algorithm)
    except (InvalidSignature, ValueError):
        return False
    return True


def canonical(signature: bytes, curve: ec.EllipticCurve) -> bytes:
    """The one spelling of an ECDSA signature. `ValueError` when it is not DER at all."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, curve.group_order - s))
