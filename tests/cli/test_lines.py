"""Input cut into messages: joined together they are the input again."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.cli.lines import CHUNK, LONGEST, Lines, read_whole
from ciphermq.errors import BatchTooLarge
from ciphermq.model.body import Body


class Pieces:
    """A pipe that gives what was written, a write at a time."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.given = 0

    def read1(self, size: int, /) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        self.given += min(len(piece), size)
        return piece[:size]


def all_of(lines: Lines) -> list[bytes]:
    found: list[bytes] = []
    while batch := lines.read():
        found += batch
        assert lines.offset == sum(map(len, found))
        assert lines.count == len(found)
    assert lines.read() == []
    return found


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\r\n", b"\r", b"a\nb"])))
def test_lines_joined_are_the_input(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    found = all_of(Lines(Pieces(pieces)))
    assert b"".join(found) == whole
    assert found == io.BytesIO(whole).readlines()


def test_a_pipe_gives_a_line_as_soon_as_it_is_written() -> None:
    lines = Lines(Pieces([b"one\ntw", b"o\n", b"three"]))
    assert lines.read() == [b"one\n"]
    assert lines.read() == [b"two\n"]
    assert lines.read() == [b"three"]
    assert lines.read() == []


def test_the_longest_line_is_exactly_what_a_message_holds() -> None:
    line = b"x" * (LONGEST - 1) + b"\n"
    (found,) = all_of(Lines(io.BytesIO(line)))
    assert len(Body.of_payloads([found], 0).data) == 1024 * 1024
    with pytest.raises(BatchTooLarge):
        Body.of_payloads([b"x" + found], 0)


@pytest.mark.parametrize("end", [b"", b"\n", b"\nshort\n"])
def test_a_longer_line_is_named_by_number(end: bytes) -> None:
    lines = Lines(io.BytesIO(b"a\nb\n" + b"x" * LONGEST + (end or b"x")))
    with pytest.raises(BatchTooLarge, match=r"^line 3 has more than 1048557 bytes"):
        all_of(lines)


def test_a_line_that_never_ends_is_not_read_to_its_end() -> None:
    pipe = Pieces([b"x" * CHUNK] * 100)
    with pytest.raises(BatchTooLarge, match="line 8 "):
        Lines(pipe, offset=50, count=7).read()
    assert pipe.given <= 2 * CHUNK


def test_a_whole_input_is_one_message() -> None:
    assert read_whole(io.BytesIO(b"one\ntwo\n")) == b"one\ntwo\n"
    assert len(read_whole(io.BytesIO(b"x" * LONGEST))) == LONGEST
    pipe = Pieces([b"x" * CHUNK] * 100)
    with pytest.raises(BatchTooLarge, match="--whole"):
        read_whole(pipe)
    assert pipe.given <= 2 * CHUNK
