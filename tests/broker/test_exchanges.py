from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.broker.exchanges import DirectMatcher, Exchange, FanoutMatcher, TopicMatcher
from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType

WORDS = st.sampled_from(["a", "b", "stock", ""])
KEYS = st.lists(WORDS, max_size=5).map(".".join)
PATTERNS = st.lists(st.one_of(WORDS, st.sampled_from(["*", "#"])), max_size=5).map(".".join)


def matches(pattern: list[str], key: list[str]) -> bool:
    """AMQP 0.9.1's rule, said as simply as can be."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(matches(pattern[1:], key[at:]) for at in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and matches(pattern[1:], key[1:])


def words(text: str) -> list[str]:
    return text.split(".") if text else []


@given(st.lists(PATTERNS, max_size=8), KEYS)
def test_topics_match_as_the_rule_says(patterns: list[str], key: str) -> None:
    matcher = TopicMatcher()
    for at, pattern in enumerate(patterns):
        matcher.add(pattern, f"queue {at}")
    assert set(matcher.match(key)) == {
        f"queue {at}" for at, pattern in enumerate(patterns) if matches(words(pattern), words(key))
    }


@given(st.lists(st.tuples(PATTERNS, st.sampled_from(["x", "y"])), unique=True), st.data())
def test_a_removed_pattern_leaves_the_others_and_nothing_else(
    bound: list[tuple[str, str]], data: st.DataObject
) -> None:
    matcher = TopicMatcher()
    for pattern, queue in bound:
        matcher.add(pattern, queue)
    kept = data.draw(st.lists(st.sampled_from(bound), unique=True)) if bound else []
    for pattern, queue in bound:
        if (pattern, queue) not in kept:
            matcher.remove(pattern, queue)
    key = data.draw(KEYS)
    expected = {queue for pattern, queue in kept if matches(words(pattern), words(key))}
    assert set(matcher.match(key)) == expected
    for pattern, queue in kept:
        matcher.remove(pattern, queue)
    assert not matcher._root.words


@pytest.mark.parametrize(
    ("pattern", "key", "match"),
    [
        ("#", "", True),
        ("#", "a.b.c", True),
        ("*", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("", "", True),
        ("", "a", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.c", False),
        ("#.c", "c", True),
        ("#.b.#", "a.b.c", True),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("#.#", "", True),
        ("a", "A", False),
        ("*", "#", True),
        ("a.b", "a.*", False),
    ],
)
def test_known_topics(pattern: str, key: str, match: bool) -> None:
    matcher = TopicMatcher()
    matcher.add(pattern, "q")
    assert list(matcher.match(key)) == (["q"] if match else [])


def test_hostile_patterns_cost_no_more_than_their_nodes() -> None:
    # Backtracking would take longer than the universe has: 2**60 ways to split the key.
    matcher = TopicMatcher()
    matcher.add(".".join(["#", "a"] * 60), "q")
    assert list(matcher.match(".".join(["a"] * 120 + ["b"]))) == []
    assert list(matcher.match(".".join(["a"] * 120))) == ["q"]


def test_direct_takes_just_the_key() -> None:
    matcher = DirectMatcher()
    matcher.add("k", "x")
    matcher.add("k", "y")
    matcher.add("#", "z")
    assert list(matcher.match("k")) == ["x", "y"]
    assert list(matcher.match("other")) == []
    matcher.remove("k", "x")
    assert list(matcher.match("k")) == ["y"]
    matcher.remove("k", "y")
    assert list(matcher.match("k")) == []


def test_fanout_takes_all_until_the_last_binding_goes() -> None:
    matcher = FanoutMatcher()
    matcher.add("a", "x")
    matcher.add("b", "x")
    matcher.add("", "y")
    assert list(matcher.match("whatever")) == ["x", "y"]
    matcher.remove("a", "x")
    assert list(matcher.match("whatever")) == ["x", "y"]
    matcher.remove("b", "x")
    assert list(matcher.match("whatever")) == ["y"]


@pytest.mark.parametrize("kind", list(ExchangeType))
def test_a_queue_bound_twice_is_named_once(kind: ExchangeType) -> None:
    exchange = Exchange(ExchangeSpec("e", kind))
    first, second = Binding("e", "q", "k"), Binding("e", "q", "#")
    exchange.bind(first)
    exchange.bind(second)
    assert exchange.match("k") == ["q"]
    exchange.unbind(second)
    assert exchange.match("k") == ["q"]
    exchange.unbind(first)
    assert exchange.match("k") == []
    assert not exchange.bindings
