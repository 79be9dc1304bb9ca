"""Which messages of a batch are meant, as an integer: bit *i* is message *i*.

On the wire and on disk a bitmap is little-endian bytes without trailing zero bytes, and the
empty string means "every message", which is the common case and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Bitmap = int


def full(count: int) -> Bitmap:
    """All of a batch's `count` messages."""
    return (1 << count) - 1


def of(indices: Iterable[int]) -> Bitmap:
    """The bitmap with just these indices."""
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits


def span(first: int, last: int) -> Bitmap:
    """Indices `first` to `last`, both included."""
    return (1 << (last + 1)) - (1 << first)


def indices(bits: Bitmap) -> Iterator[int]:
    """The indices in `bits`, lowest first."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def encode(bits: Bitmap, count: int) -> bytes:
    """Shortest bytes for `bits` of a batch of `count`; empty when it is all of them."""
    if bits == full(count):
        return b""
    return bits.to_bytes((bits.bit_length() + 7) // 8 or 1, "little")


def decode(data: bytes | memoryview, count: int) -> Bitmap:
    """The reverse of `encode`; bits beyond the batch's messages are cut off."""
    if not data:
        return full(count)
    return int.from_bytes(data, "little") & full(count)
