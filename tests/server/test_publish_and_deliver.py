"""Batches in and out of a real broker, frame by frame."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from server_rig import Client, Rig, batch

from ciphermq import limits
from ciphermq.errors import (
    AccessRefused,
    BadRequest,
    NotFound,
    ResourceLimit,
    Superseded,
)
from ciphermq.model.topology import DeadInfo
from ciphermq.wire.cmq2.frames import (
    Cancel,
    Cancelled,
    Close,
    ConfirmFrame,
    ConfirmKind,
    Consume,
    Credit,
    Declare,
    Delete,
    DeliverFrame,
    Fetch,
    Nack,
    Ok,
)


async def test_from_a_publish_to_its_ack(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    sealed = batch(to="bob", count=3)
    assert await alice.send(sealed) == ""
    consumer = await bob.ask(Consume, queue="bob", credit=10)
    await bob.until(lambda: bob.deliveries)
    (delivery,) = bob.deliveries
    assert delivery.consumer == consumer
    assert bytes(delivery.sealed) == sealed
    assert (delivery.redelivered, delivery.redeliveries, delivery.bitmap) == (False, 0, b"")
    await bob.acked(bob.ack(delivery.tag))
    assert waiting(rig, "bob") == (0, 0)
    assert alice.returned == {}


def waiting(rig: Rig, queue: str) -> tuple[int, int]:
    info = rig.broker.engine.queue(queue)
    assert info is not None
    return info.messages_ready, info.messages_unacked


async def test_to_every_receivers_inbox(rig: Rig) -> None:
    alice, bob, carol = (
        await rig.client("alice"),
        await rig.registered("bob"),
        await rig.registered("carol"),
    )
    sealed = batch(receivers=("bob", "carol"))
    assert await alice.send(sealed) == ""
    for client in (bob, carol):
        await client.ask(Consume, queue=client.name, credit=1)
        await client.until(lambda client=client: client.deliveries)
        assert bytes(client.deliveries[0].sealed) == sealed


async def test_the_consumers_number_is_told_before_its_deliveries(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    for _ in range(5):
        assert await alice.send(batch(to="bob")) == ""
    await bob.ask(Consume, queue="bob", credit=100)
    await bob.until(lambda: len(bob.deliveries) == 5)
    kinds = [type(frame) for frame in bob.frames]
    assert kinds.index(DeliverFrame) > max(at for at, kind in enumerate(kinds) if kind is Ok)


async def test_confirms_are_in_order_and_shared(rig: Rig) -> None:
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    for _ in range(60):
        last = alice.publish(batch(to="bob"))
    await alice.settled(last)
    confirms = [frame.number for frame in alice.frames if isinstance(frame, ConfirmFrame)]
    assert confirms == sorted(set(confirms))
    assert confirms[-1] == 60
    assert len(confirms) < 60


async def test_large_batches_come_through_whole(rig: Rig) -> None:
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    sealed = [batch(to="bob", size=size) for size in (limits.MAX_PLAINTEXT, 300_000, 20)]
    for each in sealed:
        assert await alice.send(each) == ""
    await bob.ask(Consume, queue="bob", credit=3)
    await bob.until(lambda: len(bob.deliveries) == 3)
    assert [bytes(delivery.sealed) for delivery in bob.deliveries] == sealed


async def test_a_repeat_is_confirmed_and_not_stored_again(rig: Rig) -> None:
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    sealed = batch(to="bob")
    assert await alice.send(sealed) == ""
    assert await alice.send(sealed) == ""
    again = await rig.client("alice")
    assert await again.send(sealed) == ""
    assert waiting(rig, "bob") == (1, 0)


# --- refusals ---------------------------------------------------------------------------------


async def test_after_a_refusal_all_are_refused_until_a_restart(rig: Rig) -> None:
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    assert await alice.send(batch(to="bob")) == ""
    first = alice.publish(batch(to="nowhere"))
    later = [alice.publish(batch(to="bob")) for _ in range(3)]
    assert await alice.settled(first) == "unroutable"
    assert [await alice.settled(seq) for seq in later] == ["after-refusal"] * 3
    assert waiting(rig, "bob") == (1, 0)
    assert await alice.send(batch(to="bob"), restart=True) == ""
    assert await alice.send(batch(to="bob")) == ""
    assert waiting(rig, "bob") == (3, 0)


REFUSED = {
    "not a batch": (lambda: b"no batch", "bad-request", "no sealed batch"),
    "an empty one": (lambda: b"", "bad-request", "no sealed batch"),
    "of a newer format": (lambda: b"CMQ3" + bytes(60), "bad-request", "format"),
    "another's": (lambda: batch("bob", to="bob"), "access-refused", "sender is 'bob'"),
    "no such exchange": (
        lambda: batch(exchange="none", to="x"),
        "access-refused",
        "exchange 'none'",
    ),
    "no such queue": (lambda: batch(to="none"), "unroutable", "there is no queue 'none'"),
    "no such client": (lambda: batch(receivers=("nobody",)), "unroutable", "no inbox"),
    "from the future": (
        lambda: batch(to="bob", created_ms=2**41 * 2),
        "bad-request",
        "clocks is wrong",
    ),
    "too old": (lambda: batch(to="bob", created_ms=1_000), "bad-request", "clocks is wrong"),
    "expired": (lambda: batch(to="bob", expires_ms=1_000), "bad-request", "expired"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_returned_and_why(rig: Rig, name: str) -> None:
    make, code, said = REFUSED[name]
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    seq = alice.publish(make())
    assert await alice.settled(seq) == code
    assert said in alice.returned[seq].message
    assert waiting(rig, "bob") == (0, 0)
    assert await alice.send(batch(to="bob"), restart=True) == ""


async def test_a_full_queue(rig: Rig) -> None:
    alice = await rig.client("alice")
    await alice.ask(Declare, queue={"name": "small", "max_messages": 2})
    assert await alice.send(batch(to="small", count=2)) == ""
    assert await alice.send(batch(to="small")) == "queue-full"


async def test_a_client_that_ignores_its_window(start) -> None:
    rig = await start(limits={"max_publish_window": 4})
    alice, _ = await rig.client("alice"), await rig.registered("bob")
    assert alice.link.hello.max_publish_window == 4
    for _ in range(5):
        alice.publish(batch(to="bob"))
    error = await alice.ended()
    assert isinstance(error, ResourceLimit)
    assert "publish 5 came while 4 were unconfirmed" in str(error)
    assert waiting(rig, "bob") == (4, 0)


# --- consuming --------------------------------------------------------------------------------


async def published(rig: Rig, batches: int = 1, **kind: int) -> tuple[Client, Client]:
    """alice, who has published so many to bob, and bob."""
    alice, bob = await rig.client("alice"), await rig.registered("bob")
    for _ in range(batches):
        assert await alice.send(batch(to="bob", **kind)) == ""
    return alice, bob


async def test_credit_counts_messages_and_lets_out_whole_batches(rig: Rig) -> None:
    _, bob = await published(rig, 4, count=10)
    consumer = await bob.ask(Consume, queue="bob", credit=11)
    await bob.until(lambda: len(bob.deliveries) == 2)
    await asyncio.sleep(0.05)
    assert len(bob.deliveries) == 2
    bob.link.send(Credit(consumer=consumer, messages=10))
    await bob.until(lambda: len(bob.deliveries) == 3)


async def test_acks_of_some_of_a_batch(rig: Rig) -> None:
    _, bob = await published(rig, 1, count=10)
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    tag = bob.deliveries[0].tag
    await bob.acked(bob.ack(tag, 0, 3, 9))
    assert waiting(rig, "bob") == (0, 7)
    await bob.leave()
    again = await rig.client("bob")
    await again.ask(Consume, queue="bob", credit=1)
    await again.until(lambda: again.deliveries)
    (delivery,) = again.deliveries
    assert delivery.redelivered
    assert int.from_bytes(delivery.bitmap, "little") == 0b01_1111_0110
    await again.acked(again.ack(delivery.tag))
    assert waiting(rig, "bob") == (0, 0)


async def test_an_ack_may_be_repeated(rig: Rig) -> None:
    _, bob = await published(rig)
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    tag = bob.deliveries[0].tag
    bob.ack(tag)
    bob.ack(tag)
    await bob.acked(bob.ack(tag))


async def test_an_ack_of_what_was_never_delivered(rig: Rig) -> None:
    bob = await rig.registered("bob")
    bob.ack(12345)
    error = await bob.ended()
    assert isinstance(error, BadRequest)
    assert "never was a delivery with tag 12345" in str(error)


async def test_nobody_acks_what_another_holds(rig: Rig) -> None:
    alice, bob = await published(rig)
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    alice.ack(bob.deliveries[0].tag)
    assert isinstance(await alice.ended(), AccessRefused)
    assert waiting(rig, "bob") == (0, 1)


async def test_a_nack_brings_it_back_or_buries_it(rig: Rig) -> None:
    _, bob = await published(rig, 1, count=2)
    await bob.ask(Consume, queue="bob", credit=100)
    await bob.until(lambda: bob.deliveries)
    tag = bob.deliveries[0].tag
    await bob.ask(Nack, tag=tag, bitmap=b"\1", requeue=False, reason="bad-signature", detail="no")
    assert waiting(rig, "dead.bob") == (1, 0)
    await bob.ask(Nack, tag=tag)
    await bob.until(lambda: len(bob.deliveries) == 2)
    assert bob.deliveries[1].redelivered
    assert bob.deliveries[1].redeliveries == 1
    await bob.ask(Consume, queue="dead.bob", credit=1)
    await bob.until(lambda: len(bob.deliveries) == 3)
    dead = msgspec.msgpack.decode(bob.deliveries[2].dead, type=DeadInfo)
    assert (dead.queue, dead.reason, dead.detail) == ("bob", "bad-signature", "no")


async def test_a_nack_of_what_another_holds(rig: Rig) -> None:
    alice, bob = await published(rig)
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    with pytest.raises(AccessRefused):
        await alice.ask(Nack, tag=bob.deliveries[0].tag)
    with pytest.raises(BadRequest):
        await alice.ask(Nack, tag=999)


async def test_a_lost_connection_gives_back_what_it_held(rig: Rig) -> None:
    _, bob = await published(rig, 3)
    await bob.ask(Consume, queue="bob", credit=100)
    await bob.until(lambda: len(bob.deliveries) == 3)
    bob.link.abort()
    again = await rig.client("bob")
    await again.ask(Consume, queue="bob", credit=100)
    await again.until(lambda: len(again.deliveries) == 3)
    order = [bytes(delivery.sealed) for delivery in again.deliveries]
    assert order == [bytes(delivery.sealed) for delivery in bob.deliveries]
    # A lost connection is no try.
    assert [delivery.redelivered for delivery in again.deliveries] == [True] * 3


async def test_the_same_name_supersedes(rig: Rig) -> None:
    _, bob = await published(rig)
    first = await bob.ask(Consume, queue="bob", credit=1, name="worker")
    await bob.until(lambda: bob.deliveries)
    other = await rig.client("bob")
    await other.ask(Consume, queue="bob", credit=1, name="worker")
    await bob.until(lambda: bob.cancelled)
    assert bob.cancelled[0].consumer == first
    assert bob.cancelled[0].code == Superseded.code
    await other.until(lambda: other.deliveries)


async def test_a_cancelled_consumer_keeps_or_returns_what_it_holds(rig: Rig) -> None:
    _, bob = await published(rig, 2)
    consumer = await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    await bob.ask(Cancel, consumer=consumer)
    assert waiting(rig, "bob") == (1, 1)
    with pytest.raises(NotFound, match=f"no consumer {consumer}"):
        await bob.ask(Cancel, consumer=consumer)
    bob.link.send(Credit(consumer=consumer, messages=5))  # late, and harmless
    await bob.acked(bob.ack(bob.deliveries[0].tag))
    consumer = await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: len(bob.deliveries) == 2)
    await bob.ask(Cancel, consumer=consumer, release=True)
    assert waiting(rig, "bob") == (1, 0)
    session = next(each for each in rig.broker.server.services.sessions if each.client == "bob")
    assert session.consuming.held == 0


async def test_a_queue_that_is_deleted_ends_its_consumers(rig: Rig) -> None:
    alice = await rig.client("alice")
    await alice.ask(Declare, queue={"name": "jobs"})
    consumer = await alice.ask(Consume, queue="jobs", credit=1)
    await alice.ask(Delete, queue="jobs")
    await alice.until(lambda: alice.cancelled)
    assert alice.cancelled == [
        Cancelled(consumer=consumer, code="not-found", message="queue 'jobs' was deleted")
    ]


async def test_fetching(rig: Rig) -> None:
    _, bob = await published(rig, 3, count=4)
    assert await bob.ask(Fetch, queue="bob", messages=5) == 8
    assert [delivery.consumer for delivery in bob.deliveries] == [0, 0]
    assert isinstance(bob.frames[-1], Ok)
    assert await bob.ask(Fetch, queue="bob", messages=100) == 4
    assert await bob.ask(Fetch, queue="bob", messages=100) == 0
    for delivery in bob.deliveries:
        await bob.acked(bob.ack(delivery.tag))
    with pytest.raises(BadRequest, match="can't fetch 0"):
        await bob.ask(Fetch, queue="bob", messages=0)


@pytest.mark.parametrize("credit", [-1, limits.MAX_CREDIT + 1])
async def test_a_credit_that_makes_no_sense(rig: Rig, credit: int) -> None:
    bob = await rig.registered("bob")
    with pytest.raises(BadRequest, match=f"credit of {credit}"):
        await bob.ask(Consume, queue="bob", credit=credit)
    consumer = await bob.ask(Consume, queue="bob")
    bob.link.send(Credit(consumer=consumer, messages=credit))
    assert isinstance(await bob.ended(), BadRequest)


async def test_consumers_of_a_connection_are_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONSUMERS_PER_CONNECTION", 2)
    bob = await rig.registered("bob")
    asked = [bob.asking(Consume, queue="bob") for _ in range(3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, int, ResourceLimit]


async def test_who_never_settles_is_given_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_BATCHES", 3)
    _, bob = await published(rig, 6)
    await bob.ask(Consume, queue="bob", credit=1000)
    await bob.until(lambda: len(bob.deliveries) == 3)
    await asyncio.sleep(0.05)
    assert len(bob.deliveries) == 3
    bob.ack(bob.deliveries[0].tag)
    await bob.until(lambda: len(bob.deliveries) == 4)


async def test_leaving_in_order_waits_for_a_nack(rig: Rig) -> None:
    _, bob = await published(rig, 1)
    await bob.ask(Fetch, queue="bob")
    answer = bob.asking(Nack, tag=bob.deliveries[0].tag, requeue=False)
    bob.link.close()
    assert await bob.ended() is None
    assert answer.done()
    assert waiting(rig, "dead.bob") == (1, 0)


async def test_leaving_in_order_settles_what_is_under_way(rig: Rig) -> None:
    alice, bob = await published(rig, 1)
    await bob.ask(Consume, queue="bob", credit=1)
    await bob.until(lambda: bob.deliveries)
    number = bob.ack(bob.deliveries[0].tag)
    bob.link.close()
    assert await bob.ended() is None
    assert bob.confirmed[ConfirmKind.ACK] == number
    seq = alice.publish(batch(to="bob"))
    alice.link.close("done")
    assert await alice.ended() is None
    assert await alice.settled(seq) == ""
    assert isinstance(alice.frames[-1], Close)
