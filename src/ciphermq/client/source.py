"""Opened batches of one queue, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.deliveries import BrokerDelivery
from ciphermq.client.feed import Feed
from ciphermq.client.inbox import Arrival
from ciphermq.client.opening import Unsealer
from ciphermq.errors import TokenAway, WaitTimeout
from ciphermq.telemetry import get_logger

_token_log = get_logger("client.token")


class Source:
    """What a receiver, of whatever kind, takes its batches from."""

    def __init__(
        self,
        core: Core,
        unsealer: Unsealer,
        queue: str,
        name: str | None,
        prefetch: int,
        on_ending: Callable[[], None],
    ) -> None:
        """See `Feed`."""
        self.stopping = False
        """Nothing more is wanted."""
        self._core = core
        self._unsealer = unsealer
        self._queue = queue
        self._feed = Feed(core, queue, name=name, prefetch=prefetch, on_ending=on_ending)
        self._loop = asyncio.get_running_loop()
        self._renewed = self._loop.time()
        self._started = False
        self._away_until: float | None = None
        """When to look again for the token that something waits for; None: nothing does."""
        self._missed = False
        """Whether it was said that a token is away, and not yet that it is back."""

    @property
    def refused(self) -> int:
        """See `Unsealer.refused`."""
        return self._unsealer.refused

    def start(self) -> None:
        """Begin to consume. Idempotent."""
        if not self._started:
            self._started = True
            self._feed.start()

    async def take(self, most: int) -> list[Arrival]:
        """Up to so many batches of those that have come, opened; none: `wait` for some.

        While the hardware token that is needed is away, all but what can be opened without it waits
        here. Raises why nothing more will come, or another `ReceiverFault`; the batch stays here
        then.
        """
        self.start()
        # Before anything else: what happens from here on ends the next `wait`.
        self._feed.arrived.clear()
        # A loop whose body never waits would otherwise keep the event loop from its work.
        await asyncio.sleep(0)
        if self._loop.time() - self._renewed > limits.ACK_RENEWAL:
            self.renew()
        if self._feed.failure is not None:
            raise self._feed.failure
        taken: list[BrokerDelivery] = []
        arrivals: list[Arrival] = []
        if self._away_until is not None and self._loop.time() < self._away_until:
            return arrivals
        # Also when what waited for the token is gone, with its connection: nobody waits for a time
        # that is over.
        self._away_until = None
        try:
            while len(arrivals) < most and (delivery := self._feed.take()) is not None:
                taken.append(delivery)
                answers = self._unsealer.token_answers
                arrival = await self._unsealer.open(delivery, self._queue)
                if self._missed and self._unsealer.token_answers > answers:
                    self._missed = False
                    _token_log.info("the token is back: messages go on", queue=self._queue)
                if arrival is not None:
                    arrivals.append(arrival)
        except TokenAway as away:
            self._feed.put_back(taken[-1:])
            self._token_is_away(away)
        except BaseException:
            self._feed.put_back(taken)
            raise
        return arrivals

    def _token_is_away(self, error: TokenAway) -> None:
        if not self._missed:
            self._missed = True
            _token_log.warning("messages wait for a token", queue=self._queue, reason=str(error))
        self._away_until = self._loop.time() + limits.TOKEN_POLL

    async def wait(self, due: float | None, left: float | None, of: float | None) -> None:
        """Until something has come since `take`, for `due` seconds at most.

        Raises `WaitTimeout` when nothing has come after `left` seconds, the rest `of` so many.
        """
        if self.stopping:  # said from another thread, before `take` began to listen
            return
        look = None if self._away_until is None else self._away_until - self._loop.time()
        waits = [each for each in (due, left, look) if each is not None]
        limit = max(0.0, min(waits)) if waits else None
        try:
            async with asyncio.timeout(limit):
                await self._feed.arrived.wait()
        except TimeoutError:
            if limit == left:
                raise WaitTimeout(
                    f"no message came in queue {self._queue!r} within {of:g} s: "
                    + self._core.line.describe()
                ) from None

    def renew(self) -> None:
        """See `Receiver.renew`."""
        self._renewed = self._loop.time()
        self._feed.renew()

    def fail(self, error: Exception) -> None:
        """Let `take` raise this."""
        self._feed.fail(error)

    def stop(self) -> None:
        """Want nothing more."""
        self.stopping = True
        self._feed.arrived.set()

    async def close(self) -> None:
        """Give back what isn't settled."""
        self.stop()
        if self._started:
            await self._feed.stop(self._core.patience.close)
