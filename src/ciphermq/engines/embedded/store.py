"""The broker's port to the journal, and the way back from the journal's thread.

What the broker appends goes to the journal at once. What becomes durable comes back a group at a
time: the journal's thread only posts the group to the event loop, where places are noted, those
who wait are answered, and the engine is told that there may be something to deliver.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ciphermq import limits
from ciphermq.broker import Broker
from ciphermq.broker.entries import Batch
from ciphermq.broker.records import Kind, decode_copy
from ciphermq.engines.embedded.compaction import Copies, Segments
from ciphermq.engines.embedded.confirms import Confirms
from ciphermq.engines.embedded.payloads import Payloads, pack_place, unpack_place
from ciphermq.engines.face import Sealed
from ciphermq.errors import CipherMQError, JournalError, NoSpace, Unavailable, UsageError
from ciphermq.journal import Files, Journal, Location, RecoveryReport

Event = Callable[[str, bytes, int, int], None]


class StoreOptions(msgspec.Struct, frozen=True):
    """How the journal is kept; the defaults are `ciphermq.limits`."""

    segment_size: int = limits.SEGMENT_SIZE
    reserve: int = limits.JOURNAL_RESERVE
    max_group: int = limits.MAX_GROUP
    files: Files | None = None
    """The way to the disk; None: the operating system's."""


class Store:
    """A directory's journal, as the broker's port."""

    def __init__(self, directory: Path, options: StoreOptions, clock: Callable[[], int]) -> None:
        self.journal = Journal(
            directory,
            files=options.files,
            segment_size=options.segment_size,
            reserve=options.reserve,
            max_group=options.max_group,
        )
        self.confirms = Confirms()
        self.copies = Copies()
        self.segments = Segments(self.journal)
        self.last_lsn = 0
        self.failure: Exception | None = None
        self.refused = 0
        """Batches refused because the disk was full."""
        self.acked = 0
        self.dead = 0
        """Messages, since the start."""
        self.events: list[Event] = []
        self._clock = clock
        self._payloads: Payloads | None = None

    # --- from closed to running ---------------------------------------------------------------

    def recover(self, broker: Broker) -> RecoveryReport:
        """Open the journal and bring the broker to where it was. Takes its time: not for the
        event loop's thread."""
        replay, took, began = broker.replay, self.segments.took, self.segments.began

        def record(lsn: int, kind: int, meta: bytes, location: Location | None) -> None:
            if location is None:
                if kind == Kind.SNAPSHOT:
                    began(lsn)
                replay(lsn, kind, meta, 0, 0)
                # Only now: replaying a copy ends what was known of the batch before.
                if kind == Kind.COPY and broker.batch(seq := decode_copy(meta).seq) is not None:
                    self.segments.lost(seq, lsn)
            else:
                took(location)
                replay(lsn, kind, meta, location.length, pack_place(location))
            self.last_lsn = lsn

        broker.begin_replay(self._clock())
        report = self.journal.open(record)
        broker.replayed(self._clock())
        self.confirms.durable = self.last_lsn
        return report

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        broker: Broker,
        payloads: Payloads,
        *,
        after_group: Callable[[], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        """Begin to write."""
        self._payloads = payloads

        def snapshot() -> tuple[int, bytes]:
            self.last_lsn += 1
            self.segments.began(self.last_lsn)
            return broker.snapshot()

        def durable(placed: list[tuple[int, Location | None]]) -> None:
            self._note_places(broker, placed)
            self.confirms.group_durable(placed[-1][0])
            settled()

        def refused(lsns: list[int], error: CipherMQError) -> None:
            for lsn in lsns:
                broker.undo(lsn)
                payloads.forget(lsn)
            self.refused += len(lsns)
            self.confirms.group_refused(lsns, lambda: NoSpace(str(error)))
            settled()
            # After those who are told by it, so that none of them sends more without knowing.
            loop.call_soon(self._resume, lsns[-1])

        def settled() -> None:
            broker.durable(self.confirms.durable)
            self.confirms.answer()
            after_group()

        def failed(error: CipherMQError) -> None:
            self.failure = error
            self.confirms.fail(self.unavailable)
            on_failed(error)

        def post(callback: Callable[..., None]) -> Callable[..., None]:
            def from_writer(*arguments: Any) -> None:
                loop.call_soon_threadsafe(callback, *arguments)

            return from_writer

        self.journal.start(
            snapshot=snapshot,
            on_durable=post(durable),
            on_refused=post(refused),
            on_failed=post(failed),
        )

    def _note_places(self, broker: Broker, placed: list[tuple[int, Location | None]]) -> None:
        segments, copies = self.segments, self.copies
        for lsn, location in placed:
            seq = copies.done(lsn)
            if location is None and seq is None:
                continue
            place = pack_place(location) if location else 0
            if location:
                segments.took(location)
            elif seq:
                segments.lost(seq, lsn)
            batch = broker.batch(seq or lsn)
            if batch is None:
                # Settled before it was even on disk.
                segments.finished(seq or lsn, location)
                continue
            if batch.place:
                segments.freed(unpack_place(batch.place, batch.size))
            batch.place = place

    def _resume(self, refused: int) -> None:
        with contextlib.suppress(UsageError):  # the journal was closed meanwhile
            self.journal.resume(refused)

    def unavailable(self) -> Unavailable:
        """Why nothing can be stored."""
        if self.failure is None:
            return Unavailable("the broker is stopping, or has not started")
        return Unavailable(f"the broker can't store anything: {self.failure}")

    # --- the broker's port --------------------------------------------------------------------

    def append(self, kind: int, meta: bytes, payload: Sealed | None = None) -> int:
        """A record to the end of the log; `Unavailable` when the journal has failed."""
        try:
            lsn = self.journal.append(kind, meta, payload, essential=kind == Kind.COPY)
        except (JournalError, UsageError) as error:
            raise self.unavailable() from error
        self.last_lsn = lsn
        return lsn

    def finished(self, batch: Batch) -> None:
        """Nobody needs the batch's bytes."""
        location = unpack_place(batch.place, batch.size) if batch.place else None
        self.segments.finished(batch.seq, location)
        if self._payloads is not None:
            self._payloads.forget(batch.seq)

    def happened(self, event: str, batch: Batch, messages: int) -> None:
        """Count it, and tell those who listen."""
        if event == "acked":
            self.acked += messages
        else:
            self.dead += messages
        self.tell(event, batch.batch_id, messages)

    def tell(self, event: str, batch_id: bytes, messages: int) -> None:
        """Tell those who listen."""
        if self.events:
            now = self._clock()
            for callback in self.events:
                callback(event, batch_id, messages, now)
