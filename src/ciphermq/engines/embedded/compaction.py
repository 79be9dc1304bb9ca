"""Dropping the oldest segment: copy what is live in it to the end of the log, then delete it.

Done in small steps, each of which waits until the step before is durable, so that publishes and
deliveries go on meanwhile and the disk is shared fairly. A batch that is acked while it is being
copied is simply not copied, or the ack comes after the copy in the log, where a replay finds it.

A batch whose bytes are damaged can't be copied. What is known of it is, so that the loss stays
visible among the dead letters with its sender and id; it is logged, and counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from ciphermq import limits
from ciphermq.broker import Broker
from ciphermq.broker.entries import Batch
from ciphermq.engines.embedded.payloads import Payloads, segment_of
from ciphermq.errors import JournalError, PayloadDamaged, Refused
from ciphermq.journal import Journal, Location
from ciphermq.telemetry import get_logger

_STEP_BATCHES: Final = 256
_STEP_BYTES: Final = limits.MIB
_STEP_SLICES: Final = 16

_log = get_logger("engine")


class Segments:
    """Where the log's segments begin, and how many batches have their bytes in each."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._starts: deque[int] = deque()
        self._live: Counter[int] = Counter()
        self._lost: dict[int, int] = {}

    def began(self, lsn: int) -> None:
        """The record `lsn` is the first of a new segment."""
        self._starts.append(lsn)

    def end_of_oldest(self, last_lsn: int) -> int:
        """All records of the oldest segment are before this lsn; after `last_lsn` at the latest."""
        return self._starts[1] if len(self._starts) > 1 else last_lsn + 1

    def dropped_oldest(self, segment: int) -> None:
        """The oldest segment is gone."""
        self._starts.popleft()
        self._live.pop(segment, None)

    def took(self, location: Location) -> None:
        """A batch has its bytes there."""
        self._live[location.segment] += 1

    def freed(self, location: Location) -> None:
        """It has them there no longer."""
        self._live[location.segment] -= 1
        self._journal.release(location)

    def lost(self, seq: int, lsn: int) -> None:
        """All that is left of a batch is the record `lsn`; its bytes were damaged."""
        self._lost[seq] = lsn

    def finished(self, seq: int, location: Location | None) -> None:
        """Nobody needs a batch any more, which has its bytes there, if anywhere."""
        if location is not None:
            self.freed(location)
        elif self._lost:
            self._lost.pop(seq, None)

    def batches_in(self, segment: int, end: int, batches: Iterator[Batch]) -> list[int]:
        """The seqs of the batches that have their bytes in a segment, or all that is left of them
        before the record `end`. In the order of the log the oldest segment's come first, so the
        search is short."""
        found = [seq for seq, lsn in self._lost.items() if lsn < end]
        left = self._live[segment] + len(found)
        while len(found) < left:
            batch = next(batches, None)
            if batch is None:
                break
            if segment_of(batch.place) == segment:
                found.append(batch.seq)
        return found


class Copies:
    """Copies on their way to the disk."""

    def __init__(self) -> None:
        self._seqs: dict[int, int] = {}

    def begun(self, lsn: int, seq: int) -> None:
        """The record `lsn` is a copy of the batch `seq`."""
        self._seqs[lsn] = seq

    def done(self, lsn: int) -> int | None:
        """The seq of the batch that the record `lsn` is a copy of, if it is one."""
        return self._seqs.pop(lsn, None) if self._seqs else None


class Compactor:
    """Runs while there is something to drop."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        payloads: Payloads,
        segments: Segments,
        copies: Copies,
        *,
        synced: Callable[[], Awaitable[None]],
        last_lsn: Callable[[], int],
        now: Callable[[], int],
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._payloads = payloads
        self._segments = segments
        self._copies = copies
        self._synced = synced
        self._last_lsn = last_lsn
        self._now = now
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.copied = 0
        """Batches copied since the start."""
        self.dropped = 0
        """Segments dropped since the start."""

    def consider(self) -> None:
        """Begin, if there is something to do and nothing under way."""
        if self._task is None and not self._stopped and self._journal.oldest_due() is not None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Leave off; what is half done is begun again after the next start."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while not self._stopped and (segment := self._journal.oldest_due()) is not None:
                await self._drop(segment)
        except (JournalError, Refused) as error:
            # The journal has failed or is closing, of which its own callbacks tell everybody.
            self._stopped = True
            _log.error("compaction stopped", error=str(error))
        except Exception:
            # The log only grows from here on; what is in it stays safe and is delivered.
            self._stopped = True
            _log.exception("compaction stopped by a fault of the broker's own")
            raise
        finally:
            self._task = None

    async def _drop(self, segment: int) -> None:
        end = self._segments.end_of_oldest(self._last_lsn())
        await self._synced()
        while self._broker.copy_dedup(end, _STEP_SLICES):
            await self._synced()
        found = deque(self._segments.batches_in(segment, end, iter(self._broker.batches())))
        while found:
            await self._step(segment, found)
        await self._synced()
        await asyncio.wrap_future(self._journal.drop_oldest(segment))
        self._segments.dropped_oldest(segment)
        self.dropped += 1
        _log.debug("dropped a segment", segment=segment)

    async def _step(self, segment: int, found: deque[int]) -> None:
        """Copy some batches, and wait until the copies are durable."""
        reading: list[tuple[Batch, asyncio.Future[bytes | bytearray | memoryview]]] = []
        size = 0
        while found and len(reading) < _STEP_BATCHES and size < _STEP_BYTES:
            batch = self._broker.batch(found.popleft())
            if batch is not None:
                reading.append((batch, self._payloads.load(batch)))
                size += batch.size
        await asyncio.gather(*(future for _, future in reading), return_exceptions=True)
        for batch, future in reading:
            # Acked while it was read, or copied by a step that was cut short.
            if self._broker.batch(batch.seq) is not batch or (
                segment_of(batch.place) not in (segment, 0)
            ):
                continue
            error = future.exception()
            if isinstance(error, PayloadDamaged):
                if batch.place:
                    self._damaged(batch, error)
                lsn = self._broker.copy(batch, None)
            else:
                lsn = self._broker.copy(batch, future.result())
            self._copies.begun(lsn, batch.seq)
            self.copied += 1
        await self._synced()

    def _damaged(self, batch: Batch, error: PayloadDamaged) -> None:
        _log.error(
            "a stored batch is damaged: only its name is kept, among the dead letters",
            batch_id=batch.batch_id,
            sender=batch.sender,
            error=str(error),
        )
        self._broker.batch_damaged(batch, str(error), self._now())
