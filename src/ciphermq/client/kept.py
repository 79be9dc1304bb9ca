"""Opened batches that an Inbox keeps, so that the broker may forget them at once.

What is kept and not done is pending. It is in somebody's hands, or in a heap here by the time at
which it is to be shown: at once after a crash, a while after a nack. A batch that came and was
shown at once is never read back.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.client.messages import Batch
from ciphermq.client.origin import Origin
from ciphermq.client.settling import Settling, Teller
from ciphermq.client.store import Store
from ciphermq.model import bitmap, body, ids
from ciphermq.model.bitmap import Bitmap, Levels
from ciphermq.model.body import Messages

SCHEMA: Final = """
    CREATE TABLE ciphermq_inbox_pending (
        seq INTEGER PRIMARY KEY,
        queue TEXT NOT NULL,
        count INTEGER NOT NULL,
        open BLOB NOT NULL,
        tries BLOB NOT NULL, -- how often, to which messages
        origin BLOB NOT NULL,
        plaintext BLOB NOT NULL
    );
    CREATE TABLE ciphermq_inbox_rejected (
        message_id TEXT PRIMARY KEY,
        sender TEXT NOT NULL,
        queue TEXT NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        payload BLOB NOT NULL
    )
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_origin = msgspec.msgpack.Decoder(Origin).decode
_decode_tries = msgspec.msgpack.Decoder(dict[int, bytes]).decode


class Rejected(msgspec.Struct, frozen=True):
    """A message that the application refused after the broker had forgotten it."""

    message_id: str
    sender: str
    queue: str
    reason: str
    detail: str
    at_ms: int
    payload: bytes


class _Due(NamedTuple):
    """Pending messages that nobody has in hand."""

    at: float
    seq: int
    bits: Bitmap


