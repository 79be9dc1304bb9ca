"""Bytes from anywhere, given to the machines of the 1.x protocol.

They never raise. A server has an answer to everything; a client's only fault is a line that is
too long. `HYPOTHESIS_PROFILE=thorough` looks much longer.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import FrameTooLarge
from ciphermq.wire.lines.codec import RULES, encode_command, encode_reply
from ciphermq.wire.lines.machine import ClientLines, LineMachine, ServerLines
from ciphermq.wire.lines.speech import Wrong
from support.lines import commands, replies

cuts = st.lists(st.integers(1, 64), max_size=30)
verbs = st.sampled_from([*RULES, b"ACK", b"Message:", b"Error:", b""])
bits = st.sampled_from(
    [b" ", b"  ", b"\n", b"\r\n", b"\r", b"\x00", b"\xe2\x80\xa8", b"\xff", b"{}"]
)
nearly_lines = st.lists(verbs | bits | st.binary(max_size=20), max_size=30).map(b"".join)


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """A good line with one byte changed."""
    line = draw(commands.map(encode_command) | replies.map(encode_reply))
    data = bytearray(line)
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def feed(machine: LineMachine[Any], whole: LineMachine[Any], data: bytes, cuts: list[int]) -> None:
    whole.receive_data(data)
    heard: list[Any] = []
    at = 0
    for size in [*cuts, len(data)]:
        machine.receive_data(data[at : at + size])
        heard += machine.events()
        at += size
    # However it was cut, it comes to the same.
    assert heard == whole.events()
    assert str(machine.fault) == str(whole.fault)
    assert machine.mid_frame == whole.mid_frame
    assert machine.fault is None or type(machine.fault) is FrameTooLarge
    if isinstance(machine, ServerLines):
        assert machine.fault is None
        for wrong in heard:
            if isinstance(wrong, Wrong):
                assert len(encode_reply(wrong.reply).decode().splitlines()) == 1


@given(st.binary(max_size=400) | nearly_lines, cuts)
@example(b"", [])
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [])
@example(b"\n\n\r\n \n", [1] * 5)
@example(b"publish x k " + b"x" * (limits.MAX_ONEX_MESSAGE + limits.MAX_LINE) + b"\nack a\n", [])
@example(b"publish" + b"x" * limits.MAX_LINE + b"\n", [5, 4100])
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    feed(ServerLines(), ServerLines(), data, cuts)
    feed(ClientLines(), ClientLines(), data, cuts)


@given(st.lists(damaged_lines(), min_size=1, max_size=5).map(b"".join), cuts)
def test_damaged_lines(data: bytes, cuts: list[int]) -> None:
    feed(ServerLines(), ServerLines(), data, cuts)
    feed(ClientLines(), ClientLines(), data, cuts)
