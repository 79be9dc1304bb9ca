"""The sender of CipherMQ 1.x: so many messages to each of its receivers, each until its ACK.

Messages go out up to a window before the first ACK is read, and the same bytes go again when none
comes. A try is used up when the server refuses, says nothing in time, or ends the connection
without one ACK on it; a connection that is lost in the midst of ACKs costs none, so a server may be
restarted as often as it likes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ciphermq import limits
from ciphermq.client.classic.keys import ReceiversKeys
from ciphermq.client.classic.peer import RETRY_PAUSE, Peer, Says, declare, spell
from ciphermq.client.onexline import OnexLine
from ciphermq.custody.onex import read_public_key
from ciphermq.errors import (
    ConnectFailed,
    ConnectionLost,
    RemoteProtocolError,
    TransportError,
    Unfinished,
    UnknownReceiver,
    WaitTimeout,
)
from ciphermq.model.onex import Dialect
from ciphermq.sealing.onex import seal_message
from ciphermq.settings.onexclient import Generation, SenderFile
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Command, Reply

_AWAY: Final = (ConnectFailed, ConnectionLost, WaitTimeout)
"""What a server that is restarted looks like."""
_FOR_MESSAGE: Final = " for message "


@dataclass(slots=True)
class Parcel:
    """One message to one receiver, sealed once."""

    message_id: str
    receiver: str
    routing_key: str
    sealed: bytes
    group: int
    """Which command it is in: those of 1.4.0 share one."""
    tries: int = 0
    due: float = 0.0
    """When it may be tried again, by the loop's clock."""


