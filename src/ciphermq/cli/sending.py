"""How ``ciphermq send`` sends: at once, or through an Outbox that remembers.

At once there are two ways. A regular file goes in bulk, since all of it is there. What comes from
a pipe goes as it comes, all that one read of it brought together: a line that somebody just wrote
must not wait for a thousand more.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ciphermq import limits
from ciphermq.cli.lines import Lines, read_whole
from ciphermq.cli.resuming import Position
from ciphermq.errors import WaitTimeout
from ciphermq.model.message import OutgoingMessage

if TYPE_CHECKING:
    from ciphermq.cli.inputs import Input
    from ciphermq.cli.send import Plan
    from ciphermq.client import Client, Outbox, Sender
    from ciphermq.client.many import Chunk
    from ciphermq.client.relay import Relay

_BACKLOG: Final = 64 * limits.MIB
"""Bytes added to an Outbox before its relay must have sent them: what its file may grow to."""

Advance = Callable[[int, int | None], None]


class Sending:
    """One run. `confirmed` and `total` count messages, and are right whenever it ends."""

    def __init__(self, plan: Plan, source: Input, advance: Advance | None) -> None:
        self.confirmed = 0
        """By this run."""
        self.total = 0
        """In the input so far, with what earlier runs sent of it."""
        self._plan = plan
        self._source = source
        self._advance = advance
        self._patience: asyncio.Timeout | None = None

    async def at_once(self, client: Client) -> None:
        """Send all, each confirmed; raises what keeps one from being sent."""
        plan = self._plan
        sender = client.sender(
            plan.to,
            queue=plan.queue,
            exchange=plan.exchange,
            routing_key=plan.key,
            ttl=plan.ttl,
            timeout=plan.patience,
        )
        if plan.whole:
            whole = await self._source.reading(lambda: read_whole(self._source))
            await self._in_bulk(sender, [whole])
        elif self._source.regular:
            lines = Lines(self._source)
            await self._in_bulk(sender, chain.from_iterable(iter(lambda: self._next(lines), [])))
        else:
            await self._as_it_comes(sender)

    async def _in_bulk(self, sender: Sender, payloads: Iterable[bytes]) -> None:
        messages = self._dressed(payloads) if self._plan.dressed else payloads
        await sender.send_many(messages, progress=self._confirmed_so_far)
        self.total = self.confirmed

    async def _as_it_comes(self, sender: Sender) -> None:
        await sender.send_chunks(
            self._as_written(Lines(self._source)), progress=self._confirmed_so_far, prompt=True
        )
        self.total = self.confirmed

    async def _as_written(self, lines: Lines) -> AsyncIterator[Chunk]:
        """What each read of a pipe brought."""
        while found := await self._source.reading(lambda: self._next(lines)):
            yield list(self._dressed(found)) if self._plan.dressed else list(found)

    async def through(self, outbox: Outbox, client: Client) -> None:
        """Add what is new of the input to `outbox`, and send all that is in there.

        `StoreError` when it is not the input that an earlier run began; `WaitTimeout`, or the
        broker's refusal, when it confirms nothing for too long. What is not confirmed stays in
        the Outbox.
        """
        async with client.relay(outbox, patient=False, progress=self._confirmed_so_far) as relay:
            # Not before the relay has the Outbox for itself: another run could still move on.
            position = Position(outbox, self._source_key())
            await self._source.reading(lambda: position.find(self._source))
            self.total = position.messages
            lines = Lines(self._source, offset=position.offset, count=position.messages)
            unsent = 0
            while found := await self._unless_failed(self._next_of(lines, position), relay):
                with outbox.transaction() as database:
                    self._add(outbox, found)
                    position.advance(database, found)
                self.total = position.messages
                unsent += sum(map(len, found))
                if unsent > _BACKLOG:
                    await self._drained(relay, client)
                    unsent = 0
            await self._drained(relay, client)

    async def _next_of(self, lines: Lines, position: Position) -> list[bytes]:
        """The next messages for the Outbox; none at the end."""
        if not self._plan.whole:
            return await self._source.reading(lambda: self._next(lines))
        whole = await self._source.reading(lambda: read_whole(self._source))
        if not position.begun:
            return [whole]
        if whole:
            raise position.other(self._source, "it has grown since, which is another message")
        return []

    def _add(self, outbox: Outbox, payloads: Sequence[bytes]) -> None:
        plan = self._plan
        outbox.add_many(
            self._dressed(payloads) if plan.dressed else payloads,
            to=plan.to,
            queue=plan.queue,
            exchange=plan.exchange,
            routing_key=plan.key,
            ttl=plan.ttl,
        )

    async def _unless_failed(
        self, reading: Coroutine[Any, Any, list[bytes]], relay: Relay
    ) -> list[bytes]:
        """What is read; what the relay fails of while an input keeps us waiting is raised."""
        task = asyncio.ensure_future(reading)
        sending = asyncio.ensure_future(relay.drained())
        try:
            await asyncio.wait((task, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            return await task
        finally:
            task.cancel()
            sending.cancel()

    async def _drained(self, relay: Relay, client: Client) -> None:
        """Until all is confirmed; not longer than the plan's patience without any news."""
        limit = self._plan.patience
        try:
            async with asyncio.timeout(limit) as self._patience:
                await relay.drained()
        except TimeoutError:
            refusal = relay.refusal
            if refusal is not None:
                state = f"refuses it for now: {refusal}"
            else:
                state = "is connected but does not answer"
                state = state if client.connected else "is not connected"
            kind = WaitTimeout if refusal is None else type(refusal)
            raise kind(
                f"no confirmation within {limit:g} s: the broker at {client.url} {state}; what is "
                "not confirmed is in the Outbox, and the same command goes on with it"
            ) from None
        finally:
            self._patience = None

    # --- parts ------------------------------------------------------------------------------

    def _next(self, lines: Lines) -> list[bytes]:
        found = lines.read()
        if self._advance is not None:
            self._advance(lines.offset, self._source.size)
        return found

    def _confirmed_so_far(self, confirmed: int) -> None:
        self.confirmed = confirmed
        if self._patience is not None:
            now = asyncio.get_running_loop().time()
            self._patience.reschedule(now + self._plan.patience)

    def _dressed(self, payloads: Iterable[bytes]) -> Iterator[OutgoingMessage]:
        """The payloads with the headers and content type that were asked for."""
        plan = self._plan
        for payload in payloads:
            sent_ms = time.time_ns() // 1_000_000
            yield OutgoingMessage(payload, plan.headers, plan.content_type, sent_ms)

    def _source_key(self) -> str:
        """What tells this input and where it goes from others in one Outbox."""
        plan = self._plan
        where = [list(plan.to), plan.queue, plan.exchange, plan.key, plan.whole]
        return json.dumps([self._source.name, *where])
