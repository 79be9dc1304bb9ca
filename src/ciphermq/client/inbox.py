"""The Inbox: what makes the effect of a message happen exactly once.

The broker delivers at least once: a receiver that dies after its work and before its ack is given
the message again. The Inbox is the receiver's memory of what is done, in a SQLite database, a row
a batch with a bitmap, keyed by verified sender and batch id. What is done already is never shown
again; it is acked and counted.

What remains is the moment between the work and the note of it. That is closed by making them one
transaction: the application's effect is written into the same database::

    with inbox.transaction(message) as db:
        db.execute("INSERT INTO payments ...")

Either both are committed or neither is. An effect outside of that transaction (a mail, a request
to another machine) happens at least once, with or without an Inbox.

With `store_payloads` a batch's opened payloads are committed before any of it is shown. The broker
is told at once and may forget the batch; what is pending is shown again after a crash, in order.

Ids are kept for as long as any message may arrive again: the greatest message age, and a day.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from ciphermq import limits
from ciphermq.client import kept
from ciphermq.client.kept import Kept, KeptDelivery, Rejected
from ciphermq.client.messages import Batch, Message
from ciphermq.client.origin import Origin
from ciphermq.client.settling import Delivery, Settling, Teller
from ciphermq.client.store import Store
from ciphermq.custody import disk
from ciphermq.errors import AlreadyDone, DuplicateConflict, InboxError, UsageError
from ciphermq.model import bitmap, ids
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.body import Messages

_SCHEMA: Final = f"""
    CREATE TABLE ciphermq_inbox (
        seq INTEGER PRIMARY KEY,
        sender TEXT NOT NULL,
        batch_id BLOB NOT NULL,
        digest BLOB NOT NULL,
        done BLOB NOT NULL,
        seen_ms INTEGER NOT NULL,
        UNIQUE (sender, batch_id)
    );
    {kept.SCHEMA}
"""

_KEPT_MS: Final = (limits.MAX_MESSAGE_AGE + limits.DAY) * 1000
_PRUNED_TOGETHER: Final = 1000
_DIGEST_SIZE: Final = 16
"""Bytes kept of a batch's digest: enough that nobody finds two alike."""


class Arrival(NamedTuple):
    """A batch that was opened and not shown yet."""

    messages: Messages
    origin: Origin
    live: Bitmap
    delivery: Delivery


