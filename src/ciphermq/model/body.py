"""The plaintext of a batch: all its messages, in columns.

::

    plaintext  = u8 layout (1) | u16 count | count * u64 sent | count * u32 len(properties)
                 | count * u32 len(payload) | properties ... | payloads ...
    properties = nothing, when there is neither content type nor header; else
                 str content type | u16 n | n * (str key | str value)       each key once
    str        = u16 length | UTF-8

Columns, because both ends are interpreted: a thousand messages are packed and found again in a
few steps over arrays, and a payload that nobody looks at is never cut out. Integers are big-endian,
`sent` is milliseconds since 1970 (to the end of the year 9999). The lengths add up to the whole,
so there is one way to write it.

Who decodes these bytes has verified who wrote them, but a verified sender can be broken or hostile:
all is checked at once, so that what comes out needs no further care. What is wrong with it is
`BodyRefused`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from ciphermq import limits
from ciphermq.errors import BatchTooLarge, BodyRefused, UsageError
from ciphermq.model.envelope import MAX_TIME_MS
from ciphermq.model.message import NO_PROPERTIES, OpenedMessage, OutgoingMessage, Properties

LAYOUT: Final = 1
HEAD_SIZE: Final = 3
MESSAGE_OVERHEAD: Final = 16
"""What a message takes beside its properties and its payload: a time and two lengths."""

_HEAD: Final = struct.Struct(">BH")
_U16: Final = struct.Struct(">H")
_SWAP: Final = sys.byteorder == "little"


class Body:
    """A batch's plaintext, ready to be sealed. Its `data` can be kept, and sealed later."""

    __slots__ = ("count", "data")

    def __init__(self, data: bytes) -> None:
        """`data` as an earlier `Body` had it; `UsageError` when it is no plaintext of a batch."""
        try:
            self.count = len(decode(data))
        except BodyRefused as error:
            raise UsageError(f"these bytes can't be sealed: {error}") from error
        self.data = data

    @classmethod
    def of(cls, messages: Sequence[OutgoingMessage]) -> Body:
        """The messages in columns. `BatchTooLarge` names the limit that they are over."""
        return cls._pack(
            [message.payload for message in messages],
            [
                encode_properties(message.content_type, message.headers)
                if message.headers or message.content_type
                else b""
                for message in messages
            ],
            [message.sent_ms for message in messages],
        )

    @classmethod
    def of_payloads(cls, payloads: Sequence[bytes], sent_ms: int) -> Body:
        """Messages that are payload alone, all handed over at the same time."""
        return cls._pack(payloads, [], [sent_ms] * len(payloads))

    @classmethod
    def _pack(cls, payloads: Sequence[bytes], properties: list[bytes], sent: list[int]) -> Body:
        count = len(payloads)
        if not 0 < count <= limits.MAX_BATCH_MESSAGES:
            raise BatchTooLarge(
                f"a batch has 1 to {limits.MAX_BATCH_MESSAGES} messages; these are {count}"
            )
        if min(sent) < 0 or max(sent) > MAX_TIME_MS:
            raise UsageError("a message's sent time is before 1970 or beyond the year 9999")
        payload_sizes = list(map(len, payloads))
        property_sizes = list(map(len, properties)) if properties else [0] * count
        size = HEAD_SIZE + MESSAGE_OVERHEAD * count + sum(payload_sizes) + sum(property_sizes)
        if size > limits.MAX_PLAINTEXT:
            raise BatchTooLarge(
                f"{count} messages take {size} bytes; a batch has {limits.MAX_PLAINTEXT} at most"
            )
        body = cls.__new__(cls)
        body.count = count
        body.data = b"".join(
            (
                _HEAD.pack(LAYOUT, count),
                _pack_column("Q", sent),
                _pack_column("I", property_sizes),
                _pack_column("I", payload_sizes),
                *properties,
                *payloads,
            )
        )
        return body


class Messages:
    """The messages of an opened batch. A payload is cut out when it is asked for."""

    __slots__ = ("_bounds", "_plaintext", "_properties", "_sent")

    def __init__(
        self,
        plaintext: bytes,
        sent: array[int],
        properties: list[Properties] | None,
        bounds: list[int],
    ) -> None:
        """`bounds`: where each payload begins, and at last where the plaintext ends."""
        self._plaintext = plaintext
        self._sent = sent
        self._properties = properties
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._sent)

    def __getitem__(self, index: int) -> OpenedMessage:
        return OpenedMessage(self.payload(index), self.properties(index), self._sent[index])

    def __iter__(self) -> Iterator[OpenedMessage]:
        return map(self.__getitem__, range(len(self)))

    @property
    def plaintext(self) -> bytes:
        """What `decode` was given: an Inbox that stores payloads keeps it as it is."""
        return self._plaintext

    def payload(self, index: int) -> bytes:
        """The payload of message `index`, from 0; `IndexError` beyond the batch."""
        if index < 0:
            raise IndexError(f"no message has the index {index}")
        return self._plaintext[self._bounds[index] : self._bounds[index + 1]]

    def payloads(self) -> list[bytes]:
        """All payloads, in order."""
        plaintext, bounds = self._plaintext, self._bounds
        return [plaintext[bounds[i] : bounds[i + 1]] for i in range(len(self))]

    def properties(self, index: int) -> Properties:
        """Content type and headers of message `index`."""
        return NO_PROPERTIES if self._properties is None else self._properties[index]

    def sent_ms(self, index: int) -> int:
        """When the sender's application handed over message `index`."""
        return self._sent[index]


