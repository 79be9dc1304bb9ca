"""The client without ``async``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ciphermq import limits
from ciphermq.client import connecting, connection
from ciphermq.client.fetching import messages_of
from ciphermq.client.identity import Identity
from ciphermq.client.inbox import Inbox
from ciphermq.client.many import Progress
from ciphermq.client.messages import Message
from ciphermq.client.outbox import Outbox
from ciphermq.client.shelf import Shelf
from ciphermq.client.sync.loop import Loop, called, result_of
from ciphermq.client.sync.onexpeers import OnexPeers
from ciphermq.client.sync.receiver import Receiver, elsewhere
from ciphermq.client.sync.sender import Relay, Sender
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import UsageError
from ciphermq.model.topology import ExchangeType

T = TypeVar("T")


class Client:
    """See `ciphermq.client.connection.Client`. Made by `connect`."""

    def __init__(self, loop: Loop, client: connection.Client) -> None:
        self._loop = loop
        self._client = client
        self._receivers: list[Receiver] = []
        self._closed = False

    @property
    def name(self) -> str:
        """This client's id, and the name of its inbox queue."""
        return self._client.name

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self._client.identity

    @property
    def url(self) -> str:
        """The broker's address."""
        return self._client.url

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return self._client.connected

    # --- messages -------------------------------------------------------------------------------

    def sender(self, to: str | Iterable[str], **options: Any) -> Sender:
        """A sender of messages that only the clients `to` can open; `options` as those of
        `ciphermq.client.connection.Client.sender`."""
        sender = self._loop.run(called(self._client.sender, to, **options))
        return Sender(self._loop, sender)

    @property
    def onex(self) -> OnexPeers:
        """What there is to do with clients of CipherMQ 1.x."""
        return OnexPeers(self._loop, self._client.onex)

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
        """A receiver of the messages in `queue`, by default this client's own inbox queue; see
        `ciphermq.client.connection.Client.receiver`. `inbox` is used in this thread."""
        if prefetch < 1 or (limit is not None and limit < 1):
            raise UsageError("prefetch and limit are 1 or more")
        source = self._loop.run(
            called(
                self._client.source,
                queue,
                prefetch=min(prefetch, limits.MAX_CREDIT if limit is None else limit),
                name=name,
            )
        )
        shelf = Shelf(self.name if queue is None else queue, inbox, limit)
        receiver = Receiver(self._loop, source, shelf, timeout)
        self._receivers = [each for each in self._receivers if not each.closed] + [receiver]
        return receiver

    def fetch(self, queue: str | None = None, messages: int = 1) -> list[Message]:
        """The oldest messages in `queue`, at least so many if there are, in whole batches."""
        arrivals = self._loop.run(self._client.fetch_opened(queue, messages))
        return messages_of([elsewhere(arrival, self._loop.call) for arrival in arrivals])

    def relay(
        self, outbox: Outbox, *, patient: bool = True, progress: Progress | None = None
    ) -> Relay:
        """A relay that sends what is in `outbox`, from ``with`` on. `progress` is called from the
        client's own thread."""
        relay = self._loop.run(
            called(self._client.relay, outbox, patient=patient, progress=progress)
        )
        return Relay(self._loop, relay)

    def drain(
        self, outbox: Outbox, *, limit: float | None = None, progress: Progress | None = None
    ) -> int:
        """Send everything that is in `outbox`, and wait until it is confirmed; how many."""
        with self.relay(outbox, patient=False, progress=progress) as relay:
            relay.drained(limit)
            return relay.confirmed

    # --- keys -----------------------------------------------------------------------------------

    def register_key(self) -> bytes:
        """Register this client's key record, which also makes its inbox queue; the record."""
        return self._loop.run(self._client.register_key())

    def rotate_key(self) -> bytes:
        """Take a new sealing key into use and register it; the record."""
        return self._loop.run(self._client.rotate_key())

    def key_record(self, client: str) -> VerifiedRecord:
        """The key record of `client`, verified and remembered."""
        return self._loop.run(self._client.key_record(client))

    # --- queues and exchanges --------------------------------------------------------------------

    def declare_queue(self, name: str, **properties: Any) -> None:
        """Make a queue, which this client will own; nothing happens if it is there, just so.

        `properties` and errors as those of `ciphermq.client.connection.Client.declare_queue`:
        sizes in bytes, times in milliseconds; `PreconditionFailed` when it is there with others.
        """
        self._loop.run(self._client.declare_queue(name, **properties))

    def declare_exchange(self, name: str, kind: ExchangeType | str = ExchangeType.DIRECT) -> None:
        """Make an exchange, which this client will own; nothing happens if it is there, just so.

        `kind`: `direct`, `fanout` or `topic`. Raises `PreconditionFailed` when it is there as
        another; see `ciphermq.client.connection.Client.declare_exchange`.
        """
        self._loop.run(self._client.declare_exchange(name, kind))

    def delete_queue(self, name: str, *, if_empty: bool = False, if_unused: bool = False) -> int:
        """Delete a queue with all that is in it, for good; how many messages that were.

        `if_empty`, `if_unused`: only while no message is in it, or nobody receives from it;
        otherwise `PreconditionFailed`. Raises `NotFound`, `AccessRefused`; `ConnectionLost` when
        nobody knows whether it was done.
        """
        return self._loop.run(
            self._client.delete_queue(name, if_empty=if_empty, if_unused=if_unused)
        )

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange with its bindings. The queues stay, and what is in them.

        `if_unused`: only while nothing is bound to it; otherwise `PreconditionFailed`. Raises
        `NotFound`, `AccessRefused`, `BadRequest`, `ConnectionLost`.
        """
        self._loop.run(self._client.delete_exchange(name, if_unused=if_unused))

    def bind(self, exchange: str, queue: str, routing_key: str = "") -> None:
        """Have `exchange` pass on to `queue`, too, what is published with a key that matches
        `routing_key`. Nothing happens if it does already.

        Takes the owner of both, or an administrator. Raises `NotFound`, `AccessRefused`,
        `BadRequest`, `ResourceLimit`.
        """
        self._loop.run(self._client.bind(exchange, queue, routing_key))

    def unbind(self, exchange: str, queue: str, routing_key: str = "") -> None:
        """The reverse of `bind`; what is in the queue stays there. Raises `NotFound` when there is
        no such binding, otherwise as `bind` does.
        """
        self._loop.run(self._client.unbind(exchange, queue, routing_key))

    def purge(self, queue: str) -> int:
        """Remove all that waits in a queue, for good; how many messages. What receivers have in
        hand stays theirs. Raises `NotFound`, `AccessRefused`; `ConnectionLost` when nobody knows
        whether it was done.
        """
        return self._loop.run(self._client.purge(queue))

    def peek(self, queue: str, batches: int = 10) -> list[dict[str, Any]]:
        """What can be seen, without a key, of the first batches of a queue; nothing is taken out.

        At most so many `batches`, 1 to `limits.MAX_PEEK`, oldest first, each a dict whose members
        `ciphermq.client.connection.Client.peek` explains. Raises `NotFound`, `AccessRefused`,
        `BadRequest`.
        """
        return self._loop.run(self._client.peek(queue, batches))

    def redrive(self, queue: str, messages: int | None = None) -> int:
        """Move dead letters back to the queues they came from, unchanged; how many messages.

        `queue`: where they are now, ``dead.<name>`` as a rule. `messages`: so many at most, the
        oldest first; None: all. What can't go back stays; when that is so of all, `NotFound` or
        `QueueFull` is raised. Raises `AccessRefused`, `BadRequest`; `ConnectionLost` when nobody
        knows whether it was done.
        """
        return self._loop.run(self._client.redrive(queue, messages))

    def rows(self, what: str, prefix: str = "") -> list[dict[str, Any]]:
        """All `queues`, `exchanges`, `bindings`, `consumers` or `connections`, by name."""
        return self._loop.run(_collected(self._client.rows(what, prefix)))

    def status(self) -> dict[str, dict[str, Any]]:
        """The broker's counters."""
        return self._loop.run(self._client.status())

    def trace(self, message_id: str) -> dict[str, Any] | None:
        """What became of a message's batch; None when the broker doesn't know it."""
        return self._loop.run(self._client.trace(message_id))

    # --- end --------------------------------------------------------------------------------------

    def close(self, error: BaseException | None = None) -> None:
        """End everything in order; the thread ends, too."""
        if self._closed:
            return
        self._closed = True
        # Whatever goes wrong with one of them, the others are ended in order. Last in, first out.
        with ExitStack() as stack:
            stack.callback(self._loop.stop)
            stack.callback(lambda: self._loop.run(self._client.close(error)))
            for receiver in self._receivers:
                stack.callback(receiver.close, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)


def connect(
    url: str | None = None,
    *,
    identity: Identity | str | Path | None = None,
    **options: Any,
) -> Client:
    """Connect to the broker at `url` as `identity`; `options` as those of
    `ciphermq.client.connecting.connect`. Close the client, or use it in ``with``."""
    loop = Loop()
    try:
        opening = connecting.connect(url, identity=identity, **options)
        return Client(loop, loop.run(result_of(opening)))
    except BaseException:
        loop.stop()
        raise


async def _collected(rows: AsyncIterator[T]) -> list[T]:
    return [row async for row in rows]
