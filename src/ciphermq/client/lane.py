"""One sender's way to the broker: batches sealed one after the other, so many under way.

Ids are given once, when a batch is sealed, and a batch is sealed once: whatever happens on the
road, the same bytes go again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.directory import Directory
from ciphermq.client.publisher import Done, Publisher
from ciphermq.client.session import now_ms
from ciphermq.client.window import Parcel
from ciphermq.errors import BatchExpired, CipherMQError, Refused, TokenAway, UsageError
from ciphermq.model import ids
from ciphermq.model.body import Body
from ciphermq.sealing.seal import ReceiverKey, seal
from ciphermq.telemetry import get_logger

_token_log = get_logger("client.token")


class Route:
    """Where a sender's batches go, and who can open them."""

    __slots__ = ("exchange", "routing_key", "to")

    def __init__(self, to: str | Iterable[str], exchange: str = "", routing_key: str = "") -> None:
        """Raises `UsageError` for receivers that nothing could be sealed for."""
        self.to = (to,) if isinstance(to, str) else tuple(dict.fromkeys(to))
        """Client ids of the receivers."""
        self.exchange = exchange
        self.routing_key = routing_key
        for client in self.to:
            ids.check_client_id(client)
        if not 0 < len(self.to) <= limits.MAX_RECEIVERS:
            raise UsageError(
                f"a batch is sealed for 1 to {limits.MAX_RECEIVERS} receivers, not for "
                f"{len(self.to)}: more of them need several senders"
            )

    @classmethod
    def of(
        cls, to: str | Iterable[str], *, queue: str | None, exchange: str, routing_key: str
    ) -> Route:
        """The route in an application's words: to inboxes, to a queue, or by an exchange."""
        if queue is None:
            return cls(to, exchange, routing_key)
        if exchange or routing_key:
            raise UsageError("messages go to a queue, or to an exchange with a key, not to both")
        return cls(to, "", queue)


class Order(NamedTuple):
    """A batch to be sealed: what it is called is settled, and that it may be sent."""

    batch_id: bytes
    body: Body
    route: Route
    keys: list[ReceiverKey]
    created_ms: int
    expires_ms: int


class Sealer:
    """Seals for one client, in the event loop's thread: half a millisecond for a large batch.

    Another thread would cost a fifth more, and the two could hardly work at once: the interpreter's
    lock is held for most of it. Only where a token signs, which waits for a device, is it worth it.
    """

    def __init__(self, core: Core, directory: Directory) -> None:
        self._core = core
        self._directory = directory

    async def keys(self, route: Route) -> list[ReceiverKey]:
        """The keys of a route's receivers; raises as `Directory.keys` does."""
        return await self._directory.keys(route.to)

    def order(
        self, body: Body, route: Route, keys: list[ReceiverKey], expires_ms: int = 0
    ) -> Order:
        """A new batch, whatever becomes of it, for `seal`.

        Raises `CertificateError` or `ClockWrong` when nobody would take what this client seals
        now, `BatchExpired` when it is too late for these messages.
        """
        now = now_ms()
        self._core.identity.check(now)
        if (session := self._core.line.current) is not None:
            session.check_clock()
        if 0 < expires_ms <= now:
            raise BatchExpired("the time to live of these messages ended before they were sent")
        return Order(ids.new_batch_id(now), body, route, keys, now, expires_ms)

    async def seal(self, order: Order) -> bytes:
        """The sealed batch. A token that has to sign it and is away is waited for, as long as the
        client's patience for sending lasts; then `TokenAway` is raised."""
        if not self._core.identity.signer.blocking:
            return self._sealed(order)
        loop = asyncio.get_running_loop()
        deadline, said = loop.time() + self._core.patience.send, False
        while True:
            try:
                return await asyncio.to_thread(self._sealed, order)
            except TokenAway as error:
                if loop.time() >= deadline:
                    raise
                if not said:
                    _token_log.warning("sending waits for a token", reason=str(error))
                said = True
            # Sealed anew then, under the same id: nobody has seen what was not signed.
            await asyncio.sleep(limits.TOKEN_POLL)

    def _sealed(self, order: Order) -> bytes:
        identity = self._core.identity
        return seal(
            order.body,
            sender=identity.name,
            signer=identity.signer,
            receivers=order.keys,
            exchange=order.route.exchange,
            routing_key=order.route.routing_key,
            batch_id=order.batch_id,
            created_ms=order.created_ms,
            expires_ms=order.expires_ms,
        )


class Lane:
    """The batches of one sender. Their order is that of the turns in which they are sent."""

    def __init__(
        self, publisher: Publisher, window: int, on_landed: Callable[[], None] | None = None
    ) -> None:
        """`window`: batches under way at a time. `on_landed` is called when one is no more."""
        self._publisher = publisher
        self._window = window
        self._turn = asyncio.Lock()
        self._landed = asyncio.Event()
        self._on_landed = on_landed or (lambda: None)
        self.out = 0
        """Batches under way."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Nobody else of this lane seals or sends in the meantime, and there is room for one."""
        async with self._turn:
            while self.out >= self._window:
                self._landed.clear()
                await self._landed.wait()
            yield

    def send(self, data: bytes, done: Done) -> Parcel:
        """Send a batch, in one's turn; see `Publisher.send`."""

        def landed(error: BaseException | None) -> None:
            self.out -= 1
            self._landed.set()
            done(error)
            self._on_landed()

        self.out += 1
        return self._publisher.send(self, data, landed)

    async def empty(self) -> None:
        """Wait until nothing is under way."""
        while self.out:
            self._landed.clear()
            await self._landed.wait()

    def abandon(self, parcel: Parcel, error: BaseException) -> None:
        """See `Publisher.abandon`."""
        self._publisher.abandon(parcel, error)

    @property
    def refusal(self) -> Refused | None:
        """See `Publisher.refusal`."""
        return self._publisher.refusal(self)

    def gave_up(self, said: str, parcel: Parcel | None = None) -> CipherMQError:
        """See `Publisher.gave_up`."""
        return self._publisher.gave_up(said, self, parcel)
