"""Receiving: messages one by one, in batches, or by a handler; acked when they are done.

In a loop, asking for the next message acks the one in hand: the body has come to its end. Nothing
else does, because a loop can't see how its body ended. A `break` may be success, and an exception
that is caught outside of the loop looks the same from here. So, when the block is left::

    async with client.receiver() as messages:   with a message in hand
        async for message in messages:          by an exception:      it is nacked
            ...                                 by cancellation:      it is given back, no try
                                                in any other way:     it is nacked

Who leaves early and is done with the message calls `message.ack()` first, or says beforehand how
many are wanted (`limit`). `batches()` is the same with whole batches. `run(handler)` sees how its
handler ends: it acks when that returns, and nacks when it raises.

A batch that can't be opened goes to the dead letters with the reason, and the next one is shown.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Final, Self

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.deliveries import BrokerDelivery
from ciphermq.client.feed import Feed
from ciphermq.client.inbox import Arrival, Inbox
from ciphermq.client.messages import Batch, Message
from ciphermq.client.opening import Unsealer
from ciphermq.client.settling import Settling, Teller
from ciphermq.errors import AlreadyDone, CipherMQError, ReceiverFault, UsageError, WaitTimeout
from ciphermq.model import bitmap
from ciphermq.model.bitmap import Bitmap
from ciphermq.telemetry import get_logger

_log = get_logger("client")

_OPENED_TOGETHER: Final = 8
"""Batches for one commit of an Inbox that stores payloads."""

Handler = Callable[[Message], Awaitable[object] | object]


class Receiver:
    """Receives from one queue. Made by `Client.receiver`; it begins with its first use."""

    def __init__(
        self,
        core: Core,
        unsealer: Unsealer,
        queue: str,
        *,
        name: str | None,
        prefetch: int,
        inbox: Inbox | None,
        limit: int | None,
        timeout: float | None,
    ) -> None:
        """See `Client.receiver`."""
        self.queue = queue
        self._core = core
        self._unsealer = unsealer
        self._inbox = inbox
        self._left = limit
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._feed = Feed(core, queue, name=name, prefetch=prefetch, on_ending=self._tell)
        self._teller = Teller(inbox, self._set_timer)
        self._ready: deque[Batch] = deque()
        self._showing: Iterator[Message] = iter(())
        self._shown_of: Batch | None = None
        self._in_hand: Message | Batch | None = None
        self._asking = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._renewed = self._loop.time()
        self._failure: Exception | None = None
        self._started = False
        self._stopping = False
        self._closed = False

    # --- one by one -------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        # A loop that was left and begun again: how it was left is not known.
        self._give_up()
        return self

    async def __anext__(self) -> Message:
        """The next message; the one before is done."""
        self._finish()
        message = await self.next()
        if message is None:
            raise StopAsyncIteration
        self._in_hand = message
        return message

    async def next(self) -> Message | None:
        """The next message, for the caller to settle; None at the end (`stop`, `limit`).

        Raises `WaitTimeout` when none comes within the receiver's time-out, a `ReceiverFault`
        when this machine can't open what comes, the broker's refusal.
        """
        async with self._asking:
            while not self._over():
                message = self._next_shown()
                if message is not None:
                    return message
                batch = await self._next_batch()
                if batch is None:
                    break
                self._shown_of, self._showing = batch, iter(batch)
        return None

    # --- in batches ---------------------------------------------------------------------------

    def batches(self) -> AsyncIterator[Batch]:
        """The messages in the batches they were sent in: the fast way for many.

        Asking for the next batch acks what is left of the one in hand.
        """
        self._give_up()
        return _Batches(self)

    async def next_batch(self) -> Batch | None:
        """The next batch, for the caller to settle; see `next`."""
        async with self._asking:
            if self._over():
                return None
            batch = await self._next_batch()
            if batch is not None and self._left is not None:
                # What is beyond the limit goes back to the queue at the end.
                batch.narrow(_first(batch.bits, self._left))
                self._left -= len(batch)
            return batch

    async def advance(self) -> Batch | None:
        """The next batch of `batches`; the one before is done."""
        self._finish()
        batch = await self.next_batch()
        self._in_hand = batch
        return batch

    # --- by a handler -------------------------------------------------------------------------

    async def run(self, handler: Handler, *, concurrency: int = 1) -> None:
        """Give each message to `handler`, a function or a coroutine function, until `stop`.

        A message is acked when the handler returns, and nacked, to come again, when it raises;
        that is logged and the next one is shown. Up to `concurrency` messages are in work at a
        time; with more than one, order is not kept. Closes the receiver at the end.

        Raises what `next` raises. Cancelling gives back what is in work.
        """
        if concurrency < 1:
            raise UsageError(f"concurrency is 1 or more, not {concurrency}")
        async with self:
            workers = [self._loop.create_task(self._work(handler)) for _ in range(concurrency)]
            try:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for worker in workers:
                    worker.cancel()
                outcomes = await asyncio.gather(*workers, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _work(self, handler: Handler) -> None:
        while (message := await self.next()) is not None:
            try:
                result = handler(message)
                if inspect.isawaitable(result):
                    await result
            except AlreadyDone:
                message.ack()
            except ReceiverFault:
                raise  # the Inbox failed: not the message's fault
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one is shown
                _log.warning("a handler failed", message=message.id, exc_info=error)
                message.nack()
            else:
                message.ack()

    # --- end ------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Show no more: `next` gives None, loops end, `run` returns when its handlers have."""
        self._stopping = True
        self._feed.arrived.set()

    async def close(self, error: BaseException | None = None) -> None:
        """Settle what is in hand, as the top of this module says; give back the rest; wait until
        the broker has confirmed what is done, at most the client's patience for closing."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        hand, self._in_hand = self._in_hand, None
        try:
            if hand is not None and isinstance(error, AlreadyDone):
                hand.ack()
            elif hand is not None and not _nobody_s_fault(error):
                hand.nack()
            self._teller.release()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._feed.stop(self._core.patience.close)

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(error)

    # --- state ------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Tell the broker that what is in hand is still wanted. It takes back what it has heard
        nothing of for long (5 minutes by default); asking for the next message counts as a word
        about all. Only for a single piece of work that takes longer than that."""
        self._renewed = self._loop.time()
        self._feed.renew()

    @property
    def refused(self) -> int:
        """Messages of this client that went to the dead letters because they can't be opened."""
        return self._unsealer.refused

    def _over(self) -> bool:
        return self._stopping or (self._left is not None and self._left <= 0)

    def _start(self) -> None:
        if self._closed:
            raise UsageError("this receiver is closed")
        if not self._started:
            self._started = True
            self._feed.start()

    def _finish(self) -> None:
        hand, self._in_hand = self._in_hand, None
        if hand is not None:
            hand.ack()

    def _give_up(self) -> None:
        hand, self._in_hand = self._in_hand, None
        if hand is not None:
            hand.nack()

    # --- showing --------------------------------------------------------------------------------

    def _next_shown(self) -> Message | None:
        """The next message of the batch that is being shown."""
        batch = self._shown_of
        if batch is None:
            return None
        if batch.settling.delivery.lost:
            # The rest will come again: to show it now would be to show it twice.
            batch.settling.drop(bitmap.of(message.index for message in self._showing))
        for message in self._showing:
            if not message.settled:
                if self._left is not None:
                    self._left -= 1
                return message
        self._shown_of = None
        return None

    async def _next_batch(self) -> Batch | None:
        self._start()
        if self._loop.time() - self._renewed > limits.ACK_RENEWAL:
            self.renew()
        # A body that never waits would otherwise keep the loop from sending its acks.
        await asyncio.sleep(0)
        deadline = None if self._timeout is None else self._loop.time() + self._timeout
        while not self._stopping:
            self._feed.arrived.clear()
            if (failure := self._failure or self._feed.failure) is not None:
                raise failure
            if (batch := await self._ready_batch()) is not None:
                return batch
            self._teller.tell()
            await self._wait(deadline)
        return None

    async def _wait(self, deadline: float | None) -> None:
        """Until something has arrived, or a kept batch is due again."""
        due = None if self._inbox is None else self._inbox.next_due(self.queue)
        until = None if due is None else self._loop.time() + due
        if deadline is not None and (until is None or deadline < until):
            until = deadline
        try:
            async with asyncio.timeout_at(until):
                await self._feed.arrived.wait()
        except TimeoutError:
            if deadline is not None and self._loop.time() >= deadline:
                raise WaitTimeout(
                    f"no message in queue {self.queue!r} within {self._timeout:g} s: "
                    + self._core.line.describe()
                ) from None

    async def _ready_batch(self) -> Batch | None:
        while True:
            while self._ready:
                batch = self._ready.popleft()
                if not batch.settling.delivery.lost:
                    return batch
                batch.settling.drop(batch.settling.open)
            if self._inbox is not None:
                kept = self._inbox.take(self.queue, self._teller)
                if kept is not None:
                    return kept
            arrivals = await self._open_some()
            if not arrivals:
                return None
            self._ready += self._admit(arrivals)

    async def _open_some(self) -> list[Arrival]:
        most = _OPENED_TOGETHER if self._inbox is not None and self._inbox.store_payloads else 1
        taken: list[BrokerDelivery] = []
        arrivals: list[Arrival] = []
        try:
            while len(arrivals) < most and (delivery := self._feed.take()) is not None:
                taken.append(delivery)
                arrival = await self._unsealer.open(delivery, self.queue)
                if arrival is not None:
                    arrivals.append(arrival)
        except BaseException:
            self._feed.put_back(taken)
            raise
        return arrivals

    def _admit(self, arrivals: list[Arrival]) -> list[Batch]:
        if self._inbox is None:
            return [
                Batch(
                    arrival.messages,
                    arrival.origin,
                    Settling(arrival.origin, arrival.live, arrival.delivery, self._teller),
                )
                for arrival in arrivals
            ]
        if any(arrival.origin.redelivered for arrival in arrivals):
            # What is done of these may not be in the Inbox yet.
            self._teller.tell()
        return self._inbox.admit(arrivals, self._teller)

    # --- telling --------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(limits.ACK_INTERVAL, self._tell)

    def _tell(self) -> None:
        """Tell what is done, when nobody asks for the next message."""
        try:
            self._teller.tell()
        except CipherMQError as error:
            self._failure = error
            self._feed.arrived.set()


class _Batches(AsyncIterator[Batch]):
    """`Receiver.batches`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def __anext__(self) -> Batch:
        batch = await self._receiver.advance()
        if batch is None:
            raise StopAsyncIteration
        return batch


def _first(bits: Bitmap, count: int) -> Bitmap:
    return bitmap.of(islice(bitmap.indices(bits), count))


def _nobody_s_fault(error: BaseException | None) -> bool:
    """Whether the block was left for a reason that has nothing to do with the message."""
    return error is not None and not (
        isinstance(error, Exception) and not isinstance(error, ReceiverFault)
    )
