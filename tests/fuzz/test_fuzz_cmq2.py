"""Bytes from anywhere, given to the protocol's machine.

It never raises. What it says was wrong is one of the errors listed here; anything else is a way
for a stranger to stop a broker. `HYPOTHESIS_PROFILE=thorough` looks much longer.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ciphermq.errors import FrameTooLarge, MalformedFrame, RemoteProtocolError, UnknownFrame
from ciphermq.wire.cmq2.codec import HEAD, encode
from ciphermq.wire.cmq2.frames import Frame, FrameType, Hello
from ciphermq.wire.cmq2.machine import Cmq2Machine
from ciphermq.wire.cmq2.table import Role
from support.frames import any_frame

ALLOWED = {RemoteProtocolError, FrameTooLarge, UnknownFrame, MalformedFrame}

roles = st.sampled_from(Role)
cuts = st.lists(st.integers(1, 64), max_size=30)


@st.composite
def nearly_frames(draw: st.DrawFn) -> bytes:
    """A known type, a length that is right or not, any body."""
    body = draw(st.binary(max_size=120))
    length = draw(st.just(len(body) + 1) | st.integers(0, 2**32 - 1) | st.integers(0, 200))
    return HEAD.pack(length, draw(st.sampled_from(FrameType) | st.integers(0, 255))) + body


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """A good frame with one byte changed."""
    data = bytearray(b"".join(encode(draw(any_frame))))
    at = draw(st.integers(0, len(data) - 1))
    data[at] = draw(st.integers(0, 255))
    return bytes(data)


def feed(role: Role, open_first: bool, data: bytes, cuts: list[int]) -> None:
    machine = Cmq2Machine(role)
    if role is Role.CLIENT:
        machine.send(Hello())
    if open_first:
        machine.receive_data(b"".join(encode(Hello())))
        machine.events()
    whole = Cmq2Machine(role)
    if role is Role.CLIENT:
        whole.send(Hello())
    if open_first:
        whole.receive_data(b"".join(encode(Hello())))
        whole.events()
    whole.receive_data(data)
    seen: list[Frame] = []
    at = 0
    for size in [*cuts, len(data)]:
        machine.receive_data(data[at : at + size])
        seen += machine.events()
        at += size
    # However it was cut, it comes to the same.
    assert seen == whole.events()
    assert str(machine.fault) == str(whole.fault)
    assert machine.fault is None or type(machine.fault) in ALLOWED


@given(roles, st.booleans(), st.binary(max_size=400), cuts)
@example(Role.SERVER, False, b"", [])
@example(Role.SERVER, False, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [])
@example(Role.CLIENT, True, b"HTTP/1.1 400 Bad Request\r\n\r\n", [])
@example(Role.SERVER, True, b"\xff" * 40, [1] * 5)
def test_any_bytes(role: Role, open_first: bool, data: bytes, cuts: list[int]) -> None:
    feed(role, open_first, data, cuts)


@given(roles, st.booleans(), st.lists(nearly_frames(), min_size=1, max_size=5), cuts)
def test_nearly_frames(role: Role, open_first: bool, parts: list[bytes], cuts: list[int]) -> None:
    feed(role, open_first, b"".join(parts), cuts)


@given(roles, st.lists(damaged_frames(), min_size=1, max_size=5), cuts)
def test_damaged_frames(role: Role, parts: list[bytes], cuts: list[int]) -> None:
    feed(role, True, b"".join(parts), cuts)
