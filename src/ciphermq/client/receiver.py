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
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.inbox import Inbox
from ciphermq.client.messages import Batch, Message
from ciphermq.client.opening import Unsealer
from ciphermq.client.shelf import Shelf
from ciphermq.client.source import Source
from ciphermq.errors import AlreadyDone, CipherMQError, ReceiverFault, UsageError
from ciphermq.telemetry import get_logger

T = TypeVar("T")

_log = get_logger("client")

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
        self._source = Source(core, unsealer, queue, name, prefetch, self._tell)
        self._shelf = Shelf(queue, inbox, limit, self._set_timer)
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._asking = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False
        """Somebody waits for the next message, and there is none."""
        self._closed = False

    # --- one by one -------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        # A loop that was left and begun again: how it was left is not known.
        self._shelf.give_up()
        return self

    async def __anext__(self) -> Message:
        """The next message; the one before is done."""
        self._shelf.finish()
        message = await self.next()
        if message is None:
            raise StopAsyncIteration
        self._shelf.hold(message)
        return message

    async def next(self) -> Message | None:
        """The next message, for the caller to settle; None at the end (`stop`, `limit`).

        Raises `WaitTimeout` when none comes within the receiver's time-out, a `ReceiverFault`
        when this machine can't open what comes, the broker's refusal.
        """
        return await self._next(self._shelf.next_message)

    # --- in batches ---------------------------------------------------------------------------

    def batches(self) -> AsyncIterator[Batch]:
        """The messages in the batches they were sent in: the fast way for many.

        Asking for the next batch acks what is left of the one in hand.
        """
        self._shelf.give_up()
        return _Batches(self, self._shelf)

    async def next_batch(self) -> Batch | None:
        """The next batch, for the caller to settle; see `next`."""
        return await self._next(self._shelf.next_batch)

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
        self._source.stop()

    async def close(self, error: BaseException | None = None) -> None:
        """Settle what is in hand, as the top of this module says; give back the rest; wait until
        the broker has confirmed what is done, at most the client's patience for closing."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        try:
            self._shelf.close(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._source.close()

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
        self._source.renew()

    @property
    def closed(self) -> bool:
        """Whether it has been closed, or is being."""
        return self._closed

    @property
    def refused(self) -> int:
        """Messages of this client that went to the dead letters because they can't be opened."""
        return self._source.refused

    def _start(self) -> None:
        if self._closed:
            raise UsageError("this receiver is closed")
        self._source.start()

    @property
    def _over(self) -> bool:
        return self._source.stopping or self._shelf.over

    async def _next(self, look: Callable[[], T | None]) -> T | None:
        """What `look` finds on the shelf, which is filled until it finds something."""
        if not self._over and (found := look()) is not None:
            return found  # most messages: no lock, no clock
        async with self._asking:
            self._start()
            deadline = None if self._timeout is None else self._loop.time() + self._timeout
            while not self._over:
                if (found := look()) is not None:
                    return found
                arrivals = await self._source.take(self._shelf.wanted)
                if arrivals:
                    self._shelf.admit(arrivals)
                else:
                    self._shelf.tell()
                    left = None if deadline is None else max(0.0, deadline - self._loop.time())
                    self._idle = True
                    try:
                        await self._source.wait(self._shelf.next_due(), left, self._timeout)
                    finally:
                        self._idle = False
            return None

    # --- telling --------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Who waits may be waiting for the broker to hear just this, and give credit for it.
        delay = 0.0 if self._idle else limits.ACK_INTERVAL
        self._timer = self._loop.call_later(delay, self._tell)

    def _tell(self) -> None:
        """Tell what is done, when nobody asks for the next message."""
        try:
            self._shelf.tell()
        except CipherMQError as error:
            self._source.fail(error)


class _Batches(AsyncIterator[Batch]):
    """`Receiver.batches`."""

    def __init__(self, receiver: Receiver, shelf: Shelf) -> None:
        self._receiver = receiver
        self._shelf = shelf

    async def __anext__(self) -> Batch:
        self._shelf.finish()
        batch = await self._receiver.next_batch()
        if batch is None:
            raise StopAsyncIteration
        self._shelf.hold(batch)
        return batch
