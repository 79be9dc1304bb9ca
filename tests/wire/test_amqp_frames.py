"""Frames: read whole, and counted as they pass, in any cut of the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import AmqpFault
from ciphermq.wire.amqp import frames
from ciphermq.wire.amqp.closing import CLOSE_OK, HEARTBEAT_FRAME, close
from ciphermq.wire.amqp.frames import Frame, FrameReader, Scanner
from support.sessions import frame, method

LIMIT = 131_072

small = st.binary(max_size=40)
any_frame = st.one_of(
    st.just(HEARTBEAT_FRAME),
    st.just(CLOSE_OK),
    st.builds(lambda body: frame(3, 1, body), small),
    st.builds(lambda channel, body: frame(1, channel, body), st.integers(0, 9), small),
    st.builds(lambda channel, body: frame(2, channel, body), st.integers(0, 65_535), small),
)
message = st.builds(
    lambda size, channel: (
        method(40, b"\0\0\0\5queue\0", channel=channel, of=60)
        + frame(2, channel, bytes(14))
        + frame(3, channel, bytes(size))
    ),
    st.integers(0, 60),
    st.integers(1, 300),
)


def messages(sizes: list[int], methods: list[int]) -> bytes:
    """Messages with bodies of these sizes, whose methods have these sizes in turn."""
    return b"".join(
        method(40, bytes(methods[n % len(methods)]), channel=1, of=60)
        + frame(2, 1, bytes(14))
        + frame(3, 1, bytes(size))
        for n, size in enumerate(sizes)
    )


many_messages = st.builds(
    messages,
    st.lists(st.integers(0, 80), min_size=20, max_size=60),
    st.lists(st.integers(5, 9), min_size=1, max_size=5),
)
streams = st.lists(
    any_frame
    | many_messages
    | st.builds(lambda one, times: one * times, message, st.integers(1, 40)),
    max_size=12,
)
cuts = st.lists(st.integers(1, 3000), max_size=40)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, and what is left."""
    made, at = [], 0
    for size in sizes:
        made.append(data[at : at + size])
        at += size
    return [piece for piece in [*made, data[at:]] if piece]


def read_all(parts: list[bytes]) -> list[Frame]:
    reader, found = FrameReader(LIMIT), []
    for part in parts:
        reader.feed(part)
        while (one := reader.next()) is not None:
            found.append(one)
    return found


def followed(parts: list[bytes]) -> tuple[Scanner, list[int]]:
    """A scanner behind these parts, and the frames it had counted after each."""
    scanner, counts = Scanner(LIMIT), []
    buffer = bytearray(1 << 20)
    for part in parts:
        buffer[: len(part)] = part
        scanner.scan(buffer, len(part))
        counts.append(scanner.frames)
    return scanner, counts


@given(stream=streams, sizes=cuts)
def test_any_cut_gives_the_same_frames(stream: list[bytes], sizes: list[int]) -> None:
    data = b"".join(stream)
    whole = read_all([data])
    assert read_all(pieces(data, sizes)) == whole
    assert b"".join(one.raw for one in whole) == data


@given(stream=streams, sizes=cuts, tail=st.integers(0, 200))
def test_the_scanner_counts_what_the_reader_reads(
    stream: list[bytes], sizes: list[int], tail: int
) -> None:
    """Also where the stream is periodic for a while, and wherever it is cut."""
    data = b"".join(stream)
    data = data[: len(data) - tail] if tail < len(data) else data
    parts = pieces(data, sizes)
    scanner, counts = followed(parts)
    read: list[Frame] = []
    reader = FrameReader(LIMIT)
    for part, count in zip(parts, counts, strict=True):
        reader.feed(part)
        while (one := reader.next()) is not None:
            read.append(one)
        assert count == len(read)
    assert scanner.tail == len(reader)
    assert scanner.between == (len(reader) == 0)
    said = [one.method[1] for one in read if one.channel == 0 and one.method[0] == 10]
    closings = [number for number in said if number in (50, 51)]
    if closings and scanner.between:
        assert scanner.closing == closings[-1]


