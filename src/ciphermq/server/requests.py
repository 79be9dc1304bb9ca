"""The requests that concern no connection in particular: topology, administration, keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from ciphermq.errors import AccessRefused, BadRequest
from ciphermq.model.topology import Binding, ExchangeSpec, QueueSpec
from ciphermq.server import access, administration
from ciphermq.server.access import Verb
from ciphermq.server.services import Services, exchange_thing
from ciphermq.wire.cmq2.frames import (
    Bind,
    CrlGet,
    Declare,
    Delete,
    FrameType,
    KeyGet,
    KeyPut,
    Unbind,
)

Answer = Callable[[Services, str, Any], Awaitable[Any]]
"""Of the services, the client and its frame: the answer's `result`. Raises `Refused` kinds."""


async def declare(services: Services, client: str, frame: Declare) -> None:
    """Make a queue or an exchange; the client will own it."""
    if (frame.queue is None) == (frame.exchange is None):
        raise BadRequest("a declaration is of one queue or of one exchange")
    if frame.queue is not None:
        await _declare_queue(services, client, frame.queue)
    elif frame.exchange is not None:
        spec = _spec(ExchangeSpec, "exchange", frame.exchange, client, frozenset({"owner"}))
        services.access.require(client, Verb.DECLARE, exchange_thing(spec))
        await services.engine.declare_exchange(spec)


async def _declare_queue(services: Services, client: str, members: dict[str, Any]) -> None:
    spec = _spec(QueueSpec, "queue", members, client, frozenset({"owner", "inbox"}))
    there = services.engine.queue(spec.name)
    if there is not None and there.spec.inbox:
        services.access.require(client, Verb.DECLARE, services.queue(spec.name))
    services.access.require(client, Verb.DECLARE, access.queue_to_declare(spec.name, client))
    if there is None and await services.keys.registered(spec.name):
        # Its inbox was deleted. Whoever stood in its place would be sent what is sealed to it, and
        # by acking that would destroy it.
        raise AccessRefused(
            f"{spec.name!r} can't be declared: it is the inbox of the client of that name, who "
            "makes it by registering"
        )
    if spec.dead_letter_exchange is not None:
        # The broker publishes there in the client's stead, so the client must be allowed to.
        exchange = services.exchange(spec.dead_letter_exchange)
        services.access.require(client, Verb.PUBLISH, exchange)
    await services.engine.declare_queue(spec)


def _spec(
    kind: type[Any], what: str, members: dict[str, Any], client: str, decided: frozenset[str]
) -> Any:
    """The specification in a DECLARE. Unlike in frames, an unknown member is an error: a
    misspelt limit that was ignored would be no limit."""
    known = {field.name for field in msgspec.structs.fields(kind)} - decided
    unknown = sorted(set(members) - known)
    if unknown:
        raise BadRequest(f"a {what} has no {unknown[0]!r}; it has: {', '.join(sorted(known))}")
    try:
        spec = msgspec.convert({**members, "owner": client}, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"this {what} can't be declared: {error}") from error
    return spec


async def delete(services: Services, client: str, frame: Delete) -> int:
    """Delete a queue or an exchange; how many messages were in it."""
    if (frame.queue is None) == (frame.exchange is None):
        raise BadRequest("a deletion is of one queue or of one exchange")
    if frame.queue is not None:
        services.access.require(client, Verb.DELETE, services.queue(frame.queue))
        return await services.engine.delete_queue(
            frame.queue, if_empty=frame.if_empty, if_unused=frame.if_unused
        )
    if frame.exchange is not None:
        services.access.require(client, Verb.DELETE, services.exchange(frame.exchange))
        await services.engine.delete_exchange(frame.exchange, if_unused=frame.if_unused)
    return 0


async def bind(services: Services, client: str, frame: Bind) -> None:
    """Bind a queue to an exchange."""
    await services.engine.bind(_binding(services, client, frame))


async def unbind(services: Services, client: str, frame: Unbind) -> None:
    """The reverse of `bind`."""
    await services.engine.unbind(_binding(services, client, frame))


def _binding(services: Services, client: str, frame: Bind | Unbind) -> Binding:
    # Both: a binding feeds the queue, and shows its owner what goes through the exchange.
    services.access.require(client, Verb.BIND, services.exchange(frame.exchange))
    services.access.require(client, Verb.BIND, services.queue(frame.queue))
    return Binding(frame.exchange, frame.queue, frame.routing_key)


async def key_put(services: Services, client: str, frame: KeyPut) -> None:
    """Register the client's own key."""
    await services.keys.put(client, frame.record, services.now_ms())


async def key_get(services: Services, client: str, frame: KeyGet) -> bytes:
    """Anyone's newest key record: all the world may seal for anyone."""
    return await services.keys.get(frame.client)


async def crl_get(services: Services, client: str, frame: CrlGet) -> bytes:
    """The newest revocation list."""
    return services.keys.crl()


HANDLERS: Final[Mapping[FrameType, Answer]] = {
    FrameType.DECLARE: declare,
    FrameType.DELETE: delete,
    FrameType.BIND: bind,
    FrameType.UNBIND: unbind,
    FrameType.KEY_PUT: key_put,
    FrameType.KEY_GET: key_get,
    FrameType.CRL_GET: crl_get,
    **administration.HANDLERS,
}
