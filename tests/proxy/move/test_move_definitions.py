"""What two brokers define, and how that differs."""

from __future__ import annotations

from typing import Any

import pytest

from ciphermq.proxy.move.definitions import Definitions, compare, may_shrink
from ciphermq.proxy.move.drain import exchange_for


def queue(name: str, **arguments: object) -> dict[str, Any]:
    return {"name": name, "durable": True, "auto_delete": False, "arguments": arguments}


def exchange(name: str, kind: str = "topic") -> dict[str, Any]:
    more = {"durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    return {"name": name, "type": kind, **more}


def binding(source: str, destination: str, key: str = "", **arguments: object) -> dict[str, Any]:
    return {
        "source": source,
        "destination": destination,
        "destination_type": "queue",
        "routing_key": key,
        "arguments": arguments,
    }


def policy(name: str, pattern: str) -> dict[str, Any]:
    definition = {"max-length": 9}
    return {"vhost": "v", "name": name, "pattern": pattern, "definition": definition}


def test_nothing_is_missing_from_a_copy() -> None:
    exported = {
        "queues": [queue("q", **{"x-max-length": 3})],
        "exchanges": [exchange("e")],
        "bindings": [binding("e", "q", "a.#", header=1)],
        "policies": [policy("p", "^q")],
    }
    source = Definitions.of(exported)
    assert len(source) == 4
    difference = compare(source, Definitions.of(source.exported()))
    assert (len(difference.missing), difference.conflicts, len(difference.extra)) == (0, [], 0)


def test_all_is_missing_from_an_empty_vhost() -> None:
    source = Definitions.of({"queues": [queue("q")], "bindings": [binding("amq.topic", "q")]})
    difference = compare(source, Definitions())
    assert difference.missing.exported() == source.exported()


def test_bindings_differ_by_key_and_by_arguments() -> None:
    queues = [queue("q")]
    source = Definitions.of(
        {
            "queues": queues,
            "bindings": [
                binding("e", "q", "a"),
                binding("e", "q", "b"),
                binding("e", "q", "a", x=1),
            ],
        }
    )
    target = Definitions.of({"queues": queues, "bindings": [binding("e", "q", "a")]})
    difference = compare(source, target)
    assert len(difference.missing.bindings) == 2
    assert compare(target, source).extra.bindings == difference.missing.bindings


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (queue("q"), queue("q") | {"durable": False}, "durable is True at the source and False"),
        (
            queue("q", **{"x-queue-type": "quorum"}),
            queue("q"),
            "argument x-queue-type is quorum at the source and not set",
        ),
        (queue("q"), queue("q", **{"x-expires": 5}), "argument x-expires is not set"),
    ],
)
def test_a_queue_that_is_otherwise_is_a_conflict(
    ours: dict[str, Any], theirs: dict[str, Any], text: str
) -> None:
    difference = compare(Definitions.of({"queues": [ours]}), Definitions.of({"queues": [theirs]}))
    (conflict,) = difference.conflicts
    assert conflict.startswith("queue 'q': ")
    assert text in conflict


def test_an_exchange_of_another_type_is_a_conflict() -> None:
    ours, theirs = {"exchanges": [exchange("e")]}, {"exchanges": [exchange("e", "direct")]}
    difference = compare(Definitions.of(ours), Definitions.of(theirs))
    assert difference.conflicts == [
        "exchange 'e': type is topic at the source and direct at the target"
    ]


def test_classic_is_the_type_of_a_queue_that_names_none() -> None:
    ours = {"queues": [queue("q", **{"x-queue-type": "classic"})]}
    difference = compare(Definitions.of(ours), Definitions.of({"queues": [queue("q")]}))
    assert difference.conflicts == []


def test_a_policy_that_changed_is_copied_again() -> None:
    ours, theirs = {"policies": [policy("p", "^a")]}, {"policies": [policy("p", "^b")]}
    difference = compare(Definitions.of(ours), Definitions.of(theirs))
    assert difference.conflicts == []
    assert list(difference.missing.policies.values()) == [policy("p", "^a")]


def test_what_would_run_twice_is_left_out_and_named() -> None:
    parameters = [
        {"component": "shovel", "name": "s", "value": {}},
        {"component": "vhost-limits", "name": "limits", "value": {"max-queues": 3}},
    ]
    found = Definitions.of({"parameters": parameters})
    assert found.left_out == ["shovel 's'"]
    assert list(found.parameters) == [("vhost-limits", "limits")]


def test_what_a_move_made_for_itself_is_not_copied() -> None:
    ours = exchange_for("q")
    found = Definitions.of(
        {
            "queues": [queue("q")],
            "exchanges": [exchange(ours, "fanout")],
            "bindings": [binding(ours, "q")],
        }
    )
    assert (found.exchanges, found.bindings) == ({}, {})


def test_bindings_of_queues_that_end_with_their_connection_are_not_copied() -> None:
    found = Definitions.of({"queues": [], "bindings": [binding("e", "amq.gen-exclusive")]})
    assert found.bindings == {}


@pytest.mark.parametrize(
    ("thing", "shrinks"),
    [
        (queue("q"), False),
        (queue("q", **{"x-queue-mode": "lazy"}), False),
        (queue("q", **{"x-message-ttl": 5}), True),
        (queue("q") | {"effective_policy_definition": {"max-length": 3}}, True),
        (queue("q") | {"effective_policy_definition": {"ha-mode": "all"}}, False),
    ],
)
def test_which_queues_may_lose_messages_by_themselves(thing: dict[str, Any], shrinks: bool) -> None:
    assert may_shrink(thing) is shrinks
