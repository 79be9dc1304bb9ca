"""Which messages of a batch are meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.model import bitmap

counts = st.integers(1, 1024)


@given(counts, st.data())
def test_any_bitmap_survives(count: int, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, bitmap.full(count)))
    encoded = bitmap.encode(bits, count)
    assert bitmap.decode(encoded, count) == bits
    assert len(encoded) <= 128


@given(counts)
def test_all_of_a_batch_takes_no_bytes(count: int) -> None:
    assert bitmap.encode(bitmap.full(count), count) == b""
    assert bitmap.decode(b"", count) == bitmap.full(count)
    assert bitmap.encode(0, count) != b""


@given(st.sets(st.integers(0, 1023)))
def test_indices_come_back_in_order(indices: set[int]) -> None:
    assert list(bitmap.indices(bitmap.of(indices))) == sorted(indices)


@given(counts, st.binary(max_size=200))
def test_strange_bytes_mean_no_message_beyond_the_batch(count: int, data: bytes) -> None:
    assert bitmap.decode(data, count) & ~bitmap.full(count) == 0


@given(st.lists(st.integers(0, 2**20 - 1), max_size=8), st.integers(0, 2**20 - 1))
def test_levels_count_for_each_message(happened: list[int], asked: int) -> None:
    levels: bitmap.Levels = {}
    times = dict.fromkeys(range(20), 0)
    for bits in happened:
        bitmap.raise_levels(levels, bits)
        for index in bitmap.indices(bits):
            times[index] += 1
    parted = bitmap.by_level(levels, asked)
    assert {i: level for level, bits in parted.items() for i in bitmap.indices(bits)} == {
        index: times[index] for index in bitmap.indices(asked)
    }


def test_a_span_has_both_its_ends() -> None:
    assert list(bitmap.indices(bitmap.span(3, 5))) == [3, 4, 5]
    assert bitmap.span(0, 9) == bitmap.full(10)
    assert list(bitmap.indices(bitmap.span(7, 7))) == [7]
