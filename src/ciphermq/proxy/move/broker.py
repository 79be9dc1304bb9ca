"""One end of a move as it is reached: its management API, and its nodes over AMQP."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ciphermq.errors import ConfigError, MoveError, TransportError
from ciphermq.proxy.move.definitions import Definitions
from ciphermq.proxy.move.link import Address, Link
from ciphermq.proxy.move.management import EVERYTHING, Json, Management
from ciphermq.proxy.move.record import Side

PRODUCT = "CipherMQ proxy: move"
"""How a move's own connections call themselves."""


_NOT_FOUND = 404


class Broker:
    """A broker, or a cluster of them, that a vhost moves from or to."""

    def __init__(self, side: Side, password: str, tls: ssl.SSLContext) -> None:
        self.side = side
        self.api = Management(side.management, side.user, password, tls=tls)
        self._addresses = [
            Address(host, port, side.user, password, tls if secure else None)
            for host, port, secure in side.addresses
        ]
        self.impersonator = False
        self.identity = ""

    def __str__(self) -> str:
        return str(self.side)

    async def __aenter__(self) -> Self:
        await self.api.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.api.__aexit__(kind, error, trace)

    async def greet(self) -> str:
        """Ask who it is; its version. Raises MoveError when our user may not do what it takes."""
        self.identity, version, self.impersonator = await self.api.identity()
        return version

    async def definitions(self, vhost: str) -> Definitions | None:
        """All of the vhost; None where it isn't."""
        if await self.api.ask("GET", "vhosts", vhost) is None:
            return None
        return Definitions.of(await self.api.ask("GET", "definitions", vhost))

    async def link(self, vhost: str, *, frame_max: int | None = None) -> Link:
        """A connection to the first node that takes one.

        Raises TransportError when none can be reached, MoveError when one refuses.
        """
        errors: list[str] = []
        for address in self._addresses:
            try:
                return await Link.open(address, vhost, frame_max=frame_max)
            except TransportError as error:
                errors.append(str(error))
        if not errors:
            raise MoveError(f"{self} has no backend that could be connected to")
        raise TransportError(f"{self}: {'; '.join(errors)}")

    async def counts(self, vhost: str, queues: Sequence[str]) -> dict[str, int]:
        """How many messages are ready in each of these queues; a missing queue has none."""
        found = {}
        link = await self.link(vhost)
        try:
            for queue in queues:
                try:
                    found[queue], _ = await link.messages(queue)
                except MoveError:
                    if link.reply != _NOT_FOUND:
                        raise
                    found[queue] = 0
                    link = await self.link(vhost)
        finally:
            await link.close()
        return found

    async def strangers(self, vhost: str) -> list[Json]:
        """Connections that didn't come through a proxy, but for our own."""
        return [
            each
            for each in await self.api.connections(vhost)
            if not _properties(each).get("amqpprox_client")
            and _properties(each).get("product") != PRODUCT
        ]

    async def clients(self, vhost: str) -> list[Json]:
        """All connections, but for our own."""
        return [
            each
            for each in await self.api.connections(vhost)
            if _properties(each).get("product") != PRODUCT
        ]

    async def let_us_in(self, vhost: str) -> bool:
        """See to it that our user may work in the vhost; whether it was let in only now."""
        rights = (await self.api.permissions(vhost)).get(self.side.user)
        if rights == EVERYTHING:
            return False
        if rights is not None:
            raise MoveError(
                f"User {self.side.user!r} has only some permissions in this vhost at {self}: give "
                'it all three as ".*", or use another user'
            )
        await self.api.permit(vhost, self.side.user, EVERYTHING)
        return True


def _properties(connection: Json) -> Json:
    found = connection.get("client_properties")
    return found if isinstance(found, dict) else {}


def trust(authority: Path | None) -> ssl.SSLContext:
    """What both a management API and an AMQP port are checked against."""
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{authority}: no certificates can be read from it: {error}") from error
