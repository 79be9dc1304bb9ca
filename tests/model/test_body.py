"""The columns of a batch's plaintext."""

from __future__ import annotations

import struct
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import BatchTooLarge, BodyRefused, UsageError
from ciphermq.model import body
from ciphermq.model.body import Body
from ciphermq.model.envelope import MAX_TIME_MS
from ciphermq.model.message import NO_PROPERTIES, OutgoingMessage

texts = st.text(st.characters(codec="utf-8"), max_size=30)
messages = st.builds(
    OutgoingMessage,
    payload=st.binary(max_size=200),
    headers=st.dictionaries(texts, texts, max_size=5),
    content_type=st.none() | texts.filter(bool),
    sent_ms=st.integers(0, MAX_TIME_MS),
)


def test_the_layout_is_the_documented_one() -> None:
    packed = Body.of(
        [
            OutgoingMessage(b"payload", sent_ms=5),
            OutgoingMessage(b"", {"k": "vv", "": ""}, "t/p", 6),
        ]
    )
    properties = b"\x00\x03t/p" + b"\x00\x02" + b"\x00\x01k\x00\x02vv" + b"\x00\x00\x00\x00"
    assert packed.count == 2
    assert packed.data == b"".join(
        [
            b"\x01\x00\x02",
            struct.pack(">QQ", 5, 6),
            struct.pack(">II", 0, len(properties)),
            struct.pack(">II", 7, 0),
            properties,
            b"payload",
        ]
    )


@given(st.lists(messages, min_size=1, max_size=20))
def test_any_messages_survive(given_messages: list[OutgoingMessage]) -> None:
    packed = Body.of(given_messages)
    decoded = body.decode(packed.data)
    assert len(decoded) == packed.count == len(given_messages)
    for index, (opened, message) in enumerate(zip(decoded, given_messages, strict=True)):
        assert opened == decoded[index]
        assert opened.payload == message.payload == decoded.payload(index)
        assert opened.sent_ms == message.sent_ms == decoded.sent_ms(index)
        assert opened.properties == decoded.properties(index)
        assert opened.properties.content_type == message.content_type
        assert list(opened.properties.headers.items()) == list(message.headers.items())
    assert decoded.payloads() == [message.payload for message in given_messages]


@given(st.lists(messages, min_size=1, max_size=10))
def test_there_is_one_way_to_write_them(given_messages: list[OutgoingMessage]) -> None:
    data = Body.of(given_messages).data
    again = [
        OutgoingMessage(
            found.payload, found.properties.headers, found.properties.content_type, found.sent_ms
        )
        for found in body.decode(data)
    ]
    assert Body.of(again).data == data
    assert len(data) == 3 + sum(body.encoded_size(message) for message in given_messages)


@given(st.lists(messages, min_size=1, max_size=5), st.data())
def test_any_change_gives_messages_or_is_refused(
    given_messages: list[OutgoingMessage], data: st.DataObject
) -> None:
    changed = bytearray(Body.of(given_messages).data)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = list(body.decode(bytes(changed)))
    except BodyRefused:
        return
    again = [
        OutgoingMessage(
            one.payload, one.properties.headers, one.properties.content_type, one.sent_ms
        )
        for one in found
    ]
    assert Body.of(again).data == changed


def test_every_truncation_is_refused() -> None:
    data = Body.of([OutgoingMessage(b"payload", {"a": "b"}, "c"), OutgoingMessage(b"x")]).data
    for size in range(len(data)):
        with pytest.raises(BodyRefused):
            body.decode(data[:size])
    with pytest.raises(BodyRefused, match="do not add up"):
        body.decode(data + b"\0")


def test_payloads_alone_have_a_short_way() -> None:
    payloads = [b"one", b"", b"three"]
    short = Body.of_payloads(payloads, 7)
    assert short.data == Body.of([OutgoingMessage(p, sent_ms=7) for p in payloads]).data
    found = body.decode(short.data)
    assert [found.properties(index) for index in range(3)] == [NO_PROPERTIES] * 3


def test_a_kept_body_is_taken_back_and_nothing_else() -> None:
    kept = Body.of_payloads([b"one", b"two"], 0)
    assert Body(kept.data).count == 2
    with pytest.raises(UsageError, match="can't be sealed"):
        Body(kept.data[:-1])


def test_an_index_is_an_index() -> None:
    found = body.decode(Body.of_payloads([b"one", b"two"], 0).data)
    for index in (2, -1, -2, 1024):
        with pytest.raises(IndexError):
            found[index]
        with pytest.raises(IndexError):
            found.payload(index)


