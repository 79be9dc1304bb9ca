"""Which messages of a batch are meant, as an integer: bit *i* is message *i*.

On the wire and on disk a bitmap is little-endian bytes without trailing zero bytes, and the
empty string means "every message", which is the common case and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Bitmap = int
Levels = dict[int, Bitmap]
"""How often something happened, to the messages it happened to so often; none: not at all."""


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


def raise_levels(levels: Levels, bits: Bitmap) -> None:
    """It happened to each of `bits` once more."""
    for level in sorted(levels, reverse=True):
        if moved := levels[level] & bits:
            bits &= ~moved
            levels[level + 1] = levels.get(level + 1, 0) | moved
            levels[level] &= ~moved
            if not levels[level]:
                del levels[level]
    if bits:
        levels[1] = levels.get(1, 0) | bits


def by_level(levels: Levels, bits: Bitmap) -> Levels:
    """`bits`, parted by how often it happened to them; 0 for those it never did."""
    parted: Levels = {}
    for level, those in levels.items():
        if here := those & bits:
            parted[level] = here
            bits &= ~here
    if bits:
        parted[0] = bits
    return parted


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
