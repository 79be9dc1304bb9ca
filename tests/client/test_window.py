"""The window against a broker that refuses, cuts and forgets to answer, as it likes."""

from __future__ import annotations

import random
from collections import deque
from weakref import ref

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ciphermq.client.window import Parcel, Sending, Verdict, Window
from ciphermq.errors import (
    AccessRefused,
    AfterRefusal,
    NoSpace,
    QueueFull,
    RemoteProtocolError,
    Unavailable,
    Unroutable,
    UsageError,
)


def window(most: int = 4) -> Window:
    return Window(most, random.Random(1))


def parcels(count: int, lane: str = "a") -> list[Parcel]:
    return [Parcel(lane, b"%d" % number) for number in range(count)]


def drain(window: Window, now: float = 0.0) -> list[Sending]:
    sendings = []
    while (sending := window.next(now)) is not None:
        sendings.append(sending)
    return sendings


def test_nothing_goes_without_a_connection() -> None:
    w = window()
    w.add(parcels(1)[0])
    assert w.next(0) is None
    assert not w.idle


def test_batches_are_numbered_from_one_and_limited_by_the_smaller_of_both_sides() -> None:
    for ours, theirs in ((4, 2), (2, 4)):
        w = window(ours)
        w.connect(theirs)
        for parcel in parcels(3):
            w.add(parcel)
        assert [(s.seq, s.restart) for s in drain(w)] == [(1, False), (2, False)]


class Lane:
    """A sender's own, which ends with it."""


@pytest.mark.parametrize("end", ["waiting", "in flight", "refused", "cut"])
def test_a_lane_that_has_ended_is_not_kept(end: str) -> None:
    w, now = window(), 0.0
    w.connect(4)
    lane: Lane | None = Lane()
    gone = ref(lane)
    parcel: Parcel | None = Parcel(lane, b"x")
    assert parcel is not None
    w.add(parcel)
    w.returned(drain(w)[0].seq, QueueFull("full"), now)
    if end == "waiting":
        w.abandon(parcel)
    else:
        (sending,) = drain(w, now + 100)
        if end == "refused":
            assert w.returned(sending.seq, Unroutable("nowhere"), now)[1] is Verdict.FAILED
        else:
            w.abandon(parcel)
            if end == "cut":
                w.disconnect()
            else:
                w.returned(sending.seq, QueueFull("full"), now)
        del sending
    del lane, parcel
    assert w.idle
    assert gone() is None


def test_a_confirm_answers_all_up_to_its_number() -> None:
    w = window()
    w.connect(4)
    sent = parcels(4)
    for parcel in sent:
        w.add(parcel)
    drain(w)
    assert w.confirmed(3) == sent[:3]
    assert not w.settled
    assert w.confirmed(4) == sent[3:]
    assert w.settled
    assert w.idle


def test_answers_to_what_was_never_sent_are_the_peers_fault() -> None:
    w = window()
    w.connect(4)
    w.add(parcels(1)[0])
    drain(w)
    with pytest.raises(RemoteProtocolError, match="publish 2 is confirmed"):
        w.confirmed(2)
    with pytest.raises(RemoteProtocolError, match="publish 2 is returned"):
        w.returned(2, Unroutable("no"), 0)


def test_after_a_lost_connection_everything_unanswered_goes_again_in_order() -> None:
    w = window()
    w.connect(4)
    sent = parcels(6)
    for parcel in sent:
        w.add(parcel)
    drain(w)
    w.confirmed(1)
    w.disconnect()
    w.connect(8)
    assert [(s.seq, s.parcel) for s in drain(w)] == list(enumerate(sent[1:5], 1))


def test_a_connection_is_not_replaced_while_batches_are_on_it() -> None:
    w = window()
    w.connect(4)
    w.add(parcels(1)[0])
    drain(w)
    w.pause()
    with pytest.raises(UsageError):
        w.connect(4)
    w.confirmed(1)
    w.connect(4)


def test_a_paused_window_sends_nothing_and_takes_answers() -> None:
    w = window()
    w.connect(4)
    for parcel in parcels(2):
        w.add(parcel)
    assert w.next(0) is not None
    w.pause()
    assert w.next(0) is None
    assert len(w.confirmed(1)) == 1
    assert w.settled


def test_after_a_refusal_the_rest_goes_again_with_the_flag() -> None:
    w = window()
    w.connect(4)
    sent = parcels(4)
    for parcel in sent:
        w.add(parcel)
    drain(w)
    w.confirmed(1)
    assert w.returned(2, Unroutable("no"), 0) == (sent[1], Verdict.FAILED)
    assert w.next(0) is None, "the rest of the flight is not answered yet"
    w.returned(3, AfterRefusal("2 was refused"), 0)
    assert w.next(0) is None
    w.returned(4, AfterRefusal("2 was refused"), 0)
    again = drain(w)
    assert [(s.seq, s.restart, s.parcel) for s in again] == [
        (5, True, sent[2]),
        (6, False, sent[3]),
    ]


def test_the_flag_is_not_carried_to_another_connection() -> None:
    w = window()
    w.connect(4)
    w.add(parcels(1)[0])
    drain(w)
    w.returned(1, AccessRefused("no"), 0)
    w.disconnect()
    w.connect(4)
    w.add(parcels(1)[0])
    assert [s.restart for s in drain(w)] == [False]


