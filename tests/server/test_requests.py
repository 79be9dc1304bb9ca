"""Topology, administration and keys, asked of a real broker."""

from __future__ import annotations

import pytest
from server_rig import Rig, batch, now_ms

from ciphermq.errors import (
    AccessRefused,
    BadRequest,
    CatalogError,
    NotFound,
    PreconditionFailed,
    Refused,
    Unavailable,
)
from ciphermq.model.ids import new_batch_id
from ciphermq.pki.revocation import RevocationList
from ciphermq.wire.cmq2.frames import (
    Bind,
    Consume,
    CrlGet,
    Declare,
    Delete,
    KeyGet,
    KeyPut,
    List,
    Nack,
    Peek,
    Ping,
    Purge,
    Redrive,
    Status,
    Trace,
    Unbind,
)


async def names(client, what: str, **members) -> list[str]:
    return [row["name"] for row in await client.ask(List, what=what, **members)]


async def test_a_queue_is_its_makers(rig: Rig) -> None:
    alice, bob, admin = [await rig.client(name) for name in ("alice", "bob", "admin")]
    await alice.ask(Declare, queue={"name": "jobs", "ttl_ms": 60_000})
    await alice.ask(Declare, queue={"name": "jobs", "ttl_ms": 60_000})
    with pytest.raises(PreconditionFailed):
        await alice.ask(Declare, queue={"name": "jobs"})
    for kind, members in (
        (Consume, {}),
        (Purge, {}),
        (Peek, {}),
        (Delete, {}),
    ):
        with pytest.raises(AccessRefused, match="only its owner or an administrator may"):
            await bob.ask(kind, queue="jobs", **members)
    await admin.ask(Purge, queue="jobs")
    assert await alice.ask(Delete, queue="jobs") == 0
    with pytest.raises(NotFound):
        await admin.ask(Delete, queue="jobs")


@pytest.mark.parametrize(
    ("members", "error", "said"),
    [
        ({"queue": {"name": "dead.jobs"}}, AccessRefused, "first dead letter"),
        ({"queue": {"name": "alice"}}, AccessRefused, "comes with your key record"),
        ({"queue": {"name": "bob"}}, AccessRefused, "inbox 'bob'"),
        ({"queue": {"name": "jobs", "ttl": 5}}, BadRequest, "a queue has no 'ttl'; it has: .*ttl"),
        ({"queue": {"name": "jobs", "owner": "bob"}}, BadRequest, "no 'owner'"),
        ({"queue": {"name": "jobs", "inbox": True}}, BadRequest, "no 'inbox'"),
        ({"queue": {"name": "jobs", "ttl_ms": "soon"}}, BadRequest, r"\$\.ttl_ms"),
        ({"queue": {}}, BadRequest, "name"),
        ({"exchange": {"name": "e", "type": "magic"}}, BadRequest, "magic"),
        ({"exchange": {"name": ""}}, Refused, "exchange"),
        ({}, BadRequest, "one queue or of one exchange"),
        ({"queue": {"name": "a"}, "exchange": {"name": "b"}}, BadRequest, "one queue or"),
    ],
)
async def test_what_can_not_be_declared(rig: Rig, members, error, said) -> None:
    await rig.registered("bob")
    alice = await rig.client("alice")
    with pytest.raises(error, match=said):
        await alice.ask(Declare, **members)


