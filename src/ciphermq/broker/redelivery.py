"""Tries, back-off, time-outs: what becomes of messages that were given out and not settled.

=====================  ===========  ============================  ===================
what happened          counts       back in line                  record
=====================  ===========  ============================  ===================
nack                   as a try     after a back-off              TRY
time-out               as a try     at once                       TRY
connection lost        no           at once, marked redelivered   none
consumer stopped       no           at once, marked redelivered   none
=====================  ===========  ============================  ===================

The last try that a queue allows makes a dead letter instead. A message in a ``dead.<queue>`` is
there to stay: tries are counted, but none is the last.
"""

from __future__ import annotations

from ciphermq import limits
from ciphermq.broker.deadletters import DeadLetters
from ciphermq.broker.deliveries import Held
from ciphermq.broker.entries import Entry
from ciphermq.broker.records import Kind, TryRecord
from ciphermq.broker.state import State
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap


def backoff_ms(tries: int) -> int:
    """How long a message waits after its so-manieth try in vain."""
    seconds = limits.NACK_BACKOFF_FIRST * 2 ** min(tries - 1, 30)
    return int(min(seconds, limits.NACK_BACKOFF_MOST) * 1000)


class Redelivery:
    """Takes deliveries back."""

    def __init__(self, state: State, dead_letters: DeadLetters) -> None:
        self._state = state
        self._dead_letters = dead_letters

    def returned(self, held: Held, now: int, *, given: bool = True) -> None:
        """Its holder is gone, which is no fault of the messages; or (not `given`) never had it."""
        entry, bits = held.entry, held.bits
        self._state.deliveries.take_back(held, bits)
        if given:
            entry.raise_levels(bits, tries=False)
        self._state.put_back(entry, bits, now)

    def refused(self, held: Held, bits: Bitmap, detail: str, now: int) -> None:
        """A nack: some of its messages come back later."""
        left = self._try_again(held, bits, "tries", detail, now)
        entry = held.entry
        for tries, those in entry.by_tries(left).items():
            entry.queue.park(entry, those)
            self._state.backoffs.add(now + backoff_ms(tries), (entry, those))
        self._state.check_expiry(entry, now)

    def timed_out(self, held: Held, now: int) -> None:
        """Its holder said nothing for too long."""
        timeout = held.entry.queue.spec.ack_timeout_ms / 1000
        entry = held.entry
        left = self._try_again(held, held.bits, "timeout", f"no ack within {timeout:g} s", now)
        if left:
            self._state.put_back(entry, left, now)

    def _try_again(self, held: Held, bits: Bitmap, reason: str, detail: str, now: int) -> Bitmap:
        """Count a try; those for which it was the last are dead, the others are returned."""
        entry = held.entry
        queue = entry.queue
        self._state.deliveries.take_back(held, bits)
        last = 0
        if not queue.is_dead:
            for tries, those in entry.by_tries(bits).items():
                if tries + 1 >= queue.spec.max_tries:
                    last |= those
        left = bits & ~last
        if left:
            record = TryRecord(queue.id, entry.pos, bitmap.encode(left, entry.batch.count))
            self._state.append(Kind.TRY, record)
            entry.raise_levels(left, tries=True)
        if last:
            self._dead_letters.bury(entry, last, reason, detail, now)
        return left

    def backed_off(self, entry: Entry, bits: Bitmap, now: int) -> None:
        """The back-off of these messages is over."""
        if bits := entry.queue.unpark(entry, bits):
            self._state.put_back(entry, bits, now)
