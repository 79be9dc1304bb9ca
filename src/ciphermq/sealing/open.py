"""Sealed batch in, messages out: only after everything about it was verified."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq.custody.guarded import Guarded
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

    def __init__(
        self,
        size: int = _REMEMBERED,
        lifetime: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keeps the `size` latest, each for `lifetime` seconds of `clock`; None: for good."""
        self._size = size
        self._lifetime = lifetime
        self._clock = clock
        self._keys: Guarded[bytes, tuple[float, bytes]] = Guarded()
        """In the order in which they came: the oldest first."""

    def get(self, name: bytes) -> bytes | None:
        """The session key of the batch and key that `name` stands for."""
        self.prune()
        with self._keys.lock() as keys:
            known = keys.get(name)
        return known[1] if known is not None else None

    def put(self, name: bytes, session_key: bytes) -> None:
        """Remember it."""
        with self._keys.lock() as keys:
            keys.pop(name, None)
            keys[name] = (self._clock(), session_key)
            while len(keys) > self._size:
                del keys[next(iter(keys))]

    def prune(self) -> None:
        """Forget what has been kept long enough."""
        if self._lifetime is None:
            return
        oldest = self._clock() - self._lifetime
        with self._keys.lock() as keys:
            for name in [name for name, (since, _) in keys.items() if since <= oldest]:
                del keys[name]

    def __len__(self) -> int:
        with self._keys.lock() as keys:
            return len(keys)


class Judged:
    """A batch that is its sender's, for us, of our time, and unchanged; not opened yet.

    Opening it takes one step with the private key, which a token makes slow. So the steps are
    apart: who runs an event loop has that one made elsewhere."""

    def __init__(self, envelope: Envelope, verified: Verified, receiver: str) -> None:
        """Made by `judge`."""
        self._envelope = envelope
        self._verified = verified
        self._receiver = receiver
        self._ref = envelope.header.receivers[verified.index]
        self._name = verified.bound + self._ref.key_id

    def known(self, session_keys: SessionKeys) -> bytes | None:
        """The session key, where it was opened lately."""
        return session_keys.get(self._name)

    def blocks(self, keyring: Keyring) -> bool:
        """Whether `unwrap` waits for a device when the session key is not known; raises
        `KeyMissing`."""
        return keyring.find(self._ref.key_id).blocking

    def unwrap(self, keyring: Keyring, session_keys: SessionKeys | None = None) -> bytes:
        """The session key (step 7). Raises `KeyMissing`, `WrapRefused`, `TokenAway`."""
        if session_keys is not None and (known := session_keys.get(self._name)) is not None:
            return known
        ref = self._ref
        opener = keyring.find(ref.key_id)
        if opener.suite is not ref.suite:
            raise WrapRefused(
                f"the batch uses key {ref.key_id.hex()} with suite {ref.suite.name}; it is one of "
                f"suite {opener.suite.name}"
            )
        info = derivation.wrap_info(self._envelope.header_bytes, ref.client, ref.key_id)
        session_key = opener.unwrap(self._envelope.wrap_of(self._verified.index), info)
        if session_keys is not None:
            session_keys.put(self._name, session_key)
        return session_key

    def open(self, session_key: bytes) -> OpenedBatch:
        """The messages (steps 8 to 10). Raises a kind of `BatchError`."""
        envelope, verified = self._envelope, self._verified
        # 8. It is the session key that the header commits to; without this a sender could show two
        # receivers two texts in one body.
        batch_keys = derivation.derive(session_key)
        if not hmac.compare_digest(batch_keys.commitment, envelope.header.commitment):
            raise CommitmentMismatch(
                f"{envelope.header.sender!r} wrapped another session key for {self._receiver!r} "
                "than the one that the batch is sealed with"
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


def judge(sealed: Buffer, *, receiver: str, verifier: ChainVerifier, now_ms: int) -> Judged:
    """What is in `sealed`, if client `receiver` may open it. Needs no private key.

    Raises a kind of `BatchError` when the batch is at fault and belongs in the dead letters, a
    kind of `ReceiverFault` when this machine can't judge it now.
    """
    # 0. It is well formed and within the limits, its version and suites are known.
    envelope = envelope_codec.parse(sealed)
    # 1 to 6. It is its sender's, for us, of our time, and unchanged.
    verified = verify(envelope, receiver=receiver, verifier=verifier, now_ms=now_ms)
    return Judged(envelope, verified, receiver)


def open_batch(
    sealed: Buffer,
    *,
    receiver: str,
    keyring: Keyring,
    verifier: ChainVerifier,
    now_ms: int,
    session_keys: SessionKeys | None = None,
) -> OpenedBatch:
    """The messages in `sealed`, for client `receiver`, with all of its steps at once.

    Raises a kind of `BatchError` when the batch is at fault and belongs in the dead letters, a
    kind of `ReceiverFault` when this machine can't judge or open it now.
    """
    judged = judge(sealed, receiver=receiver, verifier=verifier, now_ms=now_ms)
    # 7. The session key opens with our private key.
    return judged.open(judged.unwrap(keyring, session_keys))
