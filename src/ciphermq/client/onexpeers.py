"""What a cmq/2 client has to do with clients of CipherMQ 1.x: its key for them, theirs for it.

Keys of 1.x go by the text protocol of 1.x, on a connection that asks one thing and ends. The
broker can say of them what it likes, so a key is used only if a person has pinned its fingerprint.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from typing import Final

from ciphermq.client.core import Core
from ciphermq.client.lane import Lane
from ciphermq.client.payload import Payload, outgoing
from ciphermq.client.publisher import Publisher
from ciphermq.custody.onex import read_public_key, write_public_key
from ciphermq.directory.onex import check_pinned
from ciphermq.errors import (
    ConfigError,
    ConnectionLost,
    Refused,
    RemoteProtocolError,
    UnknownReceiver,
    UsageError,
    WaitTimeout,
)
from ciphermq.model.onex import Dialect
from ciphermq.net.address import SCHEME, parse_road, spell
from ciphermq.sealing.onex import seal_message
from ciphermq.wire import tls_errors
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.machine import ClientLines
from ciphermq.wire.lines.speech import Command, Reply

_READ: Final = 65_536


class OnexPeers:
    """Made by `Client.onex`."""

    def __init__(self, core: Core, publisher: Publisher) -> None:
        self._core = core
        self._publisher = publisher

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
        """The 1.x key of `client`, if it is the one whose fingerprint was pinned by hand.

        Raises `UnknownReceiver`, `KeyNotPinned`, `PinnedKeyChanged` or `KeyRecordMalformed`.
        """
        reply = await self._ask(speech.GetKey(client))
        if reply is speech.Said.KEY_NOT_FOUND:
            raise UnknownReceiver(f"nobody named {client!r} has registered a key of CipherMQ 1.x")
        if not isinstance(reply, speech.PublicKey):
            raise _refused(f"the 1.x key of {client!r} was not given", reply)
        trust = self._core.identity.trust
        pinned = await asyncio.to_thread(trust.onex_pin, client)
        return check_pinned(client, read_public_key(reply.public_key), pinned)

    async def send(
        self, to: str, payload: Payload, *, exchange: str = "", routing_key: str | None = None
    ) -> str:
        """Seal a message to the 1.x client `to`, and wait until the broker has it on disk; the
        message's 1.x id. It goes to the exchange, by default to the queue called `to`.

        The receiver can't tell who sent it. Raises as `public_key`; `ConfigError` where
        ``identity.toml`` does not say which dialect is spoken; the broker's refusal; `WaitTimeout`
        and `ConnectionLost`, after which it may have been stored.
        """
        dialect = self._dialect()
        key = await self.public_key(to)
        message = outgoing(payload, None, None)
        message_id = f"{self._core.name}-{secrets.token_hex(16)}-{to}"
        sealed = seal_message(
            message.payload,
            message_id=message_id,
            receiver=to,
            public_key=key,
            dialect=dialect,
            sent_time=datetime.fromtimestamp(message.sent_ms / 1000, UTC).isoformat(),
            others={
                "exchange": exchange,
                "routing_key": to if routing_key is None else routing_key,
            },
        )
        await self._publish(sealed)
        return message_id

    def _dialect(self) -> Dialect:
        settings = self._core.identity.settings.one_x
        if settings is None:
            raise ConfigError(
                f"which dialect of 1.x is spoken is not said: set one_x.dialect in "
                f"{self._core.identity.path / 'identity.toml'}"
            )
        return settings.to_dialect()

    async def _publish(self, sealed: bytes) -> None:
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not stored.done():
                if error is None:
                    stored.set_result(None)
                else:
                    stored.set_exception(error)

        lane = Lane(self._publisher, 1)
        limit = self._core.patience.send
        async with lane.turn():
            parcel = lane.send(sealed, done)
        try:
            async with asyncio.timeout(limit):
                await asyncio.shield(stored)
        except TimeoutError:
            error = lane.gave_up(f"the message was not confirmed within {limit:g} s", parcel)
            stored.cancel()
            lane.abandon(parcel, error)
            raise error from None

    async def _ask(self, command: Command) -> Reply:
        """The reply to one command, on a connection of its own."""
        core = self._core
        url, limit = core.line.url, core.patience.request
        scheme, (host, port) = parse_road(url)
        if scheme != SCHEME:
            raise UsageError(
                f"keys of 1.x are asked for in its text protocol, which is spoken over TCP only: "
                f"give the broker's {SCHEME}:// URL instead of {url}"
            )
        context = await asyncio.to_thread(core.identity.ssl_context, onex=True)
        name = core.identity.server_name or host
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=context, server_hostname=name
                )
                try:
                    return await _exchange(reader, writer, command)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise WaitTimeout(f"the broker at {url} gave no answer within {limit:g} s") from None
        except OSError as error:
            raise tls_errors.explain(error, Role.SERVER, spell((host, port))) from error


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: Command
) -> Reply:
    lines = ClientLines()
    writer.write(lines.send(command))
    while True:
        data = await reader.read(_READ)
        if not data:
            raise ConnectionLost(
                "the broker ended the connection: does it speak to clients of 1.x ([one_x])?"
            )
        lines.receive_data(data)
        if lines.fault is not None:
            raise lines.fault
        if heard := lines.events():
            return heard[0]


def _refused(what: str, reply: Reply) -> Refused | RemoteProtocolError:
    if isinstance(reply, speech.Failed):
        return Refused(f"{what}: {reply.reason}")
    return RemoteProtocolError(f"{what}: the broker answered {reply}")
