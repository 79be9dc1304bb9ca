from __future__ import annotations

import pytest
from broker_rig import Connection, Rig, number, numbers

from ciphermq import limits
from ciphermq.errors import AccessRefused, BadRequest, NotFound

# --- order and turns ----------------------------------------------------------------------------


def test_oldest_first_and_a_returned_batch_goes_back_to_its_place() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(5):
        rig.publish()
    holder = Connection()
    assert numbers(rig.fetch(holder, messages=3)) == [1, 2, 3]
    other = Connection()
    assert numbers(rig.fetch(other, messages=1)) == [4]
    rig.broker.release(holder, rig.now)
    rig.broker.release(other, rig.now)
    assert numbers(rig.fetch(Connection(), messages=9)) == [1, 2, 3, 4, 5]


def test_credit_counts_messages_and_a_batch_goes_out_while_there_is_any() -> None:
    rig = Rig()
    rig.queue()
    for count in (2, 3, 4, 1):
        rig.publish(count=count)
    consumer, _ = rig.consume(credit=4)
    assert numbers(rig.deliveries()) == [1, 2]  # 2 + 3: over by one, and no further
    rig.broker.add_credit(consumer, 1)
    assert rig.deliveries() == []  # which only pays for what was over
    rig.broker.add_credit(consumer, 1)
    assert numbers(rig.deliveries()) == [3]
    rig.broker.add_credit(consumer, 4)
    assert numbers(rig.deliveries()) == [4]


def test_a_consumer_without_credit_is_given_nothing() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    consumer, _ = rig.consume(credit=0)
    assert rig.deliveries() == []
    rig.broker.add_credit(consumer, 1)
    assert numbers(rig.deliveries()) == [1]


def test_credit_has_a_bound_and_is_never_taken_back() -> None:
    rig = Rig()
    rig.queue()
    consumer, _ = rig.consume(credit=5)
    for _ in range(3):
        rig.broker.add_credit(consumer, limits.MAX_CREDIT)
    with pytest.raises(BadRequest, match="can only ask for more"):
        rig.broker.add_credit(consumer, -1)
    rig.publish()
    assert len(rig.deliveries()) == 1
    rig.broker.add_credit(999, 1)  # an ended consumer's: no error


def test_consumers_take_turns() -> None:
    rig = Rig()
    rig.queue()
    first, _ = rig.consume()
    second, _ = rig.consume()
    third, _ = rig.consume(credit=1)
    for _ in range(7):
        rig.publish()
    given = [held.consumer.number for held in rig.deliveries() if held.consumer]
    assert given == [first, second, third, first, second, first, second]


def test_who_is_not_writable_loses_no_more_than_its_turn() -> None:
    rig = Rig()
    rig.queue()
    slow, connection = rig.consume()
    fast, _ = rig.consume()
    connection.writable = False
    for _ in range(3):
        rig.publish()
    assert {held.consumer.number for held in rig.deliveries() if held.consumer} == {fast}
    connection.writable = True
    rig.publish()
    rig.broker.resume(connection)
    rig.publish()
    given = [held.consumer.number for held in rig.deliveries() if held.consumer]
    assert sorted(given) == [slow, fast]


def test_nobody_writable_then_writable_again() -> None:
    rig = Rig()
    rig.queue()
    _, connection = rig.consume()
    connection.writable = False
    rig.publish()
    assert rig.deliveries() == []
    connection.writable = True
    rig.broker.resume(connection)
    assert numbers(rig.deliveries()) == [1]


def test_busy_queues_take_turns() -> None:
    rig = Rig()
    for name in ("a", "b"):
        rig.queue(name)
        rig.consume(name)
        for _ in range(3):
            rig.publish(name)
    given = []
    while (queue := rig.broker.next_busy()) is not None:
        if held := rig.broker.next_delivery(queue, rig.now):
            given.append(held.entry.queue.spec.name)
    assert given == ["a", "b"] * 3


def test_fetch_takes_until_it_has_enough() -> None:
    rig = Rig()
    rig.queue()
    for count in (2, 2, 2):
        rig.publish(count=count)
    assert numbers(rig.fetch(Connection(), messages=3)) == [1, 2]
    assert numbers(rig.fetch(Connection(), messages=1)) == [3]
    assert rig.fetch(Connection(), messages=1) == []
    with pytest.raises(NotFound, match="no queue 'nowhere'"):
        rig.fetch(Connection(), "nowhere")


# --- settling -----------------------------------------------------------------------------------


def test_acks_are_by_message_and_by_batch() -> None:
    rig = Rig()
    rig.queue()
    rig.publish(count=4)
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.ack(held, 1, 3)
    assert rig.info().messages_unacked == 2
    rig.broker.release(connection, rig.now)
    (again,) = rig.fetch(connection)
    assert again.bits == 0b0101
    rig.ack(again)
    assert rig.info().batches == rig.info().messages_ready == rig.info().bytes == 0
    assert rig.broker.counts()["batches"] == 0


