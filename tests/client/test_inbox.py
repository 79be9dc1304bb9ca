"""The Inbox: what is done once is not shown again, whatever ends when."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ciphermq import limits
from ciphermq.client import Batch, Inbox
from ciphermq.client.inbox import Arrival
from ciphermq.client.origin import Origin
from ciphermq.client.settling import Teller
from ciphermq.client.shelf import Shelf
from ciphermq.errors import AlreadyDone, InboxError, UsageError
from ciphermq.model import bitmap, body, ids
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.body import Body

DAY = 86_400.0


class Delivered:
    """A delivery whose broker remembers what it was told."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.acked: Bitmap = 0
        self.nacked: list[tuple[Bitmap, bool, str]] = []
        self.released: Bitmap = 0

    def ack(self, bits: Bitmap) -> None:
        self.acked |= bits

    def nack(self, bits: Bitmap, *, requeue: bool, reason: str, detail: str) -> None:
        self.nacked.append((bits, requeue, reason))

    def release(self, bits: Bitmap) -> None:
        self.released |= bits


def arrival(
    number: int = 1,
    count: int = 3,
    *,
    live: Bitmap | None = None,
    digest: bytes = b"d" * 32,
    queue: str = "bob",
    delivery: Delivered | None = None,
) -> Arrival:
    """Batch `number` of alice's, with `count` messages."""
    batch_id = ids.new_batch_id(0)[:6] + b"\x70" + bytes([number]) + b"\x80" + bytes(7)
    payloads = [b"%d.%d" % (number, index) for index in range(count)]
    messages = body.decode(Body.of_payloads(payloads, 0).data)
    origin = Origin(queue, "alice", batch_id, count, digest)
    live = bitmap.full(count) if live is None else live
    return Arrival(messages, origin, live, delivery or Delivered())


def delivered(arrived: Arrival) -> Delivered:
    assert isinstance(arrived.delivery, Delivered)
    return arrived.delivery


def admit(inbox: Inbox, *arrivals: Arrival) -> list[Batch]:
    return inbox.admit(arrivals, Teller(inbox))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


# --- remembering -------------------------------------------------------------------------------


def test_what_is_acked_is_not_shown_again(path: Path) -> None:
    with Inbox(path) as inbox:
        teller = Teller(inbox)
        first = arrival()
        (batch,) = inbox.admit([first], teller)
        assert batch.payloads == [b"1.0", b"1.1", b"1.2"]
        batch[0].ack()
        batch[2].ack()
        assert delivered(first).acked == 0, "the Inbox is told first"
        teller.tell()
        assert delivered(first).acked == 0b101
    with Inbox(path) as inbox:
        again = arrival()
        (batch,) = admit(inbox, again)
        assert batch.payloads == [b"1.1"]
        assert delivered(again).acked == 0b101
        assert inbox.duplicates == 2


def test_what_could_not_be_committed_is_told_when_it_can_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = arrival()
    with Inbox(path) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([arrived], teller)
        batch.ack()
        with monkeypatch.context() as patch:
            patch.setattr(inbox, "finish", _disk_full)
            with pytest.raises(InboxError, match="full"):
                teller.tell()
        assert delivered(arrived).acked == 0
        teller.release()
        assert delivered(arrived).acked == bitmap.full(3)
        assert delivered(arrived).released == 0
    with Inbox(path) as inbox:
        assert admit(inbox, arrival()) == []


def _disk_full(*_: object) -> None:
    raise InboxError("database or disk is full")


@pytest.mark.parametrize("store_payloads", [False, True])
def test_what_an_inbox_could_not_take_is_shown_when_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch, store_payloads: bool
) -> None:
    """Else it would be in nobody's hands, and the broker be told that it is still wanted."""
    with Inbox(path, store_payloads=store_payloads) as inbox:
        shelf = Shelf("bob", inbox, None)
        with monkeypatch.context() as patch:
            patch.setattr(inbox, "_done", _disk_full)
            with pytest.raises(InboxError, match="full"):
                shelf.admit([arrival(1), arrival(2)])
            with pytest.raises(InboxError, match="full"):
                shelf.next_batch()
        shown = [shelf.next_batch(), shelf.next_batch(), shelf.next_batch()]
        assert [batch and batch.payloads[0] for batch in shown] == [b"1.0", b"2.0", None]