@pytest.mark.parametrize("error", [QueueFull("full"), NoSpace("disk"), Unavailable("stopping")])
def test_what_may_pass_holds_its_own_lane_only(error: QueueFull) -> None:
    w = window()
    w.connect(4)
    mine, other = parcels(2, "mine"), parcels(1, "other")
    for parcel in (*mine, *other):
        w.add(parcel)
    drain(w)
    assert w.returned(1, error, 10.0) == (mine[0], Verdict.AGAIN)
    w.returned(2, AfterRefusal(""), 10.0)
    w.returned(3, AfterRefusal(""), 10.0)
    assert w.refusal("mine") is error
    assert w.refusal("other") is None
    assert not any(parcel.sent for parcel in (*mine, *other))
    assert [s.parcel for s in drain(w, 10.0)] == other
    w.confirmed(4)
    later = w.next_time()
    assert later is not None
    assert 10.0 < later <= 10.1
    assert [s.parcel for s in drain(w, later)] == mine
    assert w.refusal("mine") is error
    assert mine[0].sent
    w.disconnect()
    assert mine[0].sent  # it may have arrived
    w.connect(4)
    w.confirmed(drain(w, later)[-1].seq)
    assert w.refusal("mine") is None


def test_patience_grows_until_the_lane_moves() -> None:
    w = window()
    w.connect(1)
    parcel = parcels(1)[0]
    w.add(parcel)
    now, waits = 0.0, []
    for _ in range(12):
        seq = drain(w, now)[0].seq
        w.returned(seq, QueueFull("full"), now)
        until = w.next_time()
        assert until is not None
        waits.append(until - now)
        now = until
    assert waits[0] <= 0.1
    assert 2.5 <= waits[-1] <= 5.0
    assert w.confirmed(drain(w, now)[0].seq) == [parcel]
    assert w.next_time() is None


def test_an_abandoned_batch_is_not_sent_again() -> None:
    w = window()
    w.connect(2)
    one, two, three = parcels(3)
    for parcel in (one, two, three):
        w.add(parcel)
    drain(w)
    w.abandon(three)
    w.abandon(one)
    assert w.returned(1, QueueFull("full"), 0)[0] is one
    w.returned(2, AfterRefusal(""), 0)
    assert [s.parcel for s in drain(w, 60.0)] == [two]
    w.disconnect()
    w.abandon(two)
    assert w.idle


class Delivered(RuleBasedStateMachine):
    """Whatever happens on the way, each lane's batches are stored in order, each at least once,
    and what the window says of each is true."""

    def __init__(self) -> None:
        super().__init__()
        self.window = window(5)
        self.now = 0.0
        self.connected = False
        self.added: list[Parcel] = []
        self.confirmed: list[Parcel] = []
        self.failed: list[Parcel] = []
        self.stored: list[Parcel] = []
        self.arriving: deque[Sending] = deque()
        self.answers: deque[tuple[int, str]] = deque()
        self.refusing = False

    @rule(lane=st.sampled_from("ab"))
    def add(self, lane: str) -> None:
        parcel = Parcel(lane, b"")
        self.added.append(parcel)
        self.window.add(parcel)

    @precondition(lambda self: not self.connected)
    @rule(most=st.integers(1, 8))
    def connect(self, most: int) -> None:
        self.window.connect(most)
        self.connected, self.refusing = True, False

    @precondition(lambda self: self.connected)
    @rule(answered=st.booleans())
    def cut(self, answered: bool) -> None:
        """What was on the way may have arrived although no answer will come."""
        if answered:
            self.serve_all()
        self.arriving.clear()
        self.answers.clear()
        self.window.disconnect()
        self.connected = False

    @precondition(lambda self: self.connected)
    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        for _ in range(count):
            sending = self.window.next(self.now)
            if sending is not None:
                self.arriving.append(sending)

    def serve_all(self, verdict: str = "") -> None:
        while self.arriving:
            self.serve(verdict)
            verdict = ""

    @precondition(lambda self: self.arriving)
    @rule(verdict=st.sampled_from(["", "", "", "full", "unroutable"]))
    def serve(self, verdict: str) -> None:
        sending = self.arriving.popleft()
        if self.refusing and not sending.restart:
            self.answers.append((sending.seq, "after"))
            return
        self.refusing = bool(verdict)
        if not verdict and sending.parcel not in self.stored:
            self.stored.append(sending.parcel)
        self.answers.append((sending.seq, verdict))

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        seq, verdict = self.answers.popleft()
        if not verdict:
            self.confirmed += self.window.confirmed(seq)
            return
        errors = {"after": AfterRefusal(""), "full": QueueFull(""), "unroutable": Unroutable("")}
        parcel, outcome = self.window.returned(seq, errors[verdict], self.now)
        if outcome is Verdict.FAILED:
            self.failed.append(parcel)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_confirmed_is_stored(self) -> None:
        assert set(map(id, self.confirmed)) <= set(map(id, self.stored))
        assert len(set(map(id, self.confirmed))) == len(self.confirmed)

    @invariant()
    def lanes_keep_their_order(self) -> None:
        for lane in "ab":
            orders = [parcel.order for parcel in self.stored if parcel.lane == lane]
            assert orders == sorted(orders)

    def teardown(self) -> None:
        """With a broker that behaves, everything ends confirmed or failed."""
        for _ in range(10 * len(self.added) + 10):
            if not self.connected:
                self.connect(8)
            self.now += 10.0
            self.send(5)
            self.serve_all()
            while self.answers:
                self.answer()
        assert self.window.idle
        assert len(self.confirmed) + len(self.failed) == len(self.added)
        assert not set(map(id, self.confirmed)) & set(map(id, self.failed))
        self.lanes_keep_their_order()


TestDelivered = Delivered.TestCase