def test_an_ack_is_idempotent_and_its_own_connections_only() -> None:
    rig = Rig()
    rig.queue()
    rig.publish(count=2)
    connection = Connection()
    (held,) = rig.fetch(connection)
    with pytest.raises(AccessRefused, match="hands of another connection"):
        rig.broker.ack(Connection(), held.tag, None, rig.now)
    rig.ack(held, 0)
    before = rig.log.last_lsn
    rig.ack(held, 0)
    assert rig.log.last_lsn == before  # nothing new to write down
    rig.ack(held)
    rig.ack(held)
    rig.broker.ack(Connection(), held.tag, None, rig.now)  # settled: nobody's any more
    with pytest.raises(BadRequest, match="never was a delivery with tag 99"):
        rig.broker.ack(connection, 99, None, rig.now)


def test_bits_beyond_the_delivery_mean_nothing() -> None:
    rig = Rig()
    rig.queue()
    rig.publish(count=2)
    (held,) = rig.fetch(Connection())
    rig.broker.ack(held.owner, held.tag, 0b11100, rig.now)
    assert rig.info().messages_unacked == 2
    rig.broker.ack(held.owner, held.tag, 0b11101, rig.now)
    assert rig.info().messages_unacked == 1


def test_a_batch_is_finished_when_no_queue_holds_any_of_it() -> None:
    rig = Rig()
    for name in ("ann", "bob"):
        rig.queue(name, inbox=True, owner=name)
    rig.publish("", receivers=("ann", "bob"), count=2)
    rig.ack(rig.fetch(Connection(), "ann")[0])
    assert rig.log.finished_places == []
    rig.ack(rig.fetch(Connection(), "bob")[0])
    assert rig.log.finished_places == [0]
    assert rig.broker.counts()["batches"] == 0


def test_events_are_told_with_their_messages() -> None:
    rig = Rig()
    rig.queue()
    rig.publish(count=3)
    (held,) = rig.fetch(Connection())
    rig.ack(held, 0, 1)
    rig.nack(held, requeue=False)
    assert [(event, number(batch), count) for event, batch, count in rig.log.events] == [
        ("acked", 1, 2),
        ("dead", 1, 1),
    ]


# --- tries, back-off, time-outs -----------------------------------------------------------------


def test_a_nack_comes_back_after_one_second_and_then_twice_as_long() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    connection = Connection()
    for tries, pause in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        (held,) = rig.fetch(connection)
        assert held.redeliveries == tries
        assert held.redelivered == (tries > 0)
        rig.nack(held)
        rig.advance(pause - 0.01)
        assert rig.fetch(connection) == []
        rig.advance(0.1)


def test_a_nack_counts_for_its_messages_only() -> None:
    rig = Rig()
    rig.queue(max_tries=2)
    rig.publish(count=3)
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.nack(held, 1)
    rig.advance(1.1)
    (again,) = rig.fetch(connection)
    assert again.bits == 0b010
    rig.nack(again)
    assert rig.dead() == [(1, 0b010, "tries")]
    assert rig.info().messages_unacked == 2
    rig.nack(held)
    rig.advance(1.1)
    (last,) = rig.fetch(connection)
    assert last.bits == 0b101
    assert last.redeliveries == 1


def test_messages_of_one_batch_wait_each_for_its_own_back_off() -> None:
    rig = Rig()
    rig.queue()
    rig.publish(count=2)
    connection = Connection()
    rig.nack(rig.fetch(connection)[0], 0)
    rig.advance(1.1)
    held = rig.fetch(connection)[0]
    rig.nack(held)  # message 0 for the second time: 2 s
    (first,) = rig.broker._state.deliveries.held_by(connection)
    rig.nack(first)  # message 1 for the first time: 1 s
    rig.advance(1.1)
    (held,) = rig.fetch(connection)
    assert held.bits == 0b10
    rig.advance(1)
    (held,) = rig.fetch(connection)
    assert held.bits == 0b01
    assert held.redeliveries == 2


def test_others_are_delivered_while_one_waits_for_its_back_off() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(3):
        rig.publish()
    rig.consume(credit=1)
    (first,) = rig.deliveries()
    rig.nack(first)
    consumer, _ = rig.consume()
    assert numbers(rig.deliveries()) == [2, 3]
    rig.advance(1.1)
    again = rig.deliveries()
    assert numbers(again) == [1]
    assert again[0].consumer is not None
    assert again[0].consumer.number == consumer


def test_twenty_nacks_make_a_dead_letter() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    connection = Connection()
    for _ in range(20):
        assert rig.dead() == []
        rig.nack(rig.fetch(connection)[0], detail="no such customer")
        rig.advance(61)
    assert rig.dead() == [(1, 1, "tries")]
    (entry,) = rig.broker.peek("dead.q", 1)
    assert entry.dead is not None
    assert (entry.dead.queue, entry.dead.detail) == ("q", "no such customer")
    assert rig.info().batches == 0