def test_what_is_delivered_twice_at_once_is_shown_once(path: Path) -> None:
    with Inbox(path) as inbox:
        shelf = Shelf("bob", inbox, None)
        first, twin, third = arrival(live=0b011), arrival(live=0b111), arrival()
        for each in (first, twin, third):
            shelf.admit([each])
        shown = []
        while (message := shelf.next_message()) is not None:
            shown.append(message.payload)
            shelf.hold(message)
            shelf.finish()
        shelf.tell()
        assert shown == [b"1.0", b"1.1", b"1.2"]
        assert delivered(first).acked == 0b011
        assert (delivered(twin).acked, delivered(twin).nacked) == (0b100, [(0b011, True, "")])
        assert (delivered(third).acked, delivered(third).nacked) == (0, [(0b111, True, "")])
        again = arrival()
        shelf.admit([again])
        assert shelf.next_message() is None
        assert delivered(again).acked == 0b111
        shelf.close(None)


def test_what_a_lost_connection_held_is_shown_when_it_comes_again(path: Path) -> None:
    with Inbox(path) as inbox:
        teller = Teller(inbox)
        lost = Delivered()
        inbox.admit([arrival(delivery=lost)], teller)
        lost.lost = True
        again = arrival()
        (batch,) = inbox.admit([again], teller)
        assert len(batch) == 3
        assert delivered(again).nacked == []


def test_twins_in_one_transaction_are_done_once(path: Path) -> None:
    with Inbox(path) as inbox:
        twins = [*admit(inbox, arrival(live=0b011)), *admit(inbox, arrival(live=0b110))]
        with inbox.transaction(*twins):
            assert [batch.payloads for batch in twins] == [[b"1.0", b"1.1"], [b"1.2"]]
        assert admit(inbox, arrival()) == []


def test_what_is_done_whole_is_acked_and_not_shown(path: Path) -> None:
    with Inbox(path) as inbox:
        (batch,) = admit(inbox, arrival())
        with inbox.transaction(batch):
            pass
        again = arrival()
        assert admit(inbox, again) == []
        assert delivered(again).acked == 0b111
        assert inbox.duplicates == 3


def test_effect_and_memory_are_one_transaction(path: Path) -> None:
    with Inbox(path) as inbox:
        (batch,) = admit(inbox, arrival())
        with inbox.transaction(batch[0]) as db:
            db.execute("CREATE TABLE effects (what TEXT)")
            db.execute("INSERT INTO effects VALUES ('kept')")
        with pytest.raises(ValueError, match="no"), inbox.transaction(batch[1]) as db:
            db.execute("INSERT INTO effects VALUES ('undone')")
            raise ValueError("no")
        assert not batch[1].settled
    with Inbox(path) as inbox:
        (batch,) = admit(inbox, arrival())
        assert batch.payloads == [b"1.1", b"1.2"]
        with inbox.transaction(batch[0]) as db:
            assert db.execute("SELECT what FROM effects").fetchall() == [("kept",)]


def test_several_batches_can_be_done_together(path: Path) -> None:
    with Inbox(path) as inbox:
        batches = admit(inbox, arrival(1), arrival(2), arrival(3))
        with inbox.transaction(batches[0], batches[1][2]):
            pass
        shown = admit(inbox, arrival(1), arrival(2), arrival(3))
        assert [batch.payloads for batch in shown] == [[b"2.0", b"2.1"], [b"3.0", b"3.1", b"3.2"]]


