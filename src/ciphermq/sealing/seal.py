"""Messages in, sealed batch out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq.custody import keys
from ciphermq.custody.face import Signer
from ciphermq.model import envelope
from ciphermq.model.body import Body
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import SESSION_KEY_SIZE, Suite
from ciphermq.sealing import derivation


class ReceiverKey(msgspec.Struct, frozen=True):
    """A receiver's public key, which the caller has verified (`ciphermq.directory`)."""

    client: str
    key_id: bytes
    suite: Suite
    public_key: bytes


def seal(
    messages: Body | Sequence[OutgoingMessage],
    *,
    sender: str,
    signer: Signer,
    receivers: Sequence[ReceiverKey],
    exchange: str,
    routing_key: str,
    batch_id: bytes,
    created_ms: int,
    expires_ms: int = 0,
) -> bytes:
    """A sealed batch. Sealing the same messages again gives other bytes: keep these for a retry.

    `sender` is the client id in the signer's certificate. Raises `BatchTooLarge` when a limit on
    batches is exceeded, `KeyRecordMalformed` for a public key that nothing can be sealed to, and
    `UsageError` for a header that no broker would take (a receiver named twice, a bad name).
    """
    body = messages if isinstance(messages, Body) else Body.of(messages)
    ordered = sorted(receivers, key=lambda receiver: receiver.client)
    session_key = secrets.token_bytes(SESSION_KEY_SIZE)
    header_bytes = envelope.encode_header(
        Header(
            sender=sender,
            certificate_sha256=signer.certificate_sha256,
            batch_id=batch_id,
            created_ms=created_ms,
            expires_ms=expires_ms,
            exchange=exchange,
            routing_key=routing_key,
            count=body.count,
            commitment=derivation.derive(session_key).commitment,
            receivers=tuple(
                ReceiverRef(receiver.client, receiver.key_id, receiver.suite)
                for receiver in ordered
            ),
        )
    )
    wraps = b"".join(
        keys.wrap(
            receiver.suite,
            receiver.public_key,
            session_key,
            derivation.wrap_info(header_bytes, receiver.client, receiver.key_id),
        )
        for receiver in ordered
    )
    return assemble(header_bytes, wraps, session_key, body.data, signer)


def assemble(
    header_bytes: bytes, wraps: bytes, session_key: bytes, plaintext: bytes, signer: Signer
) -> bytes:
    """The end of sealing, which draws no randomness of its own: encrypt, sign, put together.

    Apart from `seal` so that vectors can pin every byte; nothing else may call it, because a
    session key that is used for two bodies gives both away.
    """
    bound = derivation.binding(header_bytes, wraps)
    body = AESGCM(derivation.derive(session_key).body).encrypt(
        derivation.BODY_NONCE, plaintext, bound
    )
    signature = signer.sign(derivation.signed_bytes(bound, body))
    return envelope.build(header_bytes, wraps, body, signer.chain, signature)
