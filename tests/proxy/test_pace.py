"""Bytes a second, with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.proxy.pace import Meter, Pace


@given(
    rate=st.integers(1, 10**9),
    asks=st.lists(st.integers(1, 10**6), min_size=1, max_size=50),
    idle=st.lists(st.floats(0, 5), min_size=50, max_size=50),
)
def test_never_more_than_a_second_ahead(rate: int, asks: list[int], idle: list[float]) -> None:
    """Who waits as told has sent no more than the rate allows and one second's worth, and the last
    read."""
    now, total = 0.0, 0
    pace = Pace(rate, now)
    for size, pause in zip(asks, idle, strict=False):
        size = min(size, pace.most)
        total += size
        now += pace.took(size, now) + pause
        assert total <= rate * (now + 1) + 1 + total * 1e-9


def test_a_client_within_its_rate_never_waits() -> None:
    pace = Pace(1000, 0.0)
    assert [pace.took(500, now * 0.5) for now in range(1, 100)] == [0.0] * 99


def test_who_overdraws_waits_for_just_that() -> None:
    pace = Pace(1000, 0.0)
    assert pace.took(1000, 0.0) == 0.0
    assert pace.took(250, 0.0) == pytest.approx(0.25)
    assert pace.took(1, 0.25) == pytest.approx(0.001)


def test_credit_is_not_saved_up() -> None:
    pace = Pace(1000, 0.0)
    assert pace.took(3000, 3600.0) == pytest.approx(2.0)


def test_a_slow_rate_is_read_in_small_pieces() -> None:
    assert Pace(100_000, 0.0).most == 5000
    assert Pace(10, 0.0).most == 512
    assert Pace(0, 0.0).rate == 1


def test_the_alarm_sounds_once_in_each_second_that_is_too_much() -> None:
    meter = Meter(1000, 0.0)
    assert not meter.took(1000, 0.1)
    assert meter.took(1, 0.2)
    assert not meter.took(5000, 0.3)
    assert not meter.took(1000, 1.3)
    assert meter.took(1, 1.4)
    assert not meter.took(1, 10.0)
