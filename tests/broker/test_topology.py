from __future__ import annotations

import pytest
from broker_rig import Connection, Rig

from ciphermq import limits
from ciphermq.broker import BrokerLimits
from ciphermq.errors import BadRequest, NotFound, PreconditionFailed, ResourceLimit, Unroutable
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType, QueueSpec


def test_declaring_what_exists_is_agreement_whoever_owns_it() -> None:
    rig = Rig()
    rig.queue(owner="ann", ttl_ms=5)
    rig.publish()
    before = rig.log.last_lsn
    info = rig.broker.declare_queue(QueueSpec("q", owner="bob", ttl_ms=5))
    assert info.spec.owner == "ann"
    assert info.messages_ready == 1
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.TOPIC, "ann"))
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.TOPIC, "bob"))
    assert rig.broker.exchange("e") == ExchangeSpec("e", ExchangeType.TOPIC, "ann")
    assert rig.log.last_lsn == before + 1


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("inbox", True),
        ("max_messages", 7),
        ("max_bytes", 7),
        ("ttl_ms", 7),
        ("dead_letter_exchange", "e"),
        ("dead_letter_key", "k"),
        ("max_tries", 7),
        ("ack_timeout_ms", 7),
    ],
)
def test_declaring_it_otherwise_is_refused_with_the_member(member: str, value: object) -> None:
    rig = Rig()
    rig.queue()
    with pytest.raises(
        PreconditionFailed, match=rf"queue 'q' exists with {member} .*not {value!r}"
    ):
        rig.queue(**{member: value})


def test_an_exchange_of_another_type_is_refused() -> None:
    rig = Rig()
    rig.broker.declare_exchange(ExchangeSpec("e"))
    with pytest.raises(PreconditionFailed, match=r"exists with type 'direct', not 'fanout'$"):
        rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.FANOUT))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (QueueSpec(""), "name for the queue is missing"),
        (QueueSpec("q" * 251), "over 250 bytes"),
        (QueueSpec("ü" * 126), "over 250 bytes"),
        (QueueSpec("a\nb"), "can't be printed"),
        (QueueSpec("a\u202eb"), "can't be printed"),
        (QueueSpec("q", max_messages=0), "max_messages 0: 1 to"),
        (QueueSpec("q", max_bytes=0), "max_bytes 0: 1 to"),
        (QueueSpec("q", ttl_ms=-1), "ttl_ms -1: 0 to"),
        (QueueSpec("q", max_tries=0), "max_tries 0: 1 to"),
        (QueueSpec("q", ack_timeout_ms=-1), "ack_timeout_ms -1: 0 to"),
        (QueueSpec("q", ack_timeout_ms=10**15), "ack_timeout_ms 1000000000000000: 0 to"),
        (QueueSpec("q", dead_letter_exchange="\x00"), "dead_letter_exchange"),
        (QueueSpec("q", dead_letter_key="k" * 256), "dead_letter_key"),
    ],
)
def test_a_queue_that_makes_no_sense_is_refused(spec: QueueSpec, says: str) -> None:
    rig = Rig()
    with pytest.raises(BadRequest, match=says):
        rig.broker.declare_queue(spec)
    assert rig.broker.queues() == []


def test_the_longest_name_has_dead_letters_too() -> None:
    rig = Rig()
    name = "q" * 250
    rig.queue(name)
    rig.publish(name)
    (held,) = rig.fetch(Connection(), name)
    rig.nack(held, requeue=False)
    assert len(f"dead.{name}") == limits.MAX_NAME
    assert rig.info(f"dead.{name}").messages_ready == 1


def test_a_dead_letter_queue_can_be_declared_as_it_will_be() -> None:
    rig = Rig()
    with pytest.raises(NotFound, match="no queue 'q'"):
        rig.queue("dead.q")
    rig.queue(owner="ann", ttl_ms=1000)
    with pytest.raises(PreconditionFailed, match="exists with ttl_ms 0, not 5"):
        rig.queue("dead.q", ttl_ms=5)
    assert rig.queue("dead.q", owner="bob").spec == QueueSpec("dead.q", owner="ann")
    rig.queue("dead.q")
    with pytest.raises(BadRequest, match="no dead letters of their own"):
        rig.queue("dead.dead.q")


def test_numbers_are_limited() -> None:
    rig = Rig(BrokerLimits(max_queues=2, max_exchanges=1, max_bindings=1))
    rig.queue("a")
    rig.queue("b")
    with pytest.raises(ResourceLimit, match="there are 2 queues, and max_queues is 2"):
        rig.queue("c")
    rig.broker.declare_exchange(ExchangeSpec("e"))
    with pytest.raises(ResourceLimit, match="max_exchanges is 1"):
        rig.broker.declare_exchange(ExchangeSpec("f"))
    rig.broker.bind(Binding("e", "a", "k"))
    rig.broker.bind(Binding("e", "a", "k"))
    with pytest.raises(ResourceLimit, match="max_bindings is 1"):
        rig.broker.bind(Binding("e", "b", "k"))
    rig.broker.unbind(Binding("e", "a", "k"))
    rig.broker.bind(Binding("e", "b", "k"))
    rig.broker.delete_queue("b", if_empty=False, if_unused=False)
    rig.broker.bind(Binding("e", "a", "k"))
    rig.broker.delete_exchange("e", if_unused=False)
    assert rig.broker.counts()["bindings"] == 0


