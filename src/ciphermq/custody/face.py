"""What the rest of the program asks of a private key, wherever it lives."""

from __future__ import annotations

from typing import Protocol

from ciphermq.model.suites import Suite


class Opener(Protocol):
    """The private half of one of a receiver's keys: opens session keys, and nothing else."""

    @property
    def suite(self) -> Suite: ...
    @property
    def key_id(self) -> bytes:
        """`ciphermq.custody.keys.key_id` of the suite and the public key."""

    @property
    def public_key(self) -> bytes: ...
    @property
    def blocking(self) -> bool:
        """Whether `unwrap` waits for a device, and so must not be called in an event loop."""

    def unwrap(self, wrap: bytes, info: bytes) -> bytes:
        """The session key in `wrap`, if it was made for this key with the same `info`.

        Raises `WrapRefused`, which blames the batch, when it does not open; `ReceiverFault`, when
        the key can't be used now (a token that was pulled out)."""


class Signer(Protocol):
    """The private half of a certificate: signs batches and key records."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificate, then what leads from it towards the authority (DER)."""

    @property
    def certificate_sha256(self) -> bytes:
        """SHA-256 of the certificate's DER."""

    @property
    def blocking(self) -> bool:
        """Whether `sign` waits for a device, and so must not be called in an event loop."""

    def sign(self, data: bytes) -> bytes:
        """ECDSA over `data` with the hash that goes with the curve, as
        `ciphermq.custody.signatures` spells it.

        Raises `ReceiverFault` when the key can't be used now (a token that was pulled out)."""
