"""When the owner steps aside for the writer, and when it does not."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from ciphermq.journal import baton as module
from ciphermq.journal.baton import Baton


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Watched:
    """A lock that counts how often somebody waits for it."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.waits = 0
        self.meanwhile = lambda: None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout >= 0:
            self.waits += 1
            self.meanwhile()
            self.clock.now += timeout
            return self.lock.acquire(blocking=False)
        return self.lock.acquire(blocking)

    def release(self) -> None:
        self.lock.release()

    def locked(self) -> bool:
        return self.lock.locked()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def watched(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Watched:
    lock = Watched(clock)
    monkeypatch.setattr(module, "threading", SimpleNamespace(Lock=lambda: lock))
    return lock


def test_nobody_waits_for_an_idle_writer(clock: Clock, watched: Watched) -> None:
    baton = Baton()
    assert baton.idle
    baton.back()
    assert not baton.idle
    baton.rest()
    assert baton.idle
    clock.now += 1000
    baton.step_aside()
    assert watched.waits == 0


def test_a_writer_that_has_just_left_is_let_be(clock: Clock, watched: Watched) -> None:
    baton = Baton()
    baton.leave()
    clock.now += 0.0001
    baton.step_aside()
    assert watched.waits == 0
    clock.now += 0.001
    baton.step_aside()
    assert watched.waits == 1


def test_a_writer_in_the_middle_of_its_python_is_given_way_at_once(watched: Watched) -> None:
    baton = Baton()
    baton.back()
    watched.meanwhile = baton.leave
    baton.step_aside()
    assert watched.waits == 1


def test_waiting_in_vain_becomes_rarer_until_the_writer_moves(
    clock: Clock, watched: Watched
) -> None:
    baton = Baton()
    baton.leave()
    began = clock.now = clock.now + 1
    while clock.now < began + 1:
        clock.now += 0.0001
        baton.step_aside()
    assert 50 < watched.waits < 80  # every 16 ms at last
    watched.meanwhile = baton.back
    clock.now += 0.1
    baton.step_aside()
    baton.leave()
    watched.meanwhile = lambda: None
    watched.waits = 0
    began = clock.now = clock.now + 0.001
    while clock.now < began + 0.004:
        clock.now += 0.0001
        baton.step_aside()
    assert watched.waits == 3  # at once, a millisecond later, and two more later


def test_an_old_signal_is_not_taken_for_a_new_one(clock: Clock, watched: Watched) -> None:
    baton = Baton()
    for _ in range(3):
        baton.back()
        baton.leave()
    clock.now += 1
    baton.step_aside()
    clock.now += 0.0005
    baton.step_aside()
    assert watched.waits == 1  # it was in vain, so it pauses
