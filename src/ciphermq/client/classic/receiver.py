"""The receiver of CipherMQ 1.x: shows the messages of its queue, for ever.

Each message goes the same way, and no step is begun before the one before it is done: opened, in
the file and on the disk, shown, acknowledged. What comes again, since the server did not hear the
ack, is acknowledged again and not shown. What can't be opened is told and left with the server.

An ack is sent again when it is not confirmed in time. After the last try the message stays with
the server as well; it comes again with the next connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

from ciphermq import limits
from ciphermq.client.classic.peer import RETRY_PAUSE, Peer, Says, declare, spell
from ciphermq.client.classic.record import Received, Record
from ciphermq.client.onexline import OnexLine
from ciphermq.custody.onex import OnexKey, write_public_key
from ciphermq.errors import (
    BatchError,
    BodyRefused,
    MalformedBatch,
    Refused,
    RemoteProtocolError,
    TlsFailed,
    TransportError,
)
from ciphermq.model import onex
from ciphermq.model.onex import Dialect, PayloadCipher
from ciphermq.sealing.onex import open_message
from ciphermq.settings.onexclient import BindingPart, ReceiverFile
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Message, Reply, Said

ACK_TIMEOUT: Final = 10.0
"""Seconds until an ack that is not confirmed is sent again."""
ACK_TRIES: Final = 3
_FAREWELL: Final = 2.0
"""Seconds that the last acks are given when the receiver is stopped."""


class _Acks:
    """Acks under way on one connection: when each is due again, and how often it was sent."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, message_ids: Iterable[str], now: float) -> list[str]:
        """Those of them that are not under way already; they are from now on."""
        fresh = [each for each in message_ids if each not in self._sent]
        self._sent.update((each, (now + ACK_TIMEOUT, 1)) for each in fresh)
        return fresh

    def confirmed(self, message_id: str) -> bool:
        """Whether it was under way, and is no more."""
        return self._sent.pop(message_id, None) is not None

    def next_time(self) -> float | None:
        """When the first is due again."""
        # They are sent in order and all wait the same, so the first one sent is the first due.
        return next((due for due, _ in self._sent.values()), None)

    def overdue(self, now: float) -> tuple[list[str], list[str]]:
        """Those to be sent again, and those that were sent often enough."""
        late = [(each, tries) for each, (due, tries) in self._sent.items() if due <= now]
        for message_id, _ in late:
            del self._sent[message_id]
        again = [each for each, tries in late if tries < ACK_TRIES]
        tries = dict(late)
        self._sent.update((each, (now + ACK_TIMEOUT, tries[each] + 1)) for each in again)
        return again, [each for each, tries in late if tries >= ACK_TRIES]