def test_a_time_out_counts_as_a_try_and_comes_back_at_once() -> None:
    rig = Rig()
    rig.queue(max_tries=2)
    rig.publish()
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.advance(299.9)
    assert rig.fetch(connection) == []
    rig.advance(0.2)
    assert held.bits == 0
    (held,) = rig.fetch(connection)
    assert held.redeliveries == 1
    rig.advance(300.1)
    assert rig.dead() == [(1, 1, "timeout")]
    rig.ack(held)  # too late, and no error


def test_each_ack_restarts_the_time_out_and_the_queue_sets_it() -> None:
    rig = Rig()
    rig.queue(ack_timeout_ms=10_000)
    rig.publish(count=5)
    (held,) = rig.fetch(Connection())
    for index in range(4):
        rig.advance(9)
        rig.ack(held, index)
    assert rig.info().messages_unacked == 1
    rig.advance(9.9)
    assert held.bits
    rig.advance(0.2)
    assert not held.bits


def test_no_time_out_when_the_queue_wants_none() -> None:
    rig = Rig()
    rig.queue(ack_timeout_ms=0)
    rig.publish()
    (held,) = rig.fetch(Connection())
    rig.advance(365 * 86_400)
    assert held.bits


def test_a_lost_connection_counts_no_try_but_marks() -> None:
    rig = Rig()
    rig.queue(max_tries=1)
    rig.publish()
    for times in range(30):
        _, connection = rig.consume()
        (held,) = rig.deliveries()
        assert (held.redeliveries, held.redelivered) == (times, times > 0)
        rig.broker.release(connection, rig.now)
        assert rig.broker.counts()["consumers"] == rig.broker.counts()["deliveries"] == 0
    assert rig.dead() == []


# --- consumers end ------------------------------------------------------------------------------


def test_the_same_client_and_name_supersede_their_ghost_whose_deliveries_return_first() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(3):
        rig.publish()
    ghost, _ = rig.consume(name="printer", credit=2)
    assert numbers(rig.deliveries()) == [1, 2]
    consumer, ghosts = rig.broker.consume(
        "q", client="r", consumer_name="printer", credit=9, outlet=Connection(), now=rig.now
    )
    assert [each.number for each in ghosts] == [ghost]
    given = rig.deliveries()
    assert numbers(given) == [1, 2, 3]
    assert {held.consumer for held in given} == {consumer}


def test_other_names_other_clients_and_no_name_supersede_nobody() -> None:
    rig = Rig()
    rig.queue()
    rig.queue("p")
    rig.consume(name="printer")
    rig.consume(name="printer", client="somebody else")
    rig.consume(name="other")
    rig.consume("p", name="printer")
    rig.consume()
    rig.consume()
    assert rig.broker.counts()["consumers"] == 6


def test_cancelled_keeps_what_is_in_hand_unless_it_lets_go() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    rig.publish()
    consumer, _ = rig.consume(credit=1)
    (held,) = rig.deliveries()
    rig.broker.cancel(consumer, release=False, now=rig.now)
    assert rig.info().messages_unacked == 1
    rig.ack(held)
    consumer, _ = rig.consume(credit=1)
    (held,) = rig.deliveries()
    assert rig.broker.cancel(consumer, release=True, now=rig.now) is not None
    assert rig.info().messages_unacked == 0
    assert rig.broker.cancel(consumer, release=True, now=rig.now) is None
    (held,) = rig.fetch(Connection())
    assert (held.redeliveries, held.redelivered) == (1, True)


def test_what_never_reached_its_consumer_goes_back_unmarked() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    consumer, _ = rig.consume()
    (held,) = rig.deliveries()
    rig.broker.cancel(consumer, release=False, now=rig.now)
    rig.broker.give_back(held, rig.now)
    rig.broker.give_back(held, rig.now)
    (held,) = rig.fetch(Connection())
    assert (held.redeliveries, held.redelivered) == (0, False)


def test_release_takes_only_what_is_the_owners() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(2):
        rig.publish()
    mine, others = Connection(), Connection()
    rig.fetch(mine)
    (held,) = rig.fetch(others)
    rig.broker.release(mine, rig.now)
    rig.broker.release(mine, rig.now)
    assert rig.info().messages_unacked == 1
    rig.ack(held)


# --- damage -------------------------------------------------------------------------------------


def test_a_damaged_batch_is_set_aside_and_blocks_nothing() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    rig.publish()
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.broker.damaged(held, "segment 1, offset 5", rig.now)
    rig.broker.damaged(held, "segment 1, offset 5", rig.now)
    rig.sync()
    assert rig.dead() == [(1, 1, "payload-damaged")]
    assert numbers(rig.fetch(connection)) == [2]
    (dead,) = rig.fetch(connection, "dead.q")
    rig.broker.damaged(dead, "still", rig.now)
    rig.advance(100)
    assert rig.fetch(connection, "dead.q") == []
    assert rig.dead() == [(1, 1, "payload-damaged")]  # to be seen, and to be purged
    assert rig.broker.purge("dead.q") == 1