def decode(plaintext: bytes) -> Messages:
    """A batch's messages; `BodyRefused` when any part of them is not well formed."""
    size = len(plaintext)
    if not HEAD_SIZE <= size <= limits.MAX_PLAINTEXT:
        raise BodyRefused(f"a batch's plaintext can't have {size} bytes")
    layout, count = _HEAD.unpack_from(plaintext)
    if layout != LAYOUT:
        raise BodyRefused(f"the body has layout {layout}; this program knows {LAYOUT}")
    if not 0 < count <= limits.MAX_BATCH_MESSAGES:
        raise BodyRefused(f"the body says it has {count} messages")
    columns = HEAD_SIZE + MESSAGE_OVERHEAD * count
    if columns > size:
        raise BodyRefused(f"the body is too short for its {count} messages")
    sent = _take_column("Q", plaintext, HEAD_SIZE, 8 * count)
    property_sizes = _take_column("I", plaintext, HEAD_SIZE + 8 * count, 4 * count)
    payload_sizes = _take_column("I", plaintext, HEAD_SIZE + 12 * count, 4 * count)
    payloads = columns + sum(property_sizes)
    if payloads + sum(payload_sizes) != size:
        raise BodyRefused(f"the messages' lengths do not add up to the body's {size} bytes")
    if max(sent) > MAX_TIME_MS:
        raise BodyRefused("a message's sent time is beyond the year 9999")
    properties = _decode_all(plaintext, columns, property_sizes) if payloads > columns else None
    bounds = list(accumulate(payload_sizes, initial=payloads))
    return Messages(plaintext, sent, properties, bounds)


def encoded_size(message: OutgoingMessage) -> int:
    """What `message` adds to a plaintext. `BatchTooLarge` when no batch could hold it."""
    properties = b""
    if message.headers or message.content_type:
        properties = encode_properties(message.content_type, message.headers)
    size = MESSAGE_OVERHEAD + len(properties) + len(message.payload)
    if size > limits.MAX_PLAINTEXT - HEAD_SIZE:
        raise BatchTooLarge(
            f"a message of {len(message.payload)} bytes is too large: with its headers and "
            f"framing it takes {size}, {limits.MAX_PLAINTEXT - HEAD_SIZE} at most"
        )
    return size


# --- properties -------------------------------------------------------------------------------


def encode_properties(content_type: str | None, headers: Mapping[str, str]) -> bytes:
    """Content type and headers as bytes; none at all when there are neither.

    `BatchTooLarge` over the limits on them, `UsageError` for what is not text."""
    if not headers:
        return _encode_content_type(content_type) if content_type else b""
    return _encode_properties(content_type or "", headers)


@lru_cache(maxsize=256)
def _encode_content_type(content_type: str) -> bytes:
    # A content type alone is the common case, and nearly always the one just seen.
    return _encode_properties(content_type, {})


def _encode_properties(content_type: str, headers: Mapping[str, str]) -> bytes:
    if len(headers) > limits.MAX_HEADERS:
        raise BatchTooLarge(f"a message has {len(headers)} headers; {limits.MAX_HEADERS} at most")
    try:
        texts = [text.encode() for item in headers.items() for text in item]
        texts.insert(0, content_type.encode())
    except (AttributeError, UnicodeEncodeError) as error:
        raise UsageError(f"a message's content type and headers are text: {error}") from error
    size = sum(map(len, texts)) + 2 * len(texts) + 2
    if size > limits.MAX_PROPERTIES:
        raise BatchTooLarge(
            f"a message's headers take {size} bytes; {limits.MAX_PROPERTIES} at most"
        )
    parts = [part for text in texts for part in (_U16.pack(len(text)), text)]
    parts.insert(2, _U16.pack(len(headers)))
    return b"".join(parts)


def decode_properties(data: bytes) -> Properties:
    """The reverse of `encode_properties`; `BodyRefused` for what it would not have written."""
    if not data:
        return NO_PROPERTIES
    if len(data) > limits.MAX_PROPERTIES:
        raise BodyRefused(f"a message's headers take {len(data)} bytes")
    content_type, at = _take_text(data, 0)
    count = int.from_bytes(data[at : at + 2], "big")
    at += 2
    if count > limits.MAX_HEADERS:
        raise BodyRefused(f"a message has {count} headers")
    headers: dict[str, str] = {}
    for _ in range(count):
        key, at = _take_text(data, at)
        headers[key], at = _take_text(data, at)
    # A header given twice would mean one thing to who reads the first, another to who reads
    # the last; empty properties have no bytes at all.
    if at != len(data) or len(headers) != count or not (content_type or headers):
        raise BodyRefused("a message's headers are not well formed")
    return Properties(content_type or None, MappingProxyType(headers))


def _decode_all(plaintext: bytes, start: int, sizes: array[int]) -> list[Properties]:
    """All messages' properties. Mostly they are few different ones: each is decoded once."""
    known: dict[bytes, Properties] = {}
    found = []
    for size in sizes:
        data = plaintext[start : start + size]
        start += size
        properties = known.get(data)
        if properties is None:
            properties = known[data] = decode_properties(data)
        found.append(properties)
    return found


def _take_text(data: bytes, at: int) -> tuple[str, int]:
    start = at + 2
    end = start + int.from_bytes(data[at:start], "big")
    if end > len(data):
        raise BodyRefused("a message's headers are cut short")
    try:
        return data[start:end].decode(), end
    except UnicodeDecodeError:
        raise BodyRefused("a message's headers are not UTF-8") from None


# --- columns ----------------------------------------------------------------------------------


def _pack_column(code: str, numbers: Sequence[int]) -> bytes:
    column = array(code, numbers)
    if _SWAP:
        column.byteswap()
    return column.tobytes()


def _take_column(code: str, data: bytes, at: int, size: int) -> array[int]:
    column: array[int] = array(code, data[at : at + size])
    if _SWAP:
        column.byteswap()
    return column