class Kept:
    """The pending part of an Inbox. `seq` is that of a batch's row there."""

    def __init__(
        self, store: Store, clock: Callable[[], float], mark: Callable[[Origin, Bitmap], int]
    ) -> None:
        """`mark` notes, inside a transaction, that messages are done."""
        self._store = store
        self._clock = clock
        self._mark = mark
        self._due: defaultdict[str, list[_Due]] = defaultdict(list)
        """Heaps, by queue. What is not here and pending is in somebody's hands."""

    # --- inside the Inbox's transactions ---------------------------------------------------

    def add(self, seq: int, origin: Origin, messages: Messages, fresh: Bitmap) -> Bitmap:
        """Keep `fresh` messages of a batch; those of them that were not kept before."""
        known = self._open(seq, origin.count)
        fresh &= ~known
        if known:
            self._set_open(seq, origin.count, known | fresh)
        elif fresh:
            encoded = bitmap.encode(fresh, origin.count)
            self._store.run(
                "INSERT INTO ciphermq_inbox_pending VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    seq,
                    origin.queue,
                    origin.count,
                    encoded,
                    _encode({}),
                    _encode(origin),
                    messages.plaintext,
                ),
            )
        return fresh

    def finish(self, seq: int, count: int, bits: Bitmap) -> None:
        """These are done."""
        known = self._open(seq, count)
        if known & bits:
            self._set_open(seq, count, known & ~bits)

    def _open(self, seq: int, count: int) -> Bitmap:
        rows = self._store.ask("SELECT open FROM ciphermq_inbox_pending WHERE seq = ?", (seq,))
        return bitmap.decode(rows[0][0], count) if rows else 0

    def _set_open(self, seq: int, count: int, bits: Bitmap) -> None:
        if bits:
            self._store.run(
                "UPDATE ciphermq_inbox_pending SET open = ? WHERE seq = ?",
                (bitmap.encode(bits, count), seq),
            )
        else:
            self._store.run("DELETE FROM ciphermq_inbox_pending WHERE seq = ?", (seq,))

    def restore(self) -> None:
        """At the start everything pending is in nobody's hands: whoever had it is dead."""
        for seq, queue, count, opened in self._store.ask(
            "SELECT seq, queue, count, open FROM ciphermq_inbox_pending ORDER BY seq"
        ):
            self._due[queue].append(_Due(0.0, seq, bitmap.decode(opened, count)))

    # --- what is to be shown ----------------------------------------------------------------

    def next_due(self, queue: str) -> float | None:
        """When the next pending batch of `queue` is to be shown; None while there is none."""
        heap = self._due[queue]
        return heap[0].at if heap else None

    def take(self, queue: str, teller: Teller) -> Batch | None:
        """The next pending batch of `queue` that is due."""
        heap = self._due[queue]
        while heap and heap[0].at <= self._clock():
            due = heapq.heappop(heap)
            rows = self._store.ask(
                "SELECT open, tries, origin, plaintext FROM ciphermq_inbox_pending WHERE seq = ?",
                (due.seq,),
            )
            if not rows:  # done in the meantime, by who had it in hand before
                continue
            opened, tries, encoded, plaintext = rows[0]
            origin = _decode_origin(encoded)
            bits = due.bits & bitmap.decode(opened, origin.count)
            if bits:
                most = max(bitmap.by_level(_levels(tries, origin.count), bits))
                origin = msgspec.structs.replace(origin, redelivered=True, redeliveries=most)
                settling = Settling(origin, bits, KeptDelivery(self, due.seq, origin), teller)
                return Batch(body.decode(plaintext), origin, settling)
        return None

    def show_at(self, at: float, seq: int, queue: str, bits: Bitmap) -> None:
        """Nobody has these in hand any more."""
        heapq.heappush(self._due[queue], _Due(at, seq, bits))

    # --- what the application could not do ---------------------------------------------------

    def again(self, seq: int, origin: Origin, bits: Bitmap) -> None:
        """Show these again after a while, or after too many tries never."""
        with self._store.transaction():
            levels = self._tries(seq, origin.count)
            bitmap.raise_levels(levels, bits)
            tries = {level: bitmap.encode(those, origin.count) for level, those in levels.items()}
            self._store.run(
                "UPDATE ciphermq_inbox_pending SET tries = ? WHERE seq = ?", (_encode(tries), seq)
            )
        for level, those in bitmap.by_level(levels, bits).items():
            if level >= limits.MAX_TRIES:
                self.reject(seq, origin, those, "tries", f"given back {level} times")
                continue
            delay = min(limits.NACK_BACKOFF_FIRST * 2.0 ** (level - 1), limits.NACK_BACKOFF_MOST)
            self.show_at(self._clock() + delay, seq, origin.queue, those)

    def reject(self, seq: int, origin: Origin, bits: Bitmap, reason: str, detail: str) -> None:
        """Never show these again; keep them where the operator finds them."""
        now_ms = int(self._clock() * 1000)
        with self._store.transaction():
            plaintext = self._store.ask(
                "SELECT plaintext FROM ciphermq_inbox_pending WHERE seq = ?", (seq,)
            )[0][0]
            messages = body.decode(plaintext)
            for index in bitmap.indices(bits):
                self._store.run(
                    "INSERT OR REPLACE INTO ciphermq_inbox_rejected VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        ids.message_id(origin.batch_id, index),
                        origin.sender or "",
                        origin.queue,
                        reason,
                        detail,
                        now_ms,
                        messages.payload(index),
                    ),
                )
            self._mark(origin, bits)

    def rejected(self) -> Iterator[Rejected]:
        """All that were rejected, oldest first."""
        for row in self._store.ask(
            "SELECT * FROM ciphermq_inbox_rejected ORDER BY at_ms, message_id"
        ):
            yield Rejected(*row)

    def _tries(self, seq: int, count: int) -> Levels:
        rows = self._store.ask("SELECT tries FROM ciphermq_inbox_pending WHERE seq = ?", (seq,))
        return _levels(rows[0][0], count) if rows else {}


def _levels(tries: bytes, count: int) -> Levels:
    return {level: bitmap.decode(bits, count) for level, bits in _decode_tries(tries).items()}


class KeptDelivery:
    """Settles with the Inbox what the broker has already forgotten (`settling.Delivery`)."""

    __slots__ = ("_kept", "_origin", "_seq")

    lost = False
    """It is here, whatever happens to connections."""

    def __init__(self, kept: Kept, seq: int, origin: Origin) -> None:
        self._kept = kept
        self._seq = seq
        self._origin = origin

    def ack(self, bits: Bitmap) -> None:
        """The Inbox has committed them as done, which is all there is to it."""

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str, detail: str) -> None:
        """To be shown again later, or put aside for the operator."""
        if requeue:
            self._kept.again(self._seq, self._origin, bits)
        else:
            self._kept.reject(self._seq, self._origin, bits, reason, detail)

    def release(self, bits: Bitmap) -> None:
        """To be shown by the next receiver."""
        self._kept.show_at(0.0, self._seq, self._origin.queue, bits)
