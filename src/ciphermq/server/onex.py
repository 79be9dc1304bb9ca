"""One client of CipherMQ 1.x: every line to what it asks for, and the replies in their order.

A publish or an ack is begun as it comes, and the next is looked at before it is durable; that is
how pipelined ones share a write. Any other command is over before the next is begun, since what
follows may need what it makes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any

from ciphermq import limits
from ciphermq.custody import onex as keys
from ciphermq.engines.face import Publish, Published
from ciphermq.errors import (
    AccessRefused,
    BadRequest,
    BatchError,
    CipherMQError,
    ConflictingDuplicate,
    KeyRecordMalformed,
    NotFound,
    PreconditionFailed,
    Refused,
    Unavailable,
)
from ciphermq.model import onex
from ciphermq.model.envelope import Header
from ciphermq.model.ids import is_client_id
from ciphermq.model.topology import QueueSpec
from ciphermq.net.lines import LineLink
from ciphermq.server import requests
from ciphermq.server.access import Verb
from ciphermq.server.answers import Answer, Answers
from ciphermq.server.flow import Brake
from ciphermq.server.onex_consuming import OnexConsuming
from ciphermq.server.outcomes import as_refusal, failure, follow
from ciphermq.server.publishing import note_message
from ciphermq.server.services import Services
from ciphermq.telemetry import get_logger
from ciphermq.telemetry.traffic import MessageAcknowledged
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Command, Failed, Reply, Said, Wrong

_SOFTWARE = "CipherMQ 1.x"
_COMMANDS = "its commands"
_SLICE = 100
"""Messages of a batch before others have their turn."""

_log = get_logger("server")


class OnexSession:
    """A 1.x client past its TLS handshake, until its connection is lost."""

    def __init__(self, services: Services, link: LineLink, client: str) -> None:
        self.client = client
        self.link = link
        self._services = services
        self._since_ms = services.now_ms()
        self._brake = Brake(link.pause_reading, link.resume_reading)
        self._commands: deque[Command | Wrong] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._going = False
        self._stopping = False
        self._answers = Answers(link.send, self._go_on)
        self.consuming = OnexConsuming(services, link, client, self._broken)
        services.sessions.add(self)
        link.attach(self._take, self._lost, self.consuming.resume)
        _log.info(
            "connected", client=client, peer=link.peer, software=_SOFTWARE, tls=link.tls_version
        )

    @property
    def idle(self) -> bool:
        """Whether the broker owes this client no answer."""
        return not (self._commands or len(self._answers))

    def describe(self) -> dict[str, Any]:
        """The connection's row in a listing."""
        return {
            "client": self.client,
            "peer": self.link.peer,
            "software": _SOFTWARE,
            "since_ms": self._since_ms,
            "consumers": len(self.consuming.consumers),
            "batches_held": self.consuming.held,
            "publishes_unconfirmed": len(self._answers),
        }

    # --- commands ---------------------------------------------------------------------------

    def _take(self, command: Command | Wrong) -> None:
        self._commands.append(command)
        self._go_on()
        if len(self._commands) >= limits.MAX_ONEX_COMMANDS:
            self._brake.hold(_COMMANDS)

    def _go_on(self) -> None:
        """Begin what can be begun now."""
        if self._going:  # an answer at once, in the loop below
            return
        self._going = True
        commands = self._commands
        while commands and self._asking is None and len(self._answers) < limits.MAX_ONEX_COMMANDS:
            command = commands.popleft()
            try:
                self._begin(command)
            except Exception as error:  # noqa: BLE001  (one client must not end the others)
                self._broken(error)
        self._going = False
        if len(commands) <= limits.MAX_ONEX_COMMANDS // 2:
            self._brake.release(_COMMANDS)

    def _begin(self, command: Command | Wrong) -> None:
        answer = self._answers.open()
        if isinstance(command, speech.Publish):
            self._publish(command.exchange, command.routing_key, command.message, answer)
        elif isinstance(command, speech.Ack):
            self._ack(command.message_id, answer)
        elif isinstance(command, Wrong):
            self._answers.settle(answer, command.reply)
        else:
            self._asking = asyncio.get_running_loop().create_task(self._ask(command, answer))
            self._asking.add_done_callback(self._asked)

    async def _ask(self, command: Command, answer: Answer) -> None:
        try:
            replies = await self._work(command, answer)
        except Exception as error:  # noqa: BLE001  (whatever it is, the client waits for an answer)
            replies = (self._failed(error),)
        # Not through the end of the task: a message that is pushed now must come after it.
        self._answers.settle(answer, *replies)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            self._go_on()

    async def _work(self, command: Command, answer: Answer) -> tuple[Reply, ...]:
        """What the command is answered."""
        services, client = self._services, self.client
        match command:
            case speech.DeclareQueue(queue):
                await self._declare(queue)
                return (Said.QUEUE_DECLARED,)
            case speech.DeclareExchange(exchange):
                frame = frames.Declare(request=0, exchange={"name": exchange})
                await requests.declare(services, client, frame)
                return (Said.EXCHANGE_DECLARED,)
            case speech.Bind(queue, exchange, key):
                bind = frames.Bind(request=0, exchange=exchange, queue=queue, routing_key=key)
                await requests.bind(services, client, bind)
                return (Said.QUEUE_BOUND,)
            case speech.PublishBatch(exchange, key, data):
                return await self._publish_batch(exchange, key, data)
            case speech.Consume(queue):
                await self._declare(queue)
                # What is pushed from here on must find all before it answered.
                await self._answers.turn(answer)
                await self.consuming.consume(queue)
                return (Said.SUBSCRIBED,)
            case speech.Fetch(queue):
                # What was published before is durable then, and can be had.
                await self._answers.turn(answer)
                return (await self.consuming.fetch(queue),)
            case speech.Resend(message_id):
                return (await self._resend(message_id),)
            case speech.RegisterKey(public_key, named):
                return (await self._register(public_key, named),)
            case speech.GetKey(whom):
                key_of = await services.catalog.get_onex_key(whom) if is_client_id(whom) else None
                if key_of is None:
                    return (Said.KEY_NOT_FOUND,)
                return (speech.PublicKey(keys.write_public_key(key_of)),)
            case _:
                return (Said.UNKNOWN_COMMAND,)

    # --- topology and keys ------------------------------------------------------------------

    async def _declare(self, queue: str) -> None:
        """Make a queue, or be content with the one that is there, whatever its properties."""
        services, client = self._services, self.client
        there = services.engine.queue(queue)
        if there is not None and there.spec.inbox:
            services.access.require(client, Verb.BIND, services.queue(queue))
        elif queue == client and there is None:
            await services.engine.declare_queue(QueueSpec(name=client, owner=client, inbox=True))
        else:
            try:
                frame = frames.Declare(request=0, queue={"name": queue})
                await requests.declare(services, client, frame)
            except PreconditionFailed:
                if there is None:
                    raise

    async def _register(self, public_key: str, named: str | None) -> Reply:
        services, client = self._services, self.client
        if named not in (None, client):
            raise AccessRefused(f"{client!r} can only register a key of its own, not of {named!r}")
        try:
            key = keys.read_public_key(public_key)
        except KeyRecordMalformed as error:
            raise BadRequest(str(error)) from error
        before = await services.catalog.get_onex_key(client)
        if before != key:
            await services.catalog.put_onex_key(client, key)
            fields = {"client": client, "fingerprint": keys.fingerprint(key)}
            if before is None:
                _log.info("1.x key registered", **fields)
            else:
                _log.warning("1.x key replaced", before=keys.fingerprint(before), **fields)
        return Said.KEY_REGISTERED

    # --- publishing -------------------------------------------------------------------------

    def _publish(
        self, exchange: str, key: str, data: bytes, answer: Answer, number: int = 0
    ) -> None:
        """One message; in a batch it has a `number`, by which it is named if it has no id."""
        services = self._services
        services.counters.add("publishes")
        try:
            message = onex.parse(data)
        except BatchError as error:
            self._return(
                answer,
                Failed(str(error), f"number {number} of the batch")
                if number
                else speech.InvalidMessage(str(error)),
            )
            return
        named = message.message_id if number else None
        try:
            if self._stopping:
                raise Unavailable("the broker is stopping")
            services.access.require(self.client, Verb.PUBLISH, services.exchange(exchange))
            header = onex.header(
                message,
                client=self.client,
                exchange=exchange,
                routing_key=key,
                now_ms=services.now_ms(),
            )
            outcome = services.engine.publish(Publish(self.client, header, message.text))
        except Refused as error:
            self._return(answer, self._failed(error, named))
            return
        follow(outcome, partial(self._stored, answer, header, message.message_id, named))
        services.flow.check(self._brake)

    def _stored(
        self,
        answer: Answer,
        header: Header,
        message_id: str,
        named: str | None,
        outcome: asyncio.Future[Published],
    ) -> None:
        """The engine has stored a message, or refused it, or broken."""
        error = failure(outcome)
        if error is not None:
            self._return(answer, self._failed(error, named))
            return
        self._services.counters.add("publishes_confirmed")
        again = outcome.result().duplicate
        note_message(self._services, self.client, header, message_id, again=again)
        self._answers.settle(answer, speech.Stored(message_id))

    def _return(self, answer: Answer, reply: Reply) -> None:
        self._services.counters.add("publishes_returned")
        self._answers.settle(answer, reply)

    async def _publish_batch(self, exchange: str, key: str, data: bytes) -> tuple[Reply, ...]:
        """Each message has an answer of its own, and those come after the batch's: which is
        none, if it is a batch at all."""
        try:
            messages = onex.split(data)
        except BatchError as error:
            return (speech.InvalidBatch(str(error)),)
        for number, each in enumerate(messages, 1):
            self._publish(exchange, key, each, self._answers.open(), number)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return ()

    # --- acks and resends -------------------------------------------------------------------

    def _ack(self, message_id: str, answer: Answer) -> None:
        outcome = self.consuming.ack(message_id)
        if outcome is None:
            self._answers.settle(answer, speech.Acknowledged(message_id))
        else:
            follow(outcome, partial(self._acked, answer, message_id))

    def _acked(self, answer: Answer, message_id: str, outcome: asyncio.Future[None]) -> None:
        error = failure(outcome)
        if error is None:
            self._services.traffic.note(MessageAcknowledged, message_id, self.client)
            self._answers.settle(answer, speech.Acknowledged(message_id))
        else:
            self._broken(error)

    async def _resend(self, message_id: str) -> Reply:
        """A message that is not acked yet is given out again, at its sender's wish."""
        batch_id = onex.internal_id(message_id)
        try:
            await self._services.engine.give_again(batch_id, client=self.client)
        except AccessRefused:
            return Said.RESEND_UNAUTHORISED
        except NotFound:
            return await self._why_not_again(message_id)
        return Said.RESEND_REQUESTED

    async def _why_not_again(self, message_id: str) -> Reply:
        row = await self._services.catalog.trace_message(message_id)
        if row is None:
            return Said.MESSAGE_NOT_FOUND
        if row["client"] != self.client:
            return Said.RESEND_UNAUTHORISED
        if row["acknowledged_time"] is None:
            return Said.MESSAGE_NOT_FOUND
        return Failed(f"nothing to send again, since {row['acknowledged_time']}", message_id)

    # --- failures ---------------------------------------------------------------------------

    def _failed(self, error: BaseException, message_id: str | None = None) -> Failed:
        refused = as_refusal(error, self.client)
        if isinstance(refused, AccessRefused):
            _log.warning("access refused", client=self.client, reason=str(refused))
        if isinstance(refused, ConflictingDuplicate):
            return Failed("this message_id was published before, with other content", message_id)
        return Failed(str(refused), message_id)

    def _broken(self, error: BaseException) -> None:
        """This connection can't go on."""
        self.link.fail(as_refusal(error, self.client))

    # --- the end ----------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """The server is stopping: take no more publishes, deliver no more, let the rest end."""
        del reason
        self._stopping = self.consuming.stopping = True

    def shut_out(self, error: CipherMQError) -> None:
        """Its certificate counts no more: tell it so, as one line, and end. What it says from here
        on is not heard, and what it asked for is not begun."""
        self._commands.clear()
        self.consuming.end()
        self.link.send(Failed(str(error)))
        self.link.fail(error)

    def _lost(self, reason: CipherMQError | None) -> None:
        services = self._services
        services.sessions.discard(self)
        services.flow.forget(self._brake)
        self._commands.clear()
        if self._asking is not None:
            self._asking.cancel()
        self.consuming.end()
        fields = {"client": self.client, "peer": self.link.peer}
        if reason is None:
            _log.info("disconnected", **fields)
        else:
            _log.warning("connection lost", reason=str(reason), **fields)
