"""Receiving without ``async``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from ciphermq import limits
from ciphermq.client.inbox import Arrival
from ciphermq.client.messages import Batch, Message
from ciphermq.client.settling import Delivery
from ciphermq.client.shelf import Shelf
from ciphermq.client.source import Source
from ciphermq.client.sync.loop import Loop
from ciphermq.errors import AlreadyDone, ReceiverFault, UsageError
from ciphermq.model.bitmap import Bitmap
from ciphermq.telemetry import get_logger

T = TypeVar("T")

_log = get_logger("client")


class Receiver:
    """See `ciphermq.client.receiver.Receiver`: what counts as done is the same."""

    def __init__(
        self,
        loop: Loop,
        source: Source,
        shelf: Shelf,
        timeout: float | None,
    ) -> None:
        self._loop = loop
        self._source = source
        self._shelf = shelf
        self._timeout = timeout
        self._told = time.monotonic()
        self._closed = False

    def __iter__(self) -> Self:
        self._shelf.give_up()
        return self

    def __next__(self) -> Message:
        """The next message; the one before is done."""
        self._shelf.finish()
        message = self.next()
        if message is None:
            raise StopIteration
        self._shelf.hold(message)
        return message

    def next(self) -> Message | None:
        """The next message, for the caller to settle; None at the end (`stop`, `limit`)."""
        return self._next(self._shelf.next_message)

    def batches(self) -> Iterator[Batch]:
        """The messages in the batches they were sent in: the fast way for many."""
        self._shelf.give_up()
        while True:
            self._shelf.finish()
            batch = self.next_batch()
            if batch is None:
                return
            self._shelf.hold(batch)
            yield batch

    def next_batch(self) -> Batch | None:
        """The next batch, for the caller to settle; see `next`."""
        return self._next(self._shelf.next_batch)

    def run(self, handler: Callable[[Message], object]) -> None:
        """Give each message to `handler` until `stop`: acked when it returns, nacked when it
        raises. Closes the receiver at the end."""
        with self:
            while (message := self.next()) is not None:
                try:
                    handler(message)
                except AlreadyDone:
                    message.ack()
                except ReceiverFault:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, the next is shown
                    _log.warning("a handler failed", message=message.id, exc_info=error)
                    message.nack()
                else:
                    message.ack()

    def _next(self, look: Callable[[], T | None]) -> T | None:
        if self._closed:
            raise UsageError("this receiver is closed")
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._tell_in_time()
        while not self._source.stopping and not self._shelf.over:
            if (found := look()) is not None:
                return found
            arrivals = self._loop.run(self._source.take(self._shelf.wanted))
            if arrivals:
                self._shelf.admit([elsewhere(arrival, self._loop.call) for arrival in arrivals])
                continue
            self._tell()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._loop.run(self._source.wait(self._shelf.next_due(), left, self._timeout))
        return None

    def _tell_in_time(self) -> None:
        if time.monotonic() - self._told > limits.ACK_INTERVAL:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._shelf.tell()

    def renew(self) -> None:
        """Tell the broker that what is in hand is still wanted."""
        self._loop.call(self._source.renew)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    @property
    def refused(self) -> int:
        """Messages of this client that went to the dead letters because they can't be opened."""
        return self._source.refused

    def stop(self) -> None:
        """Show no more. May be called from any thread, or by a signal's handler."""
        self._loop.call(self._source.stop)

    def close(self, error: BaseException | None = None) -> None:
        """Settle what is in hand, give back the rest, wait for the broker's word."""
        if self._closed:
            return
        self._closed = True
        try:
            self._shelf.close(error)
        finally:
            self._loop.run(self._source.close())

    def __enter__(self) -> Self:
        self._loop.call(self._source.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)


class ThreadDelivery:
    """A delivery that is settled in another thread than its connection's (`settling.Delivery`)."""

    __slots__ = ("_call", "_delivery")

    def __init__(self, delivery: Delivery, call: Callable[..., None]) -> None:
        self._delivery = delivery
        self._call = call

    @property
    def lost(self) -> bool:
        return self._delivery.lost

    def ack(self, bits: Bitmap) -> None:
        self._call(self._delivery.ack, bits)

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str, detail: str) -> None:
        def nack() -> None:
            self._delivery.nack(bits, requeue=requeue, reason=reason, detail=detail)

        self._call(nack)

    def release(self, bits: Bitmap) -> None:
        self._call(self._delivery.release, bits)


def elsewhere(arrival: Arrival, call: Callable[..., None]) -> Arrival:
    """`arrival`, to be settled in the thread of its connection, which `call` reaches."""
    return arrival._replace(delivery=ThreadDelivery(arrival.delivery, call))
