from __future__ import annotations

import pytest
from broker_rig import Connection, Rig, numbers

from ciphermq import limits
from ciphermq.broker.records import Kind
from ciphermq.errors import BadRequest, NotFound, QueueFull
from ciphermq.model.topology import Binding, ExchangeSpec


def reject(rig: Rig, queue: str = "q", *, reason: str = "bad-signature", detail: str = "") -> None:
    (held,) = rig.fetch(Connection(), queue)
    rig.nack(held, requeue=False, reason=reason, detail=detail)


def redrive(rig: Rig, queue: str = "dead.q", messages: int | None = None) -> int:
    work = rig.broker.redrive(queue, messages)
    while work.step(2, rig.now):
        pass
    rig.sync()
    return work.moved


# --- there --------------------------------------------------------------------------------------


def test_a_rejected_message_moves_in_one_record_with_its_reason() -> None:
    rig = Rig()
    rig.queue(owner="ann")
    rig.publish(count=3)
    (held,) = rig.fetch(Connection())
    before = rig.log.last_lsn
    rig.nack(held, 0, 2, requeue=False, reason="bad-signature", detail="offset 7")
    assert rig.kinds(since=before) == [Kind.DECLARE_QUEUE, Kind.DEAD]
    assert rig.dead() == [(1, 0b101, "bad-signature")]
    info = rig.info("dead.q")
    assert info.spec.owner == "ann"
    assert info.messages_ready == 2
    assert rig.info().messages_unacked == 1
    (dead,) = rig.fetch(Connection(), "dead.q")
    assert dead.entry.dead is not None
    assert dead.entry.dead.queue == "q"
    assert dead.entry.dead.detail == "offset 7"
    assert dead.entry.dead.at_ms == rig.now
    assert dead.redeliveries == 0


def test_reasons_and_details_are_bounded() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    reject(rig, reason="r" * 10_000, detail="d" * 10_000)
    (entry,) = rig.broker.peek("dead.q", 1)
    assert entry.dead is not None
    assert len(entry.dead.reason) == limits.MAX_DEAD_REASON
    assert len(entry.dead.detail) == limits.MAX_DEAD_DETAIL


def test_a_dead_letter_is_given_out_only_when_its_record_is_durable() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    (held,) = rig.fetch(Connection())
    rig.broker.nack(held.owner, held.tag, None, requeue=False, reason="x", detail="", now=rig.now)
    assert rig.fetch(Connection(), "dead.q") == []
    rig.sync()
    assert len(rig.fetch(Connection(), "dead.q")) == 1


def test_the_queues_dead_letter_exchange_is_used_with_its_key_or_the_batchs() -> None:
    rig = Rig()
    rig.broker.declare_exchange(ExchangeSpec("failures"))
    rig.queue("q", dead_letter_exchange="failures")
    rig.queue("p", dead_letter_exchange="failures", dead_letter_key="special")
    rig.queue("by-own-key")
    rig.queue("by-given-key")
    rig.broker.bind(Binding("failures", "by-own-key", "q"))
    rig.broker.bind(Binding("failures", "by-given-key", "special"))
    first = rig.publish("q")
    second = rig.publish("p")
    reject(rig, "q")
    reject(rig, "p")
    assert rig.waiting("by-own-key") == [(first, 1)]
    assert rig.waiting("by-given-key") == [(second, 1)]
    assert rig.broker.queue("dead.q") is None


def test_the_default_exchange_can_be_the_dead_letter_exchange() -> None:
    rig = Rig()
    rig.queue("q", dead_letter_exchange="", dead_letter_key="graves")
    rig.queue("graves")
    rig.publish()
    reject(rig)
    assert rig.waiting("graves") == [(1, 1)]


@pytest.mark.parametrize("fault", ["no exchange", "no binding", "target full"])
def test_an_exchange_that_leads_nowhere_falls_back_to_the_queues_own(fault: str) -> None:
    rig = Rig()
    rig.queue(dead_letter_exchange="failures")
    rig.queue("target", max_messages=1)
    if fault != "no exchange":
        rig.broker.declare_exchange(ExchangeSpec("failures"))
    if fault == "target full":
        rig.broker.bind(Binding("failures", "target", "q"))
        rig.publish("target")
    number = rig.publish()
    reject(rig)
    assert rig.dead() == [(number, 1, "bad-signature")]


