"""Messages of several parts, inside TLS: blocks that keep every message and every part apart.

::

    block     u32 length | u8 type | body of `length` bytes
    SMALL     1: msgpack, an array of messages, each an array of parts (bin)
    LARGE     2: one message: u16 n | n times u32 length of a part | the parts, one after the other
    REPLACES  3: 16 bytes: the token of the session that this one replaces

Small messages share a block, and msgpack's C code takes a block apart in one call: in Python a
message would cost more than its encryption. Large parts are neither copied nor escaped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.errors import FrameTooLarge, MalformedFrame, UnknownFrame
from ciphermq.wire.tls import CHUNK
from ciphermq.wire.tlszmq.header import TOKEN_SIZE, Buffer

ALPN: Final = "tlszmq/1"
"""The protocol's name in TLS (RFC 7301)."""

SMALL: Final = 1
LARGE: Final = 2
REPLACES: Final = 3

Parts = list[bytes]

_BLOCK: Final = struct.Struct(">IB")
_COUNT: Final = struct.Struct(">H")
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[list[bytes]])

LARGE_FROM: Final = 32 * limits.KIB
"""Bytes of a message from which copying it would cost more than a TLS record of its own."""


def small(messages: Sequence[Sequence[Buffer]]) -> Buffer:
    """A block of small messages."""
    block = bytearray(_BLOCK.size)
    _ENCODER.encode_into(messages, block, _BLOCK.size)
    _BLOCK.pack_into(block, 0, len(block) - _BLOCK.size, SMALL)
    return block


def large(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    """A block of one large message, in pieces to be encrypted one by one."""
    index = _COUNT.pack(len(parts)) + b"".join(len(part).to_bytes(4, "big") for part in parts)
    yield _BLOCK.pack(len(index) + sum(map(len, parts)), LARGE) + index
    for part in parts:
        if len(part) <= CHUNK:
            yield part
        else:
            view = memoryview(part)
            for at in range(0, len(view), CHUNK):
                yield view[at : at + CHUNK]


def replaces(token: bytes) -> bytes:
    """A block that names the session this one replaces."""
    return _BLOCK.pack(len(token), REPLACES) + token


class PartsReader:
    """Blocks out of a stream of plaintext, which `room` takes and `filled` makes messages of.

    Raises `MalformedFrame`, `UnknownFrame` or `FrameTooLarge` (`most`: bytes of a block).
    """

    def __init__(self, scratch: memoryview, most: int) -> None:
        """`scratch` may be shared: nothing stays in it."""
        self._scratch = scratch
        self._most = most
        self._block = bytearray()
        self._have = 0
        self.replaced: list[bytes] = []
        """Tokens that REPLACES has named."""

    @property
    def mid_block(self) -> bool:
        """Whether a block has begun and not ended."""
        return bool(self._block)

    def room(self) -> memoryview:
        """Where the next plaintext goes; never empty."""
        if self._block:
            return memoryview(self._block)[self._have :]
        return self._scratch

    def filled(self, size: int) -> list[Parts]:
        """So much has come; the messages that are whole with it."""
        if not self._block:
            return self._split(self._scratch[:size])
        self._have += size
        if self._have < len(self._block):
            return []
        block, self._block, self._have = self._block, bytearray(), 0
        if len(block) == _BLOCK.size:  # it was the head of one alone
            length, _ = self._head(block)
            if length:
                self._begin(memoryview(block), _BLOCK.size + length)
                return []
        return self._split(memoryview(block))

    def _head(self, data: Buffer) -> tuple[int, int]:
        length, kind = _BLOCK.unpack_from(data)
        if length > self._most:
            raise FrameTooLarge(f"a block of {length} bytes, and {self._most} are allowed")
        return length, kind

    def _begin(self, start: memoryview, size: int) -> None:
        """A block that has only begun goes on in a buffer of its own."""
        self._block = bytearray(size)
        self._block[: len(start)] = start
        self._have = len(start)

    def _split(self, data: memoryview) -> list[Parts]:
        found: list[Parts] = []
        at, end = 0, len(data)
        while at < end:
            if end - at < _BLOCK.size:
                self._begin(data[at:], _BLOCK.size)
                break
            length, kind = self._head(data[at : at + _BLOCK.size])
            after = at + _BLOCK.size + length
            if after > end:
                self._begin(data[at:], _BLOCK.size + length)
                break
            found += self._messages(kind, data[at + _BLOCK.size : after])
            at = after
        return found

    def _messages(self, kind: int, body: memoryview) -> list[Parts]:
        if kind == SMALL:
            try:
                return _DECODER.decode(body)
            except msgspec.MsgspecError as error:
                raise MalformedFrame(f"a block of small messages: {error}") from None
        if kind == LARGE:
            return [_large_parts(body)]
        if kind == REPLACES and len(body) == TOKEN_SIZE:
            self.replaced.append(bytes(body))
            return []
        raise UnknownFrame(f"a block of the unknown type {kind} with {len(body)} bytes")


def _large_parts(body: memoryview) -> Parts:
    if len(body) < _COUNT.size:
        raise MalformedFrame("a block of a large message without its index")
    (count,) = _COUNT.unpack_from(body)
    at = _COUNT.size + 4 * count
    if at > len(body):
        raise MalformedFrame("a block of a large message whose index is cut off")
    parts = []
    for length in struct.unpack_from(f">{count}I", body, _COUNT.size):
        if length > len(body) - at:
            raise MalformedFrame("a block of a large message whose last parts are cut off")
        parts.append(bytes(body[at : at + length]))
        at += length
    if at != len(body):
        raise MalformedFrame("a block of a large message with something behind its parts")
    return parts
