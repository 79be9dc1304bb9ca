"""A batch in memory, and its place in a queue.

There may be millions of both, so they are laid out for that: no garbage collector's header
(which also keeps its passes short), numbers packed together, and whatever only some entries need
in a `Past` of its own. A single message that waits takes some 300 bytes here, its payload none.

Without the collector, a cycle would never be freed: batch and entry point at each other, so
`Batch.leave` cuts the one from the other as soon as an entry is done with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from ciphermq import limits
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap, Levels
from ciphermq.model.topology import DeadInfo

if TYPE_CHECKING:
    from ciphermq.broker.queues import Queue

FULL: Final = tuple(bitmap.full(count) for count in range(limits.MAX_BATCH_MESSAGES + 1))
"""`bitmap.full` by count: one shared integer for each."""

_TIME_BITS: Final = 48
_SIZE_BITS: Final = 32
_TIME: Final = (1 << _TIME_BITS) - 1
_SIZE: Final = (1 << _SIZE_BITS) - 1
_PLACE_SHIFT: Final = _TIME_BITS + _SIZE_BITS
_VERSION_SHIFT: Final = 76
"""Where a UUID has its version (RFC 9562 section 4.2)."""
_ONEX_VERSION: Final = 8
"""Of `ciphermq.model.onex.internal_id`; a batch id is of version 7."""


class Batch(msgspec.Struct, gc=False, eq=False, weakref=False):
    """What is kept of a batch while any queue holds any of its messages."""

    seq: int
    """The lsn of the record that brought it."""
    id: int
    """The batch id as a number, which takes fewer bytes."""
    sender: str
    routing_key: str
    count: int
    expires_ms: int
    facts: int
    """Its place, size and time, packed by `pack`."""
    entries: Entry | list[Entry] | None = None

    @property
    def batch_id(self) -> bytes:
        """The batch id's 16 bytes."""
        return self.id.to_bytes(16, "big")

    @property
    def onex(self) -> bool:
        """Whether it is a message of CipherMQ 1.x: by its id, see `ciphermq.model.onex`."""
        return self.id >> _VERSION_SHIFT & 0xF == _ONEX_VERSION

    @property
    def published_ms(self) -> int:
        """When the broker took it."""
        return self.facts & _TIME

    @property
    def size(self) -> int:
        """Bytes of the sealed batch."""
        return self.facts >> _TIME_BITS & _SIZE

    @property
    def place(self) -> int:
        """Where the engine finds the sealed bytes: its own business. 0: nowhere yet."""
        return self.facts >> _PLACE_SHIFT

    @place.setter
    def place(self, place: int) -> None:
        self.facts = place << _PLACE_SHIFT | self.facts & ((1 << _PLACE_SHIFT) - 1)

    def join(self, entry: Entry) -> None:
        """`entry` holds messages of this batch."""
        if self.entries is None:
            self.entries = entry
        elif isinstance(self.entries, list):
            self.entries.append(entry)
        else:
            self.entries = [self.entries, entry]

    def leave(self, entry: Entry) -> bool:
        """`entry` holds none any more. Whether it was the last that did."""
        if isinstance(self.entries, list):
            self.entries.remove(entry)
            if not self.entries:
                self.entries = None
        else:
            self.entries = None
        return self.entries is None

    def all_entries(self) -> Iterable[Entry]:
        """The entries that hold messages of this batch; a list of its own."""
        if self.entries is None:
            return ()
        return list(self.entries) if isinstance(self.entries, list) else (self.entries,)


def pack(published_ms: int, size: int, place: int = 0) -> int:
    """`Batch.facts`: one integer takes 48 bytes where three take 112."""
    return place << _PLACE_SHIFT | size << _TIME_BITS | published_ms


class Past(msgspec.Struct, gc=False, eq=False, weakref=False):
    """What has happened to an entry's messages, where anything has."""

    placed_ms: int = 0
    """When it came into this queue, if not when its batch was published."""
    dead: DeadInfo | None = None
    tries: Levels = msgspec.field(default_factory=dict)
    """How often they were tried in vain."""
    given: Levels = msgspec.field(default_factory=dict)
    """How often they were given out and came back, whether or not that was a try."""


class Entry(msgspec.Struct, gc=False, eq=False, weakref=False):
    """Some messages of a batch in one queue."""

    batch: Batch
    queue: Queue
    pos: int
    """Its place in the queue's order: the lsn of the record that put it there."""
    live: Bitmap
    """The messages that are still here."""
    held: Bitmap = 0
    """Those of them that can't be given out now: in somebody's hands, or parked."""
    past: Past | None = None

    @property
    def ready(self) -> Bitmap:
        """The messages that can be given out."""
        return self.live & ~self.held

    @property
    def placed_ms(self) -> int:
        """When it came into its queue."""
        past = self.past
        return past.placed_ms if past and past.placed_ms else self.batch.published_ms

    @property
    def dead(self) -> DeadInfo | None:
        """Why it is a dead letter, if it is one."""
        return self.past.dead if self.past else None

    @property
    def expires_ms(self) -> int:
        """When its messages expire; 0: never.

        A dead letter's own expiry has done its work: only the queue's counts then, or what
        expired once would expire again wherever it goes. In ``dead.<queue>`` nothing expires.
        """
        ttl_ms, own = self.queue.spec.ttl_ms, self.batch.expires_ms
        if not (ttl_ms or own) or self.queue.is_dead:
            return 0
        at_ms = self.placed_ms + ttl_ms if ttl_ms else 0
        if own and (not at_ms or own < at_ms) and self.dead is None:
            at_ms = own
        return at_ms

    def raise_levels(self, bits: Bitmap, *, tries: bool) -> None:
        """`bits` came back from somebody; with `tries`, it counts against them."""
        if self.past is None:
            self.past = Past()
        bitmap.raise_levels(self.past.given, bits)
        if tries:
            bitmap.raise_levels(self.past.tries, bits)

    def times_given(self, bits: Bitmap) -> int:
        """How often the most often given of `bits` was given out before."""
        given = self.past.given if self.past else {}
        return max((times for times, those in given.items() if those & bits), default=0)

    def by_tries(self, bits: Bitmap) -> Levels:
        """`bits`, parted by how often they were tried."""
        return bitmap.by_level(self.past.tries if self.past else {}, bits)
