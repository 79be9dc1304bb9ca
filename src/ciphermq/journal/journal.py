"""The durable log: records go in one order to files that survive any crash.

A record is a kind, a small meta and perhaps a payload; the journal knows no more of it. What is
appended gets a rising number (lsn) and becomes durable with its group. Only metas are ever read
back at a start; payloads are read one by one, by location.

The log is a row of segment files (`format` draws them). Each begins with a snapshot of what its
owner would otherwise know from older segments, so the oldest can be dropped as soon as the owner
has appended again what is still live in it. The parts:

    writer     the one thread that writes groups, syncs them, confirms them
    recovery   a start: replay, cut the torn end, stop at damage
    segments   the files, and how much of each is live
    reserve    disk space kept back for what empties a full disk
    files      the only way to the disk
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from ciphermq import limits
from ciphermq.errors import JournalFailed, UsageError
from ciphermq.journal.files import Buffer, Files, OsFiles
from ciphermq.journal.format import BLOCK_SIZE, Entry, Location
from ciphermq.journal.ledger import Ledger
from ciphermq.journal.recovery import (
    SMALLEST_SEGMENT,
    Recovered,
    RecoveryReport,
    Replay,
    recover,
)
from ciphermq.journal.repair import check_repaired
from ciphermq.journal.reserve import Reserve
from ciphermq.journal.segments import Readers, lock_directory
from ciphermq.journal.writer import (
    ENTRY_OVERHEAD,
    Drop,
    OnDurable,
    OnFailed,
    OnRefused,
    Rotate,
    Stop,
    Writer,
    failed,
)

Snapshot = Callable[[], tuple[int, bytes]]
"""Kind and meta of a record that stands for all that older segments hold beside payloads."""

MAX_SIZE: Final = 1 << 30
"""Of a segment, a group, a record: so all lengths and offsets stay below 2**32."""
_NO_ROOM: Final = -(1 << 62)
"""So that nothing that is given back makes room: the next record begins a segment."""


class JournalStats(msgspec.Struct, frozen=True):
    """The log as it is now."""

    segments: int
    size: int
    """Bytes of all segments."""
    live: int
    """Bytes of records whose payload was not released."""
    groups: int
    """Written since the start."""
    sync_ms_p50: float
    """Of the last 4,096 syncs; 0 before the first."""
    sync_ms_p99: float
    reserve: int
    """Bytes kept back now."""
    reserve_whole: bool
    """False: the disk is full and publishes are refused."""
    pending: int
    """Bytes appended and not yet durable."""


class Journal:
    """One directory's log. `open`, then `start`, then the rest; at last `close`.

    `append`, `release`, `oldest_due` and `drop_oldest` are for one owner thread; `read` and
    `stats` for every thread; the callbacks run in the writer's thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        files: Files | None = None,
        segment_size: int = limits.SEGMENT_SIZE,
        reserve: int = limits.JOURNAL_RESERVE,
        max_group: int = limits.MAX_GROUP,
    ) -> None:
        _check_size("a segment", segment_size, SMALLEST_SEGMENT)
        _check_size("a group", max_group, 1)
        self._directory = directory
        self._files = OsFiles() if files is None else files
        self._segment_size = segment_size
        self._max_group = max_group
        self._ledger = Ledger(segment_size)
        self._readers = Readers(self._files, directory)
        self._reserve = Reserve(self._files, directory, reserve)
        self._writer: Writer | None = None
        self._thread: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._lock_fd = -1
        self._room = 0  # bytes left in the last segment that was begun
        self._rotations = 0  # segments begun, counted as the writer does
        self._refunded = 0  # of what the writer gave back in this segment, seen so far
        self._tail_ended = False  # before it was full, since space became short
        self._next_lsn = 1
        self._appended_bytes = 0
        self._closed = False

    # --- from closed to running -----------------------------------------------------------------

    def open(self, replay: Replay) -> RecoveryReport:
        """Lock the directory (made if missing), replay its log, make its end durable.

        `replay` is called with each record in order; it may call `release`. Raises
        `JournalInUse`, `JournalDamaged`, `JournalFailed`; after an error the journal is closed.
        """
        if self._closed or self._lock_fd >= 0:
            raise UsageError(f"the journal {self._directory} was opened before")
        try:
            self._files.make_directory(self._directory)
            self._lock_fd = lock_directory(self._files, self._directory)
            check_repaired(self._files, self._directory)
            recovered = recover(self._files, self._directory, replay, self._ledger)
            self._go_on_after(recovered)
            self._reserve.open()
        except OSError as error:
            self.close()
            raise failed(self._directory, error) from error
        except BaseException:
            self.close()
            raise
        return recovered.report

    def _go_on_after(self, recovered: Recovered) -> None:
        self._next_lsn = recovered.last_lsn + 1
        if recovered.tail is not None:
            self._room = self._segment_size - recovered.tail.end
        self._writer = Writer(
            self._files,
            self._directory,
            tail=recovered.tail,
            sequence=recovered.sequence,
            reserve=self._reserve,
            ledger=self._ledger,
            readers=self._readers,
            max_group=self._max_group,
        )

    def start(
        self,
        *,
        snapshot: Snapshot,
        on_durable: OnDurable,
        on_refused: OnRefused,
        on_failed: OnFailed,
    ) -> None:
        """Begin to write.

        `snapshot` is called by `append` (on its thread) whenever a segment begins. The others run
        in the writer's thread and must not block: `on_durable` with ``(lsn, location)`` of each
        record of a group that is now on disk; `on_refused` with the lsns of records that were not
        written because the disk is full (`JournalFull`); `on_failed` once, when nothing can ever
        be confirmed again.

        After `on_refused` all records with a payload are refused, space or not, until `resume`.
        """
        writer = self._running()
        self._snapshot = snapshot
        writer.on_durable = on_durable
        writer.on_refused = on_refused
        writer.on_failed = on_failed
        self._thread = self._start_thread(writer)

    def _start_thread(self, writer: Writer) -> threading.Thread | None:
        thread = threading.Thread(target=writer.run, name="ciphermq-journal", daemon=True)
        thread.start()
        return thread

    def _running(self) -> Writer:
        if self._writer is None or self._closed:
            raise UsageError(f"the journal {self._directory} is not open")
        return self._writer

    def close(self) -> None:
        """Write and confirm what was appended, then let go of everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            if self._thread is not None:
                self._writer.queue.put(Stop())
                self._thread.join()
            self._writer.close()
        self._readers.close()
        self._reserve.close()
        if self._lock_fd >= 0:
            self._files.close(self._lock_fd)

    # --- writing --------------------------------------------------------------------------------

    def append(
        self, kind: int, meta: bytes, payload: Buffer | None = None, *, essential: bool = False
    ) -> int:
        """Add a record to the end of the log; its lsn. Does not wait for the disk.

        `kind` is 1 to 255. `payload` is not copied and must not change. When the disk is full,
        records with a payload are refused unless `essential`: set that for copies that let a
        segment be dropped. When the segment is full, a new one begins with ``snapshot()``, which
        stands before this record. Raises `JournalFailed` after `on_failed`.
        """
        writer = self._writer
        if writer is None or self._closed or writer.failure is not None:
            raise self._unusable()
        if not 0 < kind < 256:  # zeros are never valid
            raise UsageError(f"a record's kind is 1 to 255, not {kind}")
        size = ENTRY_OVERHEAD + len(meta)
        crc = 0
        if payload is not None:
            size += len(payload)
            crc = crc32(payload)
            if type(payload) is memoryview and payload.itemsize != 1:
                raise UsageError("a payload is a buffer of single bytes")
        if size > self._room:
            self._make_room(writer, size)
        lsn = self._next_lsn
        self._next_lsn = lsn + 1
        self._room -= size
        self._appended_bytes += size
        writer.queue.put(Entry(lsn, kind, meta, payload, crc, essential))
        if not writer.baton.idle:
            writer.baton.step_aside()
        return lsn

    def resume(self, refused: int) -> None:
        """Whoever must know has heard of the refusals up to the record `refused`: what is appended
        from here on may be written. What was appended before could overtake what was refused."""
        self._running().told = (refused, self._next_lsn)

    def _make_room(self, writer: Writer, size: int) -> None:
        """Begin a new segment, unless enough of this one was refused meanwhile."""
        if writer.rotations == self._rotations:
            # On a full disk refused publishes would else begin segment after segment, each with
            # a snapshot, until these have used up the reserve.
            self._room += writer.refunded - self._refunded
            self._refunded = writer.refunded
            if size <= self._room:
                return
        if self._snapshot is None:
            raise UsageError(f"the journal {self._directory} was not started")
        _check_size("a record", size, 1)
        kind, meta = self._snapshot()
        writer.queue.put(Rotate())
        writer.queue.put(Entry(self._next_lsn, kind, meta, None, 0, essential=True))
        self._next_lsn += 1
        self._rotations += 1
        self._refunded = 0
        size = ENTRY_OVERHEAD + len(meta)
        self._appended_bytes += size
        # Were there no least room, a snapshot as large as a segment would come with each record.
        self._room = max(self._segment_size - BLOCK_SIZE - size, self._segment_size // 2)

    def _unusable(self) -> Exception:
        if self._writer is not None and self._writer.failure is not None:
            return JournalFailed(str(self._writer.failure))
        return UsageError(f"the journal {self._directory} is not open")

    @property
    def pending_bytes(self) -> int:
        """Bytes appended and not yet durable or refused."""
        return self._appended_bytes - self._writer.settled_bytes if self._writer else 0

    # --- reading and forgetting -----------------------------------------------------------------

    def read(self, location: Location) -> bytes:
        """The payload there. Raises `PayloadDamaged`, or `SegmentDropped` when it was copied
        elsewhere and its segment is gone. Waits for the disk."""
        return self._readers.read(location)

    def release(self, location: Location) -> None:
        """The payload there is needed no more: once, for each location that was given."""
        self._ledger.released(location)

    def oldest_due(self) -> int | None:
        """The oldest segment, when it is worth dropping: append again (`essential`) what is live
        in it, wait until that is durable, then `drop_oldest`. None when there is nothing to do.
        """
        urgent = not self._reserve.whole or (self._writer is not None and self._writer.short)
        if urgent and not self._tail_ended and self._ledger.tail_due(room=self._reserve.held):
            # A disk of little more than one segment: it could never be emptied, since the tail
            # is not dropped. Once while space is short, or copies of copies would use it up.
            self._tail_ended = True
            self._room = _NO_ROOM
        elif not urgent:
            self._tail_ended = False
        return self._ledger.due(urgent=urgent)

    def drop_oldest(self, segment: int) -> Future[None]:
        """Delete the oldest segment, after all that was appended before is durable."""
        writer = self._running()
        drop = Drop(segment)
        writer.queue.put(drop)
        return drop.done

    def stats(self) -> JournalStats:
        """The log as it is now."""
        segments, size, live = self._ledger.totals()
        seconds = sorted(self._writer.sync_seconds.copy()) if self._writer else []
        return JournalStats(
            segments=segments,
            size=size,
            live=live,
            groups=self._writer.groups if self._writer else 0,
            sync_ms_p50=_percentile_ms(seconds, 0.50),
            sync_ms_p99=_percentile_ms(seconds, 0.99),
            reserve=self._reserve.held,
            reserve_whole=self._reserve.whole,
            pending=self.pending_bytes,
        )


def _check_size(what: str, size: int, least: int) -> None:
    if not least <= size <= MAX_SIZE:
        raise UsageError(f"{what} of {size} bytes can't be: {least} to {MAX_SIZE} are allowed")


def _percentile_ms(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] * 1000 if ordered else 0.0