def test_no_set_of_exchanges_makes_a_message_go_round() -> None:
    rig = Rig()
    rig.queue("q", dead_letter_exchange="", dead_letter_key="p", ttl_ms=1000)
    rig.queue("p", dead_letter_exchange="", dead_letter_key="q", ttl_ms=1000)
    rig.publish()
    rig.advance(1.5)
    assert rig.waiting("p") == [(1, 1)]
    rig.advance(1.5)
    assert rig.waiting("q") == []
    assert rig.dead("dead.p") == [(1, 1, "expired")]
    rig.advance(1000)
    assert rig.dead("dead.p") == [(1, 1, "expired")]


def test_a_dead_letter_refused_is_only_put_off() -> None:
    rig = Rig()
    rig.queue(max_tries=1)
    rig.publish()
    reject(rig)
    for _ in range(30):
        reject(rig, "dead.q", reason="again")
        assert rig.fetch(Connection(), "dead.q") == []
        rig.advance(61)
    assert rig.dead() == [(1, 1, "bad-signature")]
    assert rig.broker.queue("dead.dead.q") is None
    rig.ack(rig.fetch(Connection(), "dead.q")[0])
    assert rig.dead() == []


def test_the_dead_letter_queue_is_made_even_over_the_limit() -> None:
    from ciphermq.broker import BrokerLimits

    rig = Rig(BrokerLimits(max_queues=1))
    rig.queue()
    rig.publish()
    reject(rig)
    assert rig.dead() == [(1, 1, "bad-signature")]


# --- expiry -------------------------------------------------------------------------------------


def test_the_earlier_of_the_queues_and_the_batchs_time_counts() -> None:
    rig = Rig()
    rig.queue("short", ttl_ms=10_000)
    rig.queue("none")
    for name in ("short", "none"):
        rig.publish(name, expires_ms=rig.now + 20_000)
        rig.publish(name, expires_ms=rig.now + 5_000)
        rig.publish(name)
    rig.advance(4.9)
    assert rig.info("short").batches == rig.info("none").batches == 3
    rig.advance(0.4)
    assert rig.waiting("short") == [(1, 1), (3, 1)]
    assert rig.waiting("none") == [(4, 1), (6, 1)]
    rig.advance(5)
    assert rig.waiting("short") == []
    assert rig.dead("dead.short") == [(2, 1, "expired"), (1, 1, "expired"), (3, 1, "expired")]
    rig.advance(10)
    assert rig.waiting("none") == [(6, 1)]


def test_an_expired_message_is_not_given_out_even_before_its_timer() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    rig.publish()
    rig.publish()
    rig.now += 1000
    rig.consume()
    assert rig.deliveries() == []
    rig.sync()
    assert rig.dead() == [(1, 1, "expired"), (2, 1, "expired")]


def test_what_is_in_hand_expires_only_when_it_comes_back() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    rig.publish(count=3)
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.ack(held, 0)
    rig.nack(held, 1)  # waits for its back-off: in nobody's hands
    rig.advance(1.5)
    assert rig.dead() == [(1, 0b010, "expired")]
    rig.broker.release(connection, rig.now)
    rig.sweep()
    assert rig.dead() == [(1, 0b010, "expired"), (1, 0b100, "expired")]
    assert rig.info().batches == 0


def test_dead_letters_never_expire() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    rig.publish(expires_ms=rig.now + 500)
    rig.advance(10_000)
    assert rig.dead() == [(1, 1, "expired")]


def test_a_batch_not_yet_durable_expires_after_it_is() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    rig.publish_again(1, durable=False)
    rig.now += 2000
    for _ in range(3):
        rig.broker.sweep(rig.now)
    assert rig.info().batches == 1
    rig.sync()
    rig.advance(0.5)
    assert rig.dead() == [(1, 1, "expired")]