def test_apply_says_whether_there_was_anything_to_do(path: Path) -> None:
    done = []
    with Inbox(path) as inbox:
        (one,) = admit(inbox, arrival())
        (other,) = admit(inbox, arrival())
        assert inbox.apply(one[0], lambda _: done.append("one"))
        assert not inbox.apply(other[0], lambda _: done.append("other"))
    assert done == ["one"]


def test_of_two_who_have_the_same_batch_one_does_each_message(path: Path) -> None:
    """Its ack timed out, say, and another receiver was given it."""
    one_arrival, other_arrival = arrival(), arrival()
    with Inbox(path) as here, Inbox(path) as there:
        one, other = Teller(here), Teller(there)
        (mine,) = here.admit([one_arrival], one)
        (theirs,) = there.admit([other_arrival], other)
        with here.transaction(mine[1]):
            pass
        with there.transaction(theirs) as _:
            assert theirs.payloads == [b"1.0", b"1.2"]
        assert theirs.bits == 0b101
        with pytest.raises(AlreadyDone), here.transaction(mine):
            pytest.fail("it is all done")
        one.tell()
        other.tell()
        theirs.ack()
        other.tell()
    assert delivered(one_arrival).acked == 0b111
    assert delivered(other_arrival).acked == 0b111


def test_what_is_committed_is_acked_even_if_it_is_nacked_then(path: Path) -> None:
    first = arrival()
    with Inbox(path) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([first], teller)
        with inbox.transaction(batch[0]):
            pass
        batch.nack()
        teller.tell()
    assert delivered(first).acked == 0b001
    assert delivered(first).nacked == [(0b110, True, "")]


def test_another_batch_under_a_known_id_is_refused(path: Path) -> None:
    with Inbox(path) as inbox:
        (batch,) = admit(inbox, arrival())
        with inbox.transaction(batch):
            pass
        impostor = arrival(digest=b"e" * 32)
        good = arrival(2)
        (shown,) = admit(inbox, impostor, good)
        assert shown.payloads[0] == b"2.0"
        assert delivered(impostor).nacked == [(0b111, False, "duplicate-conflict")]
        assert delivered(impostor).acked == 0


def test_live_messages_only_are_shown_and_acked(path: Path) -> None:
    with Inbox(path) as inbox:
        part = arrival(live=0b110)
        (batch,) = admit(inbox, part)
        with inbox.transaction(batch):
            pass
        rest = arrival(live=0b001)
        (batch,) = admit(inbox, rest)
        assert batch.payloads == [b"1.0"]


# --- in the application's database ---------------------------------------------------------------


def test_the_applications_own_connection(path: Path) -> None:
    for own in (sqlite3.connect(path), sqlite3.connect(path, isolation_level=None)):
        own.execute("CREATE TABLE IF NOT EXISTS payments (id TEXT)")
        own.commit()
        inbox = Inbox(own)
        (batch,) = admit(inbox, arrival(1 if own.isolation_level is None else 2))
        with inbox.transaction(batch) as db:
            assert db is own
            db.execute("INSERT INTO payments VALUES (?)", (batch[0].id,))
        inbox.close()
        assert own.execute("SELECT count(*) FROM payments").fetchone()[0] >= 1
        own.close()


def test_transactions_do_not_mix(path: Path) -> None:
    own = sqlite3.connect(path)
    inbox = Inbox(own)
    (batch,) = admit(inbox, arrival())
    own.execute("CREATE TABLE t (x)")
    own.commit()
    own.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(UsageError, match="middle of another transaction"):
        inbox.apply(batch, lambda _: None)
    own.rollback()
    with pytest.raises(UsageError, match="committed or rolled back inside"):
        inbox.apply(batch, lambda db: db.commit())
    with pytest.raises(UsageError, match="committed or rolled back inside"):
        inbox.apply(batch, lambda db: (db.rollback(), db.execute("INSERT INTO t VALUES (2)")))
    assert own.execute("SELECT * FROM t").fetchall() == []
    own.close()