async def test_a_dead_letter_exchange_must_be_ones_own(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.client("bob")
    await alice.ask(Declare, exchange={"name": "hers"})
    with pytest.raises(AccessRefused, match="'bob' may not publish to exchange 'hers'"):
        await bob.ask(Declare, queue={"name": "trap", "dead_letter_exchange": "hers"})
    await bob.ask(Declare, queue={"name": "fine", "dead_letter_exchange": ""})


async def test_bindings_need_both_sides(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.client("bob")
    await alice.ask(Declare, exchange={"name": "news", "type": "topic"})
    await alice.ask(Declare, queue={"name": "hers"})
    await bob.ask(Declare, queue={"name": "his"})
    with pytest.raises(AccessRefused, match="queue 'his'"):
        await alice.ask(Bind, exchange="news", queue="his", routing_key="#")
    with pytest.raises(AccessRefused, match="exchange 'news'"):
        await bob.ask(Bind, exchange="news", queue="his", routing_key="#")
    with pytest.raises(AccessRefused, match="default exchange: nobody may"):
        await alice.ask(Bind, exchange="", queue="hers")
    await alice.ask(Bind, exchange="news", queue="hers", routing_key="a.*")
    assert await alice.send(batch(exchange="news", to="a.b")) == ""
    assert await alice.send(batch(exchange="news", to="b.a")) == "unroutable"
    bound = {"exchange": "news", "queue": "hers", "routing_key": "a.*"}
    assert await alice.ask(List, what="bindings") == [bound]
    assert await bob.ask(List, what="bindings") == []
    await alice.ask(Unbind, **bound)
    assert await alice.ask(List, what="bindings") == []


async def test_publishing_to_another_ones_exchange(rig: Rig) -> None:
    alice, bob, admin = [await rig.client(name) for name in ("alice", "bob", "admin")]
    await alice.ask(Declare, exchange={"name": "news", "type": "fanout"})
    await alice.ask(Declare, queue={"name": "hers"})
    await alice.ask(Bind, exchange="news", queue="hers")
    assert await bob.send(batch("bob", exchange="news")) == "access-refused"
    assert await admin.send(batch("admin", exchange="news")) == ""


# --- looking ----------------------------------------------------------------------------------


async def test_lists_show_ones_own(rig: Rig) -> None:
    alice, bob, admin = [await rig.client(name) for name in ("alice", "bob", "admin")]
    await alice.ask(Declare, queue={"name": "a2"})
    await alice.ask(Declare, queue={"name": "a1"})
    await bob.ask(Declare, queue={"name": "b1"})
    await bob.ask(Declare, exchange={"name": "bx"})
    await bob.ask(Consume, queue="b1", name="worker", credit=1)
    assert await names(alice, "queues") == ["a1", "a2"]
    assert await names(admin, "queues") == ["a1", "a2", "b1"]
    assert await names(admin, "queues", prefix="a") == ["a1", "a2"]
    assert await names(admin, "queues", offset=1) == ["a2", "b1"]
    assert await names(alice, "exchanges") == []
    assert await names(bob, "exchanges") == ["bx"]
    (row,) = await bob.ask(List, what="queues")
    assert (row["owner"], row["inbox"], row["consumers"]) == ("bob", False, 1)
    assert await alice.ask(List, what="consumers") == []
    (row,) = await admin.ask(List, what="consumers")
    assert (row["client"], row["queue"], row["name"]) == ("bob", "b1", "worker")
    connections = await admin.ask(List, what="connections")
    assert [row["client"] for row in connections] == ["admin", "alice", "bob"]
    assert [row["client"] for row in await bob.ask(List, what="connections")] == ["bob"]
    with pytest.raises(BadRequest, match="there are: queues, exchanges"):
        await alice.ask(List, what="secrets")


async def test_the_status_is_the_administrators(rig: Rig) -> None:
    alice, admin = await rig.client("alice"), await rig.client("admin")
    with pytest.raises(AccessRefused, match="only an administrator may"):
        await alice.ask(Status)
    status = await admin.ask(Status)
    assert set(status) == {"server", "engine", "journal", "catalog", "log"}
    assert status["server"]["connections"] == 2
    assert status["journal"]
    assert not any(name.startswith("journal_") for name in status["engine"])


async def test_without_its_catalog_a_broker_is_unavailable(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await rig.client("alice")

    async def away(*_: object) -> None:
        raise CatalogError("PostgreSQL at db.internal:5432: nothing listens there")

    monkeypatch.setattr(rig.broker.catalog, "trace", away)
    with pytest.raises(Unavailable, match="can't use its catalog") as refused:
        await client.ask(Trace, batch_id=new_batch_id(now_ms()))
    assert "db.internal" not in str(refused.value)
    found = [record for record in caplog.records if "a request failed" in record.getMessage()]
    # A database is away for many requests: a line for each, and no traceback.
    assert [record.exc_info for record in found] == [None]
    assert await client.ask(Ping) is None


async def test_traces_are_the_senders(rig: Rig) -> None:
    alice, bob, admin = (
        await rig.client("alice"),
        await rig.registered("bob"),
        await rig.client("admin"),
    )
    batch_id = new_batch_id(now_ms())
    sealed = batch(to="bob", batch_id=batch_id, count=3)
    assert await alice.send(sealed) == ""
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    await bob.acked(bob.ack(bob.deliveries[0].tag))
    for client in (alice, admin):
        row = await client.ask(Trace, batch_id=batch_id)
        assert (row["client"], row["routing_key"], row["size"]) == ("alice", "bob", len(sealed))
        assert (row["messages"], row["delivered"], row["acked"], row["dead"]) == (3, 3, 3, 0)
    assert await bob.ask(Trace, batch_id=batch_id) is None
    assert await alice.ask(Trace, batch_id=new_batch_id(now_ms())) is None
    with pytest.raises(BadRequest, match="is no batch id"):
        await alice.ask(Trace, batch_id=b"what")


async def test_peeking(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    sealed = batch(to="bob", count=2)
    assert await alice.send(sealed) == ""
    (row,) = await bob.ask(Peek, queue="bob")
    assert (row["sender"], row["receivers"], row["messages"]) == ("alice", ["bob"], 2)
    assert (row["size"], row["unacked"], row["dead"]) == (len(sealed), False, None)
    with pytest.raises(AccessRefused):
        await alice.ask(Peek, queue="bob")
    with pytest.raises(BadRequest, match="1 to 100"):
        await bob.ask(Peek, queue="bob", batches=0)


async def test_dead_letters_are_driven_back(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    assert await alice.send(batch(to="bob", count=2)) == ""
    consumer = await bob.ask(Consume, queue="bob", credit=2)
    await bob.until(lambda: bob.deliveries)
    await bob.ask(Nack, tag=bob.deliveries[0].tag, requeue=False)
    (row,) = await bob.ask(Peek, queue="dead.bob")
    assert row["dead"]["reason"] == "rejected"
    with pytest.raises(AccessRefused):
        await alice.ask(Redrive, queue="dead.bob")
    with pytest.raises(BadRequest, match="at least one, or all"):
        await bob.ask(Redrive, queue="dead.bob", messages=0)
    assert await bob.ask(Redrive, queue="dead.bob") == 2
    assert consumer == bob.deliveries[0].consumer
    assert await bob.ask(Purge, queue="dead.bob") == 0


async def test_a_ping_is_answered(rig: Rig) -> None:
    alice = await rig.client("alice")
    assert await alice.ask(Ping) is None


# --- keys -------------------------------------------------------------------------------------


def record(rig: Rig, name: str, at_ms: int | None = None) -> bytes:
    return rig.deployment.load(name).make_key_record(at_ms or now_ms())


async def test_a_key_makes_an_inbox_and_is_given_to_all(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.client("bob")
    with pytest.raises(NotFound, match="no client 'bob' has registered a key"):
        await alice.ask(KeyGet, client="bob")
    with pytest.raises(NotFound):
        await alice.ask(KeyGet, client="../bob")
    first = record(rig, "bob")
    await bob.ask(KeyPut, record=first)
    await bob.ask(KeyPut, record=first)
    assert await alice.ask(KeyGet, client="bob") == first
    (row,) = await bob.ask(List, what="queues")
    assert (row["name"], row["owner"], row["inbox"]) == ("bob", "bob", True)
    second = record(rig, "bob")
    await bob.ask(KeyPut, record=second)
    assert await alice.ask(KeyGet, client="bob") == second
    with pytest.raises(PreconditionFailed, match="not newer"):
        await bob.ask(KeyPut, record=first)
    assert await alice.ask(KeyGet, client="bob") == second


async def test_nobody_registers_for_another(rig: Rig) -> None:
    alice, admin = await rig.client("alice"), await rig.client("admin")
    for client in (alice, admin):
        with pytest.raises(AccessRefused, match="a key of its own"):
            await client.ask(KeyPut, record=record(rig, "bob"))
    with pytest.raises(NotFound):
        await alice.ask(KeyGet, client="bob")


async def test_a_record_that_nobody_would_accept(rig: Rig) -> None:
    bob = await rig.client("bob")
    forged = bytearray(record(rig, "bob"))
    forged[-1] ^= 1
    old = record(rig, "bob", now_ms() - 400 * 86_400_000)
    for bad in (b"", b"junk", bytes(forged), old, bytes(17_000)):
        with pytest.raises(BadRequest):
            await bob.ask(KeyPut, record=bad)
    assert await bob.ask(List, what="queues") == []


async def test_a_queue_in_the_inboxs_place(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.client("bob")
    await alice.ask(Declare, queue={"name": "bob"})
    with pytest.raises(PreconditionFailed, match=r"declared by 'alice'.*where your inbox must be"):
        await bob.ask(KeyPut, record=record(rig, "bob"))
    await alice.ask(Delete, queue="bob")
    await bob.ask(KeyPut, record=record(rig, "bob"))


async def test_nobody_takes_the_place_of_an_inbox_that_was_deleted(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    await bob.ask(Delete, queue="bob")
    assert await alice.send(batch(to="bob")) == "unroutable"
    for other in (alice, await rig.client("admin")):
        with pytest.raises(AccessRefused, match="the inbox of the client of that name"):
            await other.ask(Declare, queue={"name": "bob"})
    await rig.registered("bob")
    assert await alice.send(batch(to="bob"), restart=True) == ""


async def test_a_consumers_name_has_a_bound(rig: Rig) -> None:
    bob = await rig.registered("bob")
    with pytest.raises(BadRequest, match="256 characters; 255 at most"):
        await bob.ask(Consume, queue="bob", name="x" * 256)
    await bob.ask(Consume, queue="bob", name="x" * 255)


async def test_an_inbox_is_its_clients_alone(rig: Rig) -> None:
    await rig.registered("bob")
    for name in ("alice", "admin"):
        client = await rig.client(name)
        with pytest.raises(AccessRefused, match="only its owner may"):
            await client.ask(Consume, queue="bob", credit=1)


async def test_the_revocation_list(rig: Rig) -> None:
    alice = await rig.client("alice")
    der = await alice.ask(CrlGet)
    crl = RevocationList(der, [rig.deployment.authority.certificate])
    assert crl.number == alice.link.hello.crl_number == 1


async def test_what_is_stored_survives(rig: Rig) -> None:
    bob, alice = await rig.registered("bob"), await rig.client("alice")
    assert await alice.send(batch(to="bob")) == ""
    first = await alice.ask(KeyGet, client="bob")
    await rig.broker.stop()
    await rig.broker.start()
    assert await bob.ended() is not None
    alice = await rig.client("alice")
    assert await alice.ask(KeyGet, client="bob") == first
    bob = await rig.client("bob")
    (row,) = await bob.ask(List, what="queues")
    assert row["messages_ready"] == 1
