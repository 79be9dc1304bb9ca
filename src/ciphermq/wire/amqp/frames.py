"""Frames: one at a time with their bytes (`FrameReader`), or only counted as they pass (`Scanner`).

How the scanner keeps up with millions of tiny frames a second: a stream of small messages is
periodic. The same few frame headers (method, header, body) come again and again at the same
distances. So the scanner learns one period, and checks a whole chunk of them at once: for each
byte that must be as before, one strided slice of the chunk, compared in C. The check covers every
header byte and every end byte, so what it accepts is exactly what walking frame by frame would
have accepted; where it does not hold, the scanner walks.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import AmqpFault

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
END: Final = 0xCE

CLASS_CONNECTION: Final = 10
CLOSE: Final = 50
CLOSE_OK: Final = 51

FRAME_ERROR: Final = 501
"""Reply code: the peer does not send frames."""

_HEAD: Final = Struct(">BHI")
_CLOSING: Final = {
    bytes((0, CLASS_CONNECTION, 0, CLOSE)): CLOSE,
    bytes((0, CLASS_CONNECTION, 0, CLOSE_OK)): CLOSE_OK,
}
_TYPES: Final = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
_CYCLE: Final = 8
"""Frames in the longest period that is looked for: a delivery and an acknowledgement are four."""
_REPEATS: Final = 8
"""Fewer periods than this are walked."""
_WORTH_IT: Final = 1024
"""Chunks smaller than this are walked."""
_MOST_REPEATS: Final = 8192
_FILL: Final = [bytes([value]) * _MOST_REPEATS for value in range(256)]
_PATIENCE: Final = 64
"""After a chunk that was not periodic the next is walked without trying, then two, four… up to
this many: streams of mixed sizes pay next to nothing for the trial."""


class Frame(NamedTuple):
    """One whole frame; `raw` is all of it, from type to end byte."""

    type: int
    channel: int
    raw: bytes

    @property
    def method(self) -> tuple[int, int]:
        """Class and method number; (0, 0) if it is no method frame or too short for one."""
        if self.type != METHOD or len(self.raw) < 12:
            return 0, 0
        return int.from_bytes(self.raw[7:9], "big"), int.from_bytes(self.raw[9:11], "big")

    @property
    def payload(self) -> bytes:
        """What stands between header and end byte."""
        return self.raw[7:-1]


class FrameReader:
    """Bytes in, whole frames out. Holds less than one frame between calls, if all are taken."""

    def __init__(self, limit: int = limits.AMQP_FRAME) -> None:
        """`limit`: the greatest payload of a frame."""
        self._bytes = bytearray()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what came."""
        self._bytes += data

    def next(self) -> Frame | None:
        """The next frame, or None until more has come. Raises `AmqpFault` (501)."""
        held = self._bytes
        if len(held) < 8:
            if held and held[0] not in _TYPES:
                raise _no_frame(held[0])
            return None
        kind, channel, size = _HEAD.unpack_from(held)
        if kind not in _TYPES:
            raise _no_frame(kind)
        if size > self._limit:
            raise _too_large(size, self._limit)
        if len(held) < size + 8:
            return None
        if held[size + 7] != END:
            raise _wrong_end(held[size + 7])
        frame = Frame(kind, channel, bytes(held[: size + 8]))
        del held[: size + 8]
        return frame

    def peek(self, size: int) -> bytes:
        """The first `size` bytes of what is held, or fewer."""
        return bytes(self._bytes[:size])

    def rest(self) -> bytes:
        """Takes out what is not yet a frame, or was not asked for."""
        rest = bytes(self._bytes)
        self._bytes.clear()
        return rest