def test_a_message_is_done_in_the_inbox_it_came_through(path: Path, tmp_path: Path) -> None:
    with Inbox(path) as inbox, Inbox(tmp_path / "other.db") as other:
        (batch,) = admit(inbox, arrival())
        with pytest.raises(UsageError, match="another Inbox"):
            other.apply(batch, lambda _: None)


# --- what can be wrong ----------------------------------------------------------------------------


def test_files_that_are_no_inbox(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is not a database" * 100)
    with pytest.raises(InboxError, match=r"garbage\.db.*not a database"):
        Inbox(garbage)
    with pytest.raises(InboxError, match="No such file"):
        Inbox(tmp_path / "missing" / "inbox.db")


def test_a_newer_programs_inbox(path: Path) -> None:
    Inbox(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE ciphermq_inbox_schema SET version = 9")
    db.close()
    with pytest.raises(InboxError, match="newer CipherMQ"):
        Inbox(path)


def test_a_file_that_another_process_keeps_locked(path: Path) -> None:
    with Inbox(path, timeout=0.05) as inbox:
        (batch,) = admit(inbox, arrival())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InboxError, match="locked"):
            inbox.apply(batch, lambda _: None)
        other.execute("ROLLBACK")
        other.close()
        assert inbox.apply(batch, lambda _: None)


def test_the_file_is_its_owners(path: Path) -> None:
    Inbox(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_ids_are_forgotten_when_nothing_so_old_can_come(path: Path) -> None:
    now = 1e9
    inbox = Inbox(path, clock=lambda: now)
    for number in range(3):
        (batch,) = admit(inbox, arrival(number))
        with inbox.transaction(batch):
            pass
        now += 10 * DAY
    now += 1.5 * DAY
    (batch,) = admit(inbox, arrival(0))
    assert batch.payloads[0] == b"0.0", "31 days ago: by now it could not be opened at all"
    assert admit(inbox, arrival(1), arrival(2)) == []
    inbox.close()


# --- payloads that are stored ---------------------------------------------------------------------


def test_stored_batches_are_acked_at_once_and_shown_again_after_a_crash(path: Path) -> None:
    inbox = Inbox(path, store_payloads=True)
    arrivals = [arrival(1), arrival(2)]
    one, _ = admit(inbox, *arrivals)
    assert [delivered(each).acked for each in arrivals] == [0b111, 0b111]
    with inbox.transaction(one[1]):
        pass
    inbox.close()
    with Inbox(path, store_payloads=True) as inbox:
        teller = Teller(inbox)
        shown = [inbox.take("bob", teller), inbox.take("bob", teller)]
        assert inbox.take("bob", teller) is None
        assert inbox.take("elsewhere", teller) is None
        assert [batch.payloads for batch in shown if batch] == [
            [b"1.0", b"1.2"],
            [b"2.0", b"2.1", b"2.2"],
        ]
        assert shown[0] is not None
        assert shown[0][0].sender == "alice"
        assert shown[0][0].redelivered
        for batch in shown:
            assert batch is not None
            batch.ack()
        teller.tell()
    with Inbox(path, store_payloads=True) as inbox:
        assert inbox.take("bob", Teller(inbox)) is None
        again = arrival(1)
        assert admit(inbox, again) == []
        assert delivered(again).acked == 0b111
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM ciphermq_inbox_pending").fetchone() == (0,)
    db.close()


def test_a_redelivery_of_what_is_stored_is_a_duplicate(path: Path) -> None:
    with Inbox(path, store_payloads=True) as inbox:
        (batch,) = admit(inbox, arrival(live=0b011))
        again = arrival()
        (rest,) = admit(inbox, again)
        assert batch.payloads == [b"1.0", b"1.1"]
        assert rest.payloads == [b"1.2"]
        assert delivered(again).acked == 0b111
        assert inbox.duplicates == 2


def test_stored_messages_that_are_nacked_come_again_after_a_while(path: Path) -> None:
    now = 1e9
    with Inbox(path, store_payloads=True, clock=lambda: now) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([arrival()], teller)
        batch[0].ack()
        batch.nack()
        teller.tell()
        assert inbox.next_due("bob") == pytest.approx(limits.NACK_BACKOFF_FIRST)
        assert inbox.take("bob", teller) is None
        now += 1
        assert inbox.next_due("bob") == 0
        again = inbox.take("bob", teller)
        assert again is not None
        assert again.payloads == [b"1.1", b"1.2"]
        assert again.redeliveries == 1
        again.nack()
        assert inbox.next_due("bob") == pytest.approx(2.0)


def test_each_stored_message_has_its_own_tries(path: Path) -> None:
    """Were they the batch's, one failure of many messages would be the last of some."""
    now, count = [1e9], limits.MAX_TRIES + 5
    with Inbox(path, store_payloads=True, clock=lambda: now[0]) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([arrival(count=count)], teller)
        for message in batch:
            message.nack()
        assert list(inbox.rejected()) == []
    for tries in range(1, limits.MAX_TRIES):
        now[0] += 100
        # The count outlives the receiver.
        with Inbox(path, store_payloads=True, clock=lambda: now[0]) as inbox:
            shown = inbox.take("bob", Teller(inbox))
            assert shown is not None
            assert (len(shown), shown.redeliveries) == (count, tries)
            shown.nack()
            assert len(list(inbox.rejected())) == (count if tries == limits.MAX_TRIES - 1 else 0)


def test_stored_messages_that_are_refused_are_kept_for_the_operator(path: Path) -> None:
    now = 1e9
    with Inbox(path, store_payloads=True, clock=lambda: now) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([arrival()], teller)
        batch[1].reject("unwanted", "no use for it")
        batch[0].ack()
        for _ in range(limits.MAX_TRIES):
            batch.nack()
            now += 100
            taken = inbox.take("bob", teller)
            if taken is None:
                break
            batch = taken
        found = [(each.payload, each.reason, each.detail) for each in inbox.rejected()]
        assert found == [
            (b"1.1", "unwanted", "no use for it"),
            (b"1.2", "tries", f"given back {limits.MAX_TRIES} times"),
        ]
        assert admit(inbox, arrival()) == []


def test_stored_messages_that_a_receiver_gives_back_are_for_the_next(path: Path) -> None:
    with Inbox(path, store_payloads=True) as inbox:
        teller = Teller(inbox)
        (batch,) = inbox.admit([arrival()], teller)
        stale = batch[1]
        batch[0].ack()
        teller.release()
        with inbox.transaction(stale):
            pass
        again = inbox.take("bob", Teller(inbox))
        assert again is not None
        assert again.payloads == [b"1.2"], "the other was done by who had it before"


def _open_stored(path: Path, answer: multiprocessing.SimpleQueue[str]) -> None:
    try:
        Inbox(path, store_payloads=True).close()
        answer.put("opened")
    except InboxError as error:
        answer.put(str(error))


def test_stored_payloads_belong_to_one_process(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    with Inbox(path, store_payloads=True):
        process = context.Process(target=_open_stored, args=(path, answer))
        process.start()
        assert "another process has it open" in answer.get()
        process.join()
    with Inbox(path, store_payloads=True):
        pass


# --- crashes at any moment ------------------------------------------------------------------------


class ExactlyOnce(RuleBasedStateMachine):
    """A broker that gives out again whatever it has not been told of; receivers that share an
    Inbox and die at any moment. Each effect is there exactly once, and none is missing."""

    @initialize(stored=st.booleans(), folder=st.just(None))
    def begin(self, stored: bool, folder: None) -> None:
        self.stored = stored
        self.db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self.db.execute("CREATE TABLE effects (id TEXT)")
        self.waiting: dict[int, Bitmap] = {}
        self.sent = self.messages = 0
        self.open()

    def open(self) -> None:
        self.inbox = Inbox(self.db, store_payloads=self.stored)
        self.teller = Teller(self.inbox)
        self.hands: list[tuple[int, Delivered, Batch]] = []
        self.deliveries: list[tuple[int, Delivered]] = []

    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        self.sent += 1
        self.messages += count
        self.waiting[self.sent] = bitmap.full(count)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Some of what the broker has, though others may have it in hand."""
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        live = self.waiting[number]
        came = arrival(number, 5 if live > 15 else live.bit_length(), live=live)
        came = came._replace(origin=Origin("bob", "alice", came.origin.batch_id, 5, b"d" * 32))
        came = came._replace(messages=arrival(number, 5).messages)
        self.deliveries.append((number, delivered(came)))
        for batch in self.inbox.admit([came], self.teller):
            self.hands.append((number, delivered(came), batch))
        self.hear()

    @precondition(lambda self: self.stored)
    @rule()
    def take(self) -> None:
        batch = self.inbox.take("bob", self.teller)
        if batch is not None:
            self.hands.append((0, Delivered(), batch))

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), crash=st.booleans())
    def work(self, data: st.DataObject, crash: bool) -> None:
        _, _, batch = data.draw(st.sampled_from(self.hands))
        message = data.draw(st.sampled_from(list(batch)))
        try:
            with self.inbox.transaction(message) as db:
                db.execute("INSERT INTO effects VALUES (?)", (message.id,))
                if crash:
                    raise ConnectionAbortedError
        except (AlreadyDone, ConnectionAbortedError):
            return
        message.ack()
        self.hear()

    @rule()
    def tell(self) -> None:
        self.teller.tell()
        self.hear()

    def hear(self) -> None:
        """The broker learns what it was told."""
        for number, delivery in self.deliveries:
            if number in self.waiting:
                self.waiting[number] &= ~delivery.acked
                if not self.waiting[number]:
                    del self.waiting[number]

    @rule()
    def crash(self) -> None:
        """Nothing of what was not committed or told is left."""
        self.open()

    def teardown(self) -> None:
        if not hasattr(self, "db"):
            return
        self.open()
        for number in sorted(self.waiting):
            live = self.waiting[number]
            origin = Origin("bob", "alice", arrival(number).origin.batch_id, 5, b"d" * 32)
            came = arrival(number, 5, live=live)._replace(origin=origin)
            for batch in self.inbox.admit([came], self.teller):
                self.finish(batch)
        while (kept := self.inbox.take("bob", self.teller)) is not None:
            self.finish(kept)
        effects = [row[0] for row in self.db.execute("SELECT id FROM effects")]
        assert len(effects) == len(set(effects)), "an effect happened twice"
        assert len(effects) == self.messages, "an effect is missing"
        self.db.close()

    def finish(self, batch: Batch) -> None:
        for message in list(batch):
            try:
                with self.inbox.transaction(message) as db:
                    db.execute("INSERT INTO effects VALUES (?)", (message.id,))
            except AlreadyDone:
                pass


TestExactlyOnce = ExactlyOnce.TestCase


def test_its_file_is_closed_to_others_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it in a moment when it was open to all could read on for ever."""
    path = tmp_path / "inbox.db"
    modes: list[int] = []
    real = sqlite3.connect

    def watching(where: Path, **options: Any) -> sqlite3.Connection:
        connection = real(where, **options)
        connection.execute("PRAGMA schema_version")  # SQLite makes a file when it needs one
        modes.append(stat.S_IMODE(path.stat().st_mode))
        return connection

    monkeypatch.setattr(sqlite3, "connect", watching)
    before = os.umask(0)
    try:
        with Inbox(path, store_payloads=True) as inbox:
            inbox.admit([arrival()], Teller(inbox))
            modes += [stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()]
    finally:
        os.umask(before)
    assert len(modes) == 5  # the database twice, its log, its index, the lock
    assert set(modes) == {0o600}
