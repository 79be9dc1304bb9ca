"""Credit: enough to keep a receiver busy, never more than its memory allows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.client.backoff import Backoff
from ciphermq.client.credit import Credit


def test_small_messages_are_prefetched_by_count() -> None:
    credit = Credit(4096)
    assert credit.open() == limits.FIRST_CREDIT
    credit.delivered(64, 64 * 1000)
    assert credit.top_up() == 4096 - 64
    credit.delivered(4000, 4000 * 1000)
    assert credit.settled(1000) == 0
    assert credit.settled(1100) == 2100
    assert credit.promised + credit.in_hand == 4096


def test_large_messages_are_prefetched_by_size() -> None:
    credit = Credit(4096, 32 * limits.MIB)
    credit.open()
    for _ in range(40):
        credit.delivered(1, limits.MIB)
        credit.settled(1)
    assert credit.promised + credit.in_hand <= 32


def test_a_prefetch_of_one_gives_one_at_a_time() -> None:
    credit = Credit(1)
    assert credit.open() == 1
    credit.delivered(1, 100)
    assert credit.top_up() == 0
    assert credit.settled(1) == 1


def test_the_next_connection_knows_the_size_and_has_nothing_in_hand() -> None:
    credit = Credit(100, 1_000_000)
    credit.open()
    credit.delivered(40, 4_000_000)
    following = credit.successor()
    assert following.open() == 10
    assert following.in_hand == 0


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.integers(1, 1024), st.integers(1, 1_100_000)), max_size=60),
    st.integers(0, 1000),
)
def test_the_broker_always_has_credit_once_all_is_settled(
    prefetch: int, deliveries: list[tuple[int, int]], seed: int
) -> None:
    """A broker that sends while its credit is above zero never waits for a receiver at rest."""
    chance = random.Random(seed)
    credit = Credit(prefetch)
    given = credit.open()
    used = in_hand = 0
    for messages, size in deliveries:
        if given - used <= 0:
            given += credit.settled(in_hand)
            in_hand = 0
        assert given - used > 0
        used += messages
        in_hand += messages
        credit.delivered(messages, size)
        given += credit.top_up()
        done = chance.randint(0, in_hand)
        given += credit.settled(done)
        in_hand -= done
        assert credit.promised == given - used
        assert credit.in_hand == in_hand
        assert credit.promised + credit.in_hand <= prefetch


def test_delays_double_up_to_the_most_and_begin_again() -> None:
    backoff = Backoff(0.1, 5.0, random.Random(7))
    delays = [backoff.next() for _ in range(40)]
    for attempt, delay in enumerate(delays):
        ceiling = min(5.0, 0.1 * 2**attempt)
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.next() <= 0.1


@pytest.mark.parametrize("attempts", [100, 5000])
def test_a_client_that_waits_for_days_still_has_a_delay(attempts: int) -> None:
    backoff = Backoff()
    for _ in range(attempts):
        backoff.next()
    assert backoff.next() <= limits.RECONNECT_MOST
