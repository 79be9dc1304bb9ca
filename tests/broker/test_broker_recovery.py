from __future__ import annotations

import pytest
from broker_rig import START, Connection, ListLog, Rig

from ciphermq.broker import Broker
from ciphermq.broker.records import Kind, encode
from ciphermq.errors import BadRequest, JournalDamaged
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType, QueueSpec


def test_everything_that_lasts_is_there_again() -> None:
    rig = Rig()
    rig.queue("plain", owner="ann", ttl_ms=100_000)
    rig.queue("inbox", inbox=True)
    rig.broker.declare_exchange(ExchangeSpec("e", ExchangeType.TOPIC, "ann"))
    rig.broker.bind(Binding("e", "plain", "a.#"))
    rig.broker.bind(Binding("e", "plain", "b"))
    rig.broker.unbind(Binding("e", "plain", "b"))
    rig.broker.declare_exchange(ExchangeSpec("gone"))
    rig.broker.delete_exchange("gone", if_unused=False)
    rig.publish("a.b", exchange="e", count=4)
    rig.publish("plain")
    (held,) = rig.fetch(Connection(), "plain")
    rig.ack(held, 0)
    rig.nack(held, 1)
    rig.nack(held, 2, requeue=False, reason="no", detail="why")
    before = (rig.broker.queues(), rig.broker.exchanges(), rig.broker.bindings())
    rig.restart()
    assert rig.broker.exchanges() == before[1]
    assert rig.broker.bindings() == before[2]
    after = {info.spec.name: info for info in rig.broker.queues()}
    assert [info.spec for info in before[0]] == [info.spec for info in rig.broker.queues()]
    assert after["plain"].messages_ready == 3
    assert after["plain"].messages_unacked == 0
    assert rig.waiting("plain") == [(1, 0b1010), (2, 1)]
    assert rig.dead("dead.plain") == [(1, 0b0100, "no")]


def test_tries_last_and_back_off_does_not() -> None:
    rig = Rig()
    rig.queue(max_tries=3)
    rig.publish(count=2)
    for _ in range(2):
        (held,) = rig.fetch(Connection())
        rig.nack(held, 1)
        rig.broker.release(held.owner, rig.now)
        rig.advance(10)
    rig.restart()
    (held,) = rig.fetch(Connection())
    assert held.bits == 0b11
    assert held.redeliveries == 2
    assert held.redelivered
    rig.nack(held)
    assert rig.dead() == [(1, 0b10, "tries")]


def test_what_waited_over_a_restart_may_have_been_given_out() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    rig.restart()
    rig.publish()
    first, second = rig.fetch(Connection(), messages=2)
    assert (first.redelivered, first.redeliveries) == (True, 0)
    assert not second.redelivered


def test_a_late_ack_from_before_the_restart_settles_nothing() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    rig.restart()
    connection = Connection()
    (old,) = rig.fetch(connection)
    rig.now += 1
    rig.restart()
    (new,) = rig.fetch(connection)
    assert new.tag > old.tag
    with pytest.raises(BadRequest, match="since the broker started"):
        rig.ack(old)
    assert rig.info().messages_unacked == 1


def test_time_goes_on_while_the_broker_is_down() -> None:
    rig = Rig()
    rig.queue(ttl_ms=60_000)
    rig.publish()
    rig.publish(expires_ms=rig.now + 10_000)
    rig.now += 30_000
    rig.restart()
    rig.advance(0)
    assert rig.waiting() == [(1, 1)]
    assert rig.dead() == [(2, 1, "expired")]
    rig.advance(31)
    assert rig.dead() == [(2, 1, "expired"), (1, 1, "expired")]


def test_a_copy_replaces_what_was_said_before_and_is_replaced_by_what_is_said_later() -> None:
    rig = Rig()
    rig.queue(max_tries=9)
    rig.queue("other")
    rig.publish(count=5)
    connection = Connection()
    (held,) = rig.fetch(connection)
    rig.ack(held, 0)
    rig.nack(held, 1)
    rig.nack(held, 2, requeue=False)
    (batch,) = rig.broker.batches()
    before = rig.log.last_lsn
    rig.broker.copy(batch, bytes(batch.size))
    rig.ack(held, 3)
    for keep in (None, before):  # with the original record, and after its segment was dropped
        rig.log.records = [
            each
            for each in rig.log.records
            if keep is None or each[0] > before or each[1] in (Kind.SNAPSHOT, Kind.DECLARE_QUEUE)
        ]
        rig.restart()
        assert rig.waiting() == [(1, 0b10010)]
        assert rig.dead() == [(1, 0b00100, "rejected")]
        (entry,) = rig.broker.peek("q", 1)
        assert entry.times_given(0b00010) == 1
        assert entry.times_given(0b10000) == 0


