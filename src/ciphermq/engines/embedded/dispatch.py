"""Getting batches out: who is given what the broker decides, and when it is asked.

Whatever might let a batch go out (a group became durable, a consumer has credit again, a timer
ran out) only *wakes* the dispatch. Once in a turn of the event loop it then asks the broker for
deliveries, a bounded number of them, and sets the one timer to the broker's next deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ciphermq.broker import Broker
from ciphermq.broker.credit import Consumer
from ciphermq.broker.deliveries import Held
from ciphermq.engines.embedded.outlets import Lane, delivery_of
from ciphermq.engines.embedded.payloads import Payloads
from ciphermq.engines.embedded.store import Store
from ciphermq.engines.face import Delivery, Sink
from ciphermq.errors import PayloadDamaged, Superseded, Unavailable
from ciphermq.telemetry import get_logger

_TURN: Final = 256
"""Deliveries before the event loop gets to something else."""

_log = get_logger("engine")


class Dispatch:
    """Consumers, fetches and timers."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        payloads: Payloads,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
    ) -> None:
        self._broker = broker
        self._store = store
        self._payloads = payloads
        self._loop = loop
        self._clock = clock
        self._awake = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self.delivered = 0
        """Messages, since the start."""
        self.redelivered = 0
        """Of these, those that may have been given out before."""
        self.damaged = 0
        """Deliveries that could not be made."""

    def stop(self) -> None:
        """Nothing is given out any more, and no timer runs."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # --- turns --------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may go out, or a timer may be nearer: look, once, soon."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._awake = False
        # After a failure of the journal nothing could be acked: so nothing is given out.
        if self._stopped or self._store.failure is not None:
            return
        try:
            self._give_out()
        except Unavailable:
            # The journal has failed just now, which it tells everybody itself.
            return
        self._set_timer()

    def _give_out(self) -> None:
        broker, now = self._broker, self._clock()
        for _ in range(_TURN):
            queue = broker.next_busy()
            if queue is None:
                return
            held = broker.next_delivery(queue, now)
            if held is not None and held.consumer is not None:
                lane = held.consumer.outlet
                if isinstance(lane, Lane):
                    lane.give(held)
        self.wake()

    def _set_timer(self) -> None:
        at_ms = self._broker.next_deadline()
        if at_ms is None or (self._timer is not None and self._timer_at <= at_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at_ms
        seconds = max(0, at_ms - self._clock()) / 1000
        self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._stopped or self._store.failure is not None:
            return
        try:
            self._broker.sweep(self._clock())
        except Unavailable:
            return
        self.wake()

    # --- consumers ----------------------------------------------------------------------------

    def consume(
        self, queue: str, *, client: str, name: str, credit: int, sink: Sink, onex: bool
    ) -> int:
        """A new consumer's number; ghosts that it supersedes are told."""
        lane = Lane(
            sink,
            self._payloads,
            on_delivered=self._note_delivered,
            on_damaged=self._set_aside,
            on_room=self.resume,
        )
        consumer, ghosts = self._broker.consume(
            queue,
            client=client,
            consumer_name=name,
            credit=credit,
            outlet=lane,
            now=self._clock(),
            onex=onex,
        )
        for ghost in ghosts:
            reason = f"a newer consumer named {name!r} of {client!r} has taken over"
            self.ended(ghost, reason, Superseded.code)
        self.wake()
        return consumer.number

    def ended(self, consumer: Consumer, reason: str, code: str) -> None:
        """Tell a consumer that the broker has ended it; later, for it may be the one who asked."""
        lane = consumer.outlet
        if isinstance(lane, Lane):
            lane.close()
            self._loop.call_soon(lane.sink.cancelled, consumer.number, reason, code)

    def resume(self, owner: object) -> None:
        """The owner's consumers may take more."""
        self._broker.resume(owner)
        self.wake()

    def cancel(self, number: int, *, release: bool) -> None:
        """End a consumer. What it was given and never saw goes back in line."""
        now = self._clock()
        lane = self._broker.cancel(number, release=release, now=now)
        if isinstance(lane, Lane):
            for held in lane.close():
                self._broker.give_back(held, now)
        self.wake()

    # --- deliveries ---------------------------------------------------------------------------

    async def fetch(
        self, queue: str, *, owner: object, messages: int, onex: bool
    ) -> list[Delivery]:
        """The oldest batches, with their bytes, until they hold `messages`."""
        found: list[Delivery] = []
        while messages > 0:
            given = self._broker.fetch(
                queue, owner=owner, messages=messages, now=self._clock(), onex=onex
            )
            self.wake()
            loading = [self._payloads.load(held.entry.batch) for held in given]
            for held, future in zip(given, loading, strict=True):
                try:
                    sealed = await future
                except PayloadDamaged as error:
                    if held.bits:
                        self._set_aside(held, error)
                    continue
                # The connection may have ended while the bytes were read.
                if held.bits:
                    messages -= held.bits.bit_count()
                    self._note_delivered(held)
                    found.append(delivery_of(held, sealed))
            if not given:
                break
        return found

    def _note_delivered(self, held: Held) -> None:
        messages = held.bits.bit_count()
        self.delivered += messages
        if held.redelivered:
            self.redelivered += messages
        if self._store.events:
            self._store.tell("delivered", held.entry.batch.batch_id, messages)

    def _set_aside(self, held: Held, error: PayloadDamaged) -> None:
        batch = held.entry.batch
        self.damaged += 1
        _log.error(
            "a stored batch is damaged and set aside",
            batch_id=batch.batch_id,
            sender=batch.sender,
            queue=held.entry.queue.spec.name,
            error=str(error),
        )
        self._broker.damaged(held, str(error), self._clock())
        self.wake()
