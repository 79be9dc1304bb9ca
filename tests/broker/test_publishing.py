from __future__ import annotations

import pytest
from broker_rig import Connection, Rig, numbers

from ciphermq.broker import BrokerLimits
from ciphermq.broker.publishing import Accepted
from ciphermq.broker.records import Kind
from ciphermq.errors import (
    ConflictingDuplicate,
    NotFound,
    QueueFull,
    ResourceLimit,
    Unroutable,
)
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType


def accepted(outcome: object) -> Accepted:
    assert isinstance(outcome, Accepted)
    return outcome


def test_the_default_exchange_takes_the_key_for_the_queue() -> None:
    rig = Rig()
    rig.queue("a")
    rig.queue("b")
    first = rig.publish("a")
    assert rig.waiting("a") == [(first, 1)]
    assert rig.waiting("b") == []


def test_no_such_queue_is_named() -> None:
    rig = Rig()
    with pytest.raises(Unroutable, match="there is no queue 'nowhere'"):
        rig.publish("nowhere")


def test_an_empty_key_means_every_receivers_inbox() -> None:
    rig = Rig()
    for name in ("ann", "bob", "cid"):
        rig.queue(name, inbox=True, owner=name)
    rig.publish("", receivers=("ann", "cid"))
    assert [rig.info(name).messages_ready for name in ("ann", "bob", "cid")] == [1, 0, 1]


def test_a_receiver_without_an_inbox_is_named_and_nobody_gets_it() -> None:
    rig = Rig()
    rig.queue("ann", inbox=True, owner="ann")
    rig.queue("bob")  # of that name, but nobody's inbox
    for receivers in (("ann", "bob"), ("ann", "zoe")):
        with pytest.raises(Unroutable, match=f"client {receivers[1]!r} has no inbox"):
            rig.publish("", receivers=receivers)
    assert rig.info("ann").batches == rig.info("bob").batches == 0


def test_an_unknown_exchange_is_not_found_and_no_match_is_unroutable() -> None:
    rig = Rig()
    rig.queue()
    with pytest.raises(NotFound, match="no exchange 'e'"):
        rig.publish("k", exchange="e")
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.TOPIC))
    rig.broker.bind(Binding("e", "q", "a.*"))
    with pytest.raises(Unroutable, match=r"exchange 'e' for the routing key 'b\.c'"):
        rig.publish("b.c", exchange="e")
    rig.publish("a.c", exchange="e")
    assert rig.info().messages_ready == 1


def test_one_record_lists_all_queues() -> None:
    rig = Rig()
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.FANOUT))
    for name in ("a", "b", "c"):
        rig.queue(name)
        rig.broker.bind(Binding("e", name))
    before = rig.log.last_lsn
    outcome = accepted(rig.publish_again(1, "", exchange="e"))
    assert outcome.queues == 3
    assert rig.kinds(since=before) == [Kind.BATCH]
    rig.restart()
    assert [rig.info(name).messages_ready for name in ("a", "b", "c")] == [1, 1, 1]


def test_refused_whole_if_one_queue_is_full() -> None:
    rig = Rig()
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.FANOUT))
    rig.queue("wide")
    rig.queue("narrow", max_messages=3)
    for name in ("wide", "narrow"):
        rig.broker.bind(Binding("e", name))
    rig.publish("", exchange="e", count=2)
    before = rig.log.last_lsn
    with pytest.raises(QueueFull, match=r"'narrow' is full: it holds 2 of at most 3 messages"):
        rig.publish("", exchange="e", count=2)
    assert rig.log.last_lsn == before
    assert rig.info("wide").messages_ready == rig.info("narrow").messages_ready == 2
    rig.publish("", exchange="e", count=1)


def test_a_queue_is_full_by_bytes_too_and_an_ack_makes_room() -> None:
    rig = Rig()
    rig.queue(max_bytes=250)
    rig.publish(size=100)
    rig.publish(size=150)
    with pytest.raises(QueueFull, match=r"holds 250 of at most 250 bytes and the batch has 1"):
        rig.publish(size=1)
    rig.ack(rig.fetch(Connection())[0])
    rig.publish(size=100)


def test_a_refused_batch_may_come_again() -> None:
    rig = Rig()
    rig.queue(max_messages=1)
    rig.publish()
    with pytest.raises(QueueFull):
        rig.publish_again(7)
    rig.ack(rig.fetch(Connection())[0])
    assert not accepted(rig.publish_again(7)).duplicate


def test_too_many_targets_are_refused_with_the_limit() -> None:
    rig = Rig(BrokerLimits(max_targets=2))
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.FANOUT))
    for name in ("a", "b", "c"):
        rig.queue(name)
        rig.broker.bind(Binding("e", name))
    with pytest.raises(ResourceLimit, match=r"leads to 3 queues .* one batch may go to 2"):
        rig.publish("", exchange="e")


