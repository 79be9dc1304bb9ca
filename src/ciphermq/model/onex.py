"""A message of CipherMQ 1.x: the envelope kind ``ciphermq-1``, without any cryptography.

The envelope is the JSON text that its sender published, byte for byte, unknown members too::

    {"message_id": "sender_1-1a2b3c4d-receiver_1",
     "receiver_client_id": "receiver_1",
     "enc_session_key": BASE64,
     "nonce": BASE64,
     "ciphertext": BASE64,
     "tag": BASE64,                 1.4.0 only; later the tag ends the ciphertext
     "sent_time": ...,              and whatever else a client adds
    }

It begins with ``{``, a sealed batch with ``CMQ2``, so the two kinds are told apart by a byte.

Nothing in it is signed or bound: whoever can publish can write any id, receiver and time. What is
checked here only keeps one client's text from harming another: it is one line, so it can't pass
for more than one message; its id is one word, so it can stand in the middle of a line; each member
is there once, so that all who read it read the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from ciphermq import limits
from ciphermq.errors import BatchTooLarge, MalformedBatch, UsageError
from ciphermq.model.envelope import HASH_SIZE, Buffer, Header

FIRST_BYTE: Final = ord("{")

_MEMBERS: Final = ("message_id", "receiver_client_id", "enc_session_key", "nonce", "ciphertext")
_TAG: Final = "tag"
_SENT_TIME: Final = "sent_time"
_EXCHANGE: Final = "exchange"
_ROUTING_KEY: Final = "routing_key"
ID_LABEL: Final = b"CipherMQ/2 1.x message id\0"
_NO_ID: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
"""White space of any script and control characters."""
_PLAIN_ID: Final = re.compile(rf"[!-~]{{1,{limits.MAX_ONEX_ID}}}")
"""What nearly all are, and none of them is anything but good."""
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
"""JSON can spell them alone, UTF-8 can't."""


class SessionSeal(StrEnum):
    """How a session key is sealed to a receiver's X25519 key. Which one a peer speaks is
    configured, never guessed."""

    V1_4 = "ciphermq-1.4"
    """A NaCl sealed box."""
    V1_5 = "ciphermq-1.5"
    """The same parts put together otherwise; see `ciphermq.custody.onex`."""


class PayloadCipher(StrEnum):
    """What encrypts the text. What 1.x runs is the first, what its document names the second."""

    CHACHA20_POLY1305 = "chacha20-poly1305"
    AES_256_GCM = "aes-256-gcm"


class Dialect(msgspec.Struct, frozen=True):
    """What a 1.x peer speaks."""

    seal: SessionSeal
    cipher: PayloadCipher = PayloadCipher.CHACHA20_POLY1305
    separate_tag: bool = False
    """Whether what we seal has its tag in a member of its own (1.4.0). What we open says so."""


class OnexMessage(msgspec.Struct, frozen=True):
    """A message taken apart as far as it can be without a key."""

    message_id: str
    receiver: str
    """The ``receiver_client_id``."""
    enc_session_key: str
    nonce: str
    ciphertext: str
    tag: str | None
    sent_time: str | None
    exchange: str | None
    """Where it goes, if its sender can't say it otherwise: a client of ``cmq/2``, whose PUBLISH
    names no exchange. 1.x knows neither this member nor the next."""
    routing_key: str | None
    text: bytes
    """The envelope: the JSON as it came, without the white space around it."""


def is_onex(sealed: Buffer) -> bool:
    """Whether these bytes are of this kind, rather than a sealed batch."""
    return len(sealed) > 0 and sealed[0] == FIRST_BYTE


def check_message_id(text: str) -> str:
    """`text`, or `MalformedBatch` with the rule it breaks.

    The protocol says ``Message: ID JSON``, so an id with a space, let alone a line break, could
    make a receiver see another message than the one that was sent.
    """
    if _PLAIN_ID.fullmatch(text):
        return text
    if not text:
        raise MalformedBatch("a message_id is empty")
    if _NO_ID.search(text) or _SURROGATE.search(text):
        raise MalformedBatch(
            f"the message_id {shortened(text)!r} has white space or control characters in it"
        )
    if len(text.encode()) > limits.MAX_ONEX_ID:
        raise MalformedBatch(
            f"the message_id {shortened(text)!r} has more than {limits.MAX_ONEX_ID} bytes"
        )
    return text


def is_message_id(text: str) -> bool:
    """Whether a 1.x message may have this id."""
    try:
        return bool(check_message_id(text))
    except MalformedBatch:
        return False


def internal_id(message_id: str) -> bytes:
    """The 16 bytes by which the rest of the program knows a message with this id.

    A hash of the id's text in the form of a UUIDv8 (RFC 9562 section 5.8): equal texts have equal
    ones, and none is ever a batch id, which is a UUIDv7. 122 bits of SHA-256, so two texts with
    the same one are not found by chance, nor by trying.
    """
    found = bytearray(hashlib.sha256(ID_LABEL + message_id.encode()).digest()[:16])
    found[6] = found[6] & 0x0F | 0x80
    found[8] = found[8] & 0x3F | 0x80
    return bytes(found)


