"""Large messages: their parts go through TLS as they are, and are decrypted where they stay.

A block of one message is an index, ``u16 n | n times u32 length of a part``, and the parts, one
after the other. Of a large part every copy counts, for it is larger than the caches: it is
encrypted out of the sender's own bytes, and at the receiver OpenSSL writes it into the very bytes
that the application is given.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from ciphermq import limits
from ciphermq.errors import MalformedFrame
from ciphermq.wire.tlszmq.header import Buffer

_COUNT: Final = struct.Struct(">H")
COUNT_SIZE: Final = _COUNT.size

_ALONE: Final = 32 * limits.KIB
"""Bytes of a part from which it is worth a buffer of its own. Shorter ones share the next."""


def index_of(parts: Sequence[Buffer]) -> bytes:
    """The index of a message."""
    return _COUNT.pack(len(parts)) + b"".join(len(part).to_bytes(4, "big") for part in parts)


def pieces_of(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    """All parts in pieces for one TLS write each."""
    for part in parts:
        if len(part) <= limits.ZMQ_PIECE:
            yield part
        else:
            view = memoryview(part)
            for at in range(0, len(view), limits.ZMQ_PIECE):
                yield view[at : at + limits.ZMQ_PIECE]


def untouched(size: int) -> io.BytesIO:
    """So many bytes to be written into, which a peer has announced: the system clears them where
    they are touched and not before. What `getvalue` gives at the end is no copy."""
    return io.BytesIO(bytes(size))


def index_size(start: Buffer) -> int:
    """Bytes of the index that begins with `start`; `MalformedFrame` when no message has so many
    parts, or none."""
    (count,) = _COUNT.unpack_from(start)
    if not 1 <= count <= limits.MAX_PARTS:
        raise MalformedFrame(f"a large message of {count} parts: 1 to {limits.MAX_PARTS} may be")
    return COUNT_SIZE + 4 * int(count)


class LargeReader:
    """One large message on its way in, part by part."""

    __slots__ = ("_at", "_file", "_lengths", "_parts", "_size", "_together", "_view", "size")

    def __init__(self, index: Buffer, size: int) -> None:
        """`index`: whole; `size`: bytes of all parts, as the block's head has it. `MalformedFrame`
        when the two don't agree."""
        count = (len(index) - COUNT_SIZE) // 4
        lengths = struct.unpack_from(f">{count}I", index, COUNT_SIZE)
        if sum(lengths) != size:
            raise MalformedFrame(
                f"a large message of {size} bytes whose parts have {sum(lengths)} by its index"
            )
        self.size = size
        self._parts: list[bytes] = []
        self._lengths = lengths
        self._together = 0
        self._next()

    def room(self) -> memoryview:
        """Where the next bytes go; empty once the message is whole."""
        return self._view[self._at :]

    def filled(self, size: int) -> list[bytes] | None:
        """So many have come; the message's parts once all have."""
        self._at += size
        while self._at == self._size:
            self._view.release()
            self._keep(self._file.getvalue())
            if len(self._parts) == len(self._lengths):
                return self._parts
            self._next()
        return None

    def take(self, data: memoryview) -> tuple[list[bytes] | None, int]:
        """Take in what there is of it in `data`: its parts if it is whole then, and how many bytes
        of `data` were its."""
        at = 0
        while True:
            room = self.room()
            size = min(len(room), len(data) - at)
            room[:size] = data[at : at + size]
            at += size
            found = self.filled(size)
            if found is not None or at == len(data):
                return found, at

    def _next(self) -> None:
        """A buffer for the next part, or for as many short ones as come next."""
        ahead = self._lengths[len(self._parts) :]
        short = list(itertools.takewhile(lambda length: length < _ALONE, ahead))
        self._together = len(short)
        self._size = sum(short) if short else ahead[0]
        self._file = untouched(self._size)
        self._view = self._file.getbuffer()
        self._at = 0

    def _keep(self, data: bytes) -> None:
        if not self._together:
            self._parts.append(data)
            return
        at = 0
        for length in self._lengths[len(self._parts) :][: self._together]:
            self._parts.append(data[at : at + length])
            at += length
