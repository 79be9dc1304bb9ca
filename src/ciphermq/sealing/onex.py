"""Seal and open a message of CipherMQ 1.x.

A fresh 32-byte session key and a 12-byte nonce for each message; the session key sealed to the
receiver's X25519 key (`ciphermq.custody.onex`), the text encrypted under it without associated
data, the tag at the end of the ciphertext or in a member of its own. All of it in base64.

What this does not give, and a sealed batch does: nobody knows who wrote such a message, nothing
binds it to its id, receiver, queue or time, and whoever has the receiver's key later opens it
still. So a receiver opens one only where its identity says so, and shows it as unverified.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ciphermq.custody import onex as custody
from ciphermq.custody.onex import OnexKey
from ciphermq.errors import BodyRefused, MalformedBatch, NotForThisReceiver
from ciphermq.model import onex as model
from ciphermq.model.onex import Dialect, OnexMessage, PayloadCipher
from ciphermq.model.suites import SESSION_KEY_SIZE, TAG_SIZE

_NONCE_SIZE: Final = 12
_CIPHERS: Final[Mapping[PayloadCipher, type[ChaCha20Poly1305 | AESGCM]]] = {
    PayloadCipher.CHACHA20_POLY1305: ChaCha20Poly1305,
    PayloadCipher.AES_256_GCM: AESGCM,
}


def seal_message(
    text: bytes,
    *,
    message_id: str,
    receiver: str,
    public_key: bytes,
    dialect: Dialect,
    sent_time: str | None = None,
    others: Mapping[str, Any] | None = None,
) -> bytes:
    """The JSON of a message for `receiver`. Sealing again gives other bytes: keep these for a
    retry.

    The caller has made sure whose `public_key` that is. Raises `KeyRecordMalformed` when nothing
    can be sealed to it, `UsageError` for an id that no line can carry or too long a text.
    """
    session_key = secrets.token_bytes(SESSION_KEY_SIZE)
    return assemble(
        text,
        session_key,
        secrets.token_bytes(_NONCE_SIZE),
        custody.seal(dialect.seal, public_key, session_key),
        message_id=message_id,
        receiver=receiver,
        dialect=dialect,
        sent_time=sent_time,
        others=others,
    )


def assemble(
    text: bytes,
    session_key: bytes,
    nonce: bytes,
    sealed_key: bytes,
    *,
    message_id: str,
    receiver: str,
    dialect: Dialect,
    sent_time: str | None = None,
    others: Mapping[str, Any] | None = None,
) -> bytes:
    """The end of sealing, which draws no randomness of its own.

    Apart from `seal_message` so that vectors can pin every byte; nothing else may call it."""
    ciphertext = _CIPHERS[dialect.cipher](session_key).encrypt(nonce, text, None)
    tag = None
    if dialect.separate_tag:
        ciphertext, tag = ciphertext[:-TAG_SIZE], _base64(ciphertext[-TAG_SIZE:])
    return model.build(
        message_id=message_id,
        receiver=receiver,
        enc_session_key=_base64(sealed_key),
        nonce=_base64(nonce),
        ciphertext=_base64(ciphertext),
        tag=tag,
        sent_time=sent_time,
        others=others,
    )


def open_message(message: OnexMessage, *, receiver: str, key: OnexKey, dialect: Dialect) -> bytes:
    """The text of a message for client `receiver`. Nobody vouches for it.

    Raises a kind of `BatchError`, each refusal its own.
    """
    # 1. It was meant for us: what a server puts in our queue by mistake ends here.
    if message.receiver != receiver:
        raise NotForThisReceiver(
            f"the message {message.message_id!r} is for {model.shortened(message.receiver)!r}; "
            f"this is {receiver!r}"
        )
    # 2. Its members are what they should be.
    sealed_key = _bytes(message.enc_session_key, "enc_session_key")
    nonce = _bytes(message.nonce, "nonce", _NONCE_SIZE)
    ciphertext = _bytes(message.ciphertext, "ciphertext")
    if message.tag is not None:
        ciphertext += _bytes(message.tag, "tag", TAG_SIZE)
    # 3. The session key opens with our private key, as the configured version seals it.
    session_key = key.unseal(dialect.seal, sealed_key)
    # 4. The text opens with the session key. Both ciphers refuse what is shorter than a tag.
    try:
        return _CIPHERS[dialect.cipher](session_key).decrypt(nonce, ciphertext, None)
    except InvalidTag:
        raise BodyRefused(
            f"the text of the message {message.message_id!r} does not open with its session key"
        ) from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str, member: str, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBatch(f"the message's {member!r} is not base64: {error}") from error
    if size is not None and len(data) != size:
        raise MalformedBatch(f"the message's {member!r} has {len(data)} bytes, not {size}")
    return data
