"""Opening what was delivered, and whose fault it is when that fails.

A fault of the batch concerns nobody else: it goes to the dead letters with the reason, and the next
one is opened. A fault of this machine (its clock, its revocation list, a key that isn't here)
would dead-letter everything, so it is raised, and the queue stays as it is. One of these, a token
that is away, passes by itself; `Source` waits for it.
"""

from __future__ import annotations

import asyncio

import msgspec

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.deliveries import BrokerDelivery
from ciphermq.client.directory import Directory
from ciphermq.client.inbox import Arrival
from ciphermq.client.onex import open_onex
from ciphermq.client.origin import Origin
from ciphermq.client.session import now_ms
from ciphermq.errors import (
    BatchError,
    CipherMQError,
    KeyMissing,
    RevocationListStale,
    UnknownKey,
)
from ciphermq.model.onex import is_onex
from ciphermq.model.topology import DeadInfo
from ciphermq.sealing.open import OpenedBatch, SessionKeys, judge
from ciphermq.telemetry import get_logger

_log = get_logger("client")
_decode_dead = msgspec.msgpack.Decoder(DeadInfo).decode


class Unsealer:
    """Opens batches for one client."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._session_keys = (
            SessionKeys(limits.TOKEN_SESSION_KEYS, limits.TOKEN_SESSION_KEY_LIFETIME)
            if any(opener.blocking for opener in core.identity.keyring)
            else SessionKeys()
        )
        self.refused = 0
        """Messages sent to the dead letters because their batch could not be believed."""
        self.token_answers = 0
        """How often a token has opened a session key."""

    async def open(self, delivery: BrokerDelivery, queue: str) -> Arrival | None:
        """The messages of a delivery; None when the batch was at fault and has been refused.

        Raises a `ReceiverFault` when this machine can't judge or open it now.
        """
        try:
            if is_onex(delivery.frame.sealed):
                return self._open_onex(delivery, queue)
            opened = await self._patiently(delivery)
        except BatchError as error:
            self._refuse(delivery, queue, error)
            return None
        frame, header = delivery.frame, opened.header
        origin = Origin(
            queue=queue,
            sender=opened.signer.client_id,
            batch_id=header.batch_id,
            count=header.count,
            digest=opened.digest,
            created_ms=header.created_ms,
            exchange=header.exchange,
            routing_key=header.routing_key,
            redeliveries=frame.redeliveries,
            redelivered=frame.redelivered,
            published_ms=frame.published_ms,
            dead=_dead(frame.dead),
        )
        return Arrival(opened.messages, origin, delivery.live, delivery)

    def _open_onex(self, delivery: BrokerDelivery, queue: str) -> Arrival:
        frame, identity = delivery.frame, self._core.identity
        messages, batch_id, digest = open_onex(
            identity.onex, frame.sealed, receiver=identity.name, published_ms=frame.published_ms
        )
        origin = Origin(
            queue=queue,
            sender=None,
            batch_id=batch_id,
            count=1,
            digest=digest,
            created_ms=messages.sent_ms(0),
            redeliveries=frame.redeliveries,
            redelivered=frame.redelivered,
            published_ms=frame.published_ms,
            dead=_dead(frame.dead),
        )
        return Arrival(messages, origin, delivery.live, delivery)

    async def _patiently(self, delivery: BrokerDelivery) -> OpenedBatch:
        """Open it; once more when something newer may be at hand."""
        try:
            return await self._open(delivery)
        except KeyMissing:
            # Another process of this identity may have taken a new key into use.
            await asyncio.to_thread(self._core.identity.keys.reload)
            return await self._knowing_its_keys(delivery)
        except RevocationListStale:
            try:
                newer = await self._core.refresh_crl()
            except CipherMQError:
                newer = False
            if not newer:
                raise
        return await self._open(delivery)

    async def _knowing_its_keys(self, delivery: BrokerDelivery) -> OpenedBatch:
        """Open it, or say who is at fault for a key that isn't here.

        If this machine has the key of its newest record and has lost no former one, it has all that
        a sender could honestly use: then the key was invented, and must not let a client stop this
        receiver.
        """
        try:
            return await self._open(delivery)
        except KeyMissing as missing:
            identity = self._core.identity
            try:
                newest = await Directory(self._core).record(identity.name)
            except CipherMQError:
                raise missing from None
            if newest.key_id not in identity.keyring or identity.keys.lost():
                raise
            raise UnknownKey(
                f"the batch is sealed to a key that {identity.name!r} never registered"
            ) from missing

    async def _open(self, delivery: BrokerDelivery) -> OpenedBatch:
        identity, session_keys = self._core.identity, self._session_keys
        judged = judge(
            delivery.frame.sealed,
            receiver=identity.name,
            verifier=identity.verifier,
            now_ms=now_ms(),
        )
        # Looked up once: what is forgotten between two looks would have this thread ask the token.
        if (known := judged.known(session_keys)) is not None:
            return judged.open(known)
        if not judged.blocks(identity.keyring):
            return judged.open(judged.unwrap(identity.keyring, session_keys))
        # A token takes its time, and the event loop has none.
        key = await asyncio.to_thread(judged.unwrap, identity.keyring, session_keys)
        self.token_answers += 1
        asyncio.get_running_loop().call_later(limits.TOKEN_SESSION_KEY_LIFETIME, session_keys.prune)
        return judged.open(key)

    def _refuse(self, delivery: BrokerDelivery, queue: str, error: BatchError) -> None:
        count = delivery.live.bit_count()
        self.refused += count
        _log.warning(
            "a batch was refused and goes to the dead letters",
            queue=queue,
            messages=count,
            code=error.code,
            reason=str(error),
        )
        delivery.nack(delivery.live, requeue=False, reason=error.code, detail=str(error))


def _dead(encoded: bytes) -> DeadInfo | None:
    try:
        return _decode_dead(encoded) if encoded else None
    except msgspec.DecodeError:
        return None
