"""Messages of several parts, inside TLS: blocks that keep every message and every part apart.

::

    block     u32 length | u8 type | body of `length` bytes
    SMALL     1: msgpack, an array of messages, each an array of parts (bin)
    LARGE     2: one message: see `large`
    REPLACES  3: 16 bytes, u64: the token of the session that this one replaces, and how many
                 messages of ZeroMQ's the sender has sent in it. Before anything else

Small messages share a block, and msgpack's C code takes a block apart in one call: in Python a
message would cost more than its encryption. Large parts are neither copied nor escaped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.errors import FrameTooLarge, MalformedFrame, UnknownFrame
from ciphermq.wire.tlszmq.header import TOKEN_SIZE, Buffer
from ciphermq.wire.tlszmq.large import (
    COUNT_SIZE,
    LargeReader,
    index_of,
    index_size,
    pieces_of,
    untouched,
)

ALPN: Final = "tlszmq/1"
"""The protocol's name in TLS (RFC 7301)."""

SMALL: Final = 1
LARGE: Final = 2
REPLACES: Final = 3

Parts = list[bytes]

_BLOCK: Final = struct.Struct(">IB")
_REPLACED: Final = struct.Struct(f">{TOKEN_SIZE}sQ")
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
    index = index_of(parts)
    yield _BLOCK.pack(len(index) + sum(map(len, parts)), LARGE) + index
    yield from pieces_of(parts)


class Replaced(NamedTuple):
    """A session whose place another takes."""

    token: bytes
    sent: int
    """Messages that its client has sent in it."""


def replaces(old: Replaced) -> bytes:
    """A block that names the session this one replaces."""
    return _BLOCK.pack(_REPLACED.size, REPLACES) + _REPLACED.pack(*old)


class PartsReader:
    """Blocks out of a stream of plaintext, which `room` takes and `filled` makes messages of.

    Raises `MalformedFrame`, `UnknownFrame` or `FrameTooLarge` (`most`: bytes of a block).
    """

    def __init__(self, scratch: memoryview, most: int) -> None:
        """`scratch`: shared by all sessions of a socket; nothing stays in it."""
        self._scratch = scratch
        self._most = most
        self._block = memoryview(b"")
        self._size = 0
        self._have = 0
        self._large: LargeReader | None = None
        self.replaced: Replaced | None = None
        """What REPLACES has named, until somebody takes it from here."""
        self._begun = False

    @property
    def mid_block(self) -> bool:
        """Whether a block has begun and not ended."""
        return bool(self._size) or self._large is not None

    @property
    def announced(self) -> int:
        """Bytes of the large message that has begun and not ended."""
        return 0 if self._large is None else self._large.size

    def room(self) -> memoryview:
        """Where the next plaintext goes; never empty."""
        if self._large is not None:
            return self._large.room()
        if self._size:
            return self._block[self._have :]
        return self._scratch

    def filled(self, size: int) -> list[Parts]:
        """So much has come; the messages that are whole with it."""
        if self._large is not None:
            parts = self._large.filled(size)
            if parts is None:
                return []
            self._large = None
            return [parts]
        if not self._size:
            return self._split(self._scratch[:size])
        self._have += size
        if self._have < self._size:
            return []
        block, self._block, self._size = self._block, memoryview(b""), 0
        return self._split(block)

    def _split(self, data: memoryview) -> list[Parts]:
        """The messages in `data`; what is left of it begins a block that goes on."""
        found: list[Parts] = []
        at, end = 0, len(data)
        while at < end:
            if end - at < _BLOCK.size:
                self._await(data[at:], _BLOCK.size)
                break
            length, kind = _BLOCK.unpack_from(data, at)
            if length > self._most:
                raise FrameTooLarge(f"a block of {length} bytes, and {self._most} are allowed")
            body = at + _BLOCK.size
            if kind == LARGE:
                at += self._begin_large(found, data[at:], length)
                continue
            if body + length > end:
                self._await(data[at:], _BLOCK.size + length)
                break
            at = body + length
            found += self._messages(kind, data[body:at])
        return found

    def _await(self, start: memoryview, size: int) -> None:
        """A block of which too little has come goes on in a room of its own, of `size` bytes."""
        self._block = untouched(size).getbuffer()  # bytearray(size) would be there at once
        self._block[: len(start)] = start
        self._size = size
        self._have = len(start)

    def _begin_large(self, found: list[Parts], data: memoryview, length: int) -> int:
        """Take in what there is of a large message; how many bytes of `data` are done with."""
        if length < COUNT_SIZE:
            raise MalformedFrame("a block of a large message without its index")
        body = data[_BLOCK.size :]
        need = index_size(body) if len(body) >= COUNT_SIZE else COUNT_SIZE
        if need > length:
            raise MalformedFrame("a block of a large message whose index is cut off")
        if len(body) < need:
            self._await(data, _BLOCK.size + need)
            return len(data)
        self._begun = True
        reader = LargeReader(body[:need], length - need)
        parts, taken = reader.take(body[need:])
        if parts is None:
            self._large = reader
        else:
            found.append(parts)
        return _BLOCK.size + need + taken

    def _messages(self, kind: int, body: memoryview) -> list[Parts]:
        begun, self._begun = self._begun, True
        if kind == SMALL:
            try:
                return _DECODER.decode(body)
            except msgspec.MsgspecError as error:
                raise MalformedFrame(f"a block of small messages: {error}") from None
        if kind == REPLACES and len(body) == _REPLACED.size:
            if begun:
                raise MalformedFrame("a session replaces another, and has said something before")
            self.replaced = Replaced(*_REPLACED.unpack(body))
            return []
        raise UnknownFrame(f"a block of the type {kind} with {len(body)} bytes is not known here")