# --- what is durable ----------------------------------------------------------------------------


def test_only_what_is_durable_is_given_out() -> None:
    rig = Rig()
    rig.queue()
    rig.consume()
    first = accepted(rig.publish_again(1, durable=False))
    second = accepted(rig.publish_again(2, durable=False))
    assert rig.deliveries() == []
    assert rig.fetch(Connection()) == []
    assert rig.broker.peek("q", 10) == []
    rig.broker.durable(first.lsn)
    assert numbers(rig.deliveries()) == [1]
    rig.broker.durable(second.lsn)
    assert numbers(rig.deliveries()) == [2]


def test_a_batch_that_the_disk_refused_was_never_there() -> None:
    rig = Rig()
    rig.queue()
    rig.consume()
    outcome = accepted(rig.publish_again(1, count=3, durable=False))
    assert rig.info().messages_ready == 3
    rig.broker.undo(outcome.lsn)
    rig.sync()
    assert rig.deliveries() == []
    assert rig.info().messages_ready == rig.info().bytes == rig.info().batches == 0
    assert not accepted(rig.publish_again(1, count=3)).duplicate
    assert numbers(rig.deliveries()) == [1]


def test_undoing_what_was_purged_meanwhile_is_no_error() -> None:
    rig = Rig()
    rig.queue()
    outcome = accepted(rig.publish_again(1, durable=False))
    assert rig.broker.purge("q") == 1
    rig.broker.undo(outcome.lsn)
    rig.broker.undo(outcome.lsn)
    assert not accepted(rig.publish_again(1)).duplicate


# --- repeats ------------------------------------------------------------------------------------


def test_a_repeat_is_confirmed_once_the_original_is_durable() -> None:
    rig = Rig()
    rig.queue()
    original = accepted(rig.publish_again(1, durable=False))
    repeat = accepted(rig.publish_again(1, durable=False))
    assert repeat == Accepted(original.lsn, original.seq, 0, duplicate=True)
    rig.sync()
    assert accepted(rig.publish_again(1)) == Accepted(0, 0, 0, duplicate=True)
    assert rig.info().messages_ready == 1


def test_a_repeat_is_recognised_even_when_its_queue_is_gone_or_full() -> None:
    rig = Rig()
    rig.queue(max_messages=1)
    rig.publish_again(1)
    assert accepted(rig.publish_again(1)).duplicate
    rig.broker.delete_queue("q", if_empty=False, if_unused=False)
    assert accepted(rig.publish_again(1)).duplicate


def test_other_bytes_under_the_same_id_are_refused() -> None:
    rig = Rig()
    rig.queue()
    rig.publish_again(1, fingerprint=5)
    with pytest.raises(ConflictingDuplicate, match=r"published batch .* before, with other bytes"):
        rig.publish_again(1, fingerprint=6)
    assert rig.info().messages_ready == 1


def test_another_clients_batch_of_the_same_id_is_another_batch() -> None:
    rig = Rig()
    rig.queue()
    rig.publish_again(1, client="ann", fingerprint=5)
    assert not accepted(rig.publish_again(1, client="bob", fingerprint=6)).duplicate
    assert rig.info().messages_ready == 2


def test_repeats_are_recognised_for_the_window_and_not_for_ever() -> None:
    rig = Rig()
    rig.queue()
    rig.publish_again(1)
    rig.advance(600 - 1)
    assert accepted(rig.publish_again(1)).duplicate
    rig.advance(5)
    assert rig.broker.counts()["dedup_entries"] == 0
    assert not accepted(rig.publish_again(1)).duplicate


def test_the_window_survives_a_restart() -> None:
    rig = Rig()
    rig.queue()
    rig.publish_again(1, fingerprint=5)
    rig.ack(rig.fetch(Connection())[0])
    rig.now += 500_000
    rig.restart()
    assert accepted(rig.publish_again(1, fingerprint=5)).duplicate
    with pytest.raises(ConflictingDuplicate):
        rig.publish_again(1, fingerprint=6)
    rig.now += 110_000
    rig.restart()
    assert not accepted(rig.publish_again(1, fingerprint=6)).duplicate


def test_too_many_repeats_to_remember_are_counted() -> None:
    rig = Rig(BrokerLimits(max_dedup_entries=100))
    rig.queue()
    for _ in range(150):
        rig.publish()
    counts = rig.broker.counts()
    assert counts["dedup_entries"] <= 100
    assert counts["dedup_overflow"] >= 50
    assert counts["dedup_entries"] + counts["dedup_overflow"] == 150
    assert accepted(rig.publish_again(150)).duplicate
    assert not accepted(rig.publish_again(1)).duplicate
