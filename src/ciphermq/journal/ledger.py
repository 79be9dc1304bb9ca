"""How much of each segment is live, and so which one is worth dropping."""

from __future__ import annotations

import threading
from typing import NamedTuple

from ciphermq.journal.format import BLOCK_SIZE, Location


class Written(NamedTuple):
    """What a group adds to its segment, in bytes unless the name says otherwise."""

    size: int
    """All of it."""
    snapshot: int
    """Of the segment's snapshot, if this group has it."""
    payloads: int
    """Records with a payload."""
    payload_bytes: int
    overhead: int
    """Headers and metas of the records with a payload."""


class _Segment:
    __slots__ = ("fixed", "live_bytes", "live_records", "overhead", "records", "size")

    def __init__(self) -> None:
        self.size = BLOCK_SIZE
        self.fixed = BLOCK_SIZE  # header and snapshot
        self.records = 0  # with a payload, written
        self.overhead = 0  # their headers and metas
        self.live_records = 0
        self.live_bytes = 0  # payloads only

    def add(self, other: _Segment, sign: int) -> None:
        self.size += sign * other.size
        self.fixed += sign * other.fixed
        self.records += sign * other.records
        self.overhead += sign * other.overhead
        self.live_records += sign * other.live_records
        self.live_bytes += sign * other.live_bytes


class Ledger:
    """How much of each segment is live. Callable from every thread.

    Live are the records whose payload was not released, with meta and header beside the payload.
    Acks and the like are needed only as long as what they speak of. Headers and snapshots are
    neither live nor dead: every segment has them, so dropping one gains nothing in the end.
    """

    def __init__(self, segment_size: int) -> None:
        self._lock = threading.Lock()
        self._slack = 2 * (segment_size - BLOCK_SIZE)
        self._segments: dict[int, _Segment] = {}
        self._all = _Segment()
        self._all.size = self._all.fixed = 0

    def added(self, segment: int) -> None:
        """A segment is there, with its header."""
        with self._lock:
            info = self._segments[segment] = _Segment()
            self._all.add(info, 1)

    def wrote(self, segment: int, group: Written) -> None:
        """A group is in the segment."""
        with self._lock:
            for info in (self._segments[segment], self._all):
                info.size += group.size
                info.fixed += group.snapshot
                info.records += group.payloads
                info.overhead += group.overhead
                info.live_records += group.payloads
                info.live_bytes += group.payload_bytes

    def released(self, location: Location) -> None:
        """The payload there is needed no more."""
        with self._lock:
            info = self._segments.get(location.segment)
            if info is not None:  # else it was dropped, with all that was in it
                info.live_records -= 1
                info.live_bytes -= location.length
                self._all.live_records -= 1
                self._all.live_bytes -= location.length

    def dropped(self, segment: int) -> None:
        """The segment is gone, with all that was in it."""
        with self._lock:
            self._all.add(self._segments.pop(segment), -1)

    def oldest(self) -> int | None:
        """Number of the oldest segment."""
        with self._lock:
            return next(iter(self._segments), None)

    def due(self, *, urgent: bool) -> int | None:
        """The oldest segment if it should be compacted now.

        That is when more than half the log is dead and, unless `urgent`, the dead part is worth
        two segments. (Below that, a log of records without payload that are needed for a while,
        and so are copied but never count as live, would be compacted without end.)
        """
        with self._lock:
            if len(self._segments) < 2:
                return None
            useful = self._all.size - self._all.fixed
            dead = useful - self._live()
            if dead * 2 <= useful or (dead < self._slack and not urgent):
                return None
            return next(iter(self._segments))

    def tail_due(self, *, room: int) -> bool:
        """Whether, with space short, the only segment should be ended, so that it can be dropped.

        That is when more than half of it is dead, that is worth the trouble, and what is live
        fits well into `room`, the bytes that its copies may take.
        """
        with self._lock:
            if len(self._segments) != 1:
                return False
            useful = self._all.size - self._all.fixed
            live = self._live()
            dead = useful - live
            return dead * 2 > useful and dead * 16 >= self._slack and live * 2 <= room

    def _live(self) -> int:
        total = self._all
        if not total.records:
            return 0
        return total.live_bytes + total.overhead * total.live_records // total.records

    def totals(self) -> tuple[int, int, int]:
        """Segments, bytes of all files, live bytes."""
        with self._lock:
            return len(self._segments), self._all.size, self._live()
