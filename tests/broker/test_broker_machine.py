"""The broker against a model of single messages, with crashes, compaction and a full disk."""

from __future__ import annotations

from collections import Counter

from broker_model import Group, Message, Model
from broker_rig import Connection, Rig, batch_id, number
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from ciphermq.broker.deliveries import Held
from ciphermq.broker.publishing import Accepted
from ciphermq.broker.records import Kind, decode_copy
from ciphermq.errors import AccessRefused, BadRequest, NotFound, QueueFull, Unroutable
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType, QueueSpec

SPECS = {
    "plain": QueueSpec("plain", owner="ann", max_tries=2, ttl_ms=5000),
    "fussy": QueueSpec(
        "fussy",
        max_tries=3,
        max_messages=12,
        dead_letter_exchange="",
        dead_letter_key="graves",
        ack_timeout_ms=10_000,
    ),
    "graves": QueueSpec("graves", ttl_ms=30_000),
}
QUEUES = st.sampled_from(list(SPECS))
GRAVES = ["dead.plain", "dead.fussy", "dead.graves", "graves"]
SUBSETS = st.integers(1, 0b11111)
SELDOM = st.integers(0, 4).map(lambda number: number == 0)


class BrokerMachine(RuleBasedStateMachine):
    connections: Bundle[Connection] = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.model = Model()
        self.model.durable = self.rig.log.last_lsn
        self.deadlines: dict[int, int] = {}
        self.hands: dict[int, Held] = {}
        self.credit: dict[int, tuple[str, int, Connection, bool]] = {}
        """Of each consumer: its queue, what it may have, and whether it speaks 1.x."""
        self.onex: set[int] = set()
        """The numbers of 1.x messages."""
        self.segments = [0]
        """The first record of each segment."""
        self.calm = 0
        """Steps since something last went wrong, which must not be all that ever happens."""
        self.past: list[tuple[int, Model]] = []
        """The model after each step that may not be durable yet."""

    # --- keeping both in step -----------------------------------------------------------------

    @property
    def end(self) -> int:
        return self.rig.log.last_lsn

    def stepped(self) -> None:
        """A step is over: let timers run, take over the order of new dead letters, compare."""
        self.calm += 1
        broker, now = self.rig.broker, self.rig.now
        while (at_ms := broker.next_deadline()) is not None and at_ms <= now:
            broker.sweep(now)
        self.model.pass_time(now, self.end)
        self.adopt_order()
        self.past.append((self.end, self.model.copy()))

    def adopt_order(self) -> None:
        """Dead letters of one step may come in any order: take the broker's."""
        for name, groups in self.model.queues.items():
            real = [
                (number(entry.batch.batch_id), entry.live)
                for entry in self.rig.broker._state.queues[name].oldest(1000)
            ]
            assert Counter(real) == Counter((each.number, each.bits()) for each in groups)
            if name.startswith("dead.") or name == "graves":
                rank: dict[tuple[int, int], list[int]] = {}
                for at, key in enumerate(real):
                    rank.setdefault(key, []).append(at)
                groups.sort(key=lambda each: rank[each.number, each.bits()].pop(0))
            assert real == [(each.number, each.bits()) for each in groups]

    @initialize()
    def begin(self) -> None:
        for name, spec in SPECS.items():
            self.rig.broker.declare_queue(spec)
            self.model.specs[name] = spec
            self.model.queues[name] = []
        self.rig.broker.declare_exchange(ExchangeSpec("all", ExchangeType.FANOUT))
        for name in SPECS:
            self.rig.broker.bind(Binding("all", name))
        self.sync()
        # Most runs never draw all of what it takes to have something to lose.
        self.steady = Connection()
        for onex in (False, True) * 3:
            self.offer("", 1, 0, 1, onex=onex)
            self.hire(self.steady, "plain", 3, onex=onex)
        self.sync()

    # --- rules --------------------------------------------------------------------------------

    @rule(
        queue=st.one_of(QUEUES, st.just("")),
        count=st.integers(1, 5),
        ttl_s=st.one_of(st.just(0), st.integers(1, 20)),
        repeat=st.integers(0, 9),
        onex=st.booleans(),
    )
    def publish(self, queue: str, count: int, ttl_s: int, repeat: int, onex: bool) -> None:
        """Something new, or something again."""
        self.offer(queue, count, ttl_s, repeat, onex=onex)

    def offer(self, queue: str, count: int, ttl_s: int, repeat: int, *, onex: bool) -> None:
        """To one queue, or (no name) to all; sometimes again. A message of 1.x is alone."""
        rig, model = self.rig, self.model
        batch = rig.next_number
        if repeat == 0 and model.seen:
            batch = min(model.seen)
            count, queue, onex = 1, "plain", batch in self.onex
        elif onex:
            count, ttl_s = 1, 0
            self.onex.add(batch)
            rig.next_number += 1
        else:
            rig.next_number += 1
        targets = [name for name in SPECS if name in model.specs] if not queue else [queue]
        full = any(
            sum(len(each.messages) for each in model.queues.get(name, [])) + count
            > model.specs[name].max_messages
            for name in targets
            if name in model.specs
        )
        lost = not targets or (queue and queue not in model.specs)
        try:
            outcome = rig.publish_again(
                batch,
                queue,
                exchange="" if queue else "all",
                count=count,
                durable=False,
                onex=onex,
                expires_ms=rig.now + ttl_s * 1000 if ttl_s else 0,
            )
        except QueueFull:
            assert full
            return
        except Unroutable:
            assert lost
            return
        assert isinstance(outcome, Accepted)
        if outcome.duplicate:
            assert rig.now - model.seen[batch] < 610_000
            return
        assert batch not in model.seen or rig.now - model.seen[batch] >= 600_000
        assert not full
        assert outcome.queues == len(targets)
        model.seen[batch] = rig.now
        for name in targets:
            model.queues[name].append(
                Group(
                    batch,
                    {index: Message() for index in range(count)},
                    rig.now,
                    rig.now + ttl_s * 1000 if ttl_s else 0,
                    self.end,
                    onex,
                )
            )
        self.stepped()

    @precondition(lambda self: self.end > self.model.durable)
    @rule()
    def sync(self) -> None:
        self.rig.sync()
        self.model.durable = self.end
        self.past = [(self.end, self.model.copy())]
        self.note_copies()

    @precondition(lambda self: len(self.past) > 3)
    @rule(data=st.data())
    def sync_some(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.past) - 1))
        lsn = max(self.past[at][0], self.model.durable)
        self.rig.broker.durable(lsn)
        self.model.durable = lsn
        self.past = [(end, model) for end, model in self.past if end >= lsn] or [
            (self.end, self.model.copy())
        ]
        for _, model in self.past:
            model.durable = lsn
        self.note_copies()

    @precondition(lambda self: self.calm > 5 and self.end > self.model.durable)
    @rule()
    def disk_full(self) -> None:
        """The newest batch that isn't durable is refused."""
        last = max(
            (
                lsn
                for lsn, kind, _, _ in self.rig.log.records
                if kind == Kind.BATCH and lsn > self.model.durable
            ),
            default=0,
        )
        batch = self.rig.broker.batch(last)
        if batch is None:
            return
        refused = number(batch.batch_id)
        self.rig.broker.undo(last)
        self.rig.log.records = [each for each in self.rig.log.records if each[0] != last]
        for name, groups in self.model.queues.items():
            self.model.queues[name] = [
                each
                for each in groups
                if each.number != refused or each.boundary <= self.model.durable
            ]
        del self.model.seen[refused]
        # A crash from here on finds the log without that record, whenever it comes.
        self.sync()
        self.stepped()

    @initialize(target=connections)
    def first(self) -> Connection:
        return Connection()

    @rule(target=connections)
    def connect(self) -> Connection:
        return Connection()

    @rule(
        connection=connections,
        queue=QUEUES,
        credit=st.integers(0, 20),
        dead=SELDOM,
        onex=st.booleans(),
    )
    def consume(
        self, connection: Connection, queue: str, credit: int, dead: bool, onex: bool
    ) -> None:
        self.hire(connection, f"dead.{queue}" if dead else queue, credit, onex=onex)

    def hire(self, connection: Connection, name: str, credit: int, *, onex: bool) -> None:
        try:
            tag, _ = self.rig.consume(name, credit=credit, connection=connection, onex=onex)
        except NotFound:
            assert name not in self.model.specs
            return
        self.credit[tag] = (name, credit, connection, onex)

    @rule(connection=connections, writable=SELDOM.map(lambda seldom: not seldom))
    def block(self, connection: Connection, writable: bool) -> None:
        connection.writable = writable
        if writable:
            self.rig.broker.resume(connection)

    @precondition(lambda self: self.credit)
    @rule(data=st.data(), more=st.integers(1, 8))
    def add_credit(self, data: st.DataObject, more: int) -> None:
        if self.credit:
            tag = data.draw(st.sampled_from(sorted(self.credit)))
            name, credit, connection, onex = self.credit[tag]
            self.rig.broker.add_credit(tag, more)
            self.credit[tag] = (name, credit + more, connection, onex)

    @precondition(lambda self: self.credit)
    @rule(synced=SELDOM.map(lambda seldom: not seldom))
    def deliver(self, synced: bool) -> None:
        """All that can go out does: oldest first, only to who is willing."""
        if synced:
            self.sync()
        for held in self.rig.deliveries():
            assert held.consumer is not None
            tag = held.consumer.number
            name, credit, connection, onex = self.credit[tag]
            assert credit > 0
            assert connection.writable
            if not (onex and held.redelivered):  # 1.x acks nothing a second time
                credit -= held.bits.bit_count()
            self.credit[tag] = (name, credit, connection, onex)
            self.took(name, held, onex=onex)
        for name, credit, connection, onex in self.credit.values():
            if credit > 0 and connection.writable:
                assert self.model.next_out(name, self.rig.now, onex=onex) is None
        self.stepped()

    @rule(
        connection=connections,
        queue=QUEUES,
        dead=SELDOM,
        messages=st.integers(1, 6),
        onex=st.booleans(),
    )
    def fetch(
        self, connection: Connection, queue: str, dead: bool, messages: int, onex: bool
    ) -> None:
        name = f"dead.{queue}" if dead else queue
        try:
            found = self.rig.fetch(connection, name, messages=messages, onex=onex)
        except NotFound:
            assert name not in self.model.specs
            return
        for held in found:
            assert messages > 0
            messages -= held.bits.bit_count()
            self.took(name, held, onex=onex)
        assert messages <= 0 or self.model.next_out(name, self.rig.now, onex=onex) is None
        self.stepped()

    @precondition(lambda self: self.onex)
    @rule(data=st.data(), client=st.sampled_from(["sender", "sender", "stranger"]))
    def give_again(self, data: st.DataObject, client: str) -> None:
        """A 1.x message that is in somebody's hands is in line again, at its sender's wish."""
        batch = data.draw(st.sampled_from(sorted(self.onex)))
        there = [group for group in self.model.groups() if group.number == batch]
        try:
            self.rig.broker.give_again(client, batch_id(batch, onex=True), self.rig.now)
        except NotFound:
            assert not there
            return
        except AccessRefused:
            assert there
            assert client != "sender"
            return
        assert client == "sender"
        for group in there:
            self.model.give_back({each.tag for each in group.messages.values()}.__contains__)
        self.stepped()

    def took(self, name: str, held: Held, *, onex: bool) -> None:
        group = self.model.next_out(name, self.rig.now, onex=onex)
        assert group is not None
        assert group.onex == held.entry.batch.onex
        assert group.number == number(held.entry.batch.batch_id)
        assert group.bits(lambda message: message.ready) == held.bits
        ready = [message for message in group.messages.values() if message.ready]
        assert held.redeliveries == max(message.given for message in ready)
        assert held.redelivered == (held.redeliveries > 0 or group.recovered)
        for message in ready:
            message.tag = held.tag
        self.hands[held.tag] = held
        if not onex:  # who speaks 1.x is given time without end
            self.deadlines[held.tag] = self.rig.now + self.model.specs[name].ack_timeout_ms

    def some_held(self, data: st.DataObject) -> Held | None:
        self.hands = {tag: held for tag, held in self.hands.items() if held.bits}
        if not self.hands:
            return None
        held = self.hands[data.draw(st.sampled_from(sorted(self.hands)))]
        queue = held.entry.queue.spec.name
        if held.tag in self.deadlines:
            self.deadlines[held.tag] = self.rig.now + self.model.specs[queue].ack_timeout_ms
        return held

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), bits=SUBSETS)
    def ack(self, data: st.DataObject, bits: int) -> None:
        held = self.some_held(data)
        if held is not None:
            name, group, mine = self.model.held(held.tag)
            self.rig.broker.ack(held.owner, held.tag, bits, self.rig.now)
            self.model.remove(name, group, bits & mine)
            self.stepped()

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), bits=SUBSETS, requeue=st.booleans())
    def nack(self, data: st.DataObject, bits: int, requeue: bool) -> None:
        held = self.some_held(data)
        if held is None:
            return
        name, group, mine = self.model.held(held.tag)
        now = self.rig.now
        self.rig.broker.nack(
            held.owner, held.tag, bits, requeue=requeue, reason="no", detail="", now=now
        )
        bits &= mine
        if not bits:
            return
        if requeue or name.startswith("dead."):
            self.model.try_again(name, group, bits, "tries", now, self.end)
        else:
            self.model.bury(name, group, bits, "no", now, self.end)
        self.stepped()

    @precondition(lambda self: self.calm > 5)
    @rule(connection=consumes(connections))
    def lose(self, connection: Connection) -> None:
        self.calm = 0
        self.rig.broker.release(connection, self.rig.now)
        mine = {tag for tag, held in self.hands.items() if held.owner is connection}
        self.model.give_back(mine.__contains__)
        self.credit = {tag: each for tag, each in self.credit.items() if each[2] is not connection}
        self.stepped()

    @precondition(lambda self: self.credit)
    @rule(data=st.data(), release=st.booleans())
    def cancel(self, data: st.DataObject, release: bool) -> None:
        tag = data.draw(st.sampled_from(sorted(self.credit)))
        self.rig.broker.cancel(tag, release=release, now=self.rig.now)
        del self.credit[tag]
        if release:
            mine = {
                held.tag
                for held in self.hands.values()
                if held.consumer is not None and held.consumer.number == tag
            }
            self.model.give_back(mine.__contains__)
        self.stepped()

    @precondition(lambda self: self.calm > 3)
    @rule(seconds=st.sampled_from([1, 2, 5, 11, 61, 301, 700]))
    def wait(self, seconds: int) -> None:
        self.sync()
        self.rig.now += seconds * 1000
        now = self.rig.now
        late = {
            tag
            for tag, at_ms in self.deadlines.items()
            if at_ms <= now and tag in self.hands and self.hands[tag].bits
        }
        broker = self.rig.broker
        while (at_ms := broker.next_deadline()) is not None and at_ms <= now:
            broker.sweep(now)
        for tag in sorted(late):
            name, group, bits = self.model.held(tag)
            self.model.try_again(name, group, bits, "timeout", now, self.end)
        self.stepped()

    @precondition(lambda self: any(self.model.queues.values()))
    @rule(queue=QUEUES, dead=st.booleans())
    def purge(self, queue: str, dead: bool) -> None:
        name = f"dead.{queue}" if dead else queue
        if name not in self.model.specs:
            return
        gone = 0
        for group in list(self.model.queues[name]):
            bits = group.bits(lambda message: message.tag is None)
            gone += len(self.model.remove(name, group, bits))
        assert self.rig.broker.purge(name) == gone
        self.stepped()

    @precondition(lambda self: any(map(self.model.queues.get, GRAVES)))
    @rule(queue=st.sampled_from(GRAVES))
    def redrive(self, queue: str) -> None:
        if queue not in self.model.specs:
            return
        moved = 0
        for group in list(self.model.queues[queue]):
            source = group.dead[0] if group.dead else ""
            bits = group.bits(lambda message: message.ready)
            if source not in self.model.specs or group.boundary > self.model.durable or not bits:
                continue
            room = self.model.specs[source].max_messages - sum(
                len(each.messages) for each in self.model.queues[source]
            )
            if bits.bit_count() > room:
                continue
            back = self.model.remove(queue, group, bits)
            moved += len(back)
            self.model.queues[source].append(
                Group(
                    group.number,
                    {index: Message() for index in back},
                    self.rig.now,
                    group.expires_ms,
                    self.end + 1,
                    group.onex,
                )
            )
        try:
            work = self.rig.broker.redrive(queue, None)
            while work.step(2, self.rig.now):
                pass
            assert work.moved == moved
        except (BadRequest, NotFound, QueueFull):
            assert moved == 0
        self.sync()
        self.stepped()

    @precondition(lambda self: self.calm > 10)
    @rule(queue=QUEUES)
    def delete(self, queue: str) -> None:
        if queue not in self.model.specs:
            self.rig.broker.declare_queue(SPECS[queue])
            self.rig.broker.bind(Binding("all", queue))
            self.model.specs[queue] = SPECS[queue]
            self.model.queues[queue] = []
        else:
            lost, _ = self.rig.broker.delete_queue(queue, if_empty=False, if_unused=False)
            assert lost == sum(len(each.messages) for each in self.model.queues.pop(queue))
            del self.model.specs[queue]
            self.credit = {tag: each for tag, each in self.credit.items() if each[0] != queue}
        self.stepped()

    # --- crashes and compaction ---------------------------------------------------------------

    @precondition(lambda self: self.calm > 10)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """What was durable is there; of the rest, any part that ends with a step."""
        self.calm = 0
        end, model = self.past[data.draw(st.integers(0, len(self.past) - 1))]
        keep = sum(1 for lsn, _, _, _ in self.rig.log.records if lsn <= end)
        self.rig.restart(keep=keep)
        self.model = model
        self.model.forget_hands()
        self.hands.clear()
        self.deadlines.clear()
        self.credit.clear()
        self.segments = [at for at in self.segments if at <= end]
        self.sync()
        self.stepped()

    @precondition(lambda self: self.calm > 5 and len(self.segments) < 3)
    @rule()
    def begin_segment(self) -> None:
        self.segments.append(self.rig.log.append(*self.rig.broker.snapshot()))
        self.stepped()

    @precondition(lambda self: self.calm > 5 and len(self.segments) > 1)
    @rule()
    def compact(self) -> None:
        """Copy what lives in the oldest segment, then drop it."""
        self.sync()
        broker, log = self.rig.broker, self.rig.log
        next_begins = self.segments[1]
        while broker.copy_dedup(next_begins, 1):
            pass
        for batch in list(broker.batches()):
            if batch.place < next_begins:
                broker.copy(batch, bytes(batch.size))
        self.sync()
        log.records = [each for each in log.records if each[0] >= next_begins]
        del self.segments[0]
        self.stepped()

    def note_copies(self) -> None:
        """Places, as the engine notes them when records become durable."""
        for lsn, kind, meta, _ in self.rig.log.records:
            if lsn <= self.model.durable:
                seq = decode_copy(meta).seq if kind == Kind.COPY else lsn
                if kind in (Kind.BATCH, Kind.COPY) and (batch := self.rig.broker.batch(seq)):
                    batch.place = max(batch.place, lsn)

    # --- always -------------------------------------------------------------------------------

    @invariant()
    def counts_add_up(self) -> None:
        for name, groups in self.model.queues.items():
            info = self.rig.info(name)
            messages = [each for group in groups for each in group.messages.values()]
            unacked = sum(each.tag is not None for each in messages)
            assert info.messages_unacked == unacked
            assert info.messages_ready == len(messages) - unacked
            assert info.batches == len(groups)
            assert info.bytes == 100 * len(groups)
            assert info.messages_onex == sum(len(each.messages) for each in groups if each.onex)
        assert {info.spec.name for info in self.rig.broker.queues()} == set(self.model.specs)
        batches = {group.number for group in self.model.groups()}
        assert self.rig.broker.counts()["batches"] >= len(batches)

    def teardown(self) -> None:
        """In the end every message that was not settled can still be had, once; and a crash in the
        middle of a step would have left a sound state too."""
        self.sync()
        records = self.rig.log.records
        for keep in range(len(records) - 1, 0, -7):
            self.rig.log.records = records
            self.rig.restart(keep=keep)
            self.check_sound()
        self.rig.log.records = records
        self.rig.restart()
        for name, groups in self.model.queues.items():
            assert self.rig.info(name).messages_ready == sum(
                len(group.messages) for group in groups
            )
        self.check_sound()

    def check_sound(self) -> None:
        """Every table of the broker agrees with every other."""
        state = self.rig.broker._state
        entries = [entry for queue in state.queues.values() for entry in queue.oldest(1000)]
        for queue in state.queues.values():
            mine = [entry for entry in entries if entry.queue is queue]
            assert queue.batches == len(mine)
            assert queue.messages == sum(entry.live.bit_count() for entry in mine)
            assert not queue.held
        assert {id(entry) for entry in entries} == {
            id(entry) for batch in state.batches.values() for entry in batch.all_entries()
        }
        for entry in entries:
            assert entry.live
            assert not entry.held
            assert state.batches[entry.batch.seq] is entry.batch
        assert all(batch.entries is not None for batch in state.batches.values())


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(stateful_step_count=100)
