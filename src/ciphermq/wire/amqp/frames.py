"""Frames: one at a time with their bytes (`FrameReader`), or only counted as they pass (`Scanner`).

How the scanner keeps up with millions of tiny frames a second: streams of messages have patterns,
and a pattern can be checked for many frames at once (`leaps`). What is accepted that way is exactly
what walking frame by frame would have accepted; where no pattern holds, the scanner walks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import AmqpFault
from ciphermq.wire.amqp.leaps import (
    BODY,
    END,
    HEAD,
    HEADER,
    HEARTBEAT,
    METHOD,
    TYPES,
    Cycle,
    Shape,
    heads,
    skip,
)

CLASS_CONNECTION: Final = 10
CLOSE: Final = 50
CLOSE_OK: Final = 51

FRAME_ERROR: Final = 501
"""Reply code: the peer does not send frames."""

_CLOSING: Final = {
    bytes((0, CLASS_CONNECTION, 0, CLOSE)): CLOSE,
    bytes((0, CLASS_CONNECTION, 0, CLOSE_OK)): CLOSE_OK,
}
_WORTH_IT: Final = 1024
"""Chunks smaller than this are walked."""
_GAIN: Final = 24
"""Fewer frames are not worth leaping over;"""
_PATIENCE: Final = 64
"""then it is tried again after one chunk, then two, four… up to this many."""


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
            if held and held[0] not in TYPES:
                raise _no_frame(held[0])
            return None
        kind, channel, size = HEAD.unpack_from(held)
        if kind not in TYPES:
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
        "_head",
        "_limit",
        "_need",
        "_patience",
        "_rest",
        "_rest_leaps",
        "_rest_search",
        "_way",
        "closing",
        "frames",
        "good",
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
        self._way: Cycle | Shape | None = None
        self._rest_leaps = 0  # chunks that are walked before leaping is tried again
        self._rest_search = 0  # the same for looking for a pattern
        self._patience = 1

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
        unpack, limit = HEAD.unpack_from, self._limit
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
            if data[at] not in TYPES:
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

    # --- many at once -------------------------------------------------------------------------

    def _leap(self, data: bytearray | bytes, at: int, size: int) -> int:
        """Over as many whole frames from `at` as a quicker way than walking goes."""
        if self._rest_leaps:
            self._rest_leaps -= 1
            return at
        before = self.frames
        if not isinstance(self._way, Cycle):
            at = self._to_method(data, at, size)
        at = self._go(data, at, size)
        if self._way is None:
            at = self._go_without_pattern(data, at, size)
        if self.frames - before >= _GAIN:
            self._patience = 1
        else:
            self._rest_leaps, self._patience = self._patience, min(2 * self._patience, _PATIENCE)
        return at

    def _go(self, data: bytearray | bytes, at: int, size: int) -> int:
        """The pattern's way, which is forgotten when it leads nowhere."""
        if self._way is not None:
            start = at
            at, frames = self._way.leap(data, at, size)
            self.frames += frames
            if at == start:
                self._way = None
        return at

    def _go_without_pattern(self, data: bytearray | bytes, at: int, size: int) -> int:
        """Look for one, now and then; else skip from length to length."""
        if self._rest_search:
            self._rest_search -= 1
        else:
            found = heads(data, at, size, self._limit, 16)
            self._way = Cycle.learn(found) or Shape.learn(found, self._limit)
            self._rest_search = _PATIENCE
            at = self._go(data, at, size)
            if self._way is not None:
                self._rest_search = 0
                return at
        at, frames = skip(data, at, size, self._limit)
        self.frames += frames
        return at

    def _to_method(self, data: bytearray | bytes, at: int, size: int) -> int:
        """Over the rest of a message that a chunk may begin with; at a chunk's very beginning over
        a whole message, since the end byte before it is out of sight."""
        for _ in range(4):
            if size - at < 8 or (at and data[at] == METHOD):
                break
            end = at + int.from_bytes(data[at + 3 : at + 7], "big") + 8
            if end > size:
                break
            self._walk(data, at, end)
            at = end
        return at


def _no_frame(kind: int) -> AmqpFault:
    return AmqpFault(FRAME_ERROR, f"FRAME_ERROR - {kind} is no frame type of AMQP 0.9.1")


def _too_large(size: int, limit: int) -> AmqpFault:
    return AmqpFault(
        FRAME_ERROR, f"FRAME_ERROR - a frame of {size} bytes: at most {limit} were agreed on"
    )


def _wrong_end(value: int) -> AmqpFault:
    return AmqpFault(FRAME_ERROR, f"FRAME_ERROR - a frame ends with byte {value} instead of {END}")
