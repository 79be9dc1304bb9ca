"""What the server asks of an engine: the one face behind which queues live.

All methods are called on the event loop's thread. Those that return an awaitable submit their
work before they return, so calls made in order take effect in order; the awaitable only tells
the outcome. Refusals are raised as `ciphermq.errors.Refused` and its kinds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from ciphermq.model.bitmap import Bitmap
from ciphermq.model.envelope import Header
from ciphermq.model.topology import Binding, DeadInfo, ExchangeSpec, QueueInfo, QueueSpec

Sealed = bytes | bytearray | memoryview
"""A whole sealed batch. Immutable by agreement once it has been handed over."""


class Guarantees(msgspec.Struct, frozen=True):
    """What an engine promises; one conformance suite tests what is declared."""

    partial_ack: bool
    dedup: bool
    atomic_fanout: bool
    peek: bool
    order: bool


class Publish(msgspec.Struct, frozen=True):
    """One batch to store. The server has checked that `client` may publish it."""

    client: str
    header: Header
    sealed: Sealed


class Published(msgspec.Struct, frozen=True):
    """The batch is durable in every queue it goes to."""

    duplicate: bool
    queues: int


class Delivery(msgspec.Struct, frozen=True):
    """A batch on its way to a consumer. Held until each live message is settled."""

    consumer: int
    """0 for a fetch."""
    tag: int
    """Unique in this engine's life; names the delivery in `ack` and `nack`."""
    queue: str
    live: Bitmap
    """The messages meant; the others are settled already or in other hands."""
    count: int
    """Messages in the whole batch."""
    redeliveries: int
    """How often the most retried live message was given out before; 0 at first."""
    redelivered: bool
    batch_id: bytes
    sender: str
    published_ms: int
    sealed: Sealed
    dead: DeadInfo | None = None


class Peeked(msgspec.Struct, frozen=True):
    """What can be seen of a waiting batch without any key."""

    batch_id: bytes
    header: Header
    live: Bitmap
    size: int
    published_ms: int
    redeliveries: int
    unacked: bool
    dead: DeadInfo | None = None


class Sink(Protocol):
    """Where a consumer's deliveries go; implemented by the server's session.

    One session's sinks share an `owner` object, by which `settle` and `release` know it.
    """

    @property
    def owner(self) -> object: ...
    @property
    def writable(self) -> bool:
        """False while the connection's buffer is over its high-water mark."""

    def deliver(self, delivery: Delivery) -> None: ...
    def cancelled(self, consumer: int, reason: str, code: str) -> None:
        """The consumer ended for a reason other than its own `cancel`."""


class Engine(Protocol):
    """Queues, exchanges and deliveries, durable."""

    @property
    def guarantees(self) -> Guarantees: ...
    @property
    def pending_bytes(self) -> int:
        """Payload bytes accepted but not yet durable; the server stops reading above a bound."""

    async def start(self) -> None: ...
    async def stop(self) -> None:
        """Write what is accepted, then close. Deliveries in hand stay unsettled."""

    async def declare_queue(self, spec: QueueSpec) -> QueueInfo:
        """Make it durable, or agree; `PreconditionFailed` if it exists with other properties."""

    async def declare_exchange(self, spec: ExchangeSpec) -> None: ...
    async def delete_queue(
        self, name: str, *, if_empty: bool = False, if_unused: bool = False
    ) -> int:
        """Messages lost with it."""

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> None: ...
    async def bind(self, binding: Binding) -> None: ...
    async def unbind(self, binding: Binding) -> None: ...
    def queue(self, name: str) -> QueueInfo | None: ...
    def queues(self) -> list[QueueInfo]: ...
    def exchange(self, name: str) -> ExchangeSpec | None: ...
    def exchanges(self) -> list[ExchangeSpec]: ...
    def bindings(self) -> list[Binding]: ...
    def publish(self, publish: Publish) -> Awaitable[Published]:
        """Confirmed when durable in all its queues; refused whole otherwise."""

    async def consume(
        self, queue: str, *, client: str, name: str, credit: int, sink: Sink, onex: bool = False
    ) -> int:
        """A consumer's number. The same (client, name) supersedes its ghost.

        `onex`: one that speaks 1.x. It is given messages of 1.x and nothing else, without an ack
        time-out, and what may have been given out before costs it no credit."""

    def add_credit(self, consumer: int, messages: int) -> None: ...
    async def cancel(self, consumer: int, *, release: bool = False) -> None:
        """No more deliveries; those in hand stay in hand until settled or released. With
        `release` they return to the queue at once, no try counted: the receiver is stopping."""

    async def fetch(
        self, queue: str, *, client: str, owner: object, messages: int, onex: bool = False
    ) -> list[Delivery]:
        """Whole batches, the oldest, until they hold `messages`; `onex` as for `consume`."""

    async def give_again(self, batch_id: bytes, *, client: str) -> None:
        """What of the client's 1.x message is in somebody's hands goes back in line.

        `NotFound` if it waits in no queue, `AccessRefused` if it is only others'."""

    def ack(self, owner: object, tag: int, bits: Bitmap | None) -> Awaitable[None]:
        """None means all that is left. Idempotent: what is settled already is no error.
        The awaitable ends when the ack is durable."""

    def nack(
        self,
        owner: object,
        tag: int,
        bits: Bitmap | None,
        *,
        requeue: bool,
        reason: str = "rejected",
        detail: str = "",
    ) -> Awaitable[None]:
        """Back with back-off, or (not `requeue`) to the dead letters with the reason."""

    def release(self, owner: object) -> None:
        """The connection is gone: its consumers end, its deliveries return, no try counted."""

    async def purge(self, queue: str) -> int: ...
    async def peek(self, queue: str, *, batches: int) -> list[Peeked]: ...
    async def redrive(self, queue: str, *, messages: int | None = None) -> int:
        """From the dead-letter queue `queue` back to where they were."""

    def writable_again(self, sink: Sink) -> None:
        """The sink's connection drained: go on delivering."""

    def on_relief(self, callback: Callable[[], None]) -> None:
        """Call once, soon after `pending_bytes` has halved."""

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """Call when the engine can never confirm again (its disk failed)."""

    def on_event(self, callback: Callable[[str, bytes, int, int], None]) -> None:
        """``(event, batch_id, messages, at_ms)`` for the catalog's metadata: ``published``
        (once), ``delivered``, ``acked``, ``dead`` (for each queue that a batch is in)."""

    def stats(self) -> dict[str, int | float | str]:
        """Counters for the status, flat."""
