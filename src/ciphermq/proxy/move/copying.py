"""Making the target's virtual host like the source's. Every part may be done again."""

from __future__ import annotations

import contextlib

from ciphermq.errors import MoveError
from ciphermq.proxy.move.broker import Broker
from ciphermq.proxy.move.definitions import Definitions, compare
from ciphermq.proxy.move.drain import is_ours
from ciphermq.proxy.move.plan import missing_users

_USER_PARTS = ("password_hash", "hashing_algorithm", "tags")


async def copy_vhost(vhost: str, source: Broker, target: Broker, *, prune: bool) -> bool:
    """The vhost, its users' permissions, and all definitions in it; whether the vhost was made
    only now (and its maker let in by the broker).

    Raises MoveError when something of it conflicts, or the target refuses it.
    """
    wanted = await source.definitions(vhost)
    if wanted is None:
        raise MoveError(f"There is no vhost {vhost!r} at {source}")
    there = await target.definitions(vhost)
    new = there is None
    if there is None:
        like = await source.api.ask("GET", "vhosts", vhost)
        await target.api.make_vhost(vhost, like or {})
        there = Definitions()
    difference = compare(wanted, there)
    if difference.conflicts:
        raise MoveError("; ".join(difference.conflicts))
    await _copy_users(vhost, source, target)
    if prune:
        await _delete(vhost, target, difference.extra)
    if len(difference.missing):
        exported = difference.missing.exported()
        await target.api.ask("POST", "definitions", vhost, body=exported)
    return new


async def _copy_users(vhost: str, source: Broker, target: Broker) -> None:
    for user in await missing_users(vhost, source, target):
        known = await source.api.ask("GET", "users", user)
        body = {name: known[name] for name in _USER_PARTS}
        if isinstance(body["tags"], list):
            body["tags"] = ",".join(body["tags"])  # what RabbitMQ before 3.9 takes, and later too
        await target.api.ask("PUT", "users", user, body=body)
    there = await target.api.permissions(vhost)
    for user, rights in (await source.api.permissions(vhost)).items():
        if there.get(user) != rights and user != target.side.user:
            await target.api.permit(vhost, user, rights)
    topics = await target.api.topic_permissions(vhost)
    for each in await source.api.topic_permissions(vhost):
        if each not in topics:
            user = each["user"]
            await target.api.ask("PUT", "topic-permissions", vhost, user, body=each)


async def _delete(vhost: str, target: Broker, extra: Definitions) -> None:
    """Delete what the source doesn't have; a queue only if that costs no message."""
    api = target.api
    for binding in extra.bindings.values():
        kind = "q" if binding["destination_type"] == "queue" else "e"
        where = ("bindings", vhost, "e", binding["source"], kind, binding["destination"])
        for each in await api.ask("GET", *where) or []:
            same = ("routing_key", "arguments")
            if all(each[name] == binding[name] for name in same):
                await api.ask("DELETE", *where, each["properties_key"])
    for name in extra.queues:
        await api.delete_queue(vhost, str(name))
    for name in extra.exchanges:
        await api.ask("DELETE", "exchanges", vhost, str(name))
    for name in extra.policies:
        await api.ask("DELETE", "policies", vhost, str(name))
    for parameter in extra.parameters.values():
        component, name = parameter["component"], parameter["name"]
        await api.ask("DELETE", "parameters", component, vhost, name)


async def remove_exchanges(vhost: str, broker: Broker) -> None:
    """Delete the exchanges that were there to move messages."""
    listed = await broker.api.ask("GET", "exchanges", vhost, columns="name") or []
    for each in listed:
        if is_ours(each["name"]):
            with contextlib.suppress(MoveError):  # it is harmless, and the move is done
                await broker.api.ask("DELETE", "exchanges", vhost, each["name"])
