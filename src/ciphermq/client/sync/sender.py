"""Sending without ``async``."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from ciphermq.client import relay as relaying
from ciphermq.client import sender as sending
from ciphermq.client.cutting import TOGETHER
from ciphermq.client.many import Chunk, Progress
from ciphermq.client.payload import Payload
from ciphermq.client.sync.loop import Loop, patiently, result_of
from ciphermq.errors import Refused
from ciphermq.model.message import OutgoingMessage

T = TypeVar("T")


class Sender:
    """See `ciphermq.client.sender.Sender`."""

    def __init__(self, loop: Loop, sender: sending.Sender) -> None:
        self._loop = loop
        self._sender = sender

    def send(
        self,
        payload: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        ttl: float | None = None,
    ) -> str:
        """Send one message and wait until the broker has it on disk; the message's id."""
        return self._loop.run(
            self._sender.send(payload, headers=headers, content_type=content_type, ttl=ttl)
        )

    def post(
        self,
        payload: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        ttl: float | None = None,
    ) -> concurrent.futures.Future[str]:
        """`send` in two halves: waits only until there is room for the message, and gives a
        future of its id."""
        answer = self._loop.run(
            self._sender.post(payload, headers=headers, content_type=content_type, ttl=ttl)
        )
        return self._loop.start(result_of(answer))

    def send_many(
        self,
        messages: Iterable[Payload | OutgoingMessage],
        *,
        ttl: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Send all of `messages` in order, and wait until the broker has them; how many.

        `progress` is called from the client's own thread.
        """
        queue: asyncio.Queue[Chunk | None] = asyncio.Queue(1)
        outcome = self._loop.start(
            self._sender.send_chunks(_until_none(queue), ttl=ttl, progress=progress)
        )
        try:
            iterator = iter(messages)
            while chunk := list(islice(iterator, TOGETHER)):
                if not self._put(queue, chunk, outcome):
                    break
        except Exception:
            # What was sent before `messages` failed still counts, and is waited for.
            self._put(queue, None, outcome)
            concurrent.futures.wait([outcome])
            raise
        except BaseException:
            outcome.cancel()
            raise
        self._put(queue, None, outcome)
        return patiently(outcome)

    def _put(
        self,
        queue: asyncio.Queue[Chunk | None],
        chunk: Chunk | None,
        outcome: concurrent.futures.Future[int],
    ) -> bool:
        """Hand a chunk over, unless nobody takes it any more."""
        put = self._loop.start(queue.put(chunk))
        waiting: list[concurrent.futures.Future[Any]] = [put, outcome]
        concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
        put.cancel()
        return not outcome.done()

    def flush(self) -> None:
        """Wait until all that was posted is confirmed or has failed."""
        self._loop.run(self._sender.flush())

    def close(self) -> None:
        """Take no more, and wait for what is under way."""
        self._loop.run(self._sender.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Relay:
    """See `ciphermq.client.relay.Relay`."""

    def __init__(self, loop: Loop, relay: relaying.Relay) -> None:
        self._loop = loop
        self._relay = relay

    @property
    def confirmed(self) -> int:
        """Messages that the broker has confirmed since this relay began."""
        return self._relay.confirmed

    @property
    def refusal(self) -> Refused | None:
        """What the broker says for as long as it takes nothing more for some route."""
        return self._relay.refusal

    def drained(self, limit: float | None = None) -> None:
        """Wait until everything that is promised has been confirmed, `limit` seconds at most."""
        self._loop.run(self._relay.drained(limit))

    def __enter__(self) -> Self:
        self._loop.run(self._relay.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.run(self._relay.__aexit__(kind, error, trace))


async def _until_none(queue: asyncio.Queue[T | None]) -> AsyncIterator[T]:
    while (item := await queue.get()) is not None:
        yield item
