"""Whoever sends large packets lets ZeroMQ's thread have a turn, unless that would be others'."""

from __future__ import annotations

import os

import pytest

from ciphermq import limits
from ciphermq.net.zmq.turns import Turns

LARGE = [b"head", bytes(limits.ZMQ_TURN_FROM)]
SMALL = [b"head", bytes(limits.ZMQ_TURN_FROM - 1)]
A_DAY = 100_000
"""Packets."""


class Processor:
    """One where each turn takes `takes` seconds."""

    def __init__(self, takes: float) -> None:
        self.now = 0.0
        self.takes = takes
        self.turns = 0

    def step_back(self) -> None:
        self.now += self.takes
        self.turns += 1

    def clock(self) -> float:
        return self.now


def test_after_every_large_packet_and_no_other() -> None:
    processor = Processor(limits.ZMQ_TURN / 2)
    turns = Turns(processor.step_back, processor.clock)
    for count in range(100):
        turns.give(SMALL)
        turns.give(LARGE)
        assert processor.turns == count + 1


def test_seldom_where_others_take_it() -> None:
    processor = Processor(0.004)
    turns = Turns(processor.step_back, processor.clock)
    for _ in range(A_DAY):
        turns.give(LARGE)
    assert A_DAY / 257 <= processor.turns < A_DAY / 250


def test_always_again_once_they_have_gone() -> None:
    processor = Processor(0.004)
    turns = Turns(processor.step_back, processor.clock)
    for _ in range(A_DAY):
        turns.give(LARGE)
    processor.takes = 0.0
    for _ in range(limits.ZMQ_TURNS_LEFT_OUT + 1):
        turns.give(LARGE)
    given = processor.turns
    for _ in range(100):
        turns.give(LARGE)
    assert processor.turns == given + 100


def test_a_turn_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    yields: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(None), raising=False)
    turns = Turns()
    turns.give(SMALL)
    assert yields == []
    turns.give(LARGE)
    assert yields == [None]
