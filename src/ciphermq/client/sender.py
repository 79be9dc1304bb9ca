"""Sending: messages find their batch, and learn what became of it.

What ends a `send` early is told by its error. After most of them the message was certainly not
stored: `QueueFull`, say, of a queue that stayed full for the whole time-out. After `WaitTimeout`,
`ConnectionLost` or a cancelled `send` it may have been, or still be. Sending it again makes a new
message, which the receiver can't tell from a second one that was meant. Where that matters, the
`Outbox` keeps the sealed bytes until they are confirmed, across crashes of the application itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping
from types import TracebackType
from typing import Self

from ciphermq import limits
from ciphermq.client.batcher import Batcher, Group, Item
from ciphermq.client.lane import Lane, Route, Sealer
from ciphermq.client.many import Chunk, Many, Messages, Progress, chunks_of
from ciphermq.client.payload import Payload, expiry_ms, outgoing
from ciphermq.client.publisher import Publisher
from ciphermq.client.window import Parcel
from ciphermq.errors import UsageError
from ciphermq.model import ids
from ciphermq.model.body import Body, encoded_size
from ciphermq.model.message import OutgoingMessage


class _Pending:
    """One message between `send` and its confirmation."""

    __slots__ = ("answer", "flight", "item", "message", "timer")

    def __init__(
        self,
        message: OutgoingMessage,
        answer: asyncio.Future[str],
        size: int,
        expires_ms: int,
    ) -> None:
        self.message = message
        self.answer = answer
        self.item = Item(self, size, expires_ms)
        self.flight: _Flight | None = None
        self.timer: asyncio.TimerHandle | None = None


class _Flight:
    """A batch of pending messages under way."""

    __slots__ = ("_batch_id", "_pending", "parcel", "waiting")

    def __init__(self, batch_id: bytes, pending: list[_Pending]) -> None:
        self.parcel: Parcel | None = None
        self.waiting = len(pending)
        """Messages whose `send` still waits."""
        self._batch_id = batch_id
        self._pending = pending
        for each in pending:
            each.flight = self

    def landed(self, error: BaseException | None) -> None:
        """The batch is confirmed, or never will be."""
        for index, pending in enumerate(self._pending):
            if pending.answer.done():
                continue
            if error is None:
                pending.answer.set_result(ids.message_id(self._batch_id, index))
            else:
                pending.answer.set_exception(error)


class Sender:
    """Sends messages to the same receivers by the same road, in order. Made by `Client.sender`.

    Messages that are sent at the same time share batches.
    """

    def __init__(
        self,
        publisher: Publisher,
        sealer: Sealer,
        route: Route,
        *,
        timeout: float,
        ttl: float | None,
        window: int,
        batch_bytes: int,
    ) -> None:
        """See `Client.sender`."""
        self.route = route
        self._sealer = sealer
        self._timeout = timeout
        self._ttl = ttl
        self._batch_bytes = min(batch_bytes, limits.MAX_PLAINTEXT)
        self._loop = asyncio.get_running_loop()
        self._batcher: Batcher[_Pending] = Batcher(self._batch_bytes)
        self._wake = asyncio.Event()
        self._lane = Lane(publisher, window, self._wake.set)
        self._door = asyncio.Lock()
        self._left = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._unanswered = 0
        self._closed = False

    # --- one by one -------------------------------------------------------------------------

    async def send(
        self,
        payload: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        ttl: float | None = None,
    ) -> str:
        """Send one message and wait until the broker has it on disk; the message's id.

        A `str` is sent as UTF-8. `ttl`: seconds after which it need not be delivered any more.
        Raises `BatchTooLarge`, a `KeyRecordError` or the broker's refusal. Refusals that may pass
        (`QueueFull`, `NoSpace`, `Unavailable`) are waited out, and raised when the sender's
        time-out ends; without one, that raises `WaitTimeout`. What is known then stands at the top
        of this module.
        """
        answer = await self.post(payload, headers=headers, content_type=content_type, ttl=ttl)
        return await answer

    async def post(
        self,
        payload: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        ttl: float | None = None,
    ) -> asyncio.Future[str]:
        """The first half of `send`: waits only until there is room for the message, and gives
        the second half, a future of its id. Cancelling that withdraws a message that has not
        been sealed yet."""
        message = outgoing(payload, headers, content_type)
        expires_ms = expiry_ms(message.sent_ms, self._ttl if ttl is None else ttl)
        size = encoded_size(message)
        await self._room(size)
        pending = _Pending(message, self._loop.create_future(), size, expires_ms)
        pending.timer = self._loop.call_later(self._timeout, self._expire, pending)
        pending.answer.add_done_callback(lambda _: self._answered(pending))
        self._unanswered += 1
        self._batcher.add(pending.item)
        if self._pump is None:
            self._pump = self._loop.create_task(self._run(), name="ciphermq sender")
        self._wake.set()
        return pending.answer

    # --- many -------------------------------------------------------------------------------

    async def send_many(
        self,
        messages: Messages,
        *,
        ttl: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Send all of `messages` in order, and wait until the broker has them; how many.

        The fast way for many: nothing is kept or awaited for a single one. When a batch fails,
        no more is taken from `messages`, what is under way is waited for, and the first error is
        raised. `progress` is called with the number of messages confirmed so far.
        """
        return await self.send_chunks(chunks_of(messages), ttl=ttl, progress=progress)

    async def send_chunks(
        self,
        chunks: AsyncIterable[Chunk],
        *,
        ttl: float | None = None,
        progress: Progress | None = None,
        prompt: bool = False,
    ) -> int:
        """`send_many` for messages that come some together.

        `prompt`: they come as somebody writes them. None is held back for others then, but while
        batches are under way, as with `send`.
        """
        self._check_open()
        many = Many(
            self._lane,
            self._sealer,
            self.route,
            ttl=self._ttl if ttl is None else ttl,
            timeout=self._timeout,
            batch_bytes=self._batch_bytes,
            progress=progress,
            prompt=prompt,
        )
        return await many.send(chunks)

    # --- end --------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Wait until all that was sent or posted is confirmed or has failed."""
        while self._unanswered:
            self._left.clear()
            await self._left.wait()
        await self._lane.empty()

    async def close(self) -> None:
        """Take no more, and wait for what is under way."""
        self._closed = True
        await self.flush()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # --- waiting ----------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this sender is closed")

    async def _room(self, size: int) -> None:
        """Wait until the buffer has room: who sends faster than the broker stores must wait."""
        self._check_open()
        if not self._full(size) and not self._door.locked():
            return
        try:
            async with asyncio.timeout(self._timeout), self._door:
                while self._full(size):
                    self._left.clear()
                    await self._left.wait()
                    self._check_open()
        except TimeoutError:
            raise self._lane.gave_up(
                f"no room for another message within {self._timeout:g} s, while "
                f"{self._batcher.count} wait"
            ) from None

    def _full(self, size: int) -> bool:
        batcher = self._batcher
        return (
            batcher.size + size > limits.SEND_BUFFER or batcher.count >= limits.SEND_BUFFER_MESSAGES
        )

    def _expire(self, pending: _Pending) -> None:
        if pending.answer.done():
            return
        parcel = pending.flight.parcel if pending.flight is not None else None
        where = "sent" if parcel is not None and parcel.sent else "not sent"
        if where == "not sent" and self._lane.refusal is not None:
            where = "not taken"
        pending.answer.set_exception(
            self._lane.gave_up(
                f"the message ({where}) was not confirmed within {self._timeout:g} s", parcel
            )
        )

    def _answered(self, pending: _Pending) -> None:
        """Its `send` waits no more, for whatever reason."""
        if pending.timer is not None:
            pending.timer.cancel()
        self._unanswered -= 1
        flight = pending.flight
        if flight is None:
            self._batcher.drop(pending.item)
        else:
            flight.waiting -= 1
            if not flight.waiting and flight.parcel is not None:
                self._lane.abandon(flight.parcel, asyncio.CancelledError())
        self._left.set()

    # --- sealing and sending --------------------------------------------------------------------

    async def _run(self) -> None:
        """Until nothing waits: a sender that is idle must not cost anything, nor be kept."""
        while self._batcher.count:
            self._wake.clear()
            async with self._lane.turn():
                sent = await self._next_batch()
            if not sent:
                await self._wake.wait()
        self._pump = None

    async def _next_batch(self) -> bool:
        """Seal and send one batch; False when none is to go now."""
        try:
            keys = await self._sealer.keys(self.route)
        except Exception as error:  # noqa: BLE001 - whatever it is, who sends must be told
            group = self._take()
            if group is not None:
                _fail(group, error)
            return group is not None
        group = self._take()
        if group is None:
            return False
        pending = [item.content for item in group.items]
        try:
            body = Body.of([each.message for each in pending])
            order = self._sealer.order(body, self.route, keys, group.expires_ms)
            flight = _Flight(order.batch_id, pending)
            data = await self._sealer.seal(order)
        except Exception as error:  # noqa: BLE001 - as above
            _fail(group, error)
            return True
        if not flight.waiting:
            return True  # a token was waited for, and nobody wants it any more
        flight.parcel = self._lane.send(data, flight.landed)
        return True

    def _take(self) -> Group[_Pending] | None:
        group = self._batcher.take(idle=not self._lane.out)
        if group is not None:
            self._left.set()
        return group


def _fail(group: Group[_Pending], error: Exception) -> None:
    for item in group.items:
        if not item.content.answer.done():
            item.content.answer.set_exception(error)
