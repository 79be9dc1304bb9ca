"""Where the sealed bytes are: just written, in memory; later, on disk, read off the event loop.

A consumer that keeps up is served from memory. The disk is read by a few threads, several
payloads in a job, since handing a job to a thread costs more than reading a small payload.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ciphermq import limits
from ciphermq.broker.entries import Batch
from ciphermq.engines.face import Sealed
from ciphermq.errors import PayloadDamaged, SegmentDropped, Unavailable
from ciphermq.journal import Journal, Location

_THREADS: Final = 4
_JOB_PAYLOADS: Final = 64
_JOB_BYTES: Final = limits.MIB
_OVERHEAD: Final = 200
"""Bytes that keeping a payload in memory takes beside its own."""

_TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""A machine short of something for a moment is no reason to call a payload damaged."""
_TRANSIENT_TRIES: Final = 100
_TRANSIENT_PAUSE: Final = 0.1

Result = Sealed | PayloadDamaged | Unavailable
"""The bytes, or why there are none: they are damaged, or the engine is stopping."""
Callback = Callable[[Result], None]
_Read = bytes | PayloadDamaged | SegmentDropped

_OFFSET_SHIFT: Final = 32
_SEGMENT_SHIFT: Final = 64
_U32: Final = 0xFFFFFFFF


def pack_place(location: Location) -> int:
    """A location as the broker keeps it: one number; the length is the batch's size."""
    segment, offset, _, crc = location
    return segment << _SEGMENT_SHIFT | offset << _OFFSET_SHIFT | crc


def unpack_place(place: int, size: int) -> Location:
    """The reverse of `pack_place`."""
    return Location(place >> _SEGMENT_SHIFT, place >> _OFFSET_SHIFT & _U32, size, place & _U32)


def segment_of(place: int) -> int:
    """The segment of a place; 0 is none."""
    return place >> _SEGMENT_SHIFT


class Payloads:
    """The sealed bytes of all batches."""

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._journal = journal
        self._loop = loop
        self._most = most
        self._fresh: OrderedDict[int, Sealed] = OrderedDict()
        """By seq, oldest first. A plain dict's first key would be searched for, among the gone."""
        self._fresh_bytes = 0
        self._wanted: list[tuple[Batch, Callback]] = []
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="ciphermq-read")
        self._closed = False
        self.reads = 0
        """Payloads read from disk."""

    @property
    def fresh_bytes(self) -> int:
        """Bytes kept in memory."""
        return self._fresh_bytes

    # --- in memory ----------------------------------------------------------------------------

    def keep(self, seq: int, sealed: Sealed) -> None:
        """Keep what was just published, while there is room and nobody is done with it."""
        self._fresh[seq] = sealed
        self._fresh_bytes += len(sealed) + _OVERHEAD
        while self._fresh_bytes > self._most:
            self.forget(next(iter(self._fresh)))

    def forget(self, seq: int) -> None:
        """It is not needed in memory."""
        sealed = self._fresh.pop(seq, None)
        if sealed is not None:
            self._fresh_bytes -= len(sealed) + _OVERHEAD

    def fresh(self, seq: int) -> Sealed | None:
        """The bytes, if they are in memory."""
        return self._fresh.get(seq)

    # --- from disk ----------------------------------------------------------------------------

    def load(self, batch: Batch) -> asyncio.Future[Sealed]:
        """The bytes, from wherever they are; `PayloadDamaged` if they can't be had."""
        future: asyncio.Future[Sealed] = self._loop.create_future()

        def done(result: Result) -> None:
            if future.done():
                return
            if isinstance(result, PayloadDamaged | Unavailable):
                future.set_exception(result)
                future.exception()  # seen: who asked may have given up at an earlier one
            else:
                future.set_result(result)

        sealed = self._fresh.get(batch.seq)
        if sealed is not None:
            future.set_result(sealed)
        else:
            self.read(batch, done)
        return future

    def read(self, batch: Batch, callback: Callback) -> None:
        """Read from disk; the callback comes later, on the event loop."""
        if not self._wanted:
            self._loop.call_soon(self._begin_jobs)
        self._wanted.append((batch, callback))

    def _begin_jobs(self) -> None:
        wanted, self._wanted = self._wanted, []
        job: list[tuple[Batch, Callback]] = []
        size = 0
        for each in wanted:
            job.append(each)
            size += each[0].size
            if size >= _JOB_BYTES or len(job) >= _JOB_PAYLOADS:
                self._begin_job(job)
                job, size = [], 0
        if job:
            self._begin_job(job)

    def _begin_job(self, job: list[tuple[Batch, Callback]]) -> None:
        places = [batch.place for batch, _ in job]
        locations = [
            unpack_place(place, batch.size) if place else None
            for place, (batch, _) in zip(places, job, strict=True)
        ]
        if self._closed:
            self._give_up(job)
            return
        running = self._loop.run_in_executor(self._executor, self._read_all, locations)

        def done(future: asyncio.Future[list[_Read]]) -> None:
            if future.cancelled():
                self._give_up(job)
            else:
                self._end_job(job, places, future.result())

        running.add_done_callback(done)

    def _read_all(self, locations: list[Location | None]) -> list[_Read]:
        return [self._read(location) for location in locations]

    def _read(self, location: Location | None) -> _Read:
        """In a thread of the pool."""
        if location is None:
            return PayloadDamaged("its bytes were damaged before: only its name is left")
        for _ in range(_TRANSIENT_TRIES):
            try:
                return self._journal.read(location)
            except SegmentDropped as error:
                return error
            except PayloadDamaged as error:
                problem = error
                cause = error.__cause__
                if not isinstance(cause, OSError) or cause.errno not in _TRANSIENT:
                    break
            time.sleep(_TRANSIENT_PAUSE)
        return problem

    def _end_job(
        self, job: list[tuple[Batch, Callback]], places: list[int], results: list[_Read]
    ) -> None:
        for (batch, callback), place, result in zip(job, places, results, strict=True):
            self.reads += 1
            if not isinstance(result, SegmentDropped):
                callback(result)
            elif batch.place != place:
                # Copied elsewhere since, and its old segment deleted: read it there.
                self.read(batch, callback)
            else:
                callback(PayloadDamaged(f"{result}, but this batch was not"))

    def _give_up(self, job: list[tuple[Batch, Callback]]) -> None:
        for _, callback in job:
            callback(Unavailable("the broker is stopping: nothing is read any more"))

    def close(self) -> None:
        """Wait for the reads under way; nothing is read any more. Not for the event loop's
        thread."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
