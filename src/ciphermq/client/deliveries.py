"""What the broker has delivered: held here until it is settled there.

A delivery can be settled only on the connection that it came on. When that has ended, the broker
has taken its messages back and will deliver them again: settling them is then silently nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ciphermq.client.credit import Credit
from ciphermq.client.session import Session
from ciphermq.errors import BatchError, Refused, RemoteProtocolError
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.envelope import read_header
from ciphermq.wire.cmq2.frames import DeliverFrame

_NOTHING: Final = b"\0"
"""A bitmap without any message: says no more than that the delivery is still wanted."""


class Consumer:
    """One consumer on one connection (a `session.Sink`), or the holder of what was fetched."""

    def __init__(
        self,
        session: Session,
        credit: Credit | None = None,
        on_delivery: Callable[[BrokerDelivery], None] | None = None,
        on_cancelled: Callable[[Consumer, Refused], None] | None = None,
    ) -> None:
        self.session = session
        self.number = 0
        """The broker's, once it is known; 0 for what was fetched."""
        self.retired = False
        """Another connection's consumer has taken over; deliveries are still settled here."""
        self.held: dict[int, BrokerDelivery] = {}
        """Deliveries that are not settled, by tag, oldest first."""
        self._credit = credit
        self._on_delivery = on_delivery
        self._on_cancelled = on_cancelled

    def started(self, consumer: int) -> None:
        """The broker knows it by this number."""
        self.number = consumer

    def deliver(self, frame: DeliverFrame) -> None:
        """A batch came. Raises `RemoteProtocolError` for one that was not asked for."""
        delivery = BrokerDelivery(self, frame)
        if not delivery.live:
            raise RemoteProtocolError("the broker delivered none of the messages of a batch")
        if self._credit is not None:
            self._credit.delivered(delivery.live.bit_count(), len(frame.sealed))
            self._give(self._credit.top_up())
        self.held[frame.tag] = delivery
        if self._on_delivery is not None:
            self._on_delivery(delivery)

    def cancelled(self, error: Refused) -> None:
        """The broker has ended it."""
        if self._on_cancelled is not None:
            self._on_cancelled(self, error)

    def settled(self, delivery: BrokerDelivery, messages: int) -> None:
        """So many messages of a delivery are settled."""
        if not delivery.live:
            self.held.pop(delivery.tag, None)
        if self._credit is not None:
            self._give(self._credit.settled(messages))

    def renew(self) -> None:
        """Tell the broker that everything in hand is still wanted."""
        for delivery in self.held.values():
            self.session.ack(delivery.tag, _NOTHING)

    def _give(self, messages: int) -> None:
        if messages and self.number and not self.retired:
            self.session.credit(self.number, messages)


class BrokerDelivery:
    """One batch in this client's hands (a `settling.Delivery`)."""

    __slots__ = ("_consumer", "count", "frame", "live")

    def __init__(self, consumer: Consumer, frame: DeliverFrame) -> None:
        self._consumer = consumer
        self.frame = frame
        self.count = _count(frame)
        """Messages in the whole batch."""
        self.live = bitmap.decode(frame.bitmap, self.count)
        """Those that the broker waits to hear of."""

    @property
    def tag(self) -> int:
        """The delivery's name on its connection."""
        return self.frame.tag

    @property
    def lost(self) -> bool:
        """Whether its connection has ended, so that it comes again."""
        return not self._consumer.session.alive

    def ack(self, bits: Bitmap) -> None:
        """These are done."""
        bits &= self.live
        if bits:
            self.live ^= bits
            self._consumer.session.ack(self.tag, self._encoded(bits))
            self._consumer.settled(self, bits.bit_count())

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str = "", detail: str = "") -> None:
        """These come again, or go to the dead letters."""
        bits &= self.live
        if bits:
            self.live ^= bits
            self._consumer.session.nack(
                self.tag, self._encoded(bits), requeue=requeue, reason=reason, detail=detail
            )
            self._consumer.settled(self, bits.bit_count())

    def release(self, bits: Bitmap) -> None:
        """Nothing: the broker takes all that a consumer holds when it is cancelled."""

    def _encoded(self, bits: Bitmap) -> bytes:
        # "All that is left" needs no bitmap; it is what remains to be said of most batches.
        return b"" if not self.live else bitmap.encode(bits, self.count)


def _count(frame: DeliverFrame) -> int:
    try:
        return read_header(frame.sealed).count
    except BatchError:
        # Opening it will say what is wrong. Until then one message stands for all of it.
        return 1
