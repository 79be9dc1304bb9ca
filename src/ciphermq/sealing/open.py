"""Sealed batch in, messages out: only after everything about it was verified."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq.custody.keyring import Keyring
from ciphermq.errors import BodyRefused, CommitmentMismatch, WrapRefused
from ciphermq.model import body as body_codec
from ciphermq.model import envelope as envelope_codec
from ciphermq.model.body import Messages
from ciphermq.model.envelope import Buffer, Envelope, Header
from ciphermq.pki.verify import ChainVerifier, SignerInfo
from ciphermq.sealing import derivation
from ciphermq.sealing.verify import Verified, verify

_REMEMBERED: Final = 1024
"""Session keys kept for redeliveries: more batches than a receiver is ever given at once."""


class OpenedBatch(msgspec.Struct, frozen=True):
    """A batch that passed every check. Nothing in it is unverified."""

    header: Header
    messages: Messages
    signer: SignerInfo
    """Whose it is; ``signer.client_id`` equals ``header.sender``."""
    digest: bytes
    """32 bytes, equal exactly for equal batches: tells a redelivery from another batch that a
    faulty sender gave the same id."""


class SessionKeys:
    """Session keys opened lately, so that a redelivered batch is not unwrapped again.

    That spares a slow token most; everything else about the batch is verified again. Shared by
    threads."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: bytes) -> bytes | None:
        with self._lock:
            return self._keys.get(name)

    def put(self, name: bytes, session_key: bytes) -> None:
        with self._lock:
            self._keys[name] = session_key
            while len(self._keys) > self._size:
                self._keys.popitem(last=False)


def open_batch(
    sealed: Buffer,
    *,
    receiver: str,
    keyring: Keyring,
    verifier: ChainVerifier,
    now_ms: int,
    session_keys: SessionKeys | None = None,
) -> OpenedBatch:
    """The messages in `sealed`, for client `receiver`.

    Raises a kind of `BatchError` when the batch is at fault and belongs in the dead letters, a
    kind of `ReceiverFault` when this machine can't judge or open it now.
    """
    # 0. It is well formed and within the limits, its version and suites are known.
    envelope = envelope_codec.parse(sealed)
    # 1 to 6. It is its sender's, for us, of our time, and unchanged.
    verified = verify(envelope, receiver=receiver, verifier=verifier, now_ms=now_ms)
    # 7. The session key opens with our private key.
    session_key = _session_key(envelope, verified, keyring, session_keys)
    # 8. It is the session key that the header commits to; without this a sender could show two
    # receivers two texts in one body.
    batch_keys = derivation.derive(session_key)
    if not hmac.compare_digest(batch_keys.commitment, envelope.header.commitment):
        raise CommitmentMismatch(
            f"{envelope.header.sender!r} wrapped another session key for {receiver!r} than the "
            "one that the batch is sealed with"
        )
    # 9. The body opens, under this header and these wraps.
    try:
        plaintext = AESGCM(batch_keys.body).decrypt(
            derivation.BODY_NONCE, envelope.body, verified.bound
        )
    except InvalidTag:
        raise BodyRefused("the body does not open with its session key") from None
    # 10. What is inside is well formed, and as many messages as were counted and paid for.
    messages = body_codec.decode(plaintext)
    if len(messages) != envelope.header.count:
        raise BodyRefused(
            f"the body holds {len(messages)} messages, the header says {envelope.header.count}"
        )
    return OpenedBatch(envelope.header, messages, verified.signer, verified.digest)


def _session_key(
    envelope: Envelope, verified: Verified, keyring: Keyring, session_keys: SessionKeys | None
) -> bytes:
    ref = envelope.header.receivers[verified.index]
    name = verified.bound + ref.key_id
    if session_keys is not None and (known := session_keys.get(name)) is not None:
        return known
    opener = keyring.find(ref.key_id)
    if opener.suite is not ref.suite:
        raise WrapRefused(
            f"the batch uses key {ref.key_id.hex()} with suite {ref.suite.name}; it is one of "
            f"suite {opener.suite.name}"
        )
    info = derivation.wrap_info(envelope.header_bytes, ref.client, ref.key_id)
    session_key = opener.unwrap(envelope.wrap_of(verified.index), info)
    if session_keys is not None:
        session_keys.put(name, session_key)
    return session_key
