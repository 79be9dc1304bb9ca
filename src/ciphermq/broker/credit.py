"""Whose turn it is among a queue's consumers.

Credit counts messages. A batch goes out while credit is above zero, so a consumer may be given
more than it has credit for, by less than one batch; its credit is below zero then. Consumers take
turns. One that has no credit or whose connection is full leaves the round until it says that it
can take more, so a thousand idle consumers cost a busy one nothing.

Consumers that take only messages of CipherMQ 1.x have a round of their own, so that a sealed batch
need not look for one who takes it among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ciphermq import limits

if TYPE_CHECKING:
    from ciphermq.broker.queues import Queue


class Outlet(Protocol):
    """Where a consumer's batches go, as far as the broker must know."""

    @property
    def owner(self) -> object:
        """The connection, which all of its consumers share."""

    @property
    def writable(self) -> bool:
        """Whether it takes more now. When that turns true again, `Broker.resume` is called."""


class Consumer:
    """One that is given a queue's batches, in turn with others."""

    __slots__ = ("client", "credit", "name", "number", "onex", "outlet", "queue", "waiting")

    def __init__(
        self,
        number: int,
        queue: Queue,
        client: str,
        name: str,
        outlet: Outlet,
        *,
        onex: bool = False,
    ) -> None:
        self.number = number
        self.queue = queue
        self.client = client
        self.name = name
        self.outlet = outlet
        self.onex = onex
        """It speaks 1.x: takes nothing else, is given time without end, and what it is given
        again costs it no credit, since a 1.x client doesn't ack what it has seen before."""
        self.credit = 0
        self.waiting = False
        """In the round: it may have its turn."""

    @property
    def willing(self) -> bool:
        """Whether it may be given a batch now."""
        return self.credit > 0 and self.outlet.writable

    def add_credit(self, messages: int) -> None:
        """It takes so many more; without end, more than the limit means nothing."""
        self.credit = min(self.credit + messages, limits.MAX_CREDIT)


class Turn:
    """A queue's consumers."""

    def __init__(self) -> None:
        self._consumers: dict[int, Consumer] = {}
        self._round: deque[Consumer] = deque()
        self._onex_round: deque[Consumer] = deque()
        self._onex = 0
        self._onex_next = False

    def __len__(self) -> int:
        return len(self._consumers)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(list(self._consumers.values()))

    @property
    def waits(self) -> bool:
        """Whether anybody may be able to take something."""
        return bool(self._round or self._onex_round)

    @property
    def only_onex(self) -> bool:
        """Whether there are consumers, but none that takes anything else than 1.x."""
        return 0 < self._onex == len(self._consumers)

    def add(self, consumer: Consumer) -> None:
        """It takes part, and comes last in the present round."""
        self._consumers[consumer.number] = consumer
        self._onex += consumer.onex
        self.ready(consumer)

    def remove(self, consumer: Consumer) -> None:
        """It takes part no longer."""
        if self._consumers.pop(consumer.number, None) is not None:
            self._onex -= consumer.onex
        if consumer.waiting:
            consumer.waiting = False
            self._round_of(consumer).remove(consumer)

    def ready(self, consumer: Consumer) -> None:
        """It may be able to take more: into the round."""
        if not consumer.waiting and consumer.number in self._consumers:
            consumer.waiting = True
            self._round_of(consumer).append(consumer)

    def _round_of(self, consumer: Consumer) -> deque[Consumer]:
        return self._onex_round if consumer.onex else self._round

    def next(self, *, onex: bool) -> Consumer | None:
        """Whose turn it is; the one after is next. None: nobody can take this now.

        With `onex` it is a message of 1.x, which everybody takes: the rounds take turns."""
        if not onex:
            return _next(self._round)
        rounds = (self._round, self._onex_round)
        first, second = reversed(rounds) if self._onex_next else rounds
        consumer = _next(first) or _next(second)
        if consumer is not None:
            self._onex_next = not consumer.onex
        return consumer


def _next(waiting: deque[Consumer]) -> Consumer | None:
    while waiting:
        consumer = waiting.popleft()
        if consumer.willing:
            waiting.append(consumer)
            return consumer
        consumer.waiting = False
    return None