class Inbox:
    """The memory of what a receiver, or several that compete, are done with.

    Use it from the thread that made it. Several processes may share one file; with
    `store_payloads` a file is one process's at a time.
    """

    def __init__(
        self,
        where: str | Path | sqlite3.Connection,
        *,
        store_payloads: bool = False,
        timeout: float = limits.STORE_TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`where`: a file of its own, made when it isn't there, or the application's own
        connection, whose settings (how durable a commit is, above all) are the application's.
        `timeout`: seconds to wait for another process that is writing.

        Raises `InboxError` when it can't be used.
        """
        self.store_payloads = store_payloads
        self.duplicates = 0
        """Messages that came again and were not shown."""
        self._clock = clock
        self._lock: int | None = None
        self._store = Store(
            where, name="inbox", schema=(_SCHEMA,), failure=InboxError, timeout=timeout
        )
        self._kept = Kept(self._store, clock, self._mark)
        try:
            if store_payloads:
                if self._store.path is not None:
                    self._lock = _lock(self._store.path)
                self._kept.restore()
            self.prune()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; an application's own connection stays open."""
        self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the application's side -----------------------------------------------------------

    @contextmanager
    def transaction(self, *work: Message | Batch) -> Iterator[sqlite3.Connection]:
        """Commit the block's effect together with the note that `work` is done.

        Yields the database. The block must neither commit nor roll back; when it raises, nothing
        of it stays. A batch shows, inside the block, only what is still to be done of it.

        Raises `AlreadyDone` before the block when receivers that share this Inbox were faster
        with all of it: there is nothing left to do, and it will be acked.
        """
        for each in work:
            if each.settling.memory not in (None, self):
                raise UsageError("a message came through another Inbox than it is to be done in")
        asked = [each.bits for each in work]
        fresh: list[Bitmap] = []
        taken: dict[tuple[str | None, bytes], Bitmap] = {}
        with self._store.transaction() as connection:
            for each in work:
                origin = each.settling.origin
                batch = origin.sender, origin.batch_id
                known = self._done(origin) | taken.get(batch, 0)
                fresh.append(each.bits & ~known)
                # The same message may be there twice, from two deliveries.
                taken[batch] = known | fresh[-1]
                if isinstance(each, Batch):
                    each.narrow(fresh[-1])
            if any(fresh):
                yield connection
            for each, bits in zip(work, fresh, strict=True):
                if bits:
                    self._mark(each.settling.origin, bits)
        for each, bits, before in zip(work, fresh, asked, strict=True):
            each.settling.committed |= bits
            each.settling.forget(before & ~bits)
        if not any(fresh):
            raise AlreadyDone(
                f"{', '.join(map(str, work))}: another receiver that shares this Inbox has done "
                "it meanwhile"
            )

    def apply(self, work: Message | Batch, effect: Callable[[sqlite3.Connection], object]) -> bool:
        """`transaction` as a call: run `effect` once, and say whether it was still to be done."""
        try:
            with self.transaction(work) as connection:
                effect(connection)
        except AlreadyDone:
            return False
        return True

    def rejected(self) -> Iterator[Rejected]:
        """What was rejected after the broker had forgotten it (`store_payloads`)."""
        return self._kept.rejected()

    def prune(self) -> int:
        """Forget ids that are older than any message may be; how many. Done by itself, too."""
        self._pruned_at = self._clock()
        limit = int(self._pruned_at * 1000) - _KEPT_MS
        pruned = 0
        while True:
            # Rows are in the order of arrival, so the old ones come first: no index needed.
            with self._store.transaction():
                count = self._store.run(
                    "DELETE FROM ciphermq_inbox WHERE seen_ms < ?"
                    " AND seq IN (SELECT seq FROM ciphermq_inbox ORDER BY seq LIMIT ?)"
                    " AND seq NOT IN (SELECT seq FROM ciphermq_inbox_pending)",
                    (limit, _PRUNED_TOGETHER),
                ).rowcount
            pruned += count
            if count < _PRUNED_TOGETHER:
                return pruned

    # --- the receiver's side ---------------------------------------------------------------

    def admit(self, arrivals: Sequence[Arrival], teller: Teller) -> list[Batch]:
        """What is to be shown of these. What is done already is acked and counted; another batch
        under an id that was here before is refused with `DuplicateConflict`."""
        if self._clock() - self._pruned_at >= limits.STORE_PRUNE:
            self.prune()
        admitted = self._keep(arrivals) if self.store_payloads else self._filter(arrivals, teller)
        batches = []
        for arrival, fresh, seq in admitted:
            known = arrival.live & ~fresh
            self.duplicates += known.bit_count()
            delivery = arrival.delivery
            if seq is not None:
                delivery.ack(arrival.live)
                delivery = KeptDelivery(self._kept, seq, arrival.origin)
            elif known:
                delivery.ack(known)
            if fresh:
                settling = Settling(arrival.origin, fresh, delivery, teller)
                batches.append(Batch(arrival.messages, arrival.origin, settling))
        return batches

    def _filter(
        self, arrivals: Sequence[Arrival], teller: Teller
    ) -> list[tuple[Arrival, Bitmap, None]]:
        admitted: list[tuple[Arrival, Bitmap, None]] = []
        for arrival in arrivals:
            try:
                fresh = arrival.live & ~self._done(arrival.origin)
            except DuplicateConflict as error:
                _refuse(arrival, error)
            else:
                # Delivered twice at once, by a broker that took it back too soon or that likes to:
                # when it comes again, it will be known.
                twin = fresh & teller.in_hand(arrival.origin)
                if twin:
                    arrival.delivery.nack(twin, requeue=True, reason="", detail="in hand already")
                rest = arrival._replace(live=arrival.live & ~twin)
                admitted.append((rest, fresh & ~twin, None))
        return admitted

    def _keep(self, arrivals: Sequence[Arrival]) -> list[tuple[Arrival, Bitmap, int]]:
        admitted = []
        with self._store.transaction():
            for arrival in arrivals:
                try:
                    fresh = arrival.live & ~self._done(arrival.origin)
                except DuplicateConflict as error:
                    _refuse(arrival, error)
                    continue
                seq = self._mark(arrival.origin, 0)
                fresh = self._kept.add(seq, arrival.origin, arrival.messages, fresh)
                admitted.append((arrival, fresh, seq))
        return admitted

    def finish(self, done: Sequence[tuple[Settling, Bitmap]]) -> None:
        """Commit, all together, that these are done (`settling.Memory`)."""
        with self._store.transaction():
            for settling, bits in done:
                self._mark(settling.origin, bits)

    def next_due(self, queue: str) -> float | None:
        """Seconds until the next pending batch of `queue` is to be shown; None: there is none."""
        at = self._kept.next_due(queue) if self.store_payloads else None
        return None if at is None else max(0.0, at - self._clock())

    def take(self, queue: str, teller: Teller) -> Batch | None:
        """The next pending batch of `queue` that is due."""
        return self._kept.take(queue, teller) if self.store_payloads else None

    # --- rows --------------------------------------------------------------------------------

    def _done(self, origin: Origin) -> Bitmap:
        rows = self._store.ask(
            "SELECT done, digest FROM ciphermq_inbox WHERE sender = ? AND batch_id = ?",
            (origin.sender or "", origin.batch_id),
        )
        if not rows:
            return 0
        done, digest = rows[0]
        if digest != origin.digest[:_DIGEST_SIZE]:
            raise DuplicateConflict(
                f"{origin.sender or 'somebody'} has given another batch the id "
                f"{ids.message_id(origin.batch_id, 0)} before: neither a retry nor new"
            )
        return bitmap.decode(done, origin.count)

    def _mark(self, origin: Origin, bits: Bitmap) -> int:
        """Note that these are done, inside a transaction; the row's number."""
        done = bitmap.encode(self._done(origin) | bits, origin.count)
        ((seq,),) = self._store.run(
            "INSERT INTO ciphermq_inbox (sender, batch_id, digest, done, seen_ms)"
            " VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (sender, batch_id) DO UPDATE SET done = excluded.done RETURNING seq",
            (
                origin.sender or "",
                origin.batch_id,
                origin.digest[:_DIGEST_SIZE],
                done,
                int(self._clock() * 1000),
            ),
        ).fetchall()
        if self.store_payloads and bits:
            self._kept.finish(seq, origin.count, bits)
        return int(seq)


def _refuse(arrival: Arrival, error: DuplicateConflict) -> None:
    arrival.delivery.nack(arrival.live, requeue=False, reason=error.code, detail=str(error))


def _lock(path: Path) -> int:
    try:
        return disk.claim(path.with_name(path.name + ".lock"))
    except BlockingIOError as error:
        raise InboxError(
            f"the inbox {path} stores payloads and another process has it open: stop that one, "
            "or share an inbox that doesn't store payloads"
        ) from error
