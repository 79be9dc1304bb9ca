"""Gathering what is to be written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.net.outgoing import gather
from ciphermq.wire.tls import CHUNK

pieces = st.lists(
    st.binary(max_size=300) | st.sampled_from([bytes(CHUNK - 1), bytes(CHUNK), bytes(3 * CHUNK)]),
    max_size=20,
)


@given(pieces)
def test_the_bytes_are_the_same_in_parts_of_a_chunk(given: list[bytes]) -> None:
    parts = list(gather(given))
    assert b"".join(parts) == b"".join(given)
    assert all(len(part) <= CHUNK for part in parts)


def test_small_neighbours_share_a_part() -> None:
    assert list(gather([b"a", b"b", b"c"])) == [b"abc"]


def test_a_large_piece_is_not_copied() -> None:
    large = bytearray(2 * CHUNK)
    head, *parts = gather([b"head", large])
    assert head == b"head"
    assert [part.obj is large for part in parts if isinstance(part, memoryview)] == [True, True]
