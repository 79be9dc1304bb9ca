"""Rates and caps of connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.proxy.change import SetLimit
from ciphermq.proxy.limits import Bucket, ConnectionLimits
from ciphermq.proxy.model import Configuration, LimitKind


def _limited(kind: LimitKind, value: int, vhost: str | None = "/") -> Configuration:
    return SetLimit(kind, vhost, value).apply(Configuration())


@given(
    st.integers(1, 50),
    st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200),
)
def test_no_stretch_of_time_gets_more_than_its_rate_and_one_burst(
    rate: int, pauses: list[float]
) -> None:
    bucket, now, taken = Bucket(rate, 0.0), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = rate * (taken[last] - taken[first]) + rate + 1e-6
            assert last - first + 1 <= most


def test_a_steady_stream_gets_all_of_its_rate() -> None:
    bucket = Bucket(10, 0.0)
    assert sum(bucket.take(step / 100) for step in range(1000)) >= 99


def test_a_rate_refuses_what_is_more_and_says_which() -> None:
    limits_, now = ConnectionLimits(), _limited("conn_rate", 2)
    verdicts = [limits_.admit(now, "/", "w", 0.0) for _ in range(3)]
    assert [bool(verdict.refusal) for verdict in verdicts] == [False, False, True]
    assert verdicts[2].refusal == "Vhost '/' has reached its limit of 2 connections a second."
    assert not limits_.admit(now, "/", "w", 1.0).refusal
    assert not limits_.admit(now, "/other", "w", 0.0).refusal


def test_the_default_holds_for_each_vhost_and_its_own_goes_before() -> None:
    now = SetLimit("connections", "big", 2).apply(_limited("connections", 1, None))
    limits_ = ConnectionLimits()

    def admitted(vhost: str) -> int:
        return sum(not limits_.admit(now, vhost, "w", 0.0).refusal for _ in range(4))

    assert [admitted(vhost) for vhost in ("a", "b", "big")] == [1, 1, 2]


def test_a_cap_counts_all_workers_and_gives_places_back() -> None:
    limits_, now = ConnectionLimits(), _limited("connections", 2)
    assert not limits_.admit(now, "/", "w1", 0.0).refusal
    assert not limits_.admit(now, "/", "w2", 0.0).refusal
    refused = limits_.admit(now, "/", "w1", 0.0).refusal
    assert refused == "Vhost '/' has reached its limit of 2 connections."
    limits_.release("/", "w2")
    assert not limits_.admit(now, "/", "w1", 0.0).refusal
    limits_.forget("w1")
    assert limits_.held("/") == 0
    limits_.recount("w3", {"/": 2, "v": 0})
    assert limits_.admit(now, "/", "w1", 0.0).refusal


def test_a_cap_of_none_keeps_all_out() -> None:
    assert ConnectionLimits().admit(_limited("connections", 0), "/", "w", 0.0).refusal
    assert ConnectionLimits().admit(_limited("conn_rate", 0), "/", "w", 0.0).refusal


def test_alarms_only_speak() -> None:
    limits_ = ConnectionLimits()
    now = SetLimit("connections_alarm", None, 1).apply(_limited("conn_rate_alarm", 1))
    assert limits_.admit(now, "/", "w", 0.0) == ("", ())
    assert limits_.admit(now, "/", "w", 0.0) == (
        "",
        (
            "AMQPPROX_CONNECTION_LIMIT Vhost '/' has reached its limit of 1 connections.",
            "AMQPPROX_CONNECTION_LIMIT Vhost '/' has reached its limit of 1 connections a second.",
        ),
    )


def test_one_that_is_refused_holds_no_place_and_uses_no_rate() -> None:
    now = SetLimit("conn_rate", "/", 2).apply(_limited("connections", 1))
    limits_ = ConnectionLimits()
    limits_.admit(now, "/", "w", 0.0)
    for _ in range(5):
        assert "connections." in limits_.admit(now, "/", "w", 0.0).refusal
    limits_.release("/", "w")
    assert not limits_.admit(now, "/", "w", 0.0).refusal


def test_a_changed_rate_holds_at_once() -> None:
    limits_ = ConnectionLimits()
    limits_.admit(_limited("conn_rate", 1), "/", "w", 0.0)
    assert limits_.admit(_limited("conn_rate", 1), "/", "w", 0.0).refusal
    assert not limits_.admit(_limited("conn_rate", 3), "/", "w", 0.0).refusal


def test_strangers_vhosts_do_not_fill_the_memory() -> None:
    limits_, now = ConnectionLimits(), _limited("conn_rate", 5, None)
    for number in range(3 * limits.PROXY_RATES):
        vhost = f"v{number}"
        limits_.admit(now, vhost, "w", number / 1000)
        limits_.release(vhost, "w")
    assert len(limits_._rates["conn_rate"]) <= limits.PROXY_RATES + 1
    assert limits_.held("v1") == 0
