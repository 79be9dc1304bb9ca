"""Looking inside and putting in order: lists, status, traces, purge, peek, redrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.engines.face import Peeked
from ciphermq.errors import BadRequest
from ciphermq.model import bitmap, onex
from ciphermq.model.ids import is_batch_id
from ciphermq.model.topology import QueueInfo
from ciphermq.server.access import BROKER, Kind, Thing, Verb
from ciphermq.server.services import Services, exchange_thing, queue_thing
from ciphermq.wire.cmq2.frames import (
    FrameType,
    List,
    Peek,
    Purge,
    Redrive,
    Status,
    Trace,
)

Row = dict[str, Any]


# --- lists --------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """One thing in a list; its row is made only if it is on the page that was asked for."""

    name: str
    """What `prefix` goes by, and the order."""
    thing: Thing
    row: Callable[[], Row]


def _queues(services: Services) -> Iterable[Listed]:
    for info in services.engine.queues():
        yield Listed(info.spec.name, queue_thing(info.spec), partial(_queue_row, info))


def _queue_row(info: QueueInfo) -> Row:
    row: Row = msgspec.to_builtins(info)
    spec = row.pop("spec")
    defaults = {"owner": info.spec.owner, "inbox": info.spec.inbox}
    return {**defaults, **spec, **row}


def _exchanges(services: Services) -> Iterable[Listed]:
    for spec in services.engine.exchanges():
        row = {"name": spec.name, "type": spec.type.value, "owner": spec.owner}
        yield Listed(spec.name, exchange_thing(spec), row.copy)


def _bindings(services: Services) -> Iterable[Listed]:
    for binding in services.engine.bindings():
        row = partial(msgspec.to_builtins, binding)
        yield Listed(binding.queue, services.queue(binding.queue), row)


def _consumers(services: Services) -> Iterable[Listed]:
    for session in services.sessions:
        for number, consumer in session.consuming.consumers.items():
            row = {
                "consumer": number,
                "client": session.client,
                "peer": session.link.peer,
                "queue": consumer.queue,
                "name": consumer.name,
            }
            yield Listed(consumer.queue, services.queue(consumer.queue), row.copy)


def _connections(services: Services) -> Iterable[Listed]:
    for session in services.sessions:
        thing = Thing(Kind.CLIENT, session.client, session.client)
        yield Listed(session.client, thing, session.describe)


_LISTS: Final[Mapping[str, Callable[[Services], Iterable[Listed]]]] = {
    "queues": _queues,
    "exchanges": _exchanges,
    "bindings": _bindings,
    "consumers": _consumers,
    "connections": _connections,
}


async def list_rows(services: Services, client: str, frame: List) -> list[Row]:
    """A page of what the client may see, by name."""
    source = _LISTS.get(frame.what)
    if source is None:
        raise BadRequest(f"can't list {frame.what!r}; there are: {', '.join(_LISTS)}")
    found = [
        listed
        for listed in source(services)
        if listed.name.startswith(frame.prefix)
        and services.access.decide(client, Verb.SEE, listed.thing)
    ]
    found.sort(key=lambda listed: listed.name)
    first = max(0, frame.offset)
    return [listed.row() for listed in found[first : first + limits.MAX_LISTING]]


async def status(services: Services, client: str, frame: Status) -> dict[str, Row]:
    """The broker's counters."""
    services.access.require(client, Verb.SEE, BROKER)
    return services.status()


async def trace(services: Services, client: str, frame: Trace) -> Row | None:
    """What became of a batch, or of a 1.x message; None if it is unknown, or none of the client's
    business."""
    row: Row | None
    if frame.message_id and onex.is_message_id(frame.message_id):
        row = await services.catalog.trace_message(frame.message_id)
    elif is_batch_id(frame.batch_id):
        row = await services.catalog.trace(frame.batch_id)
    else:
        raise BadRequest(f"{frame.batch_id[:16].hex()!r} is no batch id")
    if row is None:
        return None
    batch = Thing(Kind.BATCH, owner=str(row["client"]))
    return row if services.access.decide(client, Verb.SEE, batch) else None


# --- queues -------------------------------------------------------------------------------------


async def purge(services: Services, client: str, frame: Purge) -> int:
    """Remove all waiting messages of a queue."""
    services.access.require(client, Verb.PURGE, services.queue(frame.queue))
    return await services.engine.purge(frame.queue)


async def peek(services: Services, client: str, frame: Peek) -> list[Row]:
    """What can be seen of a queue's first batches without any key."""
    services.access.require(client, Verb.PEEK, services.queue(frame.queue))
    if not 1 <= frame.batches <= limits.MAX_PEEK:
        raise BadRequest(f"can't peek {frame.batches} batches; 1 to {limits.MAX_PEEK} are allowed")
    return [
        _peeked(found) for found in await services.engine.peek(frame.queue, batches=frame.batches)
    ]


def _peeked(found: Peeked) -> Row:
    header = found.header
    return {
        "batch_id": found.batch_id,
        "sender": header.sender,
        "exchange": header.exchange,
        "routing_key": header.routing_key,
        "receivers": [receiver.client for receiver in header.receivers],
        "messages": found.live.bit_count(),
        "count": header.count,
        "bitmap": bitmap.encode(found.live, header.count),
        "size": found.size,
        "created_ms": header.created_ms,
        "expires_ms": header.expires_ms,
        "published_ms": found.published_ms,
        "redeliveries": found.redeliveries,
        "unacked": found.unacked,
        "dead": None if found.dead is None else msgspec.to_builtins(found.dead),
    }


async def redrive(services: Services, client: str, frame: Redrive) -> int:
    """Move dead letters back to where they were."""
    services.access.require(client, Verb.REDRIVE, services.queue(frame.queue))
    if frame.messages is not None and frame.messages < 1:
        raise BadRequest(f"can't redrive {frame.messages} messages; at least one, or all")
    return await services.engine.redrive(frame.queue, messages=frame.messages)


HANDLERS: Final[Mapping[FrameType, Callable[[Services, str, Any], Awaitable[Any]]]] = {
    FrameType.LIST: list_rows,
    FrameType.STATUS: status,
    FrameType.TRACE: trace,
    FrameType.PURGE: purge,
    FrameType.PEEK: peek,
    FrameType.REDRIVE: redrive,
}