PATTERNS = {
    "cycle": messages([30] * 200, [9]),
    "cycle of two": messages([30, 40] * 100, [9]),
    "shape": messages([20 + n * n % 61 for n in range(200)], [9]),
    "none": messages([20 + n * n % 61 for n in range(200)], [9, 5, 7, 8, 8]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_one_wrong_byte_is_found_among_hundreds_of_frames(
    pattern: str, data: st.DataObject
) -> None:
    """Every quick way looks at every byte that says where a frame begins and ends."""
    stream = bytearray(PATTERNS[pattern])
    starts, at = [], 0
    while at < len(stream):
        size = int.from_bytes(stream[at + 3 : at + 7], "big") + 8
        starts.append((at, size))
        at += size
    start, size = data.draw(st.sampled_from(starts))
    place = data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, size - 1]))
    stream[start + place] = data.draw(st.integers(0, 255))
    expected: list[Frame] | str
    try:
        expected = read_all([bytes(stream)])
    except AmqpFault as fault:
        expected = str(fault)
    scanner = Scanner(LIMIT)
    found: int | str
    try:
        scanner.scan(stream, len(stream))
        found = scanner.frames
    except AmqpFault as fault:
        found = str(fault)
        read_all([bytes(stream[: scanner.good])])  # all before it are whole frames
    assert found == (expected if isinstance(expected, str) else len(expected))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_little_is_walked(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the speed rests on: nothing of a long chunk is walked but its ends."""
    stream = bytearray(PATTERNS[pattern] * 10)
    scanner, walked = Scanner(LIMIT), []
    walk = Scanner._walk

    def counting(self: Scanner, data: bytearray, at: int, size: int) -> None:
        walked.append(size - at)
        walk(self, data, at, size)

    monkeypatch.setattr(Scanner, "_walk", counting)
    for start in range(0, len(stream), 65_536):
        chunk = stream[start : start + 65_536]
        scanner.scan(chunk, len(chunk))
    assert scanner.frames == 6000
    assert sum(walked) < len(stream) / 40


@pytest.mark.parametrize("size", [LIMIT, 0, 1, 3])
def test_the_greatest_frame_is_taken(size: int) -> None:
    data = frame(3, 1, bytes(size))
    scanner, _ = followed(pieces(data, [65_536, 3]))
    assert scanner.frames == 1
    assert len(read_all([data])) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame(3, 1, bytes(LIMIT + 1)), "a frame of 131073 bytes: at most 131072"),
        (b"\x03\x00\x01\xff\xff\xff\xff\0\0\0\0", "a frame of 4294967295 bytes"),
        (frame(3, 1, b"x")[:-1] + b"\x00", "a frame ends with byte 0 instead of 206"),
        (b"GET / HTTP/1.1\r\n", "71 is no frame type"),
        (frame(4, 0, b""), "4 is no frame type"),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100_000])
def test_what_is_no_frame(data: bytes, says: str, cut: int) -> None:
    good = frame(3, 1, b"good")
    parts = pieces(good + data, [cut] * (len(data) // cut + 20))
    with pytest.raises(AmqpFault, match=says) as caught:
        read_all(parts)
    assert caught.value.reply == frames.FRAME_ERROR
    with pytest.raises(AmqpFault, match=says) as caught:
        followed(parts)
    assert caught.value.reply == frames.FRAME_ERROR


def test_good_says_where_the_bad_frame_begins() -> None:
    good = frame(3, 1, b"good") * 3
    scanner = Scanner()
    with pytest.raises(AmqpFault):
        scanner.scan(good + b"GET /", len(good) + 5)
    assert scanner.good == len(good)
    scanner = Scanner()
    begun = frame(3, 1, b"begun before")
    scanner.scan(begun, 10)
    with pytest.raises(AmqpFault):
        scanner.scan(begun[10:-1] + b"\0" + good, 200)
    assert scanner.good == -1


def test_close_is_seen_only_on_channel_0() -> None:
    scanner, _ = followed([method(50, bytes(8), channel=1)])
    assert scanner.closing == 0
    scanner, _ = followed([close(200, "OK")])
    assert scanner.closing == frames.CLOSE
    scanner, _ = followed([b"\x01\0\0\0\0\0\4\0\x0a\0", b"\x33\xce"])
    assert scanner.closing == frames.CLOSE_OK


def test_a_frame_that_is_no_method_has_no_method_number() -> None:
    (one,) = read_all([frame(3, 0, b"\0\x0a\0\x32")])
    assert one.method == (0, 0)
    assert one.payload == b"\0\x0a\0\x32"
    (empty,) = read_all([frame(1, 0, b"")])
    assert empty.method == (0, 0)