def test_a_million_expired_do_not_hold_up_the_rest() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    for number in range(1, 3001):
        rig.publish_again(number, durable=False)
    rig.sync()
    rig.now += 2000
    rig.broker.sweep(rig.now)
    assert 0 < rig.info("dead.q").batches < 1000
    deadline = rig.broker.next_deadline()
    assert deadline is not None
    assert deadline <= rig.now  # there is more
    rig.consume()
    queue = rig.broker.next_busy()
    assert queue is not None
    assert rig.broker.next_delivery(queue, rig.now) is None
    assert rig.broker.next_busy() is queue  # and here too
    rig.advance(0)
    assert rig.info("dead.q").batches == 3000
    assert rig.deliveries() == []


# --- and back -----------------------------------------------------------------------------------


def test_redrive_moves_back_unchanged_with_tries_forgotten() -> None:
    rig = Rig()
    rig.queue(max_tries=2)
    rig.publish(count=3)
    connection = Connection()
    for _ in range(2):
        (held,) = rig.fetch(connection)
        rig.nack(held)
        rig.advance(61)
    assert rig.dead() == [(1, 0b111, "tries")]
    assert redrive(rig) == 3
    assert rig.dead() == []
    (held,) = rig.fetch(connection)
    assert held.bits == 0b111
    assert (held.redeliveries, held.redelivered, held.entry.dead) == (0, False, None)
    rig.nack(held)
    rig.advance(61)
    assert len(rig.fetch(connection)) == 1  # the first of two tries again


def test_redrive_counts_messages_and_takes_the_oldest() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(3):
        rig.publish(count=3)
        reject(rig)
    assert redrive(rig, messages=4) == 4
    assert rig.waiting() == [(1, 0b111), (2, 0b001)]
    assert rig.dead() == [(2, 0b110, "bad-signature"), (3, 0b111, "bad-signature")]
    assert redrive(rig, messages=0) == 0
    assert redrive(rig) == 5
    rig.restart()
    assert rig.waiting() == [(1, 0b111), (2, 0b001), (2, 0b110), (3, 0b111)]
    assert rig.dead() == []


def test_redrive_starts_the_queues_time_again() -> None:
    rig = Rig()
    rig.queue(ttl_ms=1000)
    rig.publish()
    rig.advance(1.5)
    assert redrive(rig) == 1
    rig.advance(0.9)
    assert rig.waiting() == [(1, 1)]
    rig.restart()
    assert rig.waiting() == [(1, 1)]
    rig.advance(0.5)
    assert rig.dead() == [(1, 1, "expired")]


def test_redrive_leaves_what_is_in_hand() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(2):
        rig.publish()
        reject(rig)
    (held,) = rig.fetch(Connection(), "dead.q")
    assert numbers([held]) == [1]
    assert redrive(rig) == 1
    assert rig.waiting() == [(2, 1)]


def test_redrive_to_a_queue_that_is_gone_or_full_says_so_and_stops_nothing_else() -> None:
    rig = Rig()
    rig.broker.declare_exchange(ExchangeSpec("failures"))
    for name in ("gone", "full", "fine"):
        rig.queue(name, dead_letter_exchange="", dead_letter_key="graves", max_messages=1)
    rig.queue("graves")
    for name in ("gone", "full", "fine"):
        rig.publish(name)
        reject(rig, name)
    rig.publish("full")
    rig.broker.delete_queue("gone", if_empty=False, if_unused=False)
    assert redrive(rig, "graves") == 1
    assert rig.info("fine").messages_ready == 1
    with pytest.raises(QueueFull, match="'full' is full"):
        redrive(rig, "graves")
    rig.ack(rig.fetch(Connection(), "full")[0])
    assert redrive(rig, "graves") == 1
    with pytest.raises(NotFound, match="no queue 'gone' to bring dead letters back to"):
        redrive(rig, "graves")


def test_redrive_of_an_ordinary_queue_names_the_right_one() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    reject(rig)
    with pytest.raises(BadRequest, match=r"its own are in 'dead\.q'"):
        redrive(rig, "q")
    with pytest.raises(NotFound):
        redrive(rig, "nowhere")
    assert redrive(rig) == 1
    assert redrive(rig) == 0
