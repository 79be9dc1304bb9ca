"""Many messages at once, from anything that can be iterated over.

Nothing is made or awaited for a single message: they are cut into batches by their sizes, and only
batches are waited for.

Of messages that are all there already, a batch goes when it is full. Of those that come as somebody
writes them (`prompt`), what has come goes at once while nothing is under way, and otherwise as soon
as that is confirmed: nobody's line waits for a thousand more, and a flood still fills its batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from itertools import islice

from ciphermq.client.cutting import TOGETHER, Cutter
from ciphermq.client.lane import Lane, Route, Sealer
from ciphermq.client.payload import Payload, expiry_ms
from ciphermq.client.session import now_ms
from ciphermq.client.window import Parcel
from ciphermq.model.body import Body
from ciphermq.model.message import OutgoingMessage

Messages = Iterable[Payload | OutgoingMessage] | AsyncIterable[Payload | OutgoingMessage]
Chunk = list[Payload | OutgoingMessage]
"""Some messages together."""

Progress = Callable[[int], object]
"""Called with the number of messages confirmed so far."""


class Many:
    """One call of `Sender.send_many`."""

    def __init__(
        self,
        lane: Lane,
        sealer: Sealer,
        route: Route,
        *,
        ttl: float | None,
        timeout: float,
        batch_bytes: int,
        progress: Progress | None,
        prompt: bool = False,
    ) -> None:
        """`prompt`: a message waits for others only while there are batches under way."""
        self._lane = lane
        self._sealer = sealer
        self._route = route
        self._ttl = ttl
        self._timeout = timeout
        self._batch_bytes = batch_bytes
        self._progress = progress
        self._prompt = prompt
        self._confirmed = 0
        self._out: set[_Flight] = set()
        self._landed = asyncio.Event()
        self._error: BaseException | None = None

    async def send(self, chunks: AsyncIterable[Chunk]) -> int:
        """Send what comes in `chunks`; see `Sender.send_many`."""
        cut = self._bodies_promptly if self._prompt else self._bodies
        try:
            async with aclosing(cut(chunks)) as bodies:
                async for body in bodies:
                    await self._launch(body)
                    if self._error is not None:
                        break
            await self._all_landed()
        except Exception:
            # `messages` itself failed, or one can't be sent: what was sent before still counts.
            await self._all_landed()
            raise
        except BaseException:
            for flight in list(self._out):
                flight.abandon(asyncio.CancelledError())
            raise
        if self._error is not None:
            raise self._error
        return self._confirmed

    async def _all_landed(self) -> None:
        while self._out:
            self._landed.clear()
            await self._landed.wait()

    async def _launch(self, body: Body) -> None:
        async with self._lane.turn():
            if self._error is not None:
                return
            keys = await self._sealer.keys(self._route)
            expires_ms = expiry_ms(now_ms(), self._ttl)
            data = await self._sealer.seal(self._sealer.order(body, self._route, keys, expires_ms))
            flight = _Flight(self._lane, body.count, self._landing)
            self._out.add(flight)
            flight.start(data, self._timeout)
        # Sealing leaves the loop no moment of its own: let it write what is ready.
        await asyncio.sleep(0)

    def _landing(self, flight: _Flight, error: BaseException | None) -> None:
        self._out.discard(flight)
        self._landed.set()
        if error is not None:
            self._error = self._error or error
            return
        self._confirmed += flight.count
        if self._progress is not None:
            self._progress(self._confirmed)

    async def _bodies(self, chunks: AsyncIterable[Chunk]) -> AsyncGenerator[Body]:
        cutter = Cutter(self._batch_bytes)
        async for chunk in chunks:
            for body in cutter.feed(chunk):
                yield body
        for body in cutter.rest():
            yield body

    async def _bodies_promptly(self, chunks: AsyncIterable[Chunk]) -> AsyncGenerator[Body]:
        cutter, source = Cutter(self._batch_bytes), aiter(chunks)
        coming = asyncio.ensure_future(_next_of(source))
        try:
            # Who waits for the next line must hear of a refusal before it is written.
            while self._error is None:
                self._landed.clear()
                if not self._lane.out:
                    for body in cutter.rest():
                        yield body
                await self._until_landed_or(coming)
                if not coming.done():
                    continue
                try:
                    chunk = coming.result()
                except Exception:
                    for body in cutter.rest():  # what came before it can still be sent
                        yield body
                    raise
                if chunk is None:
                    break
                coming = asyncio.ensure_future(_next_of(source))
                for body in cutter.feed(chunk):
                    yield body
            for body in cutter.rest():
                yield body
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _until_landed_or(self, coming: asyncio.Future[Chunk | None]) -> None:
        """Wait until a batch is under way no more, or `coming` is done."""
        landed = asyncio.ensure_future(self._landed.wait())
        try:
            await asyncio.wait((coming, landed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            landed.cancel()


class _Flight:
    """One batch under way."""

    __slots__ = ("_landing", "_lane", "_parcel", "_timer", "count")

    def __init__(
        self, lane: Lane, count: int, landing: Callable[[_Flight, BaseException | None], None]
    ) -> None:
        self.count = count
        self._lane = lane
        self._landing = landing
        self._parcel: Parcel
        self._timer: asyncio.TimerHandle

    def start(self, data: bytes, timeout: float) -> None:
        """Send the batch, and wait so many seconds for its confirmation."""
        self._timer = asyncio.get_running_loop().call_later(timeout, self._expire, timeout)
        self._parcel = self._lane.send(data, self._landed)

    def abandon(self, error: BaseException) -> None:
        """Wait no longer."""
        self._lane.abandon(self._parcel, error)

    def _landed(self, error: BaseException | None) -> None:
        self._timer.cancel()
        self._landing(self, error)

    def _expire(self, timeout: float) -> None:
        size = "1 message" if self.count == 1 else f"{self.count} messages"
        said = f"a batch of {size} was not confirmed within {timeout:g} s"
        self.abandon(self._lane.gave_up(said, self._parcel))


async def _next_of(source: AsyncIterator[Chunk]) -> Chunk | None:
    """The next of `source`; None at its end."""
    return await anext(source, None)


async def chunks_of(messages: Messages) -> AsyncIterator[Chunk]:
    """`messages` by the handful, so that little is done for a single one."""
    if isinstance(messages, AsyncIterable):
        chunk = []
        async for message in messages:
            chunk.append(message)
            if len(chunk) == TOGETHER:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    iterator = iter(messages)
    while chunk := list(islice(iterator, TOGETHER)):
        yield chunk
