"""What a receiver has to show, what is in hand, and what becomes of it: no waiting, no I/O but the
Inbox's.

The asynchronous and the synchronous receiver share it. Each waits for deliveries in its own way,
and puts here what was opened; from here on everything happens in the application's thread, which
is the one that may use the application's Inbox.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from ciphermq.client.inbox import Arrival, Inbox
from ciphermq.client.messages import Batch, Message
from ciphermq.client.settling import Settling, Teller
from ciphermq.errors import AlreadyDone, ReceiverFault
from ciphermq.model import bitmap

_OPENED_TOGETHER: Final = 8
"""Batches for one commit of an Inbox that stores payloads."""


class Shelf:
    """One receiver's messages between their opening and their settling."""

    def __init__(
        self,
        queue: str,
        inbox: Inbox | None,
        limit: int | None,
        on_untold: Callable[[], None] | None = None,
    ) -> None:
        """`limit`: messages to show in all. `on_untold`: see `Teller`."""
        self._queue = queue
        self._inbox = inbox
        self._left = limit
        self._teller = Teller(inbox, on_untold)
        self._opened: list[Arrival] = []
        """What the Inbox has not taken yet."""
        self._ready: deque[Batch] = deque()
        self._showing: Iterator[Message] = iter(())
        self._shown_of: Batch | None = None
        self._in_hand: Message | Batch | None = None

    # --- showing --------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether as many were shown as were wanted."""
        return self._left is not None and self._left <= 0

    @property
    def wanted(self) -> int:
        """How many batches to open at a time."""
        return _OPENED_TOGETHER if self._inbox is not None and self._inbox.store_payloads else 1

    def next_message(self) -> Message | None:
        """The next message to show; None: more must be opened first."""
        while (message := self._next_shown()) is None:
            self._shown_of = self._next_ready()
            if self._shown_of is None:
                return None
            self._showing = iter(self._shown_of)
        if self._left is not None:
            self._left -= 1
        return message

    def next_batch(self) -> Batch | None:
        """The next batch to show; None: more must be opened first."""
        batch = self._next_ready()
        if batch is not None and self._left is not None:
            # What is beyond the limit goes back to the queue at the end.
            batch.narrow(bitmap.of(islice(bitmap.indices(batch.bits), self._left)))
            self._left -= len(batch)
        return batch

    def next_due(self) -> float | None:
        """Seconds until there is something to show although nothing arrives; None: never."""
        return None if self._inbox is None else self._inbox.next_due(self._queue)

    def admit(self, arrivals: Sequence[Arrival]) -> None:
        """These have been opened. What an Inbox can't take now is tried again at the next look."""
        self._opened += arrivals
        arrivals = self._opened
        if self._inbox is None:
            self._ready += [
                Batch(
                    arrival.messages,
                    arrival.origin,
                    Settling(arrival.origin, arrival.live, arrival.delivery, self._teller),
                )
                for arrival in arrivals
            ]
        else:
            if any(arrival.origin.redelivered for arrival in arrivals):
                # What is done of these may not be in the Inbox yet.
                self._teller.tell()
            self._ready += self._inbox.admit(arrivals, self._teller)
        self._opened = []

    def _next_shown(self) -> Message | None:
        batch = self._shown_of
        if batch is None:
            return None
        if batch.settling.delivery.lost:
            # The rest will come again: to show it now would be to show it twice.
            batch.settling.drop(bitmap.of(message.index for message in self._showing))
        for message in self._showing:
            if not message.settled:
                return message
        self._shown_of = None
        return None

    def _next_ready(self) -> Batch | None:
        if self._opened:
            self.admit(())
        while self._ready:
            batch = self._ready.popleft()
            if not batch.settling.delivery.lost:
                return batch
            batch.settling.drop(batch.settling.open)
        return None if self._inbox is None else self._inbox.take(self._queue, self._teller)

    # --- in hand --------------------------------------------------------------------------------

    def hold(self, shown: Message | Batch) -> None:
        """A loop is about to work on this."""
        self._in_hand = shown

    def finish(self) -> None:
        """The loop asks for the next: what was in hand is done."""
        hand, self._in_hand = self._in_hand, None
        if hand is not None:
            hand.ack()

    def give_up(self) -> None:
        """The loop was left, nobody knows why: what was in hand is not done."""
        hand, self._in_hand = self._in_hand, None
        if hand is not None:
            hand.nack()

    def tell(self) -> None:
        """Tell the Inbox and the broker what is done; raises `InboxError`."""
        self._teller.tell()

    def close(self, error: BaseException | None) -> None:
        """The receiver ends, by `error` or in order: settle what is in hand, give back the rest."""
        if isinstance(error, AlreadyDone):
            self.finish()
        elif error is None or not _nobodys_fault(error):
            self.give_up()
        self._in_hand = None
        self._teller.release()


def _nobodys_fault(error: BaseException) -> bool:
    """Whether a block was left for a reason that has nothing to do with the message in hand: it was
    cancelled or interrupted, or this machine's Inbox failed."""
    return not isinstance(error, Exception) or isinstance(error, ReceiverFault)
