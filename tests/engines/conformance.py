"""What the server relies on, asked of any engine.

An engine's test module subclasses `EngineConformance` and gives the fixture `make`, which makes
engines over the same storage, one after the other. What an engine does not guarantee is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from engine_kit import Consumer, batch, consume, fetch, fetch_soon, publish, until

from ciphermq.engines.face import Delivery, Engine
from ciphermq.errors import (
    AccessRefused,
    ConflictingDuplicate,
    NotFound,
    PreconditionFailed,
    QueueFull,
    Refused,
    Unroutable,
)
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType, QueueSpec

Make = Callable[[], Engine]


class EngineConformance:
    """The suite."""

    @pytest.fixture
    async def engine(self, make: Make) -> AsyncIterator[Engine]:
        engine = make()
        await engine.start()
        await engine.declare_queue(QueueSpec("q"))
        yield engine
        await engine.stop()

    # --- topology -----------------------------------------------------------------------------

    async def test_what_is_declared_is_there(self, engine: Engine) -> None:
        info = await engine.declare_queue(QueueSpec("p", owner="ann", ttl_ms=5000))
        assert info.spec == QueueSpec("p", owner="ann", ttl_ms=5000)
        assert engine.queue("p") == info
        assert [each.spec.name for each in engine.queues()] == ["p", "q"]
        await engine.declare_exchange(ExchangeSpec("e", ExchangeType.TOPIC, "ann"))
        assert engine.exchange("e") == ExchangeSpec("e", ExchangeType.TOPIC, "ann")
        assert [each.name for each in engine.exchanges()] == ["e"]
        await engine.bind(Binding("e", "p", "a.#"))
        await engine.bind(Binding("e", "p", "a.#"))
        assert engine.bindings() == [Binding("e", "p", "a.#")]
        await engine.unbind(Binding("e", "p", "a.#"))
        assert engine.bindings() == []
        await engine.delete_exchange("e")
        assert await engine.delete_queue("p") == 0
        assert engine.queue("p") is None
        assert engine.exchange("e") is None

    async def test_declaring_again_is_agreement_or_refused(self, engine: Engine) -> None:
        await engine.declare_queue(QueueSpec("q", owner="somebody else"))
        with pytest.raises(PreconditionFailed, match="max_tries"):
            await engine.declare_queue(QueueSpec("q", max_tries=3))

    async def test_what_is_unknown_is_not_found(self, engine: Engine) -> None:
        for attempt in (
            engine.delete_queue("x"),
            engine.delete_exchange("x"),
            engine.bind(Binding("x", "q")),
            engine.purge("x"),
            engine.redrive("x"),
            engine.consume("x", client="r", name="", credit=1, sink=Consumer()),
            engine.fetch("x", client="r", owner=object(), messages=1),
        ):
            with pytest.raises(NotFound, match="'x'"):
                await attempt

    # --- publishing ---------------------------------------------------------------------------

    async def test_a_confirmed_batch_is_delivered_as_it_was_sealed(self, engine: Engine) -> None:
        _, consumer = await consume(engine)
        sent = batch(count=3, size=5000)
        (confirmed,) = await publish(engine, sent)
        assert (confirmed.duplicate, confirmed.queues) == (False, 1)
        await until(lambda: bool(consumer.got), "a delivery")
        (got,) = consumer.got
        assert bytes(got.sealed) == bytes(sent.sealed)
        assert (got.queue, got.live, got.count) == ("q", 0b111, 3)
        assert (got.redeliveries, got.redelivered, got.dead) == (0, False, None)
        assert (got.batch_id, got.sender) == (sent.header.batch_id, "sender")
        assert got.published_ms > 1_600_000_000_000

    async def test_exchanges_route(self, engine: Engine) -> None:
        await engine.declare_queue(QueueSpec("p"))
        for kind, key, other in (
            (ExchangeType.DIRECT, "k", "j"),
            (ExchangeType.TOPIC, "k.*", "j.#"),
            (ExchangeType.FANOUT, "", ""),
        ):
            await engine.declare_exchange(ExchangeSpec(kind.value, kind))
            await engine.bind(Binding(kind.value, "q", key))
            await engine.bind(Binding(kind.value, "p", other))
        confirmed = await publish(
            engine,
            batch("k", exchange="direct"),
            batch("k.x", exchange="topic"),
            batch("any", exchange="fanout"),
        )
        assert [each.queues for each in confirmed] == [1, 1, 2]
        assert engine.queue("q").messages_ready == 3
        assert engine.queue("p").messages_ready == 1

    async def test_an_empty_key_goes_to_every_receivers_inbox(self, engine: Engine) -> None:
        for name in ("ann", "bob"):
            await engine.declare_queue(QueueSpec(name, owner=name, inbox=True))
        (confirmed,) = await publish(engine, batch("", receivers=("ann", "bob")))
        assert confirmed.queues == 2
        with pytest.raises(Unroutable, match="'zoe'"):
            await publish(engine, batch("", receivers=("ann", "zoe")))
        assert engine.queue("ann").messages_ready == 1

    async def test_what_goes_nowhere_comes_back(self, engine: Engine) -> None:
        with pytest.raises(Unroutable, match="'nowhere'"):
            await publish(engine, batch("nowhere"))
        with pytest.raises(NotFound, match="'nowhere'"):
            await publish(engine, batch("k", exchange="nowhere"))

    async def test_fanout_is_all_or_nothing(self, engine: Engine) -> None:
        if not engine.guarantees.atomic_fanout:
            return
        await engine.declare_queue(QueueSpec("small", max_messages=1))
        await engine.declare_exchange(ExchangeSpec("all", ExchangeType.FANOUT))
        for name in ("q", "small"):
            await engine.bind(Binding("all", name))
        await publish(engine, batch(exchange="all"))
        with pytest.raises(QueueFull, match="'small'"):
            await publish(engine, batch(exchange="all"))
        assert engine.queue("q").messages_ready == 1

    async def test_repeats_are_recognised(self, engine: Engine) -> None:
        if not engine.guarantees.dedup:
            return
        sent = batch()
        both = await publish(engine, sent, sent)
        assert [each.duplicate for each in both] == [False, True]
        (late,) = await publish(engine, sent)
        assert late.duplicate
        other = batch(batch_id=sent.header.batch_id, filler=8)
        with pytest.raises(ConflictingDuplicate):
            await publish(engine, other)
        assert engine.queue("q").batches == 1

    async def test_refusals_come_by_the_awaitable(self, engine: Engine) -> None:
        """The server keeps its publishes in order: none may raise from the call itself."""
        refused = engine.publish(batch("nowhere"))
        fine = engine.publish(batch())
        with pytest.raises(Refused):
            await refused
        await fine
        wrong = engine.ack(object(), 2**63, None)
        with pytest.raises(Refused):
            await wrong

    # --- delivering ---------------------------------------------------------------------------

    async def test_order_holds(self, engine: Engine) -> None:
        if not engine.guarantees.order:
            return
        sent = [batch(size=100 * (n % 7)) for n in range(60)]
        await publish(engine, *sent[:30])
        _, consumer = await consume(engine)
        await publish(engine, *sent[30:])
        await until(lambda: len(consumer.got) == 60, "all of them")
        assert consumer.ids() == [each.header.batch_id for each in sent]

    async def test_credit_and_cancel(self, engine: Engine) -> None:
        number, consumer = await consume(engine, credit=2)
        await publish(engine, *[batch(count=2) for _ in range(3)])
        await until(lambda: len(consumer.got) == 1, "one batch")
        engine.add_credit(number, 1)
        await until(lambda: len(consumer.got) == 2, "another")
        await engine.cancel(number)
        engine.add_credit(number, 100)
        assert engine.queue("q").consumers == 0
        assert engine.queue("q").messages_unacked == 4
        for got in consumer.got:
            await engine.ack(consumer, got.tag, None)
        assert engine.queue("q").messages_unacked == 0
        assert len(consumer.got) == 2
        assert consumer.ended == []

    async def test_cancel_can_let_go(self, engine: Engine) -> None:
        number, consumer = await consume(engine)
        await publish(engine, batch())
        await until(lambda: bool(consumer.got), "a delivery")
        await engine.cancel(number, release=True)
        (again,) = await fetch(engine)
        assert again.batch_id == consumer.got[0].batch_id
        assert again.redelivered

    async def test_consumers_compete(self, engine: Engine) -> None:
        _, first = await consume(engine)
        _, second = await consume(engine)
        sent = [batch() for _ in range(10)]
        await publish(engine, *sent)
        await until(lambda: len(first.got) + len(second.got) == 10, "all of them")
        assert len(first.got) == len(second.got) == 5
        assert set(first.ids()) | set(second.ids()) == {each.header.batch_id for each in sent}

    async def test_a_full_connection_is_given_nothing_until_it_drains(self, engine: Engine) -> None:
        _, consumer = await consume(engine)
        consumer.on_delivery = lambda _: setattr(consumer, "writable", False)
        await publish(engine, batch(), batch())
        await until(lambda: len(consumer.got) == 1, "one")
        await publish(engine, batch())
        assert len(consumer.got) == 1
        consumer.writable = True
        engine.writable_again(consumer)
        await until(lambda: len(consumer.got) == 2, "another")

    async def test_the_same_name_supersedes_its_ghost(self, engine: Engine) -> None:
        number, ghost = await consume(engine, name="printer")
        await publish(engine, batch())
        await until(lambda: bool(ghost.got), "a delivery")
        _, consumer = await consume(engine, name="printer")
        await until(lambda: bool(consumer.got and ghost.ended), "both told")
        assert consumer.ids() == ghost.ids()
        assert consumer.got[0].redelivered
        ((ended, reason, code),) = ghost.ended
        assert (ended, code) == (number, "superseded")
        assert "'printer'" in reason

    async def test_a_lost_connection_gives_back_what_it_held(self, engine: Engine) -> None:
        _, consumer = await consume(engine, credit=1)
        await publish(engine, batch(), batch())
        await until(lambda: bool(consumer.got), "a delivery")
        engine.release(consumer)
        both = await fetch(engine, messages=2)
        assert [each.redelivered for each in both] == [True, False]
        assert [each.redeliveries for each in both] == [1, 0]
        assert engine.queue("q").consumers == 0

    async def test_fetch(self, engine: Engine) -> None:
        assert await fetch(engine) == []
        sent = [batch(count=2) for _ in range(3)]
        await publish(engine, *sent)
        got = await fetch(engine, messages=3)
        assert [each.batch_id for each in got] == [each.header.batch_id for each in sent[:2]]
        assert {each.consumer for each in got} == {0}
        assert len({each.tag for each in got}) == 2

    async def test_deleting_a_queue_ends_its_consumers(self, engine: Engine) -> None:
        number, consumer = await consume(engine)
        await publish(engine, batch(count=3))
        await until(lambda: bool(consumer.got), "a delivery")
        assert await engine.delete_queue("q") == 3
        await until(lambda: bool(consumer.ended), "the end")
        assert [(ended, code) for ended, _, code in consumer.ended] == [(number, "not-found")]
        await engine.ack(consumer, consumer.got[0].tag, None)

    # --- settling -----------------------------------------------------------------------------

    async def test_acks(self, engine: Engine) -> None:
        await publish(engine, batch(count=4))
        owner = object()
        (got,) = await engine.fetch("q", client="r", owner=owner, messages=1)
        with pytest.raises(AccessRefused):
            await engine.ack(object(), got.tag, None)
        if engine.guarantees.partial_ack:
            await engine.ack(owner, got.tag, 0b0101)
            assert engine.queue("q").messages_unacked == 2
            engine.release(owner)
            (got,) = await engine.fetch("q", client="r", owner=owner, messages=1)
            assert got.live == 0b1010
        await engine.ack(owner, got.tag, None)
        await engine.ack(owner, got.tag, None)
        assert engine.queue("q").batches == 0

    async def test_a_nack_comes_back_later(self, engine: Engine) -> None:
        _, consumer = await consume(engine)
        await publish(engine, batch())
        await until(lambda: bool(consumer.got), "a delivery")
        await engine.nack(consumer, consumer.got[0].tag, None, requeue=True)
        await until(lambda: len(consumer.got) == 2, "it again")
        assert consumer.got[1].redeliveries == 1
        assert consumer.got[1].tag != consumer.got[0].tag

    async def test_a_refused_message_is_dead_and_can_be_brought_back(self, engine: Engine) -> None:
        await publish(engine, batch(count=2))
        owner = object()
        (got,) = await engine.fetch("q", client="r", owner=owner, messages=1)
        await engine.nack(
            owner, got.tag, 0b10, requeue=False, reason="bad-signature", detail="changed"
        )
        (dead,) = await engine.fetch("dead.q", client="r", owner=owner, messages=1)
        assert dead.live == 0b10
        assert dead.sealed == got.sealed
        assert dead.dead is not None
        assert (dead.dead.queue, dead.dead.reason) == ("q", "bad-signature")
        assert dead.dead.detail == "changed"
        engine.release(owner)
        assert await engine.redrive("dead.q") == 1
        back = await fetch(engine, messages=2)
        assert [each.live for each in back] == [0b01, 0b10]
        assert back[1].dead is None

    async def test_what_expires_is_dead(self, engine: Engine) -> None:
        await engine.declare_queue(QueueSpec("short", ttl_ms=100))
        await publish(engine, batch("short"))
        dead = await fetch_soon(engine, "dead.short")
        assert dead.dead is not None
        assert dead.dead.reason == "expired"

    async def test_what_is_not_acked_in_time_is_given_out_again(self, engine: Engine) -> None:
        await engine.declare_queue(QueueSpec("hasty", ack_timeout_ms=100, max_tries=2))
        _, consumer = await consume(engine, "hasty")
        await publish(engine, batch("hasty"))
        await until(lambda: len(consumer.got) == 2, "it again")
        assert consumer.got[1].redelivered
        dead = await fetch_soon(engine, "dead.hasty")
        assert dead.dead is not None
        assert dead.dead.reason == "timeout"

    # --- operators ----------------------------------------------------------------------------

    async def test_purge_spares_what_is_in_hand(self, engine: Engine) -> None:
        await publish(engine, *[batch(count=2) for _ in range(3)])
        await fetch(engine)
        assert await engine.purge("q") == 4
        assert engine.queue("q").messages_unacked == 2
        assert engine.queue("q").messages_ready == 0

    async def test_peek_shows_headers_and_takes_nothing(self, engine: Engine) -> None:
        if not engine.guarantees.peek:
            return
        sent = [batch(count=n) for n in (1, 2, 3)]
        await publish(engine, *sent)
        await fetch(engine)
        seen = await engine.peek("q", batches=2)
        assert [each.header for each in seen] == [each.header for each in sent[:2]]
        assert [each.unacked for each in seen] == [True, False]
        assert [each.live for each in seen] == [0b1, 0b11]
        assert [each.size for each in seen] == [len(each.sealed) for each in sent[:2]]
        assert engine.queue("q").messages_ready == 5

    async def test_events_are_told(self, engine: Engine) -> None:
        events: list[tuple[str, bytes, int]] = []
        engine.on_event(lambda event, of, messages, _: events.append((event, of, messages)))
        sent = batch(count=2)
        await publish(engine, sent)
        owner = object()
        (got,) = await engine.fetch("q", client="r", owner=owner, messages=1)
        await engine.ack(owner, got.tag, 0b01)
        await engine.nack(owner, got.tag, 0b10, requeue=False)
        of = sent.header.batch_id
        assert events == [
            ("published", of, 2),
            ("delivered", of, 2),
            ("acked", of, 1),
            ("dead", of, 1),
        ]

    async def test_pending_bytes_fall_and_relief_is_told(self, engine: Engine) -> None:
        told: list[int] = []
        waiting = [engine.publish(batch(size=100_000)) for _ in range(20)]
        pending = engine.pending_bytes
        engine.on_relief(lambda: told.append(engine.pending_bytes))
        await asyncio.gather(*waiting)
        await until(lambda: bool(told), "relief")
        assert told[0] <= pending // 2
        engine.on_relief(lambda: told.append(-1))
        await until(lambda: told[-1] == -1, "relief at once")
        assert engine.pending_bytes == 0

    async def test_stats_are_flat(self, engine: Engine) -> None:
        await publish(engine, batch())
        stats = engine.stats()
        assert stats
        assert all(isinstance(value, int | float | str) for value in stats.values())

    # --- lasting ------------------------------------------------------------------------------

    async def test_what_was_confirmed_is_there_after_a_restart(
        self, engine: Engine, make: Make
    ) -> None:
        sent = [batch(count=3) for _ in range(4)]
        await publish(engine, *sent)
        owner = object()
        got = await engine.fetch("q", client="r", owner=owner, messages=7)
        await engine.ack(owner, got[0].tag, None)
        await engine.ack(owner, got[1].tag, 0b001)
        await engine.nack(owner, got[1].tag, 0b010, requeue=False)
        await engine.stop()
        again = make()
        await again.start()
        try:
            assert [info.spec.name for info in again.queues()] == ["dead.q", "q"]
            back: list[Delivery] = await fetch(again, messages=100)
            assert [each.batch_id for each in back] == [each.header.batch_id for each in sent[1:]]
            assert [each.live for each in back] == [0b100, 0b111, 0b111]
            assert [bytes(each.sealed) for each in back] == [
                bytes(each.sealed) for each in sent[1:]
            ]
            (dead,) = await fetch(again, "dead.q")
            assert dead.live == 0b010
            if again.guarantees.dedup:
                (repeat,) = await publish(again, sent[0])
                assert repeat.duplicate
        finally:
            await again.stop()

    async def test_after_the_stop_everything_is_refused(self, engine: Engine) -> None:
        (got,) = await publish(engine, batch())
        assert not got.duplicate
        await engine.stop()
        await engine.stop()
        with pytest.raises(Refused):
            await engine.publish(batch())
        with pytest.raises(Refused):
            await engine.declare_queue(QueueSpec("late"))
