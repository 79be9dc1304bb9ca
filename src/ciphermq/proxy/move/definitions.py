"""What a virtual host consists of, and how that of two brokers differs. Pure: no I/O.

The definitions are those of ``/api/definitions/VHOST``, kept as the JSON they came in: a member
that only a newer RabbitMQ knows is copied like any other.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ciphermq.proxy.move.drain import is_ours

Json = dict[str, Any]

# Of the runtime parameters, those that say something about the vhost itself. The others start
# something (a shovel, a federation link), which must not run on both sides.
_OWN_PARAMETERS: Final = frozenset({"operator_policy", "vhost-limits"})

_SHRINKING: Final = frozenset(
    {
        "message-ttl",
        "expires",
        "max-length",
        "max-length-bytes",
        "max-age",
    }
)


def _arguments(thing: Json) -> str:
    return json.dumps(thing.get("arguments") or {}, sort_keys=True)


def _binding(thing: Json) -> Hashable:
    names = ("source", "destination_type", "destination", "routing_key")
    return tuple(thing[name] for name in names), _arguments(thing)


def _by_name(thing: Json) -> Hashable:
    return str(thing["name"])


def _parameter(thing: Json) -> Hashable:
    return thing["component"], thing["name"]


@dataclass
class Definitions:
    """Exchanges, queues, bindings, policies and limits, by what makes each unique."""

    exchanges: dict[Hashable, Json] = field(default_factory=dict)
    queues: dict[Hashable, Json] = field(default_factory=dict)
    bindings: dict[Hashable, Json] = field(default_factory=dict)
    policies: dict[Hashable, Json] = field(default_factory=dict)
    parameters: dict[Hashable, Json] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What there is besides and is not copied."""

    @classmethod
    def of(cls, exported: Mapping[str, Any]) -> Definitions:
        """From the API's answer. What a move made for itself is none of them."""
        queues = {
            _by_name(each): each
            for each in exported.get("queues", ())
            if not named_by_server(each["name"])
        }
        exchanges = [each for each in exported.get("exchanges", ()) if not is_ours(each["name"])]
        bindings = [
            each
            for each in exported.get("bindings", ())
            if not is_ours(each["source"])
            # What is not copied itself: an exclusive queue, one that the server has named.
            and (each["destination_type"] != "queue" or each["destination"] in queues)
        ]
        parameters = exported.get("parameters", ())
        return cls(
            exchanges={_by_name(each): each for each in exchanges},
            queues=queues,
            bindings={_binding(each): each for each in bindings},
            policies={_by_name(each): each for each in exported.get("policies", ())},
            parameters={
                _parameter(each): each
                for each in parameters
                if each["component"] in _OWN_PARAMETERS
            },
            left_out=[
                f"{each['component']} {each['name']!r}"
                for each in parameters
                if each["component"] not in _OWN_PARAMETERS
            ],
        )

    def __len__(self) -> int:
        return sum(len(kind) for _, kind in self.kinds())

    def kinds(self) -> Iterable[tuple[str, dict[Hashable, Json]]]:
        """Each kind of definition with its name in the API."""
        return (
            ("exchanges", self.exchanges),
            ("queues", self.queues),
            ("bindings", self.bindings),
            ("policies", self.policies),
            ("parameters", self.parameters),
        )

    def exported(self) -> Json:
        """As the API takes them."""
        return {name: list(kind.values()) for name, kind in self.kinds()}


@dataclass
class Difference:
    """What the target lacks, what it has otherwise, and what it has besides."""

    missing: Definitions
    conflicts: list[str]
    extra: Definitions


def compare(source: Definitions, target: Definitions) -> Difference:
    """What it takes to make `target` like `source`.

    An exchange or queue that the target has with other properties is a conflict, since neither
    can be changed. A policy or limit is no conflict: the source's replaces the target's.
    """
    missing, extra = Definitions(), Definitions()
    conflicts = []
    all_kinds = zip(source.kinds(), target.kinds(), missing.kinds(), extra.kinds(), strict=True)
    for (kind, wanted), (_, there), (_, lacking), (_, besides) in all_kinds:
        for key, thing in wanted.items():
            if key not in there:
                lacking[key] = thing
            elif kind in {"policies", "parameters"}:
                if _plain(thing) != _plain(there[key]):
                    lacking[key] = thing
            elif difference := _difference(thing, there[key]):
                conflicts.append(f"{kind[:-1]} {thing['name']!r}: {difference}")
        besides.update({key: thing for key, thing in there.items() if key not in wanted})
    return Difference(missing, conflicts, extra)


def _plain(thing: Json) -> Json:
    return {name: value for name, value in thing.items() if name != "vhost"}


def _difference(wanted: Json, there: Json) -> str:
    """In what an exchange or queue differs from the other side's; nothing if it doesn't."""
    for name in ("type", "durable", "auto_delete", "internal"):
        if name in wanted and name in there and wanted[name] != there[name]:
            return f"{name} is {wanted[name]} at the source and {there[name]} at the target"
    ours, theirs = _queue_arguments(wanted), _queue_arguments(there)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return (
                f"argument {name} is {ours.get(name, 'not set')} at the source and "
                f"{theirs.get(name, 'not set')} at the target"
            )
    return ""


def _queue_arguments(thing: Json) -> Json:
    """The arguments, without the type where it is the one that is meant without it."""
    arguments = dict(thing.get("arguments") or {})
    if arguments.get("x-queue-type") == "classic":
        del arguments["x-queue-type"]
    return arguments


def spell(thing: Json) -> str:
    """A definition, for a person."""
    if "destination" in thing:
        key = f" ({thing['routing_key']})" if thing["routing_key"] else ""
        return f"{thing['source']} -> {thing['destination']}{key}"
    return str(thing["name"])


def named_by_server(queue: str) -> bool:
    """Whether no other broker can have a queue of this name: it is a broker's own to give."""
    return queue.startswith("amq.")


def is_movable(queue: Json) -> bool:
    """Whether a queue's messages can be put into one of the same name elsewhere, and taken out of
    this one."""
    kept = queue["exclusive"] or queue.get("type") == "stream" or named_by_server(queue["name"])
    return not kept


def may_shrink(queue: Json) -> bool:
    """Whether a queue may rightly hold fewer messages than were put into it."""
    arguments = {name.removeprefix("x-") for name in queue.get("arguments") or {}}
    policy = queue.get("effective_policy_definition") or {}
    return bool(_SHRINKING & (arguments | set(policy)))