class Scanner:
    """Follows one direction of an open connection; the bytes themselves go by.

    `frames` counts whole frames. `tail` is how many bytes at the end of what was last scanned
    belong to a frame that is not whole yet: 0 when the stream stands between two frames.
    `closing` is the last of Close and CloseOk that went by on channel 0 (their method numbers),
    0 before.
    """

    __slots__ = (
        "_cycle", "_head", "_limit", "_need", "_rest", "_wait", "closing", "frames", "good",
    )  # fmt: skip

    def __init__(self, limit: int = limits.AMQP_FRAME) -> None:
        """`limit`: the greatest payload of a frame."""
        self.frames = 0
        self.closing = 0
        self.good = 0
        self._limit = limit
        self._need = 0  # bytes of the current frame, its end byte included, that are to come
        self._rest = 0  # bytes of the current frame that have come
        self._head = b""  # the current frame's beginning, if less came than says what it is
        self._cycle: _Cycle | None = None
        self._wait = [0, 1]  # chunks to be walked before the next trial, and after it

    @property
    def between(self) -> bool:
        """Whether the stream stands between two frames."""
        return not self._need and not self._head

    @property
    def tail(self) -> int:
        """Bytes of an unfinished frame that have come."""
        return self._rest + len(self._head)

    @property
    def missing(self) -> int:
        """Bytes that are still to come of the current frame; 0 when that isn't known or none is."""
        return self._need

    @property
    def begun(self) -> bytes:
        """The beginning of a frame of which nothing is known yet: ten bytes at most."""
        return self._head

    def scan(self, data: bytearray | bytes, size: int) -> None:
        """Go over the first `size` bytes of `data`.

        Raises `AmqpFault` (501), after which the stream can't be followed any more. `good` then
        says where in `data` the frame at fault begins, -1 if that was before.
        """
        at = self._need
        if at > size:  # the middle of a large frame
            self._need = at - size
            self._rest += size
            return
        if at:
            if data[at - 1] != END:
                raise self._at(-1, _wrong_end(data[at - 1]))
            self.frames += 1
            self._need = self._rest = 0
        elif self._head:
            at = self._join(data, size)
            if at > size:
                return
        if size - at > _WORTH_IT:
            at = self._leap(data, at, size)
        self._walk(data, at, size)

    def _walk(self, data: bytearray | bytes, at: int, size: int) -> None:
        """Frame by frame from `at`, which is a frame's beginning."""
        unpack, limit = _HEAD.unpack_from, self._limit
        frames = 0
        while size - at >= 8:
            kind, channel, length = unpack(data, at)
            end = at + length + 8
            if kind != BODY and kind != HEADER:
                if kind != METHOD and kind != HEARTBEAT:
                    raise self._at(at, _no_frame(kind))
                if not channel and kind == METHOD:
                    if size - at < 11 and end > size:
                        break
                    self.closing = _CLOSING.get(bytes(data[at + 7 : at + 11]), self.closing)
            if length > limit:
                raise self._at(at, _too_large(length, limit))
            if end > size:
                self._need, self._rest = end - size, size - at
                self.frames += frames
                return
            if data[end - 1] != END:
                raise self._at(at, _wrong_end(data[end - 1]))
            at = end
            frames += 1
        self.frames += frames
        if at < size:
            if data[at] not in _TYPES:
                raise self._at(at, _no_frame(data[at]))
            self._head = bytes(data[at:size])

    def _join(self, data: bytearray | bytes, size: int) -> int:
        """Go on with a frame of which less has come than says what it is; where it ends in `data`.

        More than `size` when it does not end there.
        """
        had = len(self._head)
        head = self._head + bytes(data[: min(11 - had, size)])
        if len(head) >= 8:
            kind, channel = head[0], head[1:3] != b"\0\0"
            length = int.from_bytes(head[3:7], "big")
            if length > self._limit:
                raise self._at(-1, _too_large(length, self._limit))
            if len(head) >= min(length + 8, 11):
                self._head = b""
                if kind == METHOD and not channel:
                    self.closing = _CLOSING.get(head[7:11], self.closing)
                end = length + 8 - had
                if end > size:
                    self._need, self._rest = end - size, had + size
                elif data[end - 1] != END:
                    raise self._at(-1, _wrong_end(data[end - 1]))
                else:
                    self.frames += 1
                return end
        self._head = head
        return size + 1

    def _at(self, place: int, fault: AmqpFault) -> AmqpFault:
        self.good = place
        return fault

    # --- many periods at once -----------------------------------------------------------------

    def _leap(self, data: bytearray | bytes, at: int, size: int) -> int:
        """Over as many whole periods as there are from `at`; where they end."""
        wait = self._wait
        if wait[0]:
            wait[0] -= 1
            return at
        cycle = self._cycle
        if cycle is None or not cycle.turn_to(data, at):
            cycle = self._cycle = _Cycle.learn(data, at, size, self._limit)
        if cycle is not None:
            start = at
            while (repeats := min((size - at) // cycle.period, _MOST_REPEATS)) >= _REPEATS:
                if not cycle.holds(data, at, repeats):
                    break
                self.frames += repeats * cycle.count
                at += repeats * cycle.period
            if at > start:
                wait[1] = 1
                return at
            self._cycle = None
        wait[0] = wait[1]
        wait[1] = min(2 * wait[1], _PATIENCE)
        return at


class _Cycle:
    """A period of frames: the bytes that are the same in each, and where they stand."""

    __slots__ = ("count", "fixed", "heads", "period", "sizes")

    def __init__(self, heads: list[bytes]) -> None:
        self.heads = heads
        self.count = len(heads)
        self.sizes = [int.from_bytes(head[3:7], "big") + 8 for head in heads]
        self.period = sum(self.sizes)
        self.fixed: list[tuple[int, bytes]] = []
        at = 0
        for head, size in zip(heads, self.sizes, strict=True):
            self.fixed += [(at + place, _FILL[value]) for place, value in enumerate(head)]
            at += size
            self.fixed.append((at - 1, _FILL[END]))

    @classmethod
    def learn(cls, data: bytearray | bytes, at: int, size: int, limit: int) -> _Cycle | None:
        """The shortest period that stands twice from `at` on, or None.

        Methods on channel 0 are no part of one: they have to be looked at. Nor is anything that
        is no frame: walking will say so.
        """
        heads: list[bytes] = []
        while len(heads) < 2 * _CYCLE and size - at >= 8:
            kind, channel, length = _HEAD.unpack_from(data, at)
            wrong = kind not in _TYPES or length > limit
            if wrong or (kind == METHOD and not channel):
                break
            heads.append(bytes(data[at : at + 7]))
            at += length + 8
        for count in range(1, len(heads) // 2 + 1):
            if heads[:count] == heads[count : 2 * count]:
                return cls(heads[:count])
        return None

    def turn_to(self, data: bytearray | bytes, at: int) -> bool:
        """Begin the period with the frame that stands at `at`; whether it is one of its frames."""
        head = bytes(data[at : at + 7])
        if head == self.heads[0]:
            return True
        if head not in self.heads:
            return False
        first = self.heads.index(head)
        self.__init__(self.heads[first:] + self.heads[:first])  # type: ignore[misc]
        return True

    def holds(self, data: bytearray | bytes, at: int, repeats: int) -> bool:
        """Whether `repeats` periods stand from `at` on."""
        end, period = at + repeats * self.period, self.period
        return all(fill.startswith(data[at + place : end : period]) for place, fill in self.fixed)


def _no_frame(kind: int) -> AmqpFault:
    return AmqpFault(FRAME_ERROR, f"FRAME_ERROR - {kind} is no frame type of AMQP 0.9.1")


def _too_large(size: int, limit: int) -> AmqpFault:
    return AmqpFault(
        FRAME_ERROR, f"FRAME_ERROR - a frame of {size} bytes: at most {limit} were agreed on"
    )


def _wrong_end(value: int) -> AmqpFault:
    return AmqpFault(FRAME_ERROR, f"FRAME_ERROR - a frame ends with byte {value} instead of {END}")
