"""Messages of CipherMQ 1.x, for an identity that takes them.

Nobody signs such a message and nothing binds it to its id, its receiver's queue or its time, so
anybody who may publish can write any. An identity opens them only where its ``identity.toml`` says
so, with a key that nothing else uses, and they are shown as of no sender, unverified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from ciphermq.client.layout import OnexSettings
from ciphermq.custody.face import Opener
from ciphermq.custody.onex import PRIVATE_FILE, OnexKey
from ciphermq.errors import IdentityError, OnexNotEnabled
from ciphermq.model import body, onex
from ciphermq.model.body import Body, Messages
from ciphermq.model.envelope import MAX_TIME_MS, Buffer
from ciphermq.model.message import OutgoingMessage
from ciphermq.sealing.onex import open_message

MESSAGE_ID = "message_id"
"""The header that a 1.x message's own id is shown in."""


class OnexReader:
    """An identity's key for messages of 1.x, and how they are sealed to it."""

    def __init__(self, key: OnexKey, settings: OnexSettings) -> None:
        self.key = key
        self._dialect = settings.to_dialect()

    @classmethod
    def load(
        cls, directory: Path, settings: OnexSettings | None, others: Iterable[Opener]
    ) -> OnexReader | None:
        """The one of the identity in `directory`; None where 1.x is not enabled.

        `others` are the identity's other keys. Raises `IdentityError` when there is no key for
        1.x, or when it is one of those.
        """
        if settings is None or not settings.enabled:
            return None
        path = directory / settings.keys / PRIVATE_FILE
        if not path.exists():
            raise IdentityError(
                f"[one_x] is enabled, and its private key {path} is missing: make one with "
                f"`ciphermq keys make --out {path.parent}`"
            )
        key = OnexKey.load(path)
        # What opens in one way must tell nothing about what opens in another. A hybrid public key
        # holds an X25519 key among its bytes.
        if any(key.public_key in bytes(other.public_key) for other in others):
            raise IdentityError(
                f"{path} is also the key of sealed batches: make one for 1.x alone with "
                "`ciphermq keys make`"
            )
        return cls(key, settings)

    def open(self, sealed: Buffer, receiver: str, published_ms: int) -> Messages:
        """The one message in `sealed`, for client `receiver`; a kind of `BatchError` when it is at
        fault. Its own id is a header of it. `published_ms` stands in for a time it doesn't tell."""
        message = onex.parse(sealed)
        text = open_message(message, receiver=receiver, key=self.key, dialect=self._dialect)
        sent_ms = _sent_ms(message.sent_time, published_ms)
        opened = OutgoingMessage(text, {MESSAGE_ID: message.message_id}, None, sent_ms)
        return body.decode(Body.of([opened]).data)


def open_onex(
    reader: OnexReader | None, sealed: Buffer, *, receiver: str, published_ms: int
) -> tuple[Messages, bytes, bytes]:
    """The message, the id by which the rest of the program knows it, and a digest of it all.

    Raises `OnexNotEnabled` without a `reader`, else what `OnexReader.open` does.
    """
    if reader is None:
        raise OnexNotEnabled(
            f"a message of CipherMQ 1.x, which nobody can verify, and {receiver!r} takes none: "
            "[one_x] in its identity.toml would let it"
        )
    messages = reader.open(sealed, receiver, published_ms)
    message_id = messages.properties(0).headers[MESSAGE_ID]
    return messages, onex.internal_id(message_id), hashlib.sha256(sealed).digest()


def _sent_ms(said: str | None, otherwise: int) -> int:
    """When the sender says it was sent, if it says so in a way that is understood."""
    try:
        when = datetime.fromisoformat(said or "")
    except ValueError:
        return otherwise
    ms = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    return ms if 0 <= ms <= MAX_TIME_MS else otherwise
