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
from typing import Annotated, Final

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

SMALL_MOST: Final = 65_536
"""Messages in one block. An empty one has 3 bytes and becomes some 100 in memory, so their number
must be bounded as well as their bytes."""

# The bounds hold while it decodes: a block of nothing but empty arrays is one byte for each, and
# would be 64 in memory before anybody could count them.
_DECODER: Final[msgspec.msgpack.Decoder[list[Parts]]] = msgspec.msgpack.Decoder(
    Annotated[
        list[Annotated[Parts, msgspec.Meta(min_length=1, max_length=limits.MAX_PARTS)]],
        msgspec.Meta(max_length=SMALL_MOST),
    ]
)

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


class Rooms:
    """Memory that all sessions of a socket share, so that large messages don't each ask the system
    for more."""

    __slots__ = ("_spare", "scratch")

    def __init__(self) -> None:
        self.scratch = memoryview(bytearray(limits.NETWORK_BUFFER))
        """For what is taken apart at once: nothing stays in it."""
        self._spare = bytearray()

    def take(self, size: int) -> bytearray:
        """Room for `size` bytes or more, whatever is in it, until `give`."""
        if size > len(self._spare):
            return bytearray(size)
        room, self._spare = self._spare, bytearray()
        return room

    def give(self, room: bytearray) -> None:
        """`room` is not needed any more."""
        if len(self._spare) < len(room) <= limits.ZMQ_SPARE:
            self._spare = room


class PartsReader:
    """Blocks out of a stream of plaintext, which `room` takes and `filled` makes messages of.

    Raises `MalformedFrame`, `UnknownFrame` or `FrameTooLarge` (`most`: bytes of a block).
    """

    def __init__(self, rooms: Rooms, most: int) -> None:
        self._rooms = rooms
        self._most = most
        self._block = bytearray()
        self._size = 0
        self._have = 0
        self.replaced: bytes | None = None
        """The token that REPLACES has named, until somebody takes it from here."""
        self._has_replaced = False

    @property
    def mid_block(self) -> bool:
        """Whether a block has begun and not ended."""
        return bool(self._size)

    def room(self) -> memoryview:
        """Where the next plaintext goes; never empty."""
        if self._size:
            return memoryview(self._block)[self._have : self._size]
        return self._rooms.scratch

    def filled(self, size: int) -> list[Parts]:
        """So much has come; the messages that are whole with it."""
        if not self._size:
            return self._split(self._rooms.scratch[:size])
        self._have += size
        if self._have < self._size:
            return []
        block, whole = self._block, self._size
        self._block, self._size, self._have = bytearray(), 0, 0
        data = memoryview(block)[:whole]
        if whole == _BLOCK.size:  # it was the head of one alone
            length, _ = self._head(data)
            if length:
                self._begin(data, _BLOCK.size + length)
                return []
        found = self._split(data)
        self._rooms.give(block)
        return found

    def _head(self, data: Buffer) -> tuple[int, int]:
        length, kind = _BLOCK.unpack_from(data)
        if length > self._most:
            raise FrameTooLarge(f"a block of {length} bytes, and {self._most} are allowed")
        return length, kind

    def _begin(self, start: memoryview, size: int) -> None:
        """A block that has only begun goes on in a room of its own."""
        self._block = self._rooms.take(size)
        self._block[: len(start)] = start
        self._size = size
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
        if kind == REPLACES and len(body) == TOKEN_SIZE and not self._has_replaced:
            self.replaced, self._has_replaced = bytes(body), True
            return []
        raise UnknownFrame(f"a block of the type {kind} with {len(body)} bytes is not known here")


def _large_parts(body: memoryview) -> Parts:
    if len(body) < _COUNT.size:
        raise MalformedFrame("a block of a large message without its index")
    (count,) = _COUNT.unpack_from(body)
    if not 1 <= count <= limits.MAX_PARTS:
        raise MalformedFrame(f"a large message of {count} parts: 1 to {limits.MAX_PARTS} may be")
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