def test_equal_properties_are_one_object_that_nobody_can_change() -> None:
    packed = Body.of([OutgoingMessage(b"", {"a": "b"}, "c")] * 3)
    first, second, _ = (found.properties for found in body.decode(packed.data))
    assert first is second
    assert isinstance(first.headers, MappingProxyType)


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1025])
def test_the_number_of_messages_is_bounded(count: int) -> None:
    with pytest.raises(BatchTooLarge, match=f"1 to 1024 messages; these are {count}"):
        Body.of_payloads([b""] * count, 0)
    data = bytearray(Body.of_payloads([b""], 0).data)
    data[1:3] = count.to_bytes(2, "big")
    with pytest.raises(BodyRefused, match=f"{count} messages"):
        body.decode(bytes(data))


def test_the_plaintext_is_bounded() -> None:
    most = limits.MAX_PLAINTEXT - body.HEAD_SIZE - body.MESSAGE_OVERHEAD
    assert len(Body.of_payloads([bytes(most)], 0).data) == limits.MAX_PLAINTEXT
    with pytest.raises(BatchTooLarge, match="1048577 bytes; a batch has 1048576 at most"):
        Body.of_payloads([bytes(most + 1)], 0)
    assert body.encoded_size(OutgoingMessage(bytes(most))) == most + 16
    with pytest.raises(BatchTooLarge, match="a message of 1048558 bytes is too large"):
        body.encoded_size(OutgoingMessage(bytes(most + 1)))
    with pytest.raises(BodyRefused, match="can't have"):
        body.decode(bytes(limits.MAX_PLAINTEXT + 1))


def test_headers_are_bounded() -> None:
    many = {str(number): "" for number in range(limits.MAX_HEADERS)}
    assert len(body.decode(Body.of([OutgoingMessage(b"", many)]).data)[0].properties.headers) == 100
    with pytest.raises(BatchTooLarge, match="101 headers; 100 at most"):
        Body.of([OutgoingMessage(b"", many | {"one": "more"})])
    with pytest.raises(BatchTooLarge, match="16384 at most"):
        Body.of([OutgoingMessage(b"", {"large": "x" * limits.MAX_PROPERTIES})])
    with pytest.raises(BatchTooLarge, match="16384 at most"):
        Body.of([OutgoingMessage(b"", content_type="x" * limits.MAX_PROPERTIES)])


@pytest.mark.parametrize("sent_ms", [-1, MAX_TIME_MS + 1])
def test_sent_times_are_times(sent_ms: int) -> None:
    with pytest.raises(UsageError, match="sent time"):
        Body.of([OutgoingMessage(b"", sent_ms=sent_ms)])


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [({"key": 1}, None), ({1: "value"}, None), ({}, 7), ({"key": "\ud800"}, None)],
)
def test_headers_are_text(headers: dict[str, str], content_type: str | None) -> None:
    with pytest.raises(UsageError, match="are text"):
        Body.of([OutgoingMessage(b"", headers, content_type)])


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\0\0\0\0",
        b"\0\1t",
        b"\0\1t\0",
        b"\0\1t\0\1",
        b"\0\1t\0\1\0\1k",
        b"\0\1t\0\1\0\1k\0\2v",
        b"\0\1t\0\0extra",
        b"\0\0\0\2\0\1k\0\1v\0\1k\0\1w",
        b"\0\1\xff\0\0",
        b"\0\1t\0\x65" + b"\0\0\0\0" * 101,
        b"\xff" * 100,
    ],
)
def test_properties_that_nobody_writes_are_refused(data: bytes) -> None:
    with pytest.raises(BodyRefused):
        body.decode_properties(data)


def test_properties_over_their_limit_are_refused() -> None:
    long = b"\x00\x01t" + b"\x00\x01" + b"\x00\x01k" + b"\x40\x00" + b"v" * limits.MAX_PROPERTIES
    with pytest.raises(BodyRefused, match="headers take"):
        body.decode_properties(long)


def test_no_content_type_and_an_empty_one_are_the_same() -> None:
    assert body.encode_properties("", {}) == body.encode_properties(None, {}) == b""
    assert body.decode_properties(b"") is NO_PROPERTIES
    only_headers = body.decode_properties(body.encode_properties(None, {"a": "b"}))
    assert only_headers.content_type is None
