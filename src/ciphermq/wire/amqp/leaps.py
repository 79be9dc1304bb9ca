"""Ways over many frames at once, for `frames.Scanner`.

Each finds frame boundaries that walking frame by frame would find too, and checks what walking
would check: type and size of every frame, its channel where that matters, its end byte. Each stops
at the first frame it is not made for; that one is walked. None steps over a method on channel 0,
which has to be looked at.

=========  ==================================================  ==========================
           what the stream must be like                        cost of a message, measured
=========  ==================================================  ==========================
`Cycle`    the same frame sizes again and again                26 to 50 ns
`Shape`    method and header of one size, bodies of any        130 ns
`skip`     anything                                            265 ns
walking    anything                                            430 ns
=========  ==================================================  ==========================
"""

from __future__ import annotations

from struct import Struct
from typing import Final, Self

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
END: Final = 0xCE
TYPES: Final = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
HEAD: Final = Struct(">BHI")

Data = bytearray | bytes

_LONGEST: Final = 8
"""Frames in the longest cycle that is looked for: a delivery and an acknowledgement are four."""
_REPEATS: Final = 8
"""Fewer than this are walked."""
_MOST_REPEATS: Final = 8192
_FILL: Final = [bytes([value]) * _MOST_REPEATS for value in range(256)]
_KNOWN_MOST: Final = 4096
"""Entries in a table of lengths; a table that is full begins anew."""


def heads(data: Data, at: int, size: int, limit: int, most: int) -> list[bytes]:
    """The headers of the frames from `at` on, as far as they may be stepped over."""
    found: list[bytes] = []
    while len(found) < most and size - at >= 8:
        kind, channel, length = HEAD.unpack_from(data, at)
        if kind not in TYPES or length > limit or (kind == METHOD and not channel):
            break
        found.append(bytes(data[at : at + 7]))
        at += length + 8
    return found


class Cycle:
    """Some frames of certain sizes, again and again: the bytes that are the same in each period,
    each checked with one strided slice, in C, for thousands of periods."""

    __slots__ = ("_fixed", "_heads", "_period")

    def __init__(self, found: list[bytes]) -> None:
        self._heads = found
        self._fixed: list[tuple[int, bytes]] = []
        at = 0
        for head in found:
            self._fixed += [(at + place, _FILL[value]) for place, value in enumerate(head)]
            at += int.from_bytes(head[3:7], "big") + 8
            self._fixed.append((at - 1, _FILL[END]))
        self._period = at

    @classmethod
    def learn(cls, found: list[bytes]) -> Self | None:
        """The shortest that stands twice at the beginning, or None."""
        for count in range(1, min(_LONGEST, len(found) // 2) + 1):
            if found[:count] == found[count : 2 * count]:
                return cls(found[:count])
        return None

    def leap(self, data: Data, at: int, size: int) -> tuple[int, int]:
        """Where the last whole period from `at` on ends, and how many frames that is."""
        head = bytes(data[at : at + 7])
        if head != self._heads[0]:  # a chunk begins where the last one ended
            if head not in self._heads:
                return at, 0
            first = self._heads.index(head)
            return Cycle(self._heads[first:] + self._heads[:first]).leap(data, at, size)
        frames, period = 0, self._period
        while (repeats := min((size - at) // period, _MOST_REPEATS)) >= _REPEATS:
            end = at + repeats * period
            if not all(fill.startswith(data[at + n : end : period]) for n, fill in self._fixed):
                break
            frames += repeats * len(self._heads)
            at = end
        return at, frames


class Shape:
    """Messages whose method and header frames have one size each, and bodies any: three frames are
    unpacked and compared as three numbers, each an end byte and the header behind it."""

    __slots__ = ("_before", "_first", "_limit", "_second", "_unpack")

    def __init__(self, method: bytes, header: bytes, limit: int) -> None:
        sizes = [int.from_bytes(head[3:7], "big") + 8 for head in (method, header)]
        self._unpack = Struct(f">Q{sizes[0] - 8}xQ{sizes[1] - 8}xQ").unpack_from
        self._before = sum(sizes)
        self._first = int.from_bytes(bytes([END]) + method, "big")
        self._second = int.from_bytes(bytes([END]) + header, "big")
        self._limit = limit

    @classmethod
    def learn(cls, found: list[bytes], limit: int) -> Self | None:
        """The shape of the first message, if the second has it too."""
        kinds = [head[0] for head in found[:6]]
        if kinds != [METHOD, HEADER, BODY] * 2 or found[:2] != found[3:5]:
            return None
        return cls(found[0], found[1], limit)

    def leap(self, data: Data, at: int, size: int) -> tuple[int, int]:
        """Where the last whole message from `at` on ends, and how many frames that is."""
        if not at:  # the end byte before it was in another chunk
            return at, 0
        unpack, bodies, first, second = self._unpack, _BODIES, self._first, self._second
        ahead = self._before
        end = before = at - 1
        stop = size - self._before - 8
        messages = 0
        while end <= stop:
            one, two, three = unpack(data, end)
            if one != first or two != second:
                break
            before = end
            try:
                end += bodies[three] + ahead
            except KeyError:
                if not (length := _body(three, self._limit)):
                    break
                end += length + ahead
            messages += 1
        if messages and (end >= size or data[end] != END):
            end, messages = before, messages - 1  # not whole, or wrong: to be walked
        return end + 1, 3 * messages


_BODIES: Final[dict[int, int]] = {}
"""An end byte and the header of a body behind it, as a number: the length of that frame. One table
for all sessions, as the next one, for they have one limit, and sizes repeat, if nothing else."""


def _body(number: int, limit: int) -> int:
    """Put a body's header into the table; its frame's length, 0 if it is none."""
    size = number & 0xFFFF_FFFF
    if number >> 48 != END << 8 | BODY or size > limit:
        return 0
    if len(_BODIES) >= _KNOWN_MOST:
        _BODIES.clear()
    _BODIES[number] = length = size + 8
    return length


_LENGTHS: Final[dict[bytes, int]] = {}
"""An end byte and any header behind it: the length of that frame."""


def skip(data: Data, at: int, size: int, limit: int) -> tuple[int, int]:
    """Over any frames from `at` on; where the last whole one ends, and how many there are."""
    known, frames = _LENGTHS, 0
    chunk = b"".join((b"\xce", memoryview(data)[at:size]))
    end = before = 0
    while True:
        try:
            while True:
                length = known[chunk[end : end + 8]]
                before = end
                end += length
                frames += 1
        except KeyError:
            if not (length := _length(chunk[end : end + 8], limit)):
                break
    if frames and (end >= len(chunk) or chunk[end] != END):
        end, frames = before, frames - 1
    return at + end, frames


def _length(key: bytes, limit: int) -> int:
    """Put a header's length into the table; 0 if it isn't one to be skipped."""
    if len(key) < 8 or key[0] != END or key[1] not in TYPES:
        return 0
    length = int.from_bytes(key[4:8], "big") + 8
    if length - 8 > limit or (key[1] == METHOD and key[2:4] == b"\0\0"):
        return 0
    if len(_LENGTHS) >= _KNOWN_MOST:
        _LENGTHS.clear()
    _LENGTHS[key] = length
    return length
