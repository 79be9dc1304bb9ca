"""Who may do what, as a table."""

from __future__ import annotations

import pytest

from ciphermq.errors import AccessRefused
from ciphermq.server.access import (
    BROKER,
    DEFAULT_EXCHANGE,
    RIGHTS,
    Access,
    Kind,
    Thing,
    Verb,
    queue_to_declare,
)

OWNER, OTHER, ADMIN = "alice", "bob", "admin"
ACCESS = Access(["admin", "root"])

# Who may: o the owner, a an administrator, x anybody else.
EXPECTED = {
    (Verb.PUBLISH, Kind.DEFAULT_EXCHANGE): "oax",
    (Verb.PUBLISH, Kind.EXCHANGE): "oa",
    (Verb.CONSUME, Kind.QUEUE): "oa",
    (Verb.CONSUME, Kind.INBOX): "o",
    (Verb.DECLARE, Kind.QUEUE): "oax",
    (Verb.DECLARE, Kind.EXCHANGE): "oax",
    (Verb.DELETE, Kind.QUEUE): "oa",
    (Verb.DELETE, Kind.INBOX): "oa",
    (Verb.DELETE, Kind.EXCHANGE): "oa",
    (Verb.BIND, Kind.QUEUE): "oa",
    (Verb.BIND, Kind.INBOX): "oa",
    (Verb.BIND, Kind.EXCHANGE): "oa",
    (Verb.PURGE, Kind.QUEUE): "oa",
    (Verb.PURGE, Kind.INBOX): "oa",
    (Verb.PEEK, Kind.QUEUE): "oa",
    (Verb.PEEK, Kind.INBOX): "oa",
    (Verb.REDRIVE, Kind.QUEUE): "oa",
    (Verb.SEE, Kind.QUEUE): "oa",
    (Verb.SEE, Kind.INBOX): "oa",
    (Verb.SEE, Kind.EXCHANGE): "oa",
    (Verb.SEE, Kind.BATCH): "oa",
    (Verb.SEE, Kind.CLIENT): "oa",
    (Verb.SEE, Kind.BROKER): "a",
    (Verb.REGISTER_KEY, Kind.CLIENT): "o",
}


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("kind", list(Kind))
def test_every_verb_on_every_kind(verb: Verb, kind: Kind) -> None:
    thing = Thing(kind, "thing", OWNER)
    allowed = EXPECTED.get((verb, kind), "")
    for who, client in (("o", OWNER), ("a", ADMIN), ("x", OTHER)):
        assert ACCESS.decide(client, verb, thing) == (who in allowed)


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("kind", list(Kind))
def test_where_all_is_allowed_everyone_is_an_administrator(verb: Verb, kind: Kind) -> None:
    everyone = Access([], allow_all=True)
    thing = Thing(kind, "thing", OWNER)
    assert everyone.decide(OTHER, verb, thing) == ACCESS.decide(ADMIN, verb, thing)


def test_the_table_has_no_rows_that_are_not_expected() -> None:
    assert set(RIGHTS) == set(EXPECTED)


def test_a_refusal_says_who_what_and_who_may() -> None:
    with pytest.raises(AccessRefused, match="'bob' may not consume inbox 'alice': only its owner"):
        ACCESS.require("bob", Verb.CONSUME, Thing(Kind.INBOX, "alice", "alice"))
    with pytest.raises(AccessRefused, match="only its owner or an administrator may"):
        ACCESS.require("bob", Verb.PURGE, Thing(Kind.QUEUE, "jobs", "alice"))
    with pytest.raises(AccessRefused, match="may not consume queue 'jobs': there is none of that"):
        ACCESS.require("bob", Verb.CONSUME, Thing(Kind.QUEUE, "jobs"))
    with pytest.raises(AccessRefused, match="see the broker's status: only an administrator may"):
        ACCESS.require("bob", Verb.SEE, BROKER)
    with pytest.raises(AccessRefused, match="bind the default exchange: nobody may"):
        ACCESS.require("admin", Verb.BIND, DEFAULT_EXCHANGE)
    ACCESS.require("root", Verb.SEE, BROKER)


def test_what_nobody_owns_is_the_administrators() -> None:
    thing = Thing(Kind.QUEUE, "jobs")
    assert ACCESS.decide("admin", Verb.CONSUME, thing)
    assert not ACCESS.decide("bob", Verb.CONSUME, thing)
    assert not ACCESS.decide("", Verb.CONSUME, Thing(Kind.QUEUE, "jobs", "alice"))


def test_queues_that_nobody_declares_by_hand() -> None:
    with pytest.raises(AccessRefused, match="first dead letter"):
        queue_to_declare("dead.jobs", "alice")
    with pytest.raises(AccessRefused, match="comes with your key record"):
        queue_to_declare("alice", "alice")
    assert queue_to_declare("jobs", "alice") == Thing(Kind.QUEUE, "jobs", "alice")
