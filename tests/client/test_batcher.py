"""Which messages share a batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.client.batcher import Batcher, Group, Item
from ciphermq.model.body import HEAD_SIZE


def take(batcher: Batcher[str], *, idle: bool) -> list[str] | None:
    group = batcher.take(idle=idle)
    return None if group is None else [item.content for item in group.items]


def test_alone_a_message_goes_at_once() -> None:
    batcher: Batcher[str] = Batcher()
    batcher.add(Item("a", 20))
    assert take(batcher, idle=True) == ["a"]
    assert take(batcher, idle=True) is None


def test_what_arrives_while_a_batch_is_out_goes_together() -> None:
    batcher: Batcher[str] = Batcher()
    for name in "abc":
        batcher.add(Item(name, 20))
        assert take(batcher, idle=False) is None
    assert batcher.count == 3
    assert batcher.size == 60
    assert take(batcher, idle=True) == ["a", "b", "c"]
    assert (batcher.count, batcher.size) == (0, 0)


def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[str] = Batcher(most_bytes=HEAD_SIZE + 40)
    for name in "abcde":
        batcher.add(Item(name, 20))
    assert take(batcher, idle=False) == ["a", "b"]
    assert take(batcher, idle=False) == ["c", "d"]
    assert take(batcher, idle=False) is None
    assert take(batcher, idle=True) == ["e"]


def test_a_batch_is_full_by_count_too() -> None:
    batcher: Batcher[str] = Batcher(most_messages=2)
    for name in "abc":
        batcher.add(Item(name, 20))
    assert take(batcher, idle=False) == ["a", "b"]
    assert take(batcher, idle=False) is None


def test_a_large_message_has_a_batch_to_itself() -> None:
    batcher: Batcher[str] = Batcher(most_bytes=100)
    for name, size in (("a", 20), ("large", 1000), ("b", 20)):
        batcher.add(Item(name, size))
    assert [take(batcher, idle=True) for _ in range(3)] == [["a"], ["large"], ["b"]]


def test_messages_that_end_at_different_times_do_not_share_a_batch() -> None:
    batcher: Batcher[str] = Batcher()
    for name, expires in (("a", 0), ("b", 5000), ("c", 5900), ("d", 4800), ("e", 9000), ("f", 0)):
        batcher.add(Item(name, 20, expires))
    groups: list[Group[str]] = []
    while (group := batcher.take(idle=True)) is not None:
        groups.append(group)
    assert [([i.content for i in g.items], g.expires_ms) for g in groups] == [
        (["a"], 0),
        (["b", "c"], 5000),
        (["d"], 4800),
        (["e"], 9000),
        (["f"], 0),
    ]


def test_a_message_can_be_withdrawn_until_it_is_taken() -> None:
    batcher: Batcher[str] = Batcher(most_bytes=HEAD_SIZE + 40)
    items = [Item(name, 20) for name in "abcde"]
    for item in items:
        batcher.add(item)
    assert batcher.drop(items[0])
    assert batcher.drop(items[1])
    assert not batcher.drop(items[1])
    assert take(batcher, idle=False) == ["c", "d"]
    assert not batcher.drop(items[2])
    assert batcher.drop(items[4])
    assert take(batcher, idle=True) is None
    assert (batcher.count, batcher.size) == (0, 0)
    batcher.add(Item("f", 20))
    assert take(batcher, idle=True) == ["f"]


_MESSAGES = st.lists(
    st.tuples(
        st.integers(16, 120),
        st.sampled_from([0, 0, 0, 5000, 5500, 6500]),
        st.sampled_from(["", "", "drop", "take"]),
    )
)


@given(_MESSAGES, st.integers(20, 200), st.integers(1, 6))
def test_every_message_comes_out_once_in_order_within_the_limits(
    messages: list[tuple[int, int, str]], most_bytes: int, most_messages: int
) -> None:
    batcher: Batcher[int] = Batcher(most_bytes, most_messages)
    groups: list[Group[int]] = []
    kept = []
    for number, (size, expires, then) in enumerate(messages):
        item = Item(number, size, expires)
        batcher.add(item)
        kept.append(number)
        if then == "drop" and batcher.drop(item):
            kept.remove(number)
        elif then == "take" and (taken := batcher.take(idle=bool(number % 2))) is not None:
            groups.append(taken)
    while (taken := batcher.take(idle=True)) is not None:
        groups.append(taken)
    assert [item.content for group in groups for item in group.items] == kept
    assert (batcher.count, batcher.size) == (0, 0)
    for group in groups:
        assert group.size == HEAD_SIZE + sum(item.size for item in group.items)
        assert group.size <= most_bytes or len(group.items) == 1
        assert len(group.items) <= most_messages
        for item in group.items:
            assert bool(item.expires_ms) == bool(group.expires_ms)
            assert 0 <= item.expires_ms - group.expires_ms <= 1000
