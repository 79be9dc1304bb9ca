"""What a move would do, found out by looking at both sides and changing nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from ciphermq.errors import MoveError
from ciphermq.proxy.move.broker import Broker
from ciphermq.proxy.move.definitions import Definitions, Difference, compare, is_movable, spell
from ciphermq.proxy.move.management import Json

_RATE = 20_000
"""Messages a second, for the estimate: two nodes and the move on four cores do more."""
_FEW = 5


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator has decided beforehand."""

    leave_behind: bool = False
    """Move the vhost although some of what is in it can't be moved."""
    close_others: bool = False
    """End connections that don't come through the proxy."""
    prune: bool = False
    """Delete at the target what the source doesn't have."""


class PlannedQueue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue and what is to become of it."""

    name: str
    type: str
    messages: int
    fate: str
    """`moved`, `left behind`, or `ends` (with the connection that has it)."""


class Plan(msgspec.Struct, kw_only=True):
    """All that is known before a move."""

    vhost: str
    source: str
    target: str
    source_version: str
    target_version: str
    queues: list[PlannedQueue]
    messages: int
    create: dict[str, int]
    """Definitions that the target lacks, by kind."""
    delete: dict[str, int]
    """Definitions that only the target has, and loses."""
    users: list[str]
    """Users that the target lacks, and gets with the password they have."""
    pause_seconds: int
    """How long clients will be held, about."""
    notes: list[str]
    problems: list[str]
    """Why the move can't be made as things are."""

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"Vhost {self.vhost!r}: {self.source} -> {self.target}"
        yield f"  RabbitMQ {self.source_version} -> {self.target_version}"
        types = Counter(queue.type for queue in self.queues if queue.fate == "moved")
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(types.items())) or "none"
        yield f"  queues to move: {kinds}; {self.messages:,} messages"
        for queue in self.queues:
            if queue.fate != "moved":
                yield f"  queue {queue.name!r} ({queue.type}): {queue.fate}"
        yield f"  create at the target: {_counted(self.create)}"
        if self.delete:
            yield f"  delete at the target: {_counted(self.delete)}"
        if self.users:
            yield f"  users copied, with their passwords: {', '.join(self.users)}"
        for note in self.notes:
            yield f"  note: {note}"
        for problem in self.problems:
            yield f"  PROBLEM: {problem}"
        if not self.problems:
            yield f"  clients are held for about {self.pause_seconds} s"


def _counted(things: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in things.items() if count) or "nothing"


async def make_plan(vhost: str, source: Broker, target: Broker, options: Options) -> Plan:
    """Look at both sides. Raises MoveError, TransportError when one can't be looked at."""
    source_version, target_version = await source.greet(), await target.greet()
    if source.identity == target.identity:
        raise MoveError(f"{source} and {target} are the same broker, {source.identity}")
    wanted = await source.definitions(vhost)
    if wanted is None:
        raise MoveError(f"There is no vhost {vhost!r} at {source}")
    there = await target.definitions(vhost)
    listed = await source.api.queues(vhost)
    difference = compare(wanted, there or Definitions())
    counts = await _counts(vhost, source, listed)
    queues = [_fate(queue, counts) for queue in listed]
    messages = sum(queue.messages for queue in queues if queue.fate == "moved")
    plan = Plan(
        vhost=vhost,
        source=str(source),
        target=str(target),
        source_version=source_version,
        target_version=target_version,
        queues=sorted(queues, key=lambda queue: queue.name),
        messages=messages,
        create={name: len(kind) for name, kind in difference.missing.kinds()},
        delete={},
        users=await missing_users(vhost, source, target),
        pause_seconds=2 + messages // _RATE,
        notes=[f"{left} is not copied: it would run twice" for left in wanted.left_out],
        problems=[f"{each}; delete it at the target" for each in difference.conflicts],
    )
    await _judge(plan, source, options)
    if there is not None:
        await _judge_target(plan, target, there, difference, options)
    return plan


async def _counts(vhost: str, source: Broker, listed: list[Json]) -> dict[str, int]:
    """Exact counts, asked over AMQP: that the nodes can be reached so is known then, too."""
    if source.side.user not in await source.api.permissions(vhost):
        return {}
    return await source.counts(vhost, [queue["name"] for queue in listed if is_movable(queue)])


def _fate(queue: Json, counts: dict[str, int]) -> PlannedQueue:
    fate = "moved"
    if queue["exclusive"]:
        fate = "ends"
    elif not is_movable(queue):
        fate = "left behind"
    return PlannedQueue(
        name=queue["name"],
        type=queue.get("type", "classic"),
        messages=counts.get(queue["name"], 0),
        fate=fate,
    )


async def missing_users(vhost: str, source: Broker, target: Broker) -> list[str]:
    """Who may enter the vhost at the source, and is unknown at the target."""
    listed: list[Json] = await target.api.ask("GET", "users", columns="name")
    known = {each["name"] for each in listed}
    return sorted(set(await source.api.permissions(vhost)) - known)


async def _judge(plan: Plan, source: Broker, options: Options) -> None:
    """What the source's side has to say against the move."""
    behind = [queue for queue in plan.queues if queue.fate == "left behind"]
    for queues, why in (
        (
            [each.name for each in behind if each.type == "stream"],
            "a stream keeps what was read, so its content can't be moved; the target's is empty",
        ),
        (
            [each.name for each in behind if each.type != "stream"],
            "named by the server, so no other broker can have it",
        ),
    ):
        text = f"{_named(queues)}: {why}"
        if queues and options.leave_behind:
            plan.notes.append(f"{text}; left behind")
        elif queues:
            plan.problems.append(f"{text}; say --leave-behind to move the vhost without that")
    auto = [each.name for each in plan.queues if each.fate == "ends"]
    if auto:
        plan.notes.append(
            f"{_named(auto)}: exclusive, so it ends with its connection, as at every reconnect"
        )
    if strangers := await source.strangers(plan.vhost):
        names = [f"{each['user']} from {each.get('peer_host')}" for each in strangers]
        text = f"{_named(names)}: connected to {source} directly and not through this proxy"
        if options.close_others:
            plan.notes.append(f"{text}; will be disconnected")
        else:
            plan.problems.append(
                f"{text}: stop these clients, or say --close-others to disconnect them"
            )


async def _judge_target(
    plan: Plan, target: Broker, there: Definitions, difference: Difference, options: Options
) -> None:
    """What is at the target already."""
    extra = {name: len(kind) for name, kind in difference.extra.kinds() if kind}
    if extra and options.prune:
        plan.delete = extra
    elif extra:
        names = [spell(each) for _, kind in difference.extra.kinds() for each in kind.values()]
        plan.problems.append(
            f"the target has {_counted(extra)} that the source doesn't ({_named(names)}): delete "
            "them, or say --prune to have them deleted"
        )
    if clients := await target.clients(plan.vhost):
        names = [f"{each['user']} from {each.get('peer_host')}" for each in clients]
        plan.problems.append(f"{_named(names)}: connected to this vhost at the target already")
    if target.side.user in await target.api.permissions(plan.vhost):
        counts = await target.counts(plan.vhost, [str(name) for name in there.queues])
        if full := {name: count for name, count in counts.items() if count}:
            plan.problems.append(
                f"the target has messages already, in {_named(list(full))}: purge or move them"
            )


def _named(names: list[str]) -> str:
    """Some of them, when they are many."""
    shown = ", ".join(names[:_FEW])
    return shown if len(names) <= _FEW else f"{shown} and {len(names) - _FEW} more"
