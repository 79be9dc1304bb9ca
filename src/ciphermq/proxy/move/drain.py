"""Moving a queue's messages: consume, publish with confirms, acknowledge after the confirm.

At every moment a message is in the old queue, in the new one, or (published and perhaps not yet
confirmed) in both: whatever dies, and whenever, nothing is lost. What was in both when a process
was killed is there twice afterwards, at most `limits.MOVE_PREFETCH` messages a queue. A killed
source also gives again what it had forgotten was acknowledged.

**Order.** One channel takes from the old queue and one puts into the new: both sides keep the
order of a channel. It is the only consumer of its queue, so no message comes back from elsewhere.

**Exchange and routing key.** A message must get into exactly this queue, whatever the target's
bindings are, and consumers should see the routing key that it was published with. So each new
queue has a fanout exchange of its own while messages are moved, `exchange_for`, which keeps the
key; only messages that were published to the default exchange go through that again. Consumers
see the move's exchange as the one that the others came from: the one thing that does change
(docs/decisions/0028).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Final

import pamqp.commands as spec

from ciphermq import limits
from ciphermq.errors import CipherMQError, MoveError
from ciphermq.proxy.move.link import Link, Message

_SETTLE: Final = 0.02
_LOOK_AGAIN: Final = 0.2
_PREFIX: Final = "ciphermq.move."


def exchange_for(queue: str) -> str:
    """The exchange that leads to this queue only, while its messages are moved."""
    name = _PREFIX + queue
    if len(name.encode()) <= limits.MAX_NAME:
        return name
    import hashlib

    return _PREFIX + hashlib.sha256(queue.encode()).hexdigest()


def is_ours(exchange: str) -> bool:
    """Whether an exchange is one of a move's."""
    return exchange.startswith(_PREFIX)


@dataclass(frozen=True, slots=True)
class Queue:
    """What the drain has to know of a queue."""

    name: str
    exclusive: bool = True
    """Whether our consumer may ask to be the only one: not where the type doesn't know that."""
    guards: int = 0
    """How many consumers of the move's own it has besides."""


@dataclass(slots=True)
class Drained:
    """What came of a queue, or is coming of it."""

    moved: int = 0
    moved_bytes: int = 0
    before: int = 0
    """Messages that the target had already."""
    expiring: bool = False
    """Some of its messages have a time to live of their own."""


