"""What a cmq/2 client has to do with clients of CipherMQ 1.x: its key for them, theirs for it.

Keys of 1.x go by the text protocol of 1.x, on a connection that asks one thing and ends. The
broker can say of them what it likes, so a key is used only if a person has pinned its fingerprint.

Messages go by `cmq/2`, a batch each. They are sealed once: over however many connections they go,
until they are confirmed, it is the same bytes under the same id, which the broker stores once.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from typing import Final

from ciphermq import limits
from ciphermq.client.backoff import Backoff
from ciphermq.client.core import Core
from ciphermq.client.lane import Lane
from ciphermq.client.onexkeys import OnexKeys
from ciphermq.client.onexline import OnexLine
from ciphermq.client.payload import Payload, outgoing
from ciphermq.client.publisher import Publisher
from ciphermq.client.window import Parcel
from ciphermq.custody.onex import read_public_key, write_public_key
from ciphermq.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    Refused,
    RemoteProtocolError,
    UnknownReceiver,
    UsageError,
)
from ciphermq.model.onex import Dialect
from ciphermq.net.address import SCHEME, parse_road
from ciphermq.sealing.onex import seal_message
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Command, Reply

_LOST: Final = 3
"""Connections that may end without an answer before it is given up."""


class OnexPeers:
    """Made by `Client.onex`."""

    def __init__(self, core: Core, publisher: Publisher) -> None:
        self._core = core
        self._lane = Lane(publisher, limits.SEND_WINDOW)
        self._keys = OnexKeys(core.identity.trust, self._given_key)

    async def register_key(self) -> None:
        """Give out this identity's 1.x key, so that senders of 1.x can seal to it.

        `ConfigError` where its ``identity.toml`` takes no messages of 1.x."""
        reader = self._core.identity.onex
        if reader is None:
            raise ConfigError(
                f"{self._core.name!r} takes no messages of CipherMQ 1.x: enable [one_x] in its "
                "identity.toml"
            )
        command = speech.RegisterKey(write_public_key(reader.key.public_key))
        reply = await self._ask(command)
        if reply is not speech.Said.KEY_REGISTERED:
            raise _refused("the 1.x key was not registered", reply)

    async def public_key(self, client: str) -> bytes:
        """The 1.x key that the broker gives out for `client` now, if it is the one whose
        fingerprint was pinned by hand.

        Raises `UnknownReceiver`, `KeyNotPinned`, `PinnedKeyChanged` or `KeyRecordMalformed`.
        """
        return await self._keys.newest(client)

    async def send(
        self, to: str, payload: Payload, *, exchange: str = "", routing_key: str | None = None
    ) -> str:
        """Seal a message to the 1.x client `to`, and wait until the broker has it on disk; the
        message's 1.x id. It goes to the exchange, by default to the queue called `to`.

        The receiver can't tell who sent it. A key is asked for once in a while
        (`limits.KEY_CACHE_LIFETIME`). Raises as `public_key`; `ConfigError` where
        ``identity.toml`` does not say which dialect is spoken; the broker's refusal; `WaitTimeout`
        and `ConnectionLost`, after which it may have been stored.
        """
        return await (await self.post(to, payload, exchange=exchange, routing_key=routing_key))

    async def post(
        self, to: str, payload: Payload, *, exchange: str = "", routing_key: str | None = None
    ) -> asyncio.Future[str]:
        """The first half of `send`: waits only until there is room for the message, and gives the
        second half, a future of its id. Messages that are posted one after the other go in that
        order."""
        dialect = self._dialect()
        message = outgoing(payload, None, None)
        message_id = f"{self._core.name}-{secrets.token_hex(16)}-{to}"
        limit = self._core.patience.send
        try:
            async with asyncio.timeout(limit), self._lane.turn():
                sealed = seal_message(
                    message.payload,
                    message_id=message_id,
                    receiver=to,
                    public_key=await self._keys.key(to),
                    dialect=dialect,
                    sent_time=datetime.fromtimestamp(message.sent_ms / 1000, UTC).isoformat(),
                    # PUBLISH says no more than these bytes do. Receivers of 1.x pass over members
                    # that they don't know.
                    others={
                        "exchange": exchange,
                        "routing_key": to if routing_key is None else routing_key,
                    },
                )
                return self._launched(sealed, message_id, limit)
        except TimeoutError:
            raise self._lane.gave_up(f"no room for another message within {limit:g} s") from None

    def _launched(self, sealed: bytes, message_id: str, limit: float) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        def landed(error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(message_id)
            else:
                answer.set_exception(error)

        parcel = self._lane.send(sealed, landed)
        timer = loop.call_later(limit, self._expire, answer, parcel, limit)
        answer.add_done_callback(lambda answer: self._answered(answer, timer, parcel))
        return answer

    def _expire(self, answer: asyncio.Future[str], parcel: Parcel, limit: float) -> None:
        error = self._lane.gave_up(f"the message was not confirmed within {limit:g} s", parcel)
        if not answer.done():
            answer.set_exception(error)
        self._lane.abandon(parcel, error)

    def _answered(
        self, answer: asyncio.Future[str], timer: asyncio.TimerHandle, parcel: Parcel
    ) -> None:
        timer.cancel()
        if answer.cancelled():
            self._lane.abandon(parcel, asyncio.CancelledError())

    def _dialect(self) -> Dialect:
        settings = self._core.identity.settings.one_x
        if settings is None:
            raise ConfigError(
                f"which dialect of 1.x is spoken is not said: set one_x.dialect in "
                f"{self._core.identity.path / 'identity.toml'}"
            )
        return settings.to_dialect()

    # --- asking -----------------------------------------------------------------------------

    async def _given_key(self, client: str) -> bytes:
        """What the broker says the key of `client` is."""
        reply = await self._ask(speech.GetKey(client))
        if reply is speech.Said.KEY_NOT_FOUND:
            raise UnknownReceiver(f"nobody named {client!r} has registered a key of CipherMQ 1.x")
        if not isinstance(reply, speech.PublicKey):
            raise _refused(f"the 1.x key of {client!r} was not given", reply)
        return read_public_key(reply.public_key)

    async def _ask(self, command: Command) -> Reply:
        """The reply to one command, on a connection of its own. A broker that is away is asked
        again: all that is asked here may be done twice."""
        loop = asyncio.get_running_loop()
        deadline, backoff = loop.time() + self._core.patience.request, Backoff()
        lost = 0
        while True:
            try:
                return await self._ask_once(command, max(0.001, deadline - loop.time()))
            except (ConnectFailed, ConnectionLost) as error:
                pause = backoff.next()
                lost += isinstance(error, ConnectionLost)
                # Who lets nobody speak as 1.x does looks like one that is just being stopped.
                if lost == _LOST or loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _ask_once(self, command: Command, limit: float) -> Reply:
        core = self._core
        url = core.line.url
        scheme, (host, port) = parse_road(url)
        if scheme != SCHEME:
            raise UsageError(
                f"keys of 1.x are asked for in its text protocol, which is spoken over TCP only: "
                f"give the broker's {SCHEME}:// URL instead of {url}"
            )
        context = await asyncio.to_thread(core.identity.ssl_context, protocols=())
        name = core.identity.server_name or host
        line = await OnexLine.open((host, port), context, server_name=name, limit=limit)
        try:
            return await line.ask(command, limit)
        finally:
            line.abort()


def _refused(what: str, reply: Reply) -> Refused | RemoteProtocolError:
    if isinstance(reply, speech.Failed):
        return Refused(f"{what}: {reply.reason}")
    return RemoteProtocolError(f"{what}: the broker answered {reply}")
