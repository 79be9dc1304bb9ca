"""Messages of 1.x: what is taken, what is refused, what is kept."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import BatchTooLarge, MalformedBatch, UsageError
from ciphermq.model import envelope, onex
from ciphermq.model.ids import is_batch_id, new_batch_id

MEMBERS = {
    "message_id": "sender_1-1a2b3c4d-receiver_1",
    "receiver_client_id": "receiver_1",
    "enc_session_key": "c2Vzc2lvbg==",
    "nonce": "bm9uY2U=",
    "ciphertext": "Y2lwaGVydGV4dA==",
}
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def said(**changes: Any) -> bytes:
    return json.dumps({**MEMBERS, **changes}).encode()


def test_a_message_is_taken_apart_and_kept_as_it_came() -> None:
    text = said(sent_time="2025-09-08T07:03:00Z", colour={"of": ["the", 5]})
    message = onex.parse(b" \t" + text + b"  ")
    assert message == onex.OnexMessage(
        message_id="sender_1-1a2b3c4d-receiver_1",
        receiver="receiver_1",
        enc_session_key="c2Vzc2lvbg==",
        nonce="bm9uY2U=",
        ciphertext="Y2lwaGVydGV4dA==",
        tag=None,
        sent_time="2025-09-08T07:03:00Z",
        exchange=None,
        routing_key=None,
        text=text,
    )
    routed = onex.parse(said(exchange="x", routing_key="k"))
    assert (routed.exchange, routed.routing_key) == ("x", "k")


@given(words, st.dictionaries(words, st.none() | words | st.floats(allow_nan=False), max_size=3))
def test_a_stored_message_has_the_id_that_it_came_with(
    message_id: str, others: dict[str, Any]
) -> None:
    for ascii_only in (True, False):
        members = {**others, **MEMBERS, "message_id": message_id}
        data = b" " + json.dumps(members, ensure_ascii=ascii_only).encode() + b"\t"
        try:
            message = onex.parse(data)
        except MalformedBatch:
            with pytest.raises(MalformedBatch):
                onex.stored_id(data)
        else:
            assert onex.stored_id(data) == (message.message_id, message.text)


@pytest.mark.parametrize(
    "broken", [b"\n", b"\r", b"\x0b", b"\x0c", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8", b"\xff"]
)
@pytest.mark.parametrize("place", [b'"sender_1', b'"colour": "', b"{"])
def test_no_stored_message_makes_two_lines(place: bytes, broken: bytes) -> None:
    data = said(colour="blue").replace(place, place + broken)
    assert broken in data
    with pytest.raises(MalformedBatch):
        onex.stored_id(data)


@pytest.mark.parametrize(
    ("value", "tag"), [("dGFn", "dGFn"), ("", None), (None, None)], ids=["given", "empty", "null"]
)
def test_a_tag_of_its_own(value: Any, tag: str | None) -> None:
    assert onex.parse(said(tag=value)).tag == tag


def test_a_sent_time_of_any_type_is_let_pass() -> None:
    message = onex.parse(said(sent_time=1757314980.5))
    assert message.sent_time is None
    assert b"1757314980.5" in message.text


@given(
    st.dictionaries(
        words.filter(lambda name: name not in {*MEMBERS, "tag", "sent_time"}),
        words | st.integers() | st.none() | st.lists(words, max_size=3),
        max_size=4,
    )
)
def test_whatever_else_stands_in_it_is_kept(others: dict[str, Any]) -> None:
    assert onex.parse(said(**others)).text == said(**others)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "'message_id' is missing"),
        (said(nonce=5), "'nonce' is not text"),
        (said(tag=5), "'tag' is not text"),
        (said(ciphertext=None), "'ciphertext' is not text"),
        (said() + b" x", "Extra data"),
        (said() + said(), "Extra data"),
        (said()[:-1] + b',"nonce":"again"}', "twice"),
        (said()[:-1] + b',"n\\u006fnce":"again"}', "twice"),
        (said(x={"y": 1})[:-1] + b',"z":{"a":1,"a":2}}', "twice"),
        (said(x=float("nan")), "NaN"),
        (b"\xef\xbb\xbf" + said(), "not JSON"),
        (said().decode().encode("utf-16"), "UTF-8"),
        (said()[:-1] + b',"x":"\xff"}', "UTF-8"),
        (said().replace(b", ", b",\n"), "line break"),
        (said().replace(b", ", b",\r"), "line break"),
        (b"\r\n" + said(), "line break"),
        (said()[:-1] + ',"x":"\u2028ACK you"}'.encode(), "line break"),
        (said()[:-1] + ',"x":"\x85"}'.encode(), "line break"),
        (said()[:-1] + b',"x":"\x0b"}', "line break"),
        (said()[:-1] + b',"x":"\x00"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (said()[:-1] + b',"x":' + b"9" * 5000 + b"}", "not JSON"),
        (said(receiver_client_id="\ud800"), "half of a character"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(MalformedBatch, match=why):
        onex.parse(data)


def test_a_message_may_have_so_many_bytes() -> None:
    room = limits.MAX_ONEX_MESSAGE - len(said(ciphertext=""))
    assert onex.parse(said(ciphertext="A" * room)).ciphertext == "A" * room
    with pytest.raises(BatchTooLarge, match=str(limits.MAX_ONEX_MESSAGE)):
        onex.parse(said(ciphertext="A" * (room + 1)))


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedBatch, BatchTooLarge):
        onex.parse(data)


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "sender_1-1a2b3c4d-receiver_1",
        "0190163d-8694-739b-aea5-966c26f8ad91",
        "Grüße/№:7",
        "😀" * 60,
        "{}",
        "x" * limits.MAX_ONEX_ID,
    ],
)
def test_an_id_is_one_word(text: str) -> None:
    assert onex.check_message_id(text) == text
    assert onex.parse(said(message_id=text)).message_id == text


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "a\n", "a\nACK b", "\r", "a\tb", "\x00", "\x1b[2J", "\x7f"),
        *("a\x85b", "\u2028", "\u2029", "\xa0", "\u3000", "\x1c", "\ud800"),
        "x" * (limits.MAX_ONEX_ID + 1),
        "é" * 128,
    ],
)
def test_what_could_be_read_as_something_else_is_no_id(text: str) -> None:
    with pytest.raises(MalformedBatch, match="message_id") as caught:
        onex.check_message_id(text)
    assert len(str(caught.value)) < 400
    with pytest.raises(MalformedBatch, match="message_id"):
        onex.parse(said(message_id=text))


@given(st.text())
def test_no_id_ends_a_line_or_a_word(text: str) -> None:
    try:
        onex.check_message_id(text)
    except MalformedBatch:
        return
    assert text.split() == [text]
    assert text.splitlines() == [text]
    assert text.encode().decode() == text


@given(words, words)
def test_equal_ids_have_equal_internal_ids(one: str, other: str) -> None:
    assert (onex.internal_id(one) == onex.internal_id(other)) == (one == other)
    assert onex.is_internal_id(onex.internal_id(one))
    assert not is_batch_id(onex.internal_id(one))


def test_an_internal_id_never_changes() -> None:
    # It is in journals: another value would let what was published before be published again.
    found = onex.internal_id("sender_1-1a2b3c4d-receiver_1")
    assert found.hex() == "0f26b574f9dd8d4c80c5cba8e03d9fbe"


def test_a_batch_id_is_no_internal_id() -> None:
    assert not onex.is_internal_id(new_batch_id(1_800_000_000_000))
    assert not onex.is_internal_id(b"short")


# --- several at once --------------------------------------------------------------------------


def test_a_batch_is_split_into_what_stands_in_it() -> None:
    one, other = said(message_id="a", x=[{"y": "],["}]), b'{ "message_id" :"b"}'
    assert onex.split(b" [ " + one + b" , " + other + b" ] ") == [one, other]


@pytest.mark.parametrize("data", [b"", b"{}", b"[{}", b"[{},]", b"x", b"[" * 100_000, b"\xff"])
def test_what_is_no_array_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedBatch, match="not an array"):
        onex.split(data)


def test_an_array_of_nothing_is_refused() -> None:
    with pytest.raises(MalformedBatch, match="empty"):
        onex.split(b"[ ]")


def test_an_array_may_have_so_many() -> None:
    assert len(onex.split(b"[" + b"0," * (limits.MAX_ONEX_BATCH - 1) + b"0]")) == (
        limits.MAX_ONEX_BATCH
    )
    with pytest.raises(BatchTooLarge, match=str(limits.MAX_ONEX_BATCH)):
        onex.split(b"[" + b"0," * limits.MAX_ONEX_BATCH + b"0]")


# --- made here --------------------------------------------------------------------------------


def build(**changes: Any) -> bytes:
    members: dict[str, Any] = {
        "message_id": "a",
        "receiver": "b",
        "enc_session_key": "c",
        "nonce": "d",
        "ciphertext": "e",
    }
    return onex.build(**{**members, **changes})


def test_what_is_built_is_what_is_parsed() -> None:
    data = build(tag="f", sent_time="now", others={"note": "Grüße\u2028", "n": 1})
    assert data.isascii()
    message = onex.parse(data)
    assert (message.message_id, message.receiver, message.tag) == ("a", "b", "f")
    assert message.text == data
    assert json.loads(data)["note"] == "Grüße\u2028"
    assert onex.is_onex(data)
    assert "tag" not in json.loads(build())


@pytest.mark.parametrize(
    "changes",
    [
        {"message_id": "a b"},
        {"ciphertext": "A" * limits.MAX_ONEX_MESSAGE},
        {"nonce": 5},
        {"others": {"nonce": "mine"}},
        {"others": {"x": object()}},
        {"others": {"x": float("inf")}},
    ],
)
def test_what_would_not_be_taken_is_not_built(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build(**changes)


def test_an_engine_sees_it_as_a_batch_of_one() -> None:
    message = onex.parse(said())
    header = onex.header(message, client="sender_1", exchange="x", routing_key="k", now_ms=7)
    assert (header.sender, header.exchange, header.routing_key) == ("sender_1", "x", "k")
    assert (header.count, header.created_ms, header.expires_ms) == (1, 7, 0)
    assert header.batch_id == onex.internal_id(message.message_id)


def test_the_two_kinds_are_told_apart_by_their_first_byte() -> None:
    assert onex.is_onex(memoryview(said()))
    assert not onex.is_onex(envelope.MAGIC)
    assert not onex.is_onex(b"")
