from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.broker.timers import Wheel


class Item:
    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        self.wanted = True


def wheel(quantum_ms: int = 50) -> Wheel[Item]:
    return Wheel(quantum_ms, lambda item: item.wanted)


@given(
    st.lists(st.integers(0, 2000)),
    st.integers(1, 300),
    st.lists(st.integers(0, 3000), min_size=1).map(sorted),
    st.integers(1, 5),
)
def test_items_come_when_due_never_before_and_a_quantum_late_at_most(
    times: list[int], quantum: int, looks: list[int], most: int
) -> None:
    timers = wheel(quantum)
    for at_ms in times:
        timers.add(at_ms, Item(at_ms))
    left = sorted(times)
    for now in looks:
        found = []
        while batch := timers.due(now, most):
            assert len(batch) <= most
            found += [item.at_ms for item in batch]
        assert all(at_ms <= now for at_ms in found)
        for at_ms in found:
            left.remove(at_ms)
        assert all(at_ms + quantum > now for at_ms in left)
    assert len(timers) == len(left)


@given(st.lists(st.tuples(st.integers(0, 500), st.booleans())))
def test_dropped_items_never_come_and_the_deadline_is_right(plan: list[tuple[int, bool]]) -> None:
    timers = wheel()
    items = [(Item(at_ms), drop) for at_ms, drop in plan]
    for item, _ in items:
        timers.add(item.at_ms, item)
    for item, drop in items:
        if drop:
            item.wanted = False
            timers.drop(item.at_ms)
    kept = sorted(item.at_ms for item, drop in items if not drop)
    deadline = timers.next_deadline()
    if kept:
        assert deadline is not None
        assert deadline <= -(-kept[0] // 50) * 50
    assert sorted(item.at_ms for item in timers.due(10_000, 10_000)) == kept
    assert timers.next_deadline() is None


def test_what_is_dropped_does_not_pile_up() -> None:
    timers = wheel()
    for round_ in range(200):
        for at_ms in (1000, 1000 + 50 * round_):
            for _ in range(50):
                item = Item(at_ms)
                timers.add(at_ms, item)
                item.wanted = False
                timers.drop(at_ms)
    assert len(timers) < 200
    assert len(timers._ticks) < 200


def test_dropping_what_was_due_already_is_no_error() -> None:
    timers = wheel()
    timers.drop(1000)
    timers.add(1000, Item(1000))
    assert len(timers.due(1000, 10)) == 1
    timers.drop(1000)
    assert timers.next_deadline() is None