class ClassicSender:
    """One run. `acknowledged` and `failed` are right whenever it ends."""

    def __init__(
        self,
        file: SenderFile,
        peer: Peer,
        keys: ReceiversKeys,
        dialect: Dialect,
        say: Says,
        *,
        count: int | None = None,
    ) -> None:
        """`count`: messages to send, if not as many as `file` says."""
        self._file = file
        self._pace = file.pace
        self._peer = peer
        self._keys = keys
        self._dialect = dialect
        self._say = say
        self._count = self._pace.num_messages if count is None else count
        self._window = min(self._pace.max_inflight, limits.MAX_ONEX_COMMANDS)
        self._sealing: dict[str, bytes] = {}
        self._new: Iterator[list[Parcel]] = iter(())
        self._again: deque[Parcel] = deque()
        self._out: dict[str, Parcel] = {}
        self._groups = 0
        self._progress = False
        self.acknowledged = 0
        self.failed: list[str] = []
        """Ids of messages that were given up."""
        self.without_key: list[str] = []
        """Receivers that nothing could be sealed to."""

    async def run(self) -> None:
        """Send all.

        Raises `Unfinished` when some of it was given up, a `TransportError` when the server stays
        away, a `KeyRecordError` (`PinnedKeyChanged`, say) when nothing may be sealed to a receiver.
        """
        begun = time.monotonic()
        await self._fetch_keys()
        self._new = self._groups_of(self._parcels())
        while not await self._send_over_one_connection():
            pass
        seconds = time.monotonic() - begun
        self._say(
            "done",
            f"Sent {self.acknowledged} messages in {seconds:.2f} seconds",
            acknowledged=self.acknowledged,
            failed=len(self.failed),
            seconds=round(seconds, 3),
        )
        self._check_all_was_done()

    def _check_all_was_done(self) -> None:
        if self.failed:
            named = ", ".join(self.failed[:3]) + (", …" if len(self.failed) > 3 else "")
            raise Unfinished(
                f"{len(self.failed)} of {len(self.failed) + self.acknowledged} messages were not "
                f"acknowledged: {named}"
            )
        if self.without_key:
            raise Unfinished(f"nothing was sent to {', '.join(self.without_key)}: no key is known")

    # --- keys -------------------------------------------------------------------------------

    async def _fetch_keys(self) -> None:
        """The receivers' keys: from the server, else those that it gave out before."""
        wanted = list(dict.fromkeys(self._file.receiver_client_ids))
        away: TransportError | None = None
        for attempt in range(self._pace.max_retries):
            if attempt:
                await asyncio.sleep(_pause(attempt))
            try:
                await self._ask_for_keys([one for one in wanted if one not in self._sealing])
                away = None
            except _AWAY as error:
                away = error
                self._say("failed", f"Failed to fetch public keys: {error}")
            if len(self._sealing) == len(wanted):
                return
        for receiver in wanted:
            if receiver not in self._sealing and (key := self._keys.load(receiver)) is not None:
                self._sealing[receiver] = key
                self._say("key", f"Using the saved key of {receiver}", receiver=receiver)
        self.without_key = [one for one in wanted if one not in self._sealing]
        if not self._sealing and away is not None:
            raise away
        if not self._sealing:
            raise UnknownReceiver(
                f"there is no key of {', '.join(wanted)}, from the server or from an earlier run: "
                "a receiver registers its key when it first runs"
            )

    async def _ask_for_keys(self, receivers: list[str]) -> None:
        line = await self._connect("for fetching public keys")
        try:
            for receiver in receivers:
                reply = await line.ask(speech.GetKey(receiver), self._pace.ack_timeout_secs)
                if not isinstance(reply, speech.PublicKey):
                    said = spell(reply)
                    self._say("no_key", f"No key of {receiver}: {said}", receiver=receiver)
                    continue
                key = read_public_key(reply.public_key)
                changed = self._keys.take(receiver, key)
                what = "Received a NEW public key" if changed else "Received public key"
                self._say("key", f"{what} for {receiver}", receiver=receiver, changed=changed)
                self._sealing[receiver] = key
        finally:
            await line.close()

    # --- connections ------------------------------------------------------------------------

    async def _connect(self, purpose: str) -> OnexLine:
        """A connection on which all is declared; a server that is away is waited for as long as
        ``tcp_connect_timeout_secs`` says."""
        limit = self._pace.tcp_connect_timeout_secs
        deadline = time.monotonic() + limit
        while True:
            try:
                return await self._open(purpose, deadline - time.monotonic())
            except _AWAY as error:
                if time.monotonic() + RETRY_PAUSE >= deadline:
                    raise
                self._say("away", f"Connection failed: {error}")
            await asyncio.sleep(RETRY_PAUSE)

    async def _open(self, purpose: str, limit: float) -> OnexLine:
        line = await self._peer.connect(limit)
        try:
            self._say("connected", f"TLS connection established {purpose}. Cipher: {line.cipher}")
            for binding in self._file.declared:
                await declare(line, binding, self._say)
        except BaseException:
            line.abort()
            raise
        return line

    # --- messages ---------------------------------------------------------------------------

    def _parcels(self) -> Iterator[Parcel]:
        """All there are to send, each sealed when its turn comes."""
        for number in range(1, self._count + 1):
            # All 128 bits: two of 1.x's 32 are the same once in a few ten thousand messages.
            correlation = secrets.token_hex(16)
            now = datetime.now(UTC)
            text = self._pace.message.render(
                sender_id=self._peer.client,
                correlation_id=correlation,
                timestamp=f"{now.timestamp():.3f}",
                seq=str(number),
            )
            for receiver, key in self._sealing.items():
                yield self._sealed(text, correlation, receiver, key, now)

    def _sealed(
        self, text: str, correlation: str, receiver: str, key: bytes, now: datetime
    ) -> Parcel:
        if self._file.generation is Generation.V1_4_0:
            message_id = str(uuid.uuid4())
        else:
            message_id = f"{self._peer.client}-{correlation}-{receiver}"
        sealed = seal_message(
            text.encode(),
            message_id=message_id,
            receiver=receiver,
            public_key=key,
            dialect=self._dialect,
            sent_time=now.isoformat(),
        )
        self._say(
            "encrypted",
            f"Encrypted message {message_id} for {receiver}",
            message_id=message_id,
            receiver=receiver,
        )
        return Parcel(message_id, receiver, self._file.key_for(receiver), sealed, 0)

    def _groups_of(self, parcels: Iterator[Parcel]) -> Iterator[list[Parcel]]:
        """Parcels that go in one command: one, or in 1.4.0 as many as its batch."""
        most = self._pace.batch_size if self._file.generation is Generation.V1_4_0 else 1
        group: list[Parcel] = []
        for parcel in parcels:
            if group and (len(group) == most or parcel.routing_key != group[0].routing_key):
                yield self._numbered(group)
                group = []
            group.append(parcel)
        if group:
            yield self._numbered(group)

    def _numbered(self, group: list[Parcel]) -> list[Parcel]:
        self._groups += 1
        for parcel in group:
            parcel.group = self._groups
        return group

    # --- sending ----------------------------------------------------------------------------

    async def _send_over_one_connection(self) -> bool:
        """Send until all is answered, or the connection is of no more use; whether all is."""
        line = await self._connect("for sending messages")
        self._progress = False
        try:
            while await self._fill(line):
                try:
                    async with asyncio.timeout(self._pace.ack_timeout_secs):
                        replies = await line.hear()
                except TimeoutError:
                    raise WaitTimeout(f"no ACK within {self._pace.ack_timeout_secs:g} s") from None
                for reply in replies:
                    self._take(reply)
        except (*_AWAY, RemoteProtocolError) as error:
            line.abort()
            self._lost(error)
            return False
        except BaseException:
            line.abort()
            raise
        await line.close()
        self._say("closed", "Connection closed")
        return True

    async def _fill(self, line: OnexLine) -> bool:
        """Send what the window has room for; whether an answer is to be waited for."""
        while len(self._out) < self._window:
            group = await self._next_group()
            if not group:
                break
            self._out.update((parcel.message_id, parcel) for parcel in group)
            line.say(self._command(group))
            await line.drain()
            await self._rest(group)
        return bool(self._out)

    async def _next_group(self) -> list[Parcel]:
        """What is to be tried again and may be, else what is new; nothing: wait for answers."""
        now = time.monotonic()
        if self._again and self._again[0].due <= now:
            return self._numbered([self._again.popleft()])
        if (group := next(self._new, None)) is not None:
            return group
        if self._again and not self._out:
            await asyncio.sleep(max(0.0, self._again[0].due - now))
            return self._numbered([self._again.popleft()])
        return []

    async def _rest(self, group: list[Parcel]) -> None:
        """The pause behind each batch."""
        if group[-1].tries or not self._pace.batch_delay_ms:
            return
        if self._file.generation is Generation.V1_4_0 or self._groups % self._pace.batch_size == 0:
            await asyncio.sleep(self._pace.batch_delay_ms / 1000)

    def _command(self, group: list[Parcel]) -> Command:
        exchange, key = self._file.exchange_name, group[0].routing_key
        if len(group) == 1:
            return speech.Publish(exchange, key, group[0].sealed)
        array = b"[" + b", ".join(parcel.sealed for parcel in group) + b"]"
        return speech.PublishBatch(exchange, key, array)

    # --- answers ----------------------------------------------------------------------------

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, speech.Stored):
            parcel = self._out.pop(reply.message_id, None)
            if parcel is None:
                self._say("unexpected", f"Unexpected ACK for message {reply.message_id}")
                return
            self._progress = True
            self.acknowledged += 1
            self._say(
                "acknowledged",
                f"Server ACK received for message {parcel.message_id}",
                message_id=parcel.message_id,
            )
            return
        said = spell(reply)
        for parcel in self._meant(reply):
            del self._out[parcel.message_id]
            self._try_again(parcel, said)

    def _meant(self, reply: Reply) -> list[Parcel]:
        """Which messages a refusal is about: the one it names, or else the oldest command's, since
        answers come in the order of commands."""
        if isinstance(reply, speech.Failed):
            _, named, message_id = reply.reason.rpartition(_FOR_MESSAGE)
            if named and message_id in self._out:
                return [self._out[message_id]]
        oldest = next(iter(self._out.values()), None)
        if oldest is None:
            self._say("unexpected", f"Unexpected server response: {spell(reply)}")
            return []
        return [parcel for parcel in self._out.values() if parcel.group == oldest.group]

    def _lost(self, error: Exception) -> None:
        """The connection is of no more use: what is out goes again, before all that is new."""
        out, self._out = list(self._out.values()), {}
        self._say("lost", f"Connection lost: {error}", unacknowledged=len(out))
        counts = not self._progress or isinstance(error, WaitTimeout)
        waiting, self._again = self._again, deque()
        for parcel in out:
            if counts:
                self._try_again(parcel, str(error), pause=False)
            else:
                parcel.due = 0.0
                self._again.append(parcel)
        self._again.extend(waiting)

    def _try_again(self, parcel: Parcel, why: str, *, pause: bool = True) -> None:
        """One try has failed: another, later; or none."""
        parcel.tries += 1
        facts = {"message_id": parcel.message_id, "reason": why, "tries": parcel.tries}
        tries = f"{parcel.tries}/{self._pace.max_retries}"
        if parcel.tries < self._pace.max_retries:
            parcel.due = time.monotonic() + _pause(parcel.tries) if pause else 0.0
            self._again.append(parcel)
            self._say("retry", f"No ACK for message {parcel.message_id} ({tries}): {why}", **facts)
            return
        self.failed.append(parcel.message_id)
        self._say(
            "given_up",
            f"Failed to send message {parcel.message_id} after {parcel.tries} attempts: {why}",
            **facts,
        )


def _pause(tries: int) -> float:
    """Seconds after so many tries: twice as long each time, as in 1.x, but not for ever."""
    return min(2.0 ** min(tries - 1, 32), limits.RECONNECT_MOST)