def is_internal_id(data: bytes) -> bool:
    """Whether these are 16 bytes that `internal_id` may have made."""
    return len(data) == 16 and data[6] >> 4 == 8 and data[8] >> 6 == 2


def parse(data: Buffer) -> OnexMessage:
    """The message in these bytes; `MalformedBatch` or `BatchTooLarge` when they are none."""
    if len(data) > limits.MAX_ONEX_MESSAGE:
        raise BatchTooLarge(f"a message of {len(data)} bytes; {limits.MAX_ONEX_MESSAGE} at most")
    raw = bytes(data).strip(b" \t")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedBatch(f"the message is not UTF-8: {error.reason}") from error
    # Not only \n: some clients split at everything that Unicode calls a line break.
    if text.splitlines() != [text]:
        raise MalformedBatch("the message is empty or has a line break in it")
    members = _members(text)
    message_id, receiver, enc_session_key, nonce, ciphertext = (
        _text_of(members, name) for name in _MEMBERS
    )
    tag = None if members.get(_TAG) is None else _text_of(members, _TAG)
    sent_time = members.get(_SENT_TIME)
    return OnexMessage(
        check_message_id(message_id),
        receiver,
        enc_session_key,
        nonce,
        ciphertext,
        tag or None,
        sent_time if isinstance(sent_time, str) else None,
        _text_or_none(members, _EXCHANGE),
        _text_or_none(members, _ROUTING_KEY),
        raw,
    )


def stored_id(data: Buffer) -> tuple[str, bytes]:
    """The id of a message that was taken before, and its text; raises as `parse`.

    `parse` looks at every member; that was done when the message came in, and twice is once too
    often for each message that passes. In ASCII, what msgspec reads has none of the other things
    in it that end lines somewhere."""
    raw = bytes(data).strip(b" \t")
    if raw.isascii() and b"\n" not in raw and b"\r" not in raw:
        try:
            return check_message_id(_STORED.decode(raw).message_id), raw
        except (msgspec.MsgspecError, RecursionError):
            pass  # `parse` says why, or that it may be
    found = parse(raw)
    return found.message_id, found.text


def split(data: Buffer) -> list[bytes]:
    """The messages of a ``publish_batch``, each as it stands in the array; not yet parsed.

    `MalformedBatch` when it is no array or an empty one, `BatchTooLarge` for too many.
    """
    try:
        found = _BATCH.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatch(f"not an array of messages: {error}") from error
    if not found:
        raise MalformedBatch("the array of messages is empty")
    if len(found) > limits.MAX_ONEX_BATCH:
        raise BatchTooLarge(f"{len(found)} messages at once; {limits.MAX_ONEX_BATCH} at most")
    return [bytes(each) for each in found]


def build(
    *,
    message_id: str,
    receiver: str,
    enc_session_key: str,
    nonce: str,
    ciphertext: str,
    tag: str | None = None,
    sent_time: str | None = None,
    others: Mapping[str, Any] | None = None,
) -> bytes:
    """A message's JSON, in ASCII; `UsageError` for what `parse` would not take.

    `others` are further members, which receivers may or may not know.
    """
    members = {
        **dict(
            zip(_MEMBERS, (message_id, receiver, enc_session_key, nonce, ciphertext), strict=True)
        ),
        **({} if tag is None else {_TAG: tag}),
        **({} if sent_time is None else {_SENT_TIME: sent_time}),
    }
    if others and not members.keys().isdisjoint(others):
        raise UsageError(f"{sorted(members.keys() & others.keys())} are a message's own members")
    try:
        data = json.dumps({**members, **(others or {})}, allow_nan=False).encode()
        parse(data)
    except (TypeError, ValueError, RecursionError, MalformedBatch, BatchTooLarge) as error:
        raise UsageError(f"this can't be a message of CipherMQ 1.x: {error}") from error
    return data


def header(
    message: OnexMessage, *, client: str, exchange: str, routing_key: str, now_ms: int
) -> Header:
    """What an engine must know of a message that `client` publishes now: as of a batch of one."""
    return Header(
        sender=client,
        certificate_sha256=bytes(HASH_SIZE),
        batch_id=internal_id(message.message_id),
        created_ms=now_ms,
        expires_ms=0,
        exchange=exchange,
        routing_key=routing_key,
        count=1,
        commitment=bytes(HASH_SIZE),
        receivers=(),
    )


def shortened(text: str, most: int = 64) -> str:
    """`text` for an error message: a stranger's id may be a megabyte."""
    return text if len(text) <= most else text[:most] + "…"


class _Stored(msgspec.Struct):
    message_id: str


_STORED: Final = msgspec.json.Decoder(_Stored)
_BATCH: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _members(text: str) -> dict[str, Any]:
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedBatch(f"the message is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise MalformedBatch("the message is not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; of two with one name each reader could believe another."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands in it twice")
    return members


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _text_or_none(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None


def _text_of(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise MalformedBatch(
            f"the message's {name!r} is {'missing' if name not in members else 'not text'}"
        )
    if not value.isascii() and _SURROGATE.search(value):
        raise MalformedBatch(f"the message's {name!r} has half of a character in it")
    return value
