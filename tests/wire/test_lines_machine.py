"""Lines out of a stream: any cut, pipelines, lines that are too long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import FrameTooLarge
from ciphermq.wire.cmq2.machine import new_scratch
from ciphermq.wire.lines.codec import encode_command, encode_reply
from ciphermq.wire.lines.machine import ClientLines, LineMachine, ServerLines
from ciphermq.wire.lines.speech import (
    Ack,
    Command,
    Consume,
    Failed,
    Message,
    Publish,
    PublishBatch,
    Reply,
    Said,
    Stored,
    Wrong,
)
from support.lines import commands, replies

LONG_MESSAGE = b"publish x k " + b"x" * limits.MAX_ONEX_MESSAGE
MESSAGE = b'{"message_id":"a"}'


def pieces(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = next(sizes)
        yield data[at : at + size]
        at += size


def feed(machine: LineMachine, data: bytes) -> None:
    """Through the other door, as a connection does."""
    while data:
        room = machine.get_buffer()
        size = min(len(room), len(data))
        room[:size] = data[:size]
        machine.buffer_updated(size)
        data = data[size:]


cuts = st.lists(st.integers(1, 300), max_size=20)


@given(st.lists(commands, max_size=8), cuts, st.sampled_from([b"\n", b"\r\n"]))
def test_however_the_stream_is_cut_a_server_hears_the_same(
    said: list[Command], cuts: list[int], end: bytes
) -> None:
    data = b"".join(encode_command(command).replace(b"\n", end) for command in said)
    server = ServerLines()
    heard: list[Command | Wrong] = []
    for piece in pieces(data, iter(cuts + [100_000] * len(data))):
        feed(server, piece)
        heard += server.events()
    assert heard == said
    assert not server.mid_frame
    assert server.fault is None


@given(st.lists(replies, max_size=8), cuts)
def test_however_the_stream_is_cut_a_client_hears_the_same(
    said: list[Reply], cuts: list[int]
) -> None:
    data = b"".join(map(encode_reply, said))
    client = ClientLines()
    heard: list[Reply] = []
    for piece in pieces(data, iter(cuts + [100_000] * len(data))):
        client.receive_data(piece)
        heard += client.events()
    assert heard == said
    assert not client.mid_frame


def test_byte_by_byte_and_with_a_tail() -> None:
    server = ServerLines()
    data = b"consume q\r\nack a\n"
    heard: list[Command | Wrong] = []
    for at in range(len(data)):
        server.receive_data(data[at : at + 1])
        heard += server.events()
        assert server.mid_frame == (data[at] != ord("\n"))
    assert heard == [Consume("q"), Ack("a")]
    server.receive_data(b"ack b\nack ")
    assert server.events() == [Ack("b")]
    server.receive_data(b"c\n")
    assert server.events() == [Ack("c")]


def test_pipelined_commands_come_all_at_once_and_in_order() -> None:
    client, server = ClientLines(), ServerLines()
    said = [Publish("x", "k", b'{"message_id":"%d"}' % number) for number in range(1000)]
    server.receive_data(b"".join(map(client.send, said)))
    assert server.events() == said
    assert server.events() == []


def test_messages_come_between_replies() -> None:
    client, server = ClientLines(), ServerLines()
    said = [Said.SUBSCRIBED, Message("a", MESSAGE), Stored("z"), Message("b", MESSAGE)]
    client.receive_data(b"".join(map(server.send, said)))
    assert client.events() == said


@given(st.lists(st.integers(0, 2), max_size=60))
def test_machines_may_share_their_scratch_buffer(order: list[int]) -> None:
    scratch = new_scratch()
    servers = [ServerLines(scratch) for _ in range(3)]
    said = [[Ack(f"{name}-{number}" * 9) for number in range(9)] for name in "abc"]
    streams = [b"".join(map(encode_command, each)) for each in said]
    heard: list[list[Command | Wrong]] = [[], [], []]
    positions = [0, 0, 0]
    for number in order + [0, 1, 2] * 100:
        data = streams[number][positions[number] : positions[number] + 23]
        feed(servers[number], data)
        positions[number] += len(data)
        heard[number] += servers[number].events()
    assert heard == said


# --- lines that are too long ----------------------------------------------------------------------

TOO_LONG = {
    b"consume " + b"q" * limits.MAX_LINE: limits.MAX_LINE,
    b"x" * (limits.MAX_LINE + 1): limits.MAX_LINE,
    b"publis " + b"x" * limits.MAX_LINE: limits.MAX_LINE,
    LONG_MESSAGE + b"x" * limits.MAX_LINE: limits.MAX_ONEX_MESSAGE,
    b"publish_batch x k " + b"x" * limits.MAX_BATCH_LINE: limits.MAX_BATCH_LINE,
}


@pytest.mark.parametrize("line", list(TOO_LONG), ids=lambda line: line[:14].decode())
@pytest.mark.parametrize("size", [1000, 65_536, 100_000_000])
def test_a_server_says_that_a_line_is_too_long_and_hears_the_next(line: bytes, size: int) -> None:
    server = ServerLines()
    heard: list[Command | Wrong] = []
    for piece in pieces(b"ack a\n" + line + b"\nack b\n", iter([size] * 100_000)):
        feed(server, piece)
        heard += server.events()
    first, wrong, last = heard
    assert (first, last) == (Ack("a"), Ack("b"))
    assert isinstance(wrong, Wrong)
    assert isinstance(wrong.reply, Failed)
    assert str(TOO_LONG[line]) in wrong.reply.reason
    assert server.fault is None


def test_it_says_so_before_the_line_ends_and_keeps_none_of_it() -> None:
    server = ServerLines()
    server.receive_data(b"x" * limits.MAX_LINE)
    assert server.events() == []
    server.receive_data(b"x")
    assert len(server.events()) == 1
    for _ in range(100):
        server.receive_data(b"x" * 10_000)
        assert server.mid_frame
        assert not server._partial
    assert server.events() == []
    server.receive_data(b"\nack a\n")
    assert server.events() == [Ack("a")]


def test_the_longest_lines_are_heard() -> None:
    server, client = ServerLines(), ClientLines()
    server.receive_data(LONG_MESSAGE + b"\n")
    assert server.events() == [Publish("x", "k", b"x" * limits.MAX_ONEX_MESSAGE)]
    batch = b"publish_batch x k "
    rest = b"x" * (limits.MAX_BATCH_LINE - len(batch))
    server.receive_data(batch + rest + b"\n")
    assert server.events() == [PublishBatch("x", "k", rest)]
    message = Message("i" * limits.MAX_ONEX_ID, b"x" * limits.MAX_ONEX_MESSAGE)
    client.receive_data(server.send(message))
    assert client.events() == [message]


@pytest.mark.parametrize("start", [b"Error: ", b"Message: a "])
def test_a_client_takes_a_line_that_is_too_long_for_a_fault(start: bytes) -> None:
    client = ClientLines()
    client.receive_data(b"No messages\n" + start + b"x" * (limits.MAX_ONEX_MESSAGE + 5000))
    assert client.events() == [Said.NO_MESSAGES]
    assert type(client.fault) is FrameTooLarge
    fault = client.fault
    client.receive_data(b"\nNo messages\n")
    assert client.events() == []
    assert client.fault is fault
    assert not client.mid_frame