def test_the_default_exchange_is_nobodys() -> None:
    rig = Rig()
    rig.queue()
    for attempt in (
        lambda: rig.broker.declare_exchange(ExchangeSpec("")),
        lambda: rig.broker.delete_exchange("", if_unused=False),
        lambda: rig.broker.bind(Binding("", "q", "k")),
        lambda: rig.broker.unbind(Binding("", "q", "k")),
    ):
        with pytest.raises(BadRequest, match="default exchange"):
            attempt()


def test_what_is_not_there_is_not_found() -> None:
    rig = Rig()
    rig.queue()
    rig.broker.declare_exchange(ExchangeSpec("e"))
    for says, attempt in {
        "no queue 'x'": lambda: rig.broker.delete_queue("x", if_empty=False, if_unused=False),
        "no queue 'y'": lambda: rig.broker.bind(Binding("e", "y")),
        "no exchange 'x'": lambda: rig.broker.delete_exchange("x", if_unused=False),
        "no exchange 'y'": lambda: rig.broker.bind(Binding("y", "q")),
        "'q' is not bound to exchange 'e'": lambda: rig.broker.unbind(Binding("e", "q", "k")),
        "no queue 'z'": lambda: rig.broker.purge("z"),
        "no queue 'w'": lambda: rig.broker.peek("w", 1),
    }.items():
        with pytest.raises(NotFound, match=says):
            attempt()


def test_deleting_a_queue_takes_its_messages_bindings_and_consumers() -> None:
    rig = Rig()
    rig.queue()
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.FANOUT))
    rig.broker.bind(Binding("e", "q"))
    for _ in range(3):
        rig.publish(count=2)
    number, connection = rig.consume(credit=1)
    (held,) = rig.deliveries()
    lost, ended = rig.broker.delete_queue("q", if_empty=False, if_unused=False)
    assert lost == 6
    assert [consumer.number for consumer in ended] == [number]
    assert rig.broker.bindings() == []
    assert len(rig.log.finished_places) == 3
    rig.ack(held)  # gone already, and no error
    rig.broker.release(connection, rig.now)
    with pytest.raises(Unroutable):
        rig.publish("", exchange="e")
    counts = rig.broker.counts()
    assert counts["batches"] == counts["deliveries"] == counts["consumers"] == 0


def test_deleting_only_if_empty_or_unused() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    number, _ = rig.consume(credit=0)
    with pytest.raises(PreconditionFailed, match="holds 1 messages"):
        rig.broker.delete_queue("q", if_empty=True, if_unused=False)
    with pytest.raises(PreconditionFailed, match="has 1 consumers"):
        rig.broker.delete_queue("q", if_empty=False, if_unused=True)
    rig.broker.cancel(number, release=True, now=rig.now)
    rig.broker.purge("q")
    assert rig.broker.delete_queue("q", if_empty=True, if_unused=True) == (0, [])
    rig.broker.declare_exchange(ExchangeSpec("e"))
    rig.queue()
    rig.broker.bind(Binding("e", "q", "k"))
    with pytest.raises(PreconditionFailed, match="has 1 bindings"):
        rig.broker.delete_exchange("e", if_unused=True)
    rig.broker.unbind(Binding("e", "q", "k"))
    rig.broker.delete_exchange("e", if_unused=True)


def test_a_new_queue_of_an_old_name_is_another_queue() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    rig.broker.delete_queue("q", if_empty=False, if_unused=False)
    rig.queue(ttl_ms=5000)
    number = rig.publish()
    rig.restart()
    assert rig.waiting() == [(number, 1)]
    assert rig.info().spec.ttl_ms == 5000


def test_purge_spares_what_is_in_hand_or_still_to_come() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(3):
        rig.publish(count=2)
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.nack(held, 0)  # waits for its back-off
    assert rig.broker.purge("q") == 5
    assert rig.info().messages_ready == 0
    assert rig.info().messages_unacked == 1
    assert rig.broker.purge("q") == 0
    later = rig.publish()
    rig.advance(5)
    rig.broker.release(connection, rig.now)
    assert rig.waiting() == [(1, 0b10), (later, 1)]
    rig.restart()
    assert rig.waiting() == [(1, 0b10), (later, 1)]


def test_peek_shows_the_oldest_wherever_they_are() -> None:
    rig = Rig()
    rig.queue()
    for _ in range(5):
        rig.publish(count=2)
    connection = Connection()
    (first,) = rig.fetch(connection)
    (second,) = rig.fetch(connection)
    rig.fetch(connection)
    rig.nack(second)
    rig.nack(first, 1)
    assert [number for number, _ in rig.waiting()] == [1, 2, 3, 4, 5]
    assert len(rig.broker.peek("q", 2)) == 2
    assert rig.broker.peek("q", 0) == []