def test_the_place_is_that_of_the_last_copy_and_the_others_are_released() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    (batch,) = rig.broker.batches()
    lsn = rig.broker.copy(batch, bytes(batch.size))
    rig.sync()
    rig.restart()
    (batch,) = rig.broker.batches()
    assert batch.place == lsn
    assert batch.seq == rig.log.finished_places[0]
    rig.ack(rig.fetch(Connection())[0])
    assert rig.log.finished_places == [batch.seq, lsn]


def test_a_batch_whose_queues_are_all_gone_is_released() -> None:
    rig = Rig()
    rig.queue()
    rig.publish()
    lsn = rig.log.last_lsn
    rig.broker.delete_queue("q", if_empty=False, if_unused=False)
    rig.restart()
    assert rig.log.finished_places == [lsn]
    assert rig.broker.counts()["batches"] == 0


def test_a_snapshot_alone_brings_the_topology_back() -> None:
    rig = Rig()
    rig.broker.fingerprint_key = b"k" * 16
    rig.queue("q", ttl_ms=7)
    rig.broker.declare_exchange(ExchangeSpec("e"))
    rig.broker.bind(Binding("e", "q", "k"))
    kind, meta = rig.broker.snapshot()
    log = ListLog()
    again = Broker(log)
    again.begin_replay(START)
    again.replay(50, kind, meta, 0, 0)
    again.replayed(START)
    assert again.fingerprint_key == b"k" * 16
    assert [info.spec for info in again.queues()] == [QueueSpec("q", ttl_ms=7)]
    assert again.bindings() == [Binding("e", "q", "k")]
    assert again.snapshot() == (kind, meta)


def test_a_snapshot_sets_right_what_a_salvaged_log_says_wrong() -> None:
    rig = Rig()
    rig.queue("kept")
    rig.publish("kept")
    rig.queue("deleted")
    rig.publish("deleted")
    rig.broker.declare_exchange(ExchangeSpec("e"))
    start = rig.log.last_lsn
    rig.broker.delete_queue("deleted", if_empty=False, if_unused=False)
    rig.queue("new")
    rig.broker.delete_exchange("e", if_unused=False)
    lost = rig.log.last_lsn
    rig.log.append(*rig.broker.snapshot())
    rig.publish("new")
    rig.log.records = [each for each in rig.log.records if not start < each[0] <= lost]
    rig.restart()
    assert [info.spec.name for info in rig.broker.queues()] == ["kept", "new"]
    assert rig.broker.exchanges() == []
    assert rig.waiting("kept") == [(1, 1)]
    assert rig.waiting("new") == [(3, 1)]
    assert rig.broker.counts()["batches"] == 2


def test_records_that_name_what_is_gone_say_nothing() -> None:
    from ciphermq.broker.records import (
        AckRecord,
        DeadRecord,
        PurgeRecord,
        RedriveRecord,
        TryRecord,
    )
    from ciphermq.model.topology import DeadInfo

    rig = Rig()
    rig.queue()
    rig.publish()
    for kind, body in (
        (Kind.ACK, AckRecord(99, 1, b"")),
        (Kind.ACK, AckRecord(2, 99, b"")),
        (Kind.TRY, TryRecord(99, 1, b"")),
        (Kind.DEAD, DeadRecord(99, 1, b"", [98], DeadInfo("x", "y"))),
        (Kind.REDRIVE, RedriveRecord(99, 1, b"", 98, 5)),
        (Kind.PURGE, PurgeRecord(99, [])),
        (Kind.DELETE_QUEUE, 99),
        (Kind.DELETE_EXCHANGE, "x"),
        (Kind.BIND, Binding("x", "q")),
        (Kind.UNBIND, Binding("x", "q")),
    ):
        rig.log.append(kind, encode(body))
    rig.restart()
    assert rig.waiting() == [(1, 1)]


def test_a_record_from_the_future_stops_the_start() -> None:
    rig = Rig()
    rig.log.append(200, b"")
    with pytest.raises(JournalDamaged, match=r"of kind 200.*a newer version wrote it"):
        rig.restart()


def test_a_record_of_another_layout_stops_the_start() -> None:
    rig = Rig()
    rig.log.append(Kind.ACK, encode(["what", "is", "this"]))
    with pytest.raises(JournalDamaged, match="of kind 10, is not what it should be"):
        rig.restart()
