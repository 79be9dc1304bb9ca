"""Whether a batch is what its sender made, for this receiver, now. Needs no private key.

The checks are in a fixed order, and each refusal is its own error. What blames the batch
(`BatchError`) sends it to the dead letters; what blames this machine (`ReceiverFault`) stops the
receiver. The order matters for that: a machine whose clock is far off is found out by the
revocation list's dates in step 2, before step 5 could call every batch too old or too new.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.errors import (
    BadSignature,
    BatchExpired,
    BatchFromTheFuture,
    BatchTooOld,
    NotForThisReceiver,
    SenderMismatch,
)
from ciphermq.model.envelope import Envelope, Header
from ciphermq.pki.verify import ChainVerifier, SignerInfo
from ciphermq.sealing import derivation

_SKEW_MS: Final = limits.CLOCK_SKEW * 1000
_MAX_AGE_MS: Final = limits.MAX_MESSAGE_AGE * 1000


class Verified(msgspec.Struct, frozen=True):
    """What is known of a batch once every check has passed."""

    signer: SignerInfo
    index: int
    """This receiver's place among the batch's receivers."""
    bound: bytes
    """H: all of the batch but its body."""
    digest: bytes
    """SHA-256 of what the sender signed: equal exactly for equal batches."""


def verify(envelope: Envelope, *, receiver: str, verifier: ChainVerifier, now_ms: int) -> Verified:
    """Steps 1 to 6 of opening; raises a `BatchError` or a `ReceiverFault`."""
    header = envelope.header
    # 1, 2. The chain leads to our authority, its certificate may sign and was valid when the batch
    # was made; it is not revoked now, whatever date its holder wrote.
    signer = verifier.check_signer(envelope.chain, header.created_ms, now_ms)
    # 3. The header names the holder of this very certificate: another client's genuine
    # certificate, or another of the same client, is not enough.
    _check_sender(header, signer)
    # 4. It was sealed to us: a batch of others that a broker puts in our queue ends here.
    index = _own_index(header, receiver)
    # 5. It is of a time in which its id is still remembered, so an old one can't be replayed.
    _check_age(header, now_ms)
    # 6. Every byte of header, wraps and body is the sender's. Last, because it alone is costly.
    bound = derivation.binding(envelope.header_bytes, envelope.wraps)
    signed = derivation.signed_bytes(bound, envelope.body)
    if not signer.verifies(envelope.signature, signed):
        raise BadSignature(
            f"the signature of {header.sender!r} does not fit batch {header.batch_id.hex()}: it "
            "was changed on the way"
        )
    return Verified(signer, index, bound, hashlib.sha256(signed).digest())


def _check_sender(header: Header, signer: SignerInfo) -> None:
    if header.certificate_sha256 != signer.certificate_sha256:
        raise SenderMismatch(
            f"the batch of {header.sender!r} was made with another certificate than the one it "
            "carries"
        )
    if header.sender != signer.client_id:
        raise SenderMismatch(
            f"the batch says it is from {header.sender!r}, its certificate is that of "
            f"{signer.client_id!r}"
        )


def _own_index(header: Header, receiver: str) -> int:
    for index, ref in enumerate(header.receivers):
        if ref.client == receiver:
            return index
    names = ", ".join(ref.client for ref in header.receivers)
    raise NotForThisReceiver(f"the batch was sealed for {names}; this is {receiver}")


def _check_age(header: Header, now_ms: int) -> None:
    age_ms = now_ms - header.created_ms
    if age_ms < -_SKEW_MS:
        raise BatchFromTheFuture(
            f"the batch was made {-age_ms // 1000} s after this machine's now; clocks may differ "
            f"by {limits.CLOCK_SKEW} s"
        )
    if age_ms > _MAX_AGE_MS:
        raise BatchTooOld(
            f"the batch is {age_ms // 86_400_000} days old; "
            f"{limits.MAX_MESSAGE_AGE // limits.DAY} are the most"
        )
    if header.expires_ms and now_ms >= header.expires_ms:
        raise BatchExpired(f"the batch expired {(now_ms - header.expires_ms) // 1000} s ago")
