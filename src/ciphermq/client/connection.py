"""The client: one connection to the broker, and everything that can be done with it.

::

    async with ciphermq.connect(identity="alice") as client:
        await client.sender("bob").send("hello")

`connect` (`client.connecting`) makes the first connection, and raises what keeps it from being
made. From then on the connection is mended whenever it breaks, for ever: sends and requests wait
for it, each within its own time-out, and receivers just go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.directory import Directory
from ciphermq.client.fetching import fetch, messages_of
from ciphermq.client.identity import Identity
from ciphermq.client.inbox import Arrival, Inbox
from ciphermq.client.lane import Route, Sealer
from ciphermq.client.many import Progress
from ciphermq.client.messages import Message
from ciphermq.client.onexpeers import OnexPeers
from ciphermq.client.opening import Unsealer
from ciphermq.client.outbox import Outbox
from ciphermq.client.publisher import Publisher
from ciphermq.client.receiver import Receiver
from ciphermq.client.relay import Relay
from ciphermq.client.sender import Sender
from ciphermq.client.session import now_ms
from ciphermq.client.source import Source
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import UsageError
from ciphermq.model import ids
from ciphermq.model.onex import is_message_id
from ciphermq.model.topology import ExchangeType
from ciphermq.wire.cmq2 import frames


class Client:
    """A connection to the broker, as one identity. Made by `connect`; of one event loop."""

    def __init__(self, core: Core, window: int) -> None:
        self._core = core
        self._window = window
        self._publisher = Publisher(core.line, window)
        self._directory = Directory(core)
        self._sealer = Sealer(core, self._directory)
        self._unsealer = Unsealer(core)
        self._onex: OnexPeers | None = None
        self._senders: WeakSet[Sender] = WeakSet()
        """Those that are somebody's, or have something under way."""
        self._receivers: list[Receiver] = []

    @property
    def name(self) -> str:
        """This client's id, and the name of its inbox queue."""
        return self._core.name

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self._core.identity

    @property
    def url(self) -> str:
        """The broker's address."""
        return self._core.line.url

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return self._core.line.current is not None

    @property
    def connections(self) -> int:
        """How many connections were made so far: 1 and the replaced ones."""
        return self._core.line.sessions

    # --- messages -------------------------------------------------------------------------------

    def sender(
        self,
        to: str | Iterable[str],
        *,
        queue: str | None = None,
        exchange: str = "",
        routing_key: str = "",
        ttl: float | None = None,
        timeout: float | None = None,
        window: int | None = None,
        batch_bytes: int = limits.SEND_BATCH,
    ) -> Sender:
        """A sender of messages that only the clients `to` can open.

        They go to the inbox of each, or to `queue`, or through `exchange` with `routing_key`.
        `ttl`: seconds that each message lives, where `send` doesn't say otherwise. `timeout`:
        seconds for a confirmation. `window`: unconfirmed batches at a time. `batch_bytes`: how
        large a batch may grow while more is waiting; larger ones make each message cheaper,
        smaller ones make it wait less.
        """
        sender = Sender(
            self._publisher,
            self._sealer,
            Route.of(to, queue=queue, exchange=exchange, routing_key=routing_key),
            timeout=self._core.patience.send if timeout is None else timeout,
            ttl=ttl,
            window=self._window if window is None else window,
            batch_bytes=batch_bytes,
        )
        self._senders.add(sender)
        return sender

    @property
    def onex(self) -> OnexPeers:
        """What there is to do with clients of CipherMQ 1.x."""
        if self._onex is None:
            self._onex = OnexPeers(self._core, self._publisher)
        return self._onex

    def receiver(
        self,
        queue: str | None = None,
        *,
        inbox: Inbox | None = None,
        prefetch: int = limits.DEFAULT_PREFETCH,
        limit: int | None = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> Receiver:
        """A receiver of the messages in `queue`, by default this client's own inbox queue.

        With `inbox`, what is done already is not shown again. `prefetch`: messages in hand at a
        time; with few, competing receivers share more evenly. `limit`: how many messages to show
        in all. `timeout`: seconds without a message after which asking for the next one raises
        `WaitTimeout`; None: for ever. `name`: a receiver that starts under the name of an earlier
        one of this client takes over from it.
        """
        if prefetch < 1 or (limit is not None and limit < 1):
            raise UsageError("prefetch and limit are 1 or more")
        receiver = Receiver(
            self._core,
            self._unsealer,
            self.name if queue is None else queue,
            name=name,
            prefetch=min(prefetch, limits.MAX_CREDIT if limit is None else limit),
            inbox=inbox,
            limit=limit,
            timeout=timeout,
        )
        self._receivers = [each for each in self._receivers if not each.closed] + [receiver]
        return receiver

    def source(
        self,
        queue: str | None = None,
        *,
        prefetch: int = limits.DEFAULT_PREFETCH,
        name: str | None = None,
        on_ending: Callable[[], None] = lambda: None,
    ) -> Source:
        """What a receiver is built on: opened batches as they come, settled by the caller."""
        return Source(self._core, self._unsealer, queue or self.name, name, prefetch, on_ending)

    async def fetch(self, queue: str | None = None, messages: int = 1) -> list[Message]:
        """The oldest messages in `queue`, at least so many if there are, in whole batches; none
        when it is empty. Settle them with `Message.ack` and its kin; what isn't settled when the
        connection ends comes again."""
        return messages_of(await self.fetch_opened(queue, messages))

    async def fetch_opened(self, queue: str | None, messages: int) -> list[Arrival]:
        """What `fetch` is built on: opened batches, settled by the caller."""
        return await fetch(self._core, self._unsealer, queue or self.name, messages)

    def relay(
        self,
        outbox: Outbox,
        *,
        patient: bool = True,
        window: int | None = None,
        progress: Progress | None = None,
    ) -> Relay:
        """A relay that sends what is in `outbox`, from ``async with`` on.

        `patient`: what can't be sent now (an unknown receiver, no binding) is logged and tried
        again, for ever; otherwise it ends the relay, and `Relay.drained` raises it. Either way
        the message stays in the Outbox. `progress` is called with the number of messages
        confirmed so far.
        """
        return Relay(
            self._publisher,
            self._sealer,
            self.name,
            outbox.path,
            patient=patient,
            window=self._window if window is None else window,
            close_timeout=self._core.patience.close,
            progress=progress,
        )

    async def drain(
        self, outbox: Outbox, *, limit: float | None = None, progress: Progress | None = None
    ) -> int:
        """Send everything that is in `outbox`, and wait until it is confirmed; how many messages.

        Raises what keeps any from being sent, and `WaitTimeout` after `limit` seconds; what isn't
        confirmed stays in the Outbox.
        """
        async with self.relay(outbox, patient=False, progress=progress) as relay:
            await relay.drained(limit)
            return relay.confirmed

    # --- keys -----------------------------------------------------------------------------------

    async def register_key(self) -> bytes:
        """Register this client's key record with the broker, renewed if need be, which also
        makes its inbox queue; the record. Receivers do so by themselves."""
        return await self._core.register_key()

    async def rotate_key(self) -> bytes:
        """Take a new sealing key into use and register it; the record. What was sealed to the
        former key can still be opened."""
        await asyncio.to_thread(self.identity.rotate_key, now_ms())
        return await self._core.register_key()

    async def key_record(self, client: str) -> VerifiedRecord:
        """The key record of `client`, verified and remembered, as it is before sealing.

        Raises `UnknownReceiver` or another `KeyRecordError`.
        """
        self._directory.forget(client)
        return await self._directory.record(client)

    # --- queues and exchanges --------------------------------------------------------------------

    async def declare_queue(self, name: str, **properties: Any) -> None:
        """Make a queue, which this client will own; nothing happens if it is there, just so.

        `properties`, each with a default: `max_messages` and `max_bytes`, above which publishes
        are refused; `ttl_ms`, the longest a message waits here (0: as long as its batch lives);
        `dead_letter_exchange` and `dead_letter_key`, where dead letters go instead of to
        ``dead.<name>``; `max_tries`, after which a message is dead; `ack_timeout_ms`, after which
        what a receiver holds goes to another. Sizes are in bytes, times in milliseconds.

        Raises `PreconditionFailed` when it is there with other properties, `BadRequest` for an
        unknown one, a value out of bounds or a name that can't be, `AccessRefused` for a client's
        inbox, `ResourceLimit` when the broker has as many queues as it may.
        """
        queue = {"name": name, **properties}
        await self._core.ask(frames.Declare, again=True, queue=queue)

    async def declare_exchange(
        self, name: str, kind: ExchangeType | str = ExchangeType.DIRECT
    ) -> None:
        """Make an exchange, which this client will own; nothing happens if it is there, just so.

        `kind`: `direct` passes on to the queues bound with the routing key itself, `fanout` to all
        that are bound, `topic` to those bound with a pattern that matches (``*`` is one word
        between dots, ``#`` any number of them).

        Raises `PreconditionFailed` when it is there as another kind, `BadRequest` for a name that
        can't be, `ResourceLimit` when the broker has as many exchanges as it may.
        """
        exchange = {"name": name, "type": ExchangeType(kind).value}
        await self._core.ask(frames.Declare, again=True, exchange=exchange)

    async def delete_queue(
        self, name: str, *, if_empty: bool = False, if_unused: bool = False
    ) -> int:
        """Delete a queue with all that is in it, for good; how many messages that were, waiting
        or in a receiver's hands. Its bindings go, its receivers are ended.

        `if_empty`, `if_unused`: only while no message is in it, or nobody receives from it;
        otherwise `PreconditionFailed`. Raises `NotFound`, `AccessRefused`; `ConnectionLost` when
        the connection ends before the answer, so that nobody knows whether it was done.
        """
        lost: int = await self._core.ask(
            frames.Delete, queue=name, if_empty=if_empty, if_unused=if_unused
        )
        return lost

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange with its bindings. The queues stay, and what is in them.

        `if_unused`: only while nothing is bound to it; otherwise `PreconditionFailed`. Raises
        `NotFound`, `AccessRefused`, `BadRequest` for the default exchange; `ConnectionLost` as
        `delete_queue` does.
        """
        await self._core.ask(frames.Delete, exchange=name, if_unused=if_unused)

    async def bind(self, exchange: str, queue: str, routing_key: str = "") -> None:
        """Have `exchange` pass on to `queue`, too, what is published with a key that matches
        `routing_key` (a fanout exchange: whatever the key). Nothing happens if it does already.

        What was published before stays where it is. Takes the owner of both, or an administrator.
        Raises `NotFound` when either is not there, `AccessRefused`, `BadRequest` for the default
        exchange, `ResourceLimit` when the broker has as many bindings as it may.
        """
        await self._core.ask(
            frames.Bind, again=True, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def unbind(self, exchange: str, queue: str, routing_key: str = "") -> None:
        """The reverse of `bind`, with the same three words; what is in the queue stays there.

        Raises `NotFound` when there is no such binding, otherwise as `bind` does. When a
        connection breaks it is asked again, so `NotFound` may also mean that it was done.
        """
        await self._core.ask(
            frames.Unbind, again=True, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def purge(self, queue: str) -> int:
        """Remove all that waits in a queue, for good; how many messages. What receivers have in
        hand stays theirs, and comes back to the queue if they don't acknowledge it.

        Raises `NotFound`, `AccessRefused`; `ConnectionLost` as `delete_queue` does.
        """
        removed: int = await self._core.ask(frames.Purge, queue=queue)
        return removed

    async def peek(self, queue: str, batches: int = 10) -> list[dict[str, Any]]:
        """What can be seen, without a key, of the first batches of a queue; nothing is taken out.

        At most so many `batches`, 1 to `limits.MAX_PEEK`, oldest first, each a dict:

        * `batch_id`: 16 bytes; `sender`; `receivers`: a list of clients; `exchange`, `routing_key`
        * `messages`: how many are in the queue, of `count` in the batch; `bitmap`: which ones
        * `size`: bytes of the sealed batch
        * `created_ms`, `expires_ms` (0: never), `published_ms`: milliseconds since 1970
        * `redeliveries`: how often its most retried message was given out before
        * `unacked`: whether a receiver has any of it in hand
        * `dead`: in a dead-letter queue a dict of `queue`, `reason`, and where they are known
          `detail` and `at_ms`; otherwise None

        All of it is what sender and broker say: only a receiver can check it. Raises `NotFound`,
        `AccessRefused`, `BadRequest` for another number of batches.
        """
        rows: list[dict[str, Any]] = await self._core.ask(
            frames.Peek, again=True, queue=queue, batches=batches
        )
        return rows

    async def redrive(self, queue: str, messages: int | None = None) -> int:
        """Move dead letters back to the queues they came from, unchanged and with their tries
        counted anew; how many messages.

        `queue`: where they are now, ``dead.<name>`` as a rule. `messages`: so many at most, the
        oldest first; None: all. What can't go back, since its queue is gone or full, stays where it
        is; when that is so of all, `NotFound` or `QueueFull` is raised. Raises `AccessRefused`,
        `BadRequest` for a queue without dead letters or for less than one message;
        `ConnectionLost` as `delete_queue` does.
        """
        moved: int = await self._core.ask(frames.Redrive, queue=queue, messages=messages)
        return moved

    async def rows(self, what: str, prefix: str = "") -> AsyncIterator[dict[str, Any]]:
        """All `queues`, `exchanges`, `bindings`, `consumers` or `connections` that this client
        may see, by name."""
        offset = 0
        while True:
            page = await self._core.ask(
                frames.List, again=True, what=what, prefix=prefix, offset=offset
            )
            for row in page:
                yield row
            offset += len(page)
            if len(page) < limits.MAX_LISTING:
                return

    async def status(self) -> dict[str, dict[str, Any]]:
        """The broker's counters: maps of server, engine, journal and catalog."""
        status: dict[str, dict[str, Any]] = await self._core.ask(frames.Status, again=True)
        return status

    async def trace(self, message_id: str) -> dict[str, Any] | None:
        """What became of a message's batch; None when the broker doesn't know it.

        For the id of a 1.x message, a row with its ``message_id`` and the times of 1.x."""
        row: dict[str, Any] | None = None
        batch_id = ids.batch_of(message_id)
        if batch_id is not None:
            row = await self._core.ask(frames.Trace, again=True, batch_id=batch_id)
        if row is None and is_message_id(message_id):
            row = await self._core.ask(frames.Trace, again=True, message_id=message_id)
        return row

    async def ask(self, kind: type[frames.Request], **members: Any) -> Any:
        """Any request of the protocol (`ciphermq.wire.cmq2.frames`), asked once.

        Raises the broker's refusal; `WaitTimeout`; `ConnectionLost` when the connection ends
        before the answer, so that nobody knows whether it was done.
        """
        return await self._core.ask(kind, **members)

    # --- end --------------------------------------------------------------------------------------

    async def close(self, error: BaseException | None = None) -> None:
        """End everything in order: receivers give back what isn't done, senders wait for their
        confirmations. `error` is why the program ends, for messages that are in hand; when it was
        cancelled or interrupted, confirmations are not waited for."""
        hurried = error is not None and not isinstance(error, Exception)
        # Whatever goes wrong with one of them, the others are ended in order. Last in, first out.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._core.close)
            stack.callback(self._publisher.close)
            stack.push_async_callback(
                self._close_senders, 0.0 if hurried else self._core.patience.close
            )
            for receiver in self._receivers:
                stack.push_async_callback(receiver.close, error)

    async def _close_senders(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                for sender in list(self._senders):
                    await sender.close()
        except TimeoutError:
            pass  # what is under way is abandoned, and its senders are told

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(error)
