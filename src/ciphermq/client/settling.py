"""What becomes of a batch's messages at the receiver, and who is told in which order.

The application settles messages one by one or all at once. Telling the broker of each would cost
a frame each, and committing each to an Inbox a disk write each. So what is acked is gathered, and
told together: when enough batches are done, when the receiver has nothing else to do, and at
least every `limits.ACK_INTERVAL` while it has.

The order is the point: first the Inbox commits "done", then the broker is told. A crash between
the two brings the messages again, and the Inbox knows them. The other way round it would lose
them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ciphermq.client.origin import Origin
from ciphermq.model.bitmap import Bitmap

_TOLD_TOGETHER: Final = 8
"""Finished batches for one commit of the Inbox: it takes a sync of the disk, whatever is in it."""


class Delivery(Protocol):
    """Who holds the batch until it is settled: the broker, or an Inbox that stores payloads."""

    @property
    def lost(self) -> bool:
        """Whether the batch will be delivered again, whatever is said of this delivery."""

    def ack(self, bits: Bitmap) -> None:
        """These are done. What is settled already, or lost with its connection, is no error."""

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str, detail: str) -> None:
        """These are not: later again (`requeue`), or to the dead letters with the reason."""

    def release(self, bits: Bitmap) -> None:
        """The receiver stops before these are settled: they come again, and count no try."""


class Memory(Protocol):
    """What remembers the done across crashes: `Inbox`."""

    def finish(self, done: Sequence[tuple[Settling, Bitmap]]) -> None:
        """Commit, all together, that these are done."""


class Settling:
    """The messages of one delivered batch: open, acked, told."""

    __slots__ = ("_teller", "acked", "committed", "delivery", "open", "origin")

    def __init__(self, origin: Origin, live: Bitmap, delivery: Delivery, teller: Teller) -> None:
        self.origin = origin
        self.open = live
        """Those that the application is to settle."""
        self.acked: Bitmap = 0
        """Those that it has acked and nobody has been told of."""
        self.committed: Bitmap = 0
        """Those that the memory knows as done."""
        self.delivery = delivery
        self._teller = teller
        teller.hold(self)

    @property
    def memory(self) -> Memory | None:
        """The Inbox through which the batch came, if any."""
        return self._teller.memory

    def ack(self, bits: Bitmap) -> None:
        """The application is done with these."""
        bits &= self.open
        if bits:
            self.open ^= bits
            self.acked |= bits
            self._teller.note(self)

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str = "", detail: str = "") -> None:
        """The application could not handle these, or (not `requeue`) never will.

        One whose effect is committed already is acked all the same: to show it again would be
        to show it twice.
        """
        self.ack(bits & self.committed)
        bits &= self.open
        if bits:
            self.open ^= bits
            self.delivery.nack(bits, requeue=requeue, reason=reason, detail=detail)
            self._teller.note(self)

    def forget(self, bits: Bitmap) -> None:
        """These turn out to be done already, by a receiver that shares the Inbox."""
        self.committed |= bits
        self.ack(bits)

    def drop(self, bits: Bitmap) -> None:
        """These were not shown and will be delivered again."""
        self.open &= ~bits
        self._teller.note(self)

    def release(self) -> None:
        """What is open will not be settled by this receiver."""
        bits, self.open = self.open, 0
        if bits:
            self.delivery.release(bits)


class Teller:
    """Gathers what is acked of one receiver's batches, and tells the Inbox, then the broker.

    Takes no clock: who owns it calls `tell` when it is time, as `untold` says.
    """

    def __init__(
        self, memory: Memory | None = None, on_untold: Callable[[], None] | None = None
    ) -> None:
        """`on_untold` is called when there begins to be something to tell."""
        self.memory = memory
        self._on_untold = on_untold or (lambda: None)
        # Without an Inbox there is nothing to save up for: the broker gathers acks by itself.
        self._enough = 1 if memory is None else _TOLD_TOGETHER
        self._held: dict[int, Settling] = {}
        self._by_batch: defaultdict[tuple[str | None, bytes], list[Settling]] = defaultdict(list)
        self._untold: dict[int, Settling] = {}
        self._finished = 0

    @property
    def untold(self) -> bool:
        """Whether acks wait to be told."""
        return bool(self._untold)

    @property
    def held(self) -> list[Settling]:
        """The batches that are not settled and told, oldest first."""
        return list(self._held.values())

    def hold(self, settling: Settling) -> None:
        """A batch is in the receiver's hands."""
        self._held[id(settling)] = settling
        if self.memory is not None:
            self._by_batch[_batch_of(settling.origin)].append(settling)

    def in_hand(self, origin: Origin) -> Bitmap:
        """Messages of that batch that the receiver has from another delivery, and the memory does
        not know as done yet. Those whose connection has ended do not count."""
        bits = 0
        for settling in self._by_batch.get(_batch_of(origin), ()):
            if not settling.delivery.lost:
                bits |= settling.open | settling.acked
        return bits

    def _let_go(self, settling: Settling) -> None:
        if self._held.pop(id(settling), None) is None or self.memory is None:
            return
        batch = _batch_of(settling.origin)
        self._by_batch[batch].remove(settling)
        if not self._by_batch[batch]:
            del self._by_batch[batch]

    def note(self, settling: Settling) -> None:
        """Something of `settling` has been settled."""
        if not settling.open:
            self._finished += 1
        if settling.acked:
            begins = not self._untold
            self._untold[id(settling)] = settling
            if self._finished >= self._enough:
                self.tell()
            elif begins:
                self._on_untold()
        elif not settling.open:
            self._let_go(settling)

    def tell(self) -> None:
        """Commit and pass on all that has been acked so far; nothing of it, if it can't be
        committed."""
        untold = list(self._untold.values())
        if self.memory is not None:
            fresh = [
                (settling, bits)
                for settling in untold
                if (bits := settling.acked & ~settling.committed)
            ]
            if fresh:
                self.memory.finish(fresh)
        self._untold, self._finished = {}, 0
        for settling in untold:
            bits, settling.acked = settling.acked, 0
            if self.memory is not None:
                settling.committed |= bits
            settling.delivery.ack(bits)
            if not settling.open:
                self._let_go(settling)

    def release(self) -> None:
        """The receiver stops: tell what is done, give back what is not."""
        try:
            self.tell()
        finally:
            held, self._held = self._held, {}
            self._by_batch.clear()
            for settling in held.values():
                settling.release()


def _batch_of(origin: Origin) -> tuple[str | None, bytes]:
    """What an Inbox, too, knows a batch by."""
    return origin.sender, origin.batch_id
