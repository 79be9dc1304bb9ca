"""The machine: any cut of the stream, zero copies, faults, numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import (
    FrameTooLarge,
    LocalProtocolError,
    MalformedFrame,
    RemoteProtocolError,
    UnknownFrame,
)
from ciphermq.wire.cmq2.codec import HEAD, encode
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    ConfirmFrame,
    ConfirmKind,
    Credit,
    Frame,
    FrameType,
    Hello,
    Ok,
    Ping,
    PublishFrame,
    Return,
)
from ciphermq.wire.cmq2.machine import Cmq2Machine, new_scratch
from ciphermq.wire.cmq2.table import Role
from support.frames import greeted, to_server, transfer


def pieces(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = next(sizes)
        yield data[at : at + size]
        at += size


@st.composite
def conversations(draw: st.DrawFn) -> list[Frame]:
    """What a client may send: numbered frames, small and larger than the scratch buffer."""
    sizes = st.integers(0, 400) | st.sampled_from([limits.READ_BUFFER - 14, 150_000])
    frames: list[Frame] = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        size = draw(sizes)
        frames += [
            PublishFrame(number, draw(st.booleans()), bytes([number]) * size),
            draw(st.builds(Credit, consumer=st.integers(0, 9), messages=st.integers(0, 2**31))),
            AckFrame(number, number, draw(st.binary(max_size=128))),
        ]
    return frames


@given(conversations(), st.lists(st.integers(1, 70_000), min_size=1, max_size=20))
def test_however_the_stream_is_cut_the_frames_are_the_same(
    frames: list[Frame], cuts: list[int]
) -> None:
    client, server = greeted()
    data = to_server(client, frames)
    seen: list[Frame] = []
    for piece in pieces(data, iter(cuts + [200_000] * len(data))):
        server.receive_data(piece)
        seen += server.events()
    assert server.fault is None
    assert not server.mid_frame
    assert seen == frames


def test_byte_by_byte_and_with_a_tail() -> None:
    client, server = greeted()
    frames: list[Frame] = [PublishFrame(1, True, b"abc"), Ping(request=1), AckFrame(1, 9, b"\1")]
    data = to_server(client, frames)
    seen: list[Frame] = []
    for at in range(len(data)):
        server.receive_data(data[at : at + 1])
        seen += server.events()
        assert server.mid_frame == (seen != frames and not ends_at(data, at + 1))
    assert seen == frames
    tail = to_server(client, [Ping(request=2)])
    server.receive_data(tail + tail[:7])
    assert server.events() == [Ping(request=2)]
    assert server.mid_frame
    server.receive_data(tail[7:])
    assert server.events() == [Ping(request=2)]


def ends_at(data: bytes, end: int) -> bool:
    at = 0
    while at < end:
        at += 4 + HEAD.unpack_from(data, at)[0]
    return at == end


def test_a_large_frame_is_read_into_its_own_memory_and_handed_over_as_it_is() -> None:
    client, server = greeted()
    sealed = bytes(range(256)) * 4096
    data = b"".join(client.send(PublishFrame(1, False, sealed)))
    server.receive_data(data[:100])
    room = server.get_buffer()
    assert len(room) == len(data) - 100  # exactly what is missing, and no more
    room[:] = data[100:]
    server.buffer_updated(len(room))
    (frame,) = server.events()
    assert isinstance(frame, PublishFrame)
    assert isinstance(frame.sealed, memoryview)
    assert frame.sealed.readonly
    assert frame.sealed == sealed
    assert frame.sealed.obj is room.obj  # the very bytes that were read into


def test_what_was_handed_over_does_not_change_when_more_is_read() -> None:
    client, server = greeted()
    server.receive_data(to_server(client, [PublishFrame(1, False, b"first" * 50)]))
    (first,) = server.events()
    server.receive_data(to_server(client, [PublishFrame(2, False, b"other" * 50)]))
    assert isinstance(first, PublishFrame)
    assert first.sealed == b"first" * 50


@given(st.lists(st.integers(0, 2), max_size=60))
def test_machines_may_share_their_scratch_buffer(order: list[int]) -> None:
    scratch = new_scratch()
    servers = [Cmq2Machine(Role.SERVER, scratch) for _ in range(3)]
    streams = []
    for number in range(3):
        client = Cmq2Machine(Role.CLIENT)
        frames: list[Frame] = [Hello(software=f"{number}")]
        frames += [PublishFrame(seq, False, bytes([number]) * seq * 7) for seq in range(1, 9)]
        streams.append((to_server(client, frames), frames))
    positions, seen = [0, 0, 0], [[], [], []]
    for number in order + [0, 1, 2] * 100:
        data = streams[number][0][positions[number] : positions[number] + 23]
        servers[number].receive_data(data)
        positions[number] += len(data)
        seen[number] += servers[number].events()
    assert seen == [frames for _, frames in streams]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (HEAD.pack(10, 0), UnknownFrame, "type 0"),
        (HEAD.pack(10, 31), UnknownFrame, "type 31"),
        (b"GET / HTTP/1.1\r\n", UnknownFrame, "type 47"),
        (HEAD.pack(0, FrameType.PING), MalformedFrame, "length 0"),
        (HEAD.pack(limits.MAX_FRAME + 1, FrameType.PUBLISH), FrameTooLarge, "PUBLISH"),
        (HEAD.pack(2**32 - 1, FrameType.PUBLISH), FrameTooLarge, str(limits.MAX_FRAME)),
        (HEAD.pack(2, FrameType.PING) + b"\xc1", MalformedFrame, "PING"),
        (HEAD.pack(2, FrameType.CONFIRM), RemoteProtocolError, "client.*CONFIRM"),
        (b"".join(encode(Hello())), RemoteProtocolError, "HELLO"),
        (b"".join(encode(PublishFrame(2, False, b""))), MalformedFrame, "2, but 1 is next"),
        (b"".join(encode(PublishFrame(0, False, b""))), MalformedFrame, "0, but 1 is next"),
        (b"".join(encode(AckFrame(7, 1, b""))), MalformedFrame, "7, but 1 is next"),
    ],
)
def test_a_fault_comes_after_the_good_frames_before_it_and_is_final(
    data: bytes, error: type[Exception], said: str
) -> None:
    client, server = greeted()
    server.receive_data(to_server(client, [Ping(request=1)]) + data)
    assert server.events() == [Ping(request=1)]
    assert type(server.fault) is error
    with pytest.raises(error, match=said):
        raise server.fault
    fault = server.fault
    server.receive_data(to_server(client, [Ping(request=2)]) * 3)
    assert server.events() == []
    assert server.fault is fault
    assert not server.mid_frame
    assert len(server.get_buffer()) > 0


@pytest.mark.parametrize("role", list(Role))
def test_another_version_is_refused_by_its_number(role: Role) -> None:
    machine = Cmq2Machine(role)
    if role is Role.CLIENT:
        machine.send(Hello())
    machine.receive_data(b"".join(encode(Hello(version=3))))
    assert type(machine.fault) is RemoteProtocolError
    assert "version 3" in str(machine.fault)
    assert "version 2" in str(machine.fault)


def test_nothing_is_allocated_for_a_frame_that_is_refused() -> None:
    _, server = greeted()
    server.receive_data(HEAD.pack(2**32 - 1, FrameType.PUBLISH))
    assert len(server.get_buffer()) <= limits.READ_BUFFER


def test_a_frame_that_is_too_large_is_not_sent() -> None:
    client, _ = greeted()
    with pytest.raises(LocalProtocolError, match=f"at most {limits.MAX_FRAME}"):
        client.send(PublishFrame(1, False, bytes(limits.MAX_FRAME)))


# --- numbers --------------------------------------------------------------------------------------


def test_publishes_and_acks_are_numbered_without_a_gap() -> None:
    client, _ = greeted()
    client.send(PublishFrame(1, False, b""))
    client.send(PublishFrame(2, False, b""))
    for seq in (2, 4, 0):
        with pytest.raises(LocalProtocolError, match=f"number {seq}, but 3 is next"):
            client.send(PublishFrame(seq, False, b""))
    client.send(AckFrame(1, 5, b""))
    with pytest.raises(LocalProtocolError, match="ACK number 3, but 2 is next"):
        client.send(AckFrame(3, 5, b""))


def test_an_answer_is_to_something_that_waits() -> None:
    client, server = greeted()
    for seq in range(1, 6):
        transfer(client, server, PublishFrame(seq, False, b""))
    transfer(server, client, ConfirmFrame(ConfirmKind.PUBLISH, 2))
    transfer(server, client, Return(seq=4, code="queue-full"))
    with pytest.raises(LocalProtocolError, match="3 to 5 are waiting"):
        server.send(ConfirmFrame(ConfirmKind.PUBLISH, 2))
    with pytest.raises(LocalProtocolError, match="3 to 5 are waiting"):
        server.send(Return(seq=6, code="queue-full"))
    with pytest.raises(LocalProtocolError, match="nothing is waiting"):
        server.send(ConfirmFrame(ConfirmKind.ACK, 1))
    client.receive_data(b"".join(encode(ConfirmFrame(ConfirmKind.PUBLISH, 6))))
    assert isinstance(client.fault, MalformedFrame)


def test_the_answer_to_a_request_keeps_its_place() -> None:
    client, server = greeted()
    assert transfer(client, server, Ping(request=9)) == [Ping(request=9)]
    assert transfer(server, client, Ok(request=9)) == [Ok(request=9)]
