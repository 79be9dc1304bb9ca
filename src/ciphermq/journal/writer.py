"""The one thread that writes: it makes groups of what was appended and makes them durable.

One group is in flight: written, synced, confirmed; meanwhile the next one gathers in the queue.
So there is never more than one group on the disk that might be torn, which is what lets recovery
tell a torn end from damage.

A failed sync is final. The kernel may have dropped the pages and marked them clean, so a second
sync would succeed and mean nothing: from then on nothing is written and nothing confirmed.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from ciphermq import limits
from ciphermq.errors import CipherMQError, JournalError, JournalFailed, JournalFull
from ciphermq.journal.baton import Baton
from ciphermq.journal.files import NO_SPACE, Files
from ciphermq.journal.format import (
    BLOCK_SIZE,
    GROUP_SIZE,
    RECORD_SIZE,
    Entry,
    Location,
    encode_group,
)
from ciphermq.journal.ledger import Ledger, Written
from ciphermq.journal.reserve import Reserve
from ciphermq.journal.segments import Readers, Tail, create_segment, segment_path

ENTRY_OVERHEAD: Final = RECORD_SIZE + GROUP_SIZE
"""What a record takes beside its meta and payload when it is alone in its group."""
_MAX_GROUP_RECORDS: Final = 1 << 16
_CHECK_EVERY: Final = 1.0
"""Seconds between looks whether the tail still has a name, and tries to remake the reserve."""
_SYNC_SAMPLES: Final = 4096

OnDurable = Callable[[list[tuple[int, Location | None]]], None]
OnRefused = Callable[[list[int], CipherMQError], None]
OnFailed = Callable[[CipherMQError], None]


class Rotate:
    """In the queue: what follows goes to a new segment."""


class Drop:
    """In the queue: unlink the oldest segment."""

    def __init__(self, segment: int) -> None:
        self.segment = segment
        self.done: Future[None] = Future()


class Stop:
    """In the queue: nothing follows."""


Item = Entry | Rotate | Drop | Stop


class Writer:
    """Takes items from `queue` in order. All methods but the constructor's are its thread's."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        *,
        tail: Tail | None,
        sequence: int,
        reserve: Reserve,
        ledger: Ledger,
        readers: Readers,
        max_group: int,
    ) -> None:
        self.queue: SimpleQueue[Item] = SimpleQueue()
        self.failure: JournalFailed | None = None
        self.baton = Baton()
        self.settled_bytes = 0
        """Of all records that are durable or refused."""
        self.rotations = 0
        """Segments begun."""
        self.refunded = 0
        """Bytes of records refused since, which did not fill the segment after all."""
        self.short = False
        """Whether the last record with a payload was refused."""
        self.told = (0, 0)
        """Set by the owner: up to which record refusals are known to all whom they concern, and
        the first record that was appended since."""
        self.groups = 0
        self.sync_seconds: deque[float] = deque(maxlen=_SYNC_SAMPLES)
        self.on_durable: OnDurable = lambda _placed: None
        self.on_refused: OnRefused = lambda _lsns, _error: None
        self.on_failed: OnFailed = lambda _error: None
        self._files = files
        self._directory = directory
        self._tail = tail
        self._last_segment = tail.header.segment if tail else 0
        self._sequence = sequence
        self._reserve = reserve
        self._ledger = ledger
        self._readers = readers
        self._max_group = max_group
        self._held: Item | None = None
        self._last_refused = 0
        self._full = False  # a write has failed for want of space since the reserve was looked at
        self._next_check = 0.0
        self._next_remake = 0.0

    def run(self) -> None:
        """Until a `Stop`."""
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for an item and do what it asks, with what belongs to it; False after a `Stop`."""
        item = self._held or self._wait()
        self._held = None
        if isinstance(item, Stop):
            return False
        if self.failure is None:
            self._try(item)
        if self.failure is not None and isinstance(item, Drop) and not item.done.done():
            item.done.set_exception(self.failure)
        return True

    def _wait(self) -> Item:
        self.baton.rest()
        item = self.queue.get()
        self.baton.back()
        return item

    def _try(self, item: Item) -> None:
        try:
            self._do(item)
        except OSError as error:
            self._fail(failed(self._directory, error), error)
        except JournalFailed as error:
            self._fail(error, None)
        except Exception as error:  # noqa: BLE001 - a dead thread would leave all waiting for ever
            self._fail(JournalFailed(f"{self._directory}: the writer stopped: {error!r}"), error)

    def _do(self, item: Item) -> None:
        if isinstance(item, Entry):
            self._commit(self._gather(item))
        elif isinstance(item, Rotate):
            self._rotate()
        elif isinstance(item, Drop):
            self._drop(item)

    def _fail(self, failure: JournalFailed, cause: BaseException | None) -> None:
        failure.__cause__ = cause
        self.failure = failure
        self.on_failed(failure)

    def _gather(self, first: Entry) -> list[Entry]:
        """`first` and what follows it in the queue, up to a group's greatest size."""
        group = [first]
        size = _size(first)
        get = self.queue.get_nowait
        try:
            while size < self._max_group and len(group) < _MAX_GROUP_RECORDS:
                item = get()
                if not isinstance(item, Entry):
                    self._held = item
                    break
                group.append(item)
                size += _size(item)
        except Empty:
            pass
        return group

    # --- writing ---------------------------------------------------------------------------

    def _commit(self, group: list[Entry]) -> None:
        if not self._takes_payloads(group):
            group = self._refuse(group)
        while group:
            tail = self._tail
            if tail is None:
                raise JournalFailed(f"{self._directory}: a record came before its segment")
            buffers, placed = encode_group(tail.header, tail.end, self._sequence + 1, group)
            size = sum(map(len, buffers))
            self.baton.leave()
            try:
                tail.write(buffers, size)
            except OSError as error:
                group = self._make_room(tail, group, size, error)
                continue
            finally:
                self.baton.back()
            self._sync(tail)
            self._sequence += 1
            self.groups += 1
            self._account(tail, size, group)
            self.on_durable(placed)
            return

    def _sync(self, tail: Tail) -> None:
        self.baton.leave()
        begun = time.monotonic()
        tail.sync()
        ended = time.monotonic()
        self.baton.back()
        self.sync_seconds.append(ended - begun)
        if ended >= self._next_check:
            self._next_check = ended + _CHECK_EVERY
            if not self._files.linked(tail.fd):
                raise JournalFailed(
                    f"{tail.path} was deleted while the broker ran: what is written to it is "
                    "lost. Restore the directory from a backup and start again"
                )

    def _account(self, tail: Tail, size: int, group: list[Entry]) -> None:
        payloads = payload_bytes = overhead = settled = 0
        for entry in group:
            settled += _size(entry)
            if entry.payload is not None:
                payloads += 1
                payload_bytes += len(entry.payload)
                overhead += RECORD_SIZE + len(entry.meta)
        first = tail.end == BLOCK_SIZE + size
        snapshot = RECORD_SIZE + len(group[0].meta) if first else 0
        if payloads:
            self.short = False
        written = Written(size, snapshot, payloads, payload_bytes, overhead)
        self._ledger.wrote(tail.header.segment, written)
        self.settled_bytes += settled

    def _rotate(self) -> None:
        """End the tail; what follows goes to a new segment."""
        while True:
            segment = self._last_segment + 1
            try:
                tail = create_segment(self._files, self._directory, segment, self._sequence + 1)
                break
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                self._use_reserve(BLOCK_SIZE)
        if self._tail is not None:
            self._tail.close()
        self._tail = tail
        self._last_segment = segment
        self._ledger.added(segment)
        self.refunded = 0
        self.rotations += 1

    def _drop(self, drop: Drop) -> None:
        """Unlink the oldest segment; all that was appended before is durable by now."""
        if not drop.done.set_running_or_notify_cancel():
            return
        if drop.segment != self._ledger.oldest() or drop.segment == self._last_segment:
            drop.done.set_exception(
                JournalError(f"segment {drop.segment} is not the oldest closed one: it stays")
            )
            return
        self._files.unlink(segment_path(self._directory, drop.segment))
        self._readers.forget(drop.segment)
        self._files.sync_directory(self._directory)
        self._ledger.dropped(drop.segment)
        self._next_remake = 0.0
        drop.done.set_result(None)

    # --- when the disk is full ----------------------------------------------------------------

    def _make_room(self, tail: Tail, group: list[Entry], size: int, error: OSError) -> list[Entry]:
        """After a failed write of `group`: what of it to write again."""
        if error.errno not in NO_SPACE:
            with contextlib.suppress(OSError):  # it helps the next start; the error is told anyway
                tail.cut()
            raise error
        tail.cut()
        self._full = True
        self._next_remake = time.monotonic() + _CHECK_EVERY
        rest = self._refuse(group)
        if len(rest) == len(group):
            self._use_reserve(size)
        return rest

    def _use_reserve(self, need: int) -> None:
        if not self._reserve.give(need):
            raise JournalFailed(
                f"{self._directory}: no space left on the device and the journal's reserve is "
                "used up. Nothing confirmed is lost. Free some space and start the broker again"
            )

    def _refuse(self, group: list[Entry]) -> list[Entry]:
        """Refuse the records that must wait for space; the others are returned."""
        rest: list[Entry] = []
        refused: list[int] = []
        for entry in group:
            if entry.payload is None or entry.essential:
                rest.append(entry)
            else:
                refused.append(entry.lsn)
                self.settled_bytes += _size(entry)
                self.refunded += _size(entry)
        if refused:
            self.short = True
            self._last_refused = refused[-1]
            need = self._reserve.size // limits.MIB
            self.on_refused(
                refused,
                JournalFull(
                    f"{self._directory}: no space left on the device. Nothing new is stored "
                    f"until the journal's reserve of {need} MiB can be kept free again; "
                    "acknowledgements go on"
                ),
            )
        return rest

    def _takes_payloads(self, group: list[Entry]) -> bool:
        """Whether there is space for more than what must be written, and none of `group` can
        overtake a refused record: space may come back while its sender has not yet heard."""
        told, since = self.told
        if self._last_refused > told or group[0].lsn < since:
            return False
        if self._reserve.whole and not self._full:
            return True
        now = time.monotonic()
        if now < self._next_remake:  # ask the disk once a second at most
            return False
        self._next_remake = now + _CHECK_EVERY
        self._full = not self._reserve.remake()
        return not self._full

    def close(self) -> None:
        """Close the tail. Its thread has ended."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None


def _size(entry: Entry) -> int:
    """What the record counts in the log, as if it were alone in its group."""
    payload = entry.payload
    return ENTRY_OVERHEAD + len(entry.meta) + (0 if payload is None else len(payload))


def failed(directory: Path, error: OSError) -> JournalFailed:
    """What an error of the file system means to the journal in `directory`."""
    where = error.filename or directory
    return JournalFailed(
        f"{where}: the journal can't be written ({error.strerror or error}). What was not yet "
        "confirmed may be lost, what was confirmed is not. Check the disk, then start again"
    )
