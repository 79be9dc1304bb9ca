"""Whose turn it is among a queue's consumers.

Credit counts messages. A batch goes out while credit is above zero, so a consumer may be given
more than it has credit for, by less than one batch; its credit is below zero then. Consumers take
turns. One that has no credit or whose connection is full leaves the round until it says that it
can take more, so a thousand idle consumers cost a busy one nothing.
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

    __slots__ = ("client", "credit", "name", "number", "outlet", "queue", "waiting")

    def __init__(self, number: int, queue: Queue, client: str, name: str, outlet: Outlet) -> None:
        self.number = number
        self.queue = queue
        self.client = client
        self.name = name
        self.outlet = outlet
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

    def __len__(self) -> int:
        return len(self._consumers)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(list(self._consumers.values()))

    @property
    def waits(self) -> bool:
        """Whether anybody may be able to take something."""
        return bool(self._round)

    def add(self, consumer: Consumer) -> None:
        """It takes part, and comes last in the present round."""
        self._consumers[consumer.number] = consumer
        self.ready(consumer)

    def remove(self, consumer: Consumer) -> None:
        """It takes part no longer."""
        self._consumers.pop(consumer.number, None)
        if consumer.waiting:
            consumer.waiting = False
            self._round.remove(consumer)

    def ready(self, consumer: Consumer) -> None:
        """It may be able to take more: into the round."""
        if not consumer.waiting and consumer.number in self._consumers:
            consumer.waiting = True
            self._round.append(consumer)

    def next(self) -> Consumer | None:
        """Whose turn it is; the one after is next. None: nobody can take anything now."""
        while self._round:
            consumer = self._round.popleft()
            if consumer.willing:
                self._round.append(consumer)
                return consumer
            consumer.waiting = False
        return None