class Drain:
    """Moves queues, one after another, from the broker at one link to the broker at the other."""

    def __init__(
        self,
        source: Link,
        target: Link,
        *,
        impersonator: bool = False,
        patience: float = limits.MOVE_QUIET_TIMEOUT,
    ) -> None:
        self._source = source
        self._patience = patience
        self._target = target
        self._impersonator = impersonator
        self._published = 0
        self._unconfirmed: deque[tuple[int, int, int]] = deque()  # number, tag, bytes
        self._confirmed: set[int] = set()
        self._in_flight = 0
        self._queue = b""
        self._exchange = b""
        self._progress = Drained()
        self._failure: Exception | None = None
        self._moved = asyncio.Event()
        self._settling = False
        source.on_message = self._on_message
        source.on_failure, target.on_failure = self._source_failed, self._target_failed
        target.on_confirm = self._on_confirm
        target.on_return = self._on_return
        target.on_read = self._after_confirms

    async def prepare(self) -> None:
        """Ask the brokers for what a drain relies on: prefetch here, confirms there."""
        prefetch = spec.Basic.Qos(prefetch_count=limits.MOVE_PREFETCH)
        await self._source.call(prefetch, spec.Basic.QosOk)
        await self._target.call(spec.Confirm.Select(), spec.Confirm.SelectOk)

    async def run(self, queue: Queue, progress: Drained) -> None:
        """Move all messages of `queue`, counting in `progress`, until it has been empty.

        Raises MoveError, TransportError: then some may be in both queues, and none in neither.
        """
        try:
            await self._run(queue, progress)
        except asyncio.CancelledError:
            await self._settle()
            raise
        except CipherMQError as error:
            # When one link fails, the other's error is only the echo.
            raise self._failure or error from None

    async def _run(self, queue: Queue, progress: Drained) -> None:
        name = queue.name
        self._progress = progress
        self._queue, self._exchange = name.encode(), exchange_for(name).encode()
        progress.before, _ = await self._target.messages(name)
        ready, _ = await self._source.messages(name)
        if ready == 0 and (await self._source.messages(name))[0] == 0:
            return
        await self._be_alone(queue)
        await self._make_exchange(name)
        consumer = await self._source.call(
            spec.Basic.Consume(queue=name, exclusive=queue.exclusive), spec.Basic.ConsumeOk
        )
        await self._until_empty(name)
        cancel = spec.Basic.Cancel(consumer_tag=consumer.consumer_tag)
        await self._source.call(cancel, spec.Basic.CancelOk)
        # That was a round trip after the last acknowledgement: the broker has it.
        await self._target.call(
            spec.Exchange.Delete(exchange=exchange_for(name)), spec.Exchange.DeleteOk
        )

    async def _be_alone(self, queue: Queue) -> None:
        """Wait for consumers whose connections have ended: their broker may not know it yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while True:
                    _, consumers = await self._source.messages(queue.name)
                    if consumers <= queue.guards:
                        return
                    await asyncio.sleep(_SETTLE)
        raise MoveError(f"queue {queue.name!r} has a consumer that does not go away")

    async def _settle(self) -> None:
        """Take no more, and acknowledge what is on its way when the target has it: then nothing
        is in both queues."""
        self._settling = True
        self._source.pause()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.MOVE_CLOSE_TIMEOUT):
                while self._unconfirmed and self._failure is None:
                    self._moved.clear()
                    await self._moved.wait()

    async def _make_exchange(self, name: str) -> None:
        exchange = exchange_for(name)
        declare = spec.Exchange.Declare(exchange=exchange, exchange_type="fanout", durable=True)
        await self._target.call(declare, spec.Exchange.DeclareOk)
        bind = spec.Queue.Bind(queue=name, exchange=exchange, routing_key="")
        await self._target.call(bind, spec.Queue.BindOk)

    async def _until_empty(self, name: str) -> None:
        """Wait until nothing is ready and nothing is on its way, twice: some types of queues
        count a little late."""
        empty = 0
        while empty < 2 and self._failure is None:
            self._moved.clear()
            ready, _ = await self._source.messages(name)
            busy = bool(ready or self._unconfirmed)
            empty = 0 if busy else empty + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), _LOOK_AGAIN if busy else _SETTLE)
        if self._failure is not None:
            raise self._failure

    # --- message by message ---------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        user = message.user_id
        if user is not None and not self._impersonator and user != self._target.address.user:
            raise MoveError(
                f"queue {self._queue.decode()!r}: a message says that user {user!r} published it, "
                f"and the target takes that from {self._target.address.user!r} only with the tag "
                "impersonator: give it that tag, then go on with the move"
            )
        direct = (
            not message.exchange and message.routing_key == self._queue and not message.has_copies
        )
        exchange = b"" if direct else self._exchange
        self._published += 1
        size = len(message.frames)
        self._unconfirmed.append((self._published, message.tag, size))
        self._in_flight += size
        self._progress.expiring |= message.expires
        self._target.publish(exchange, message.routing_key, message)
        if self._in_flight > limits.MOVE_IN_FLIGHT:
            self._source.pause()

    def _on_confirm(self, number: int, multiple: bool, taken: bool) -> None:
        if not taken:
            raise MoveError(
                f"queue {self._queue.decode()!r}: the target refused a message; is the queue full "
                "there (x-max-length with reject-publish), or its node short of disk?"
            )
        if multiple:
            self._confirmed.update(each for each, _, _ in self._unconfirmed if each <= number)
        else:
            self._confirmed.add(number)

    def _on_return(self, reason: str) -> None:
        raise MoveError(
            f"queue {self._queue.decode()!r}: the target has no place for a message ({reason}): "
            "was the queue or its binding deleted there meanwhile?"
        )

    def _after_confirms(self) -> None:
        """Acknowledge, in order, what is confirmed by now: with one method for all of it."""
        last = 0
        while self._unconfirmed and self._unconfirmed[0][0] in self._confirmed:
            number, last, size = self._unconfirmed.popleft()
            self._confirmed.remove(number)
            self._in_flight -= size
            self._progress.moved += 1
            self._progress.moved_bytes += size
        if last:
            self._source.acknowledge(last)
            if self._in_flight <= limits.MOVE_IN_FLIGHT // 2 and not self._settling:
                self._source.resume()
            if not self._unconfirmed:
                self._moved.set()

    def _source_failed(self, error: Exception) -> None:
        self._fail(error)
        self._target.abort()

    def _target_failed(self, error: Exception) -> None:
        """The source goes on, without being taken from: what was acknowledged is to arrive."""
        self._fail(error)
        self._source.ignore()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._moved.set()
