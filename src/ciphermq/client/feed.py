"""A queue's deliveries, from one connection after the other.

A consumer lives on one connection. The feed makes a new one on each, says who it is (the broker
ends a ghost of the same name at once, and takes back what that held), and keeps what came until
it is taken. When a connection is replaced, the old consumer is cancelled first and the new one is
started then; what the old one delivered can still be settled where it came from.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable

from ciphermq import limits
from ciphermq.client.backoff import Backoff
from ciphermq.client.core import Core
from ciphermq.client.credit import Credit
from ciphermq.client.deliveries import BrokerDelivery, Consumer
from ciphermq.client.session import Session
from ciphermq.errors import (
    CipherMQError,
    ConnectionLost,
    Refused,
    TokenAway,
    Unavailable,
    WaitTimeout,
)
from ciphermq.telemetry import get_logger

_log = get_logger("client")
_token_log = get_logger("client.token")


class Feed:
    """Deliveries of one queue (a `reconnect.Party`)."""

    def __init__(
        self,
        core: Core,
        queue: str,
        *,
        name: str | None,
        prefetch: int,
        on_ending: Callable[[], None],
    ) -> None:
        """`on_ending` is called when a connection is about to end, and what is done can still be
        acked on it."""
        self.queue = queue
        self.name = name or f"receiver-{secrets.token_hex(6)}"
        """The same through all connections; another one for each receiver."""
        self.arrived = asyncio.Event()
        """Set when something has happened that who waits for a delivery must look at."""
        self.failure: Exception | None = None
        """Why nothing more will come."""
        self._core = core
        self._credit = Credit(prefetch)
        self._on_ending = on_ending
        self._buffer: deque[BrokerDelivery] = deque()
        self._consumers: list[Consumer] = []
        """The last is the one in use; others still have deliveries to settle."""
        self._served: Session | None = None
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def consuming(self) -> bool:
        """Whether the broker knows of a consumer now."""
        return bool(self._consumers) and self._consumers[-1].session.alive

    def start(self) -> None:
        """Begin to consume, as soon as there is a connection."""
        self._serving = asyncio.get_running_loop().create_task(
            self._serve(), name=f"ciphermq consumer of {self.queue}"
        )
        self._core.line.join(self)

    def take(self) -> BrokerDelivery | None:
        """The oldest delivery that nobody has looked at."""
        return self._buffer.popleft() if self._buffer else None

    def put_back(self, deliveries: list[BrokerDelivery]) -> None:
        """These were taken last, and those that aren't settled yet have not been looked at."""
        self._buffer.extendleft(
            # One that was lost meanwhile comes again on another connection.
            each
            for each in reversed(deliveries)
            if each.live and not each.lost
        )

    def renew(self) -> None:
        """Tell the broker that everything in hand is still wanted."""
        for consumer in self._consumers:
            if consumer.session.alive:
                consumer.renew()

    async def stop(self, limit: float) -> None:
        """Give back what isn't settled, and wait until the broker has confirmed what is; no
        longer than `limit` seconds, for what it doesn't hear of comes again."""
        self._stopping = True
        self._changed.set()
        try:
            async with asyncio.timeout(limit):
                if self._serving is not None:
                    # Not cancelled at once: a consumer that is just being started must be ended.
                    await self._serving
                for consumer in self._consumers:
                    if consumer.session.alive:
                        await consumer.session.cancel(consumer.number, release=True)
                        await consumer.session.wait_settled(limit)
        except (TimeoutError, CipherMQError) as error:
            _log.info("the receiver stopped without the broker's word", error=str(error))
        finally:
            if self._serving is not None:
                self._serving.cancel()
            self._core.line.leave(self)
            self._buffer.clear()
            self._consumers.clear()

    # --- serving ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        backoff, token_is_away = Backoff(), False
        try:
            while not self._stopping:
                session = self._core.line.current
                if session is None or session is self._served:
                    await self._change(None)
                    continue
                try:
                    await self._consume_on(session)
                    self._served, token_is_away = session, False
                    backoff.reset()
                except (ConnectionLost, Unavailable):
                    await self._change(backoff.next())
                except TokenAway as error:
                    # Its key record must be signed there before anything can come.
                    if not token_is_away:
                        _token_log.warning("receiving waits for a token", reason=str(error))
                    token_is_away = True
                    await self._change(limits.TOKEN_POLL)
                except WaitTimeout as error:
                    # Without an answer nobody knows whether the consumer is there: begin anew.
                    _log.warning("the broker doesn't answer", error=str(error))
                    session.close("no answer")
        except Exception as error:  # noqa: BLE001 - whoever waits for a delivery must learn of it
            self.fail(error)

    async def _change(self, limit: float | None) -> None:
        """Wait until something changes, or so many seconds."""
        try:
            async with asyncio.timeout(limit):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    async def _consume_on(self, session: Session) -> None:
        session.check_clock()
        await self._core.register(session)
        for former in self._consumers:
            if former.session.alive and not former.retired:
                await former.session.cancel(former.number, release=False)
            former.retired = True
        self._credit = self._credit.successor()
        consumer = Consumer(session, self._credit, self._delivered, self._cancelled)
        credit = self._credit.open()
        await session.consume(self.queue, self.name, credit, consumer)
        self._consumers.append(consumer)
        self._forget_idle()

    def _delivered(self, delivery: BrokerDelivery) -> None:
        self._buffer.append(delivery)
        self.arrived.set()

    def _cancelled(self, consumer: Consumer, error: Refused) -> None:
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """Nothing more will come, because of this."""
        if self.failure is None:
            self.failure = error
        self.arrived.set()

    def _forget_idle(self) -> None:
        self._consumers[:-1] = [
            consumer
            for consumer in self._consumers[:-1]
            if consumer.session.alive and consumer.held
        ]

    # --- reconnect.Party ------------------------------------------------------------------------

    def attach(self, session: Session) -> None:
        """Consume on this one."""
        self._changed.set()

    def detach(self, session: Session) -> None:
        """What came on it and has not been looked at comes again."""
        self._buffer = deque(delivery for delivery in self._buffer if not delivery.lost)
        self._changed.set()
        self.arrived.set()

    def ending(self, session: Session) -> None:
        """Say what is done."""
        self._on_ending()

    def settled(self, session: Session) -> bool:
        """Whether everything that came on it is settled and confirmed."""
        if self._served is session and self.failure is None:
            return False  # not yet turned to the new one
        held = any(consumer.held for consumer in self._consumers if consumer.session is session)
        return not held and session.settled
