"""Messages of CipherMQ 1.x among sealed batches, and those who take nothing else."""

from __future__ import annotations

import msgspec
import pytest
from broker_rig import Connection, Rig, header

from ciphermq.broker.deliveries import Held
from ciphermq.errors import AccessRefused, NotFound
from ciphermq.model.onex import internal_id


def publish_onex(rig: Rig, message_id: str, key: str = "q", client: str = "sender") -> None:
    made = msgspec.structs.replace(
        header(0, key=key, sender=client, receivers=()), batch_id=internal_id(message_id)
    )
    rig.broker.publish(client, made, internal_id(message_id), bytes(100), rig.now)
    rig.sync()


def consume_onex(rig: Rig, credit: int = 100) -> tuple[int, Connection]:
    connection = Connection()
    consumer, _ = rig.broker.consume(
        "q",
        client="r",
        consumer_name="",
        credit=credit,
        outlet=connection,
        now=rig.now,
        onex=True,
    )
    return consumer.number, connection


def kinds(deliveries: list[Held]) -> str:
    return "".join("x" if held.entry.batch.onex else "s" for held in deliveries)


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.queue()
    return made


def mix(rig: Rig, kinds: str) -> None:
    for number, kind in enumerate(kinds):
        if kind == "x":
            publish_onex(rig, f"m-{number}")
        else:
            rig.publish()


def test_a_1x_consumer_gets_nothing_sealed(rig: Rig) -> None:
    mix(rig, "sxsxs")
    consume_onex(rig)
    assert kinds(rig.deliveries()) == "xx"
    assert rig.broker.counts()["messages_nobody_takes"] == 3
    assert (rig.info().messages_onex, rig.info().messages_ready) == (2, 3)
    mix(rig, "ss")
    assert rig.deliveries() == []
    publish_onex(rig, "later")
    assert kinds(rig.deliveries()) == "x"


def test_others_get_both_in_order(rig: Rig) -> None:
    mix(rig, "sxxsx")
    rig.consume()
    assert kinds(rig.deliveries()) == "sxxsx"
    assert rig.broker.counts()["messages_nobody_takes"] == 0


def test_both_kinds_of_consumer_take_turns_at_1x_messages(rig: Rig) -> None:
    consume_onex(rig)
    both, _ = rig.consume()
    mix(rig, "xxxxss")
    given = rig.deliveries()
    assert len(given) == 6
    takers = [held.consumer.number for held in given if held.consumer and held.entry.batch.onex]
    assert takers.count(both) == 2
    assert all(held.consumer and held.consumer.number == both for held in given[4:])


def test_one_without_credit_does_not_keep_1x_from_those_behind(rig: Rig) -> None:
    rig.consume(credit=0)
    consume_onex(rig)
    mix(rig, "sx")
    assert kinds(rig.deliveries()) == "x"


def test_a_sealed_batch_waits_until_somebody_takes_it(rig: Rig) -> None:
    consume_onex(rig, credit=1)
    mix(rig, "sxx")
    assert kinds(rig.deliveries()) == "x"
    rig.consume()
    assert kinds(rig.deliveries()) == "sx"


def test_no_time_out(rig: Rig) -> None:
    publish_onex(rig, "m")
    consume_onex(rig)
    (held,) = rig.deliveries()
    rig.advance(100_000)
    assert held.bits
    assert rig.info().messages_unacked == 1
    rig.ack(held)
    assert rig.info().messages_unacked == 0


def test_a_fetch_of_1x(rig: Rig) -> None:
    mix(rig, "sx")
    connection = Connection()
    found = rig.broker.fetch("q", owner=connection, messages=5, now=rig.now, onex=True)
    assert kinds(found) == "x"
    rig.advance(100_000)
    assert found[0].bits


def test_what_comes_again_costs_no_credit(rig: Rig) -> None:
    mix(rig, "xxx")
    _, first = consume_onex(rig)
    assert len(rig.deliveries()) == 3
    rig.broker.release(first, rig.now)
    number, _ = consume_onex(rig, credit=1)
    publish_onex(rig, "new")
    publish_onex(rig, "newer")
    given = rig.deliveries()
    assert [held.redelivered for held in given] == [True, True, True, False]
    rig.broker.add_credit(number, 1)
    assert len(rig.deliveries()) == 1


def test_order_survives_returns_and_restarts(rig: Rig) -> None:
    mix(rig, "sxsx")
    _, connection = rig.consume()
    assert kinds(rig.deliveries()) == "sxsx"
    rig.broker.release(connection, rig.now)
    assert [live for _, live in rig.waiting()] == [1, 1, 1, 1]
    rig.consume()
    assert kinds(rig.deliveries()) == "sxsx"
    rig.restart()
    assert rig.info().messages_onex == 2
    rig.consume()
    assert kinds(rig.deliveries()) == "sxsx"


def test_giving_again(rig: Rig) -> None:
    publish_onex(rig, "m")
    consume_onex(rig)
    (held,) = rig.deliveries()
    with pytest.raises(AccessRefused):
        rig.broker.give_again("somebody", internal_id("m"), rig.now)
    rig.broker.give_again("sender", internal_id("m"), rig.now)
    (again,) = rig.deliveries()
    assert not held.bits
    assert again.redelivered
    rig.ack(held)
    rig.ack(again)
    with pytest.raises(NotFound):
        rig.broker.give_again("sender", internal_id("m"), rig.now)


def test_one_id_of_two_senders(rig: Rig) -> None:
    publish_onex(rig, "m", client="ann")
    publish_onex(rig, "m", client="ben")
    consume_onex(rig)
    first, second = rig.deliveries()
    rig.broker.give_again("ben", internal_id("m"), rig.now)
    assert (bool(first.bits), bool(second.bits)) == (True, False)
    rig.ack(first)
    with pytest.raises(AccessRefused):
        rig.broker.give_again("ann", internal_id("m"), rig.now)
    rig.restart()
    rig.broker.give_again("ben", internal_id("m"), rig.now)


def test_dead_and_purged_messages_are_counted(rig: Rig) -> None:
    mix(rig, "xs")
    _, connection = rig.consume()
    (held, _) = rig.deliveries()
    rig.broker.nack(
        connection, held.tag, None, requeue=False, reason="rejected", detail="", now=rig.now
    )
    assert (rig.info().messages_onex, rig.info("dead.q").messages_onex) == (0, 1)
    rig.sync()
    rig.broker.purge("dead.q")
    assert rig.broker.counts()["messages_onex"] == 0