class ClassicReceiver:
    """One run. `received` is right whenever it ends."""

    def __init__(
        self,
        file: ReceiverFile,
        peer: Peer,
        key: OnexKey,
        dialect: Dialect,
        record: Record,
        say: Says,
        *,
        count: int | None = None,
        wait: float | None = None,
    ) -> None:
        """It ends by itself after `count` new messages, or `wait` seconds without one."""
        self._file = file
        self._peer = peer
        self._key = key
        self._dialect = dialect
        # The file of 1.x does not say it, and AEAD tells which of the two it was.
        fixed = file.one_x.cipher is not None
        self._ciphers = (dialect.cipher,) if fixed else tuple(PayloadCipher)
        self._record = record
        self._say = say
        self._count = count
        self._wait = wait
        self._acks = _Acks()
        self._subscribed = False
        self._refused: set[str] = set()
        self._latest = time.monotonic()
        self._stop = asyncio.Event()
        self.received = 0
        """Messages that were new."""

    def stop(self) -> None:
        """End it, once what is in hand is in the file and its acks are sent."""
        self._stop.set()

    async def run(self) -> None:
        """Until it is stopped, or has what it was asked for.

        A server that is away is asked again every second. Raises `TlsFailed` and `Refused` only
        before it was ever subscribed: later they may pass. `StoreError` when the file can't be
        written.
        """
        self._latest = time.monotonic()
        while not self._done:
            try:
                await self._receive()
            except (TlsFailed, Refused) as error:
                if not self._subscribed:
                    raise
                self._say("lost", f"Connection lost: {error}")
            except (TransportError, RemoteProtocolError) as error:
                self._say("lost", f"Connection lost: {error}")
            await self._stopped_within(RETRY_PAUSE)

    @property
    def _done(self) -> bool:
        enough = self._count is not None and self.received >= self._count
        return enough or self._stop.is_set() or self._idle_left() == 0.0

    def _idle_left(self) -> float | None:
        """Seconds for the next new message to come; None: for ever."""
        if self._wait is None:
            return None
        return max(0.0, self._latest + self._wait - time.monotonic())

    async def _stopped_within(self, seconds: float) -> None:
        left = self._idle_left()
        if self._done:
            return
        try:
            async with asyncio.timeout(seconds if left is None else min(seconds, left)):
                await self._stop.wait()
        except TimeoutError:
            return

    # --- one connection ---------------------------------------------------------------------

    async def _receive(self) -> None:
        connecting = asyncio.ensure_future(self._subscribe())
        line = await self._unless_stopped(connecting)
        if line is None:
            return
        self._acks = _Acks()
        try:
            while not self._done:
                await self._hear(line)
            await self._farewell(line)
        finally:
            await line.close()
            self._say("closed", "Connection closed")

    async def _subscribe(self) -> OnexLine:
        line = await self._peer.connect(limits.CONNECT_TIMEOUT)
        try:
            self._say("connected", f"TLS connection established. Cipher: {line.cipher}")
            await self._register(line)
            binding = BindingPart(
                queue_name=self._file.queue_name,
                exchange_name=self._file.exchange_name,
                routing_key=self._file.routing_key,
            )
            await declare(line, binding, self._say)
            self._say("subscribing", f"Subscribing to queue {self._file.queue_name}")
            reply = await line.ask(speech.Consume(self._file.queue_name), limits.REQUEST_TIMEOUT)
            self._say("subscribed", f"Server response for subscription: {spell(reply)}")
            if reply is not Said.SUBSCRIBED:
                raise Refused(f"queue {self._file.queue_name!r} can't be read: {spell(reply)}")
        except BaseException:
            line.abort()
            raise
        self._subscribed = True
        return line

    async def _register(self, line: OnexLine) -> None:
        public_key = write_public_key(self._key.public_key)
        reply = await line.ask(speech.RegisterKey(public_key), limits.REQUEST_TIMEOUT)
        said = spell(reply)
        self._say("registered", f"Server response for public key registration: {said}", reply=said)
        if reply is not Said.KEY_REGISTERED:
            raise Refused(f"the public key was not registered: {said}")

    async def _unless_stopped(self, connecting: asyncio.Task[OnexLine]) -> OnexLine | None:
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            left = self._idle_left()
            await asyncio.wait(
                (connecting, stopped), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            return connecting.result() if connecting.done() else None
        finally:
            stopped.cancel()
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)

    async def _hear(self, line: OnexLine) -> None:
        """What comes next, or what is due."""
        times = [self._acks.next_time(), self._idle_end()]
        due = min((each for each in times if each is not None), default=None)
        hearing = asyncio.ensure_future(line.hear())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait(
                (hearing, stopped),
                timeout=None if due is None else max(0.0, due - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            replies = hearing.result() if hearing.done() else []
        finally:
            stopped.cancel()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
        await self._take(line, replies)
        await self._ack_again(line)

    def _idle_end(self) -> float | None:
        return None if self._wait is None else self._latest + self._wait

    async def _farewell(self, line: OnexLine) -> None:
        """Wait a moment for the last acks: what is not confirmed comes again another time."""
        try:
            async with asyncio.timeout(_FAREWELL):
                while len(self._acks):
                    self._hear_acks(await line.hear())
        except (TimeoutError, TransportError, RemoteProtocolError):
            return

    # --- what comes -------------------------------------------------------------------------

    async def _take(self, line: OnexLine, replies: list[Reply]) -> None:
        messages = [reply for reply in replies if isinstance(reply, Message)]
        self._hear_acks(reply for reply in replies if not isinstance(reply, Message))
        settled = []
        fresh: dict[str, Received] = {}
        for message in messages:
            if message.message_id in self._record or message.message_id in fresh:
                self._say(
                    "duplicate",
                    f"Duplicate message {message.message_id}",
                    message_id=message.message_id,
                )
            elif self._full(len(fresh)):
                continue  # left with the server, for the next run
            elif (received := self._opened(message)) is not None:
                fresh[message.message_id] = received
            else:
                continue
            settled.append(message.message_id)
        if fresh:
            self._keep(list(fresh.values()))
        await self._acknowledge(line, self._acks.send(settled, time.monotonic()))

    def _full(self, more: int) -> bool:
        return self._count is not None and self.received + more >= self._count

    def _opened(self, message: Message) -> Received | None:
        """The message; None, and that is told once, when it does not open."""
        try:
            onex.check_message_id(message.message_id)  # an ack of another one is no line
            text = self._open(message.message)
        except BatchError as error:
            if message.message_id not in self._refused:
                if len(self._refused) < limits.MAX_ONEX_BATCH:
                    self._refused.add(message.message_id)
                self._say(
                    "refused",
                    f"Decryption failed for message {message.message_id}: {error}",
                    message_id=message.message_id,
                    reason=str(error),
                )
            return None
        return Received(message.message_id, text, time.time())

    def _open(self, sealed: bytes) -> str:
        message = onex.parse(sealed)
        for cipher in self._ciphers:
            dialect = Dialect(self._dialect.seal, cipher, self._dialect.separate_tag)
            try:
                # 1.x does not look whom it is for: who has the key may read it.
                text = open_message(
                    message, receiver=message.receiver, key=self._key, dialect=dialect
                )
                return text.decode()
            except BodyRefused:
                if cipher is self._ciphers[-1]:
                    raise
            except UnicodeDecodeError as error:
                raise MalformedBatch(f"its text is not UTF-8: {error.reason}") from error
        raise AssertionError("there is at least one cipher")

    def _keep(self, messages: list[Received]) -> None:
        self._record.add(messages)
        self._latest = time.monotonic()
        for message in messages:
            self.received += 1
            self._say(
                "decrypted",
                f"Decrypted message {message.message_id}: {message.text}",
                message_id=message.message_id,
                message=message.text,
            )
        self._say(
            "saved",
            f"Batch of {len(messages)} messages saved to {self._record.path}",
            messages=len(messages),
        )

    # --- acks -------------------------------------------------------------------------------

    async def _acknowledge(self, line: OnexLine, message_ids: list[str]) -> None:
        for message_id in message_ids:
            self._say("ack", f"Sending ACK for message {message_id}", message_id=message_id)
        line.say(*map(speech.Ack, message_ids))
        await line.drain()

    async def _ack_again(self, line: OnexLine) -> None:
        again, given_up = self._acks.overdue(time.monotonic())
        for message_id in given_up:
            self._say(
                "ack_failed", f"Failed to acknowledge message {message_id}", message_id=message_id
            )
        await self._acknowledge(line, again)

    def _hear_acks(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, speech.Acknowledged):
                if self._acks.confirmed(reply.message_id):
                    self._say(
                        "confirmed",
                        f"Server confirmed ACK for message {reply.message_id}",
                        message_id=reply.message_id,
                    )
            elif not isinstance(reply, Message):
                self._say("unexpected", f"Unexpected server response: {spell(reply)}")
