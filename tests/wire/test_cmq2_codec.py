"""Frames to bytes and back, and what is malformed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from ciphermq.errors import LocalProtocolError, MalformedFrame
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.cmq2.codec import HEAD, decode, encode
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    ConfirmFrame,
    ConfirmKind,
    DeliverFrame,
    Frame,
    FrameType,
    PublishFrame,
)
from ciphermq.wire.cmq2.table import RULES
from support.frames import any_frame, example


def body_of(frame: Frame) -> bytes:
    return b"".join(encode(frame))[HEAD.size :]


@given(any_frame)
def test_what_is_encoded_is_decoded_the_same(frame: Frame) -> None:
    data = b"".join(encode(frame))
    length, kind = HEAD.unpack_from(data)
    assert length == len(data) - 4
    assert kind == frame.TYPE
    assert decode(kind, memoryview(data)[HEAD.size :]) == frame


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (
            PublishFrame(0x0102030405060708, True, b"sealed"),
            "00000010 04 0102030405060708 01 7365616c6564",
        ),
        (
            ConfirmFrame(ConfirmKind.ACK, 0x1122334455667788),
            "0000000a 05 01 1122334455667788",
        ),
        (
            DeliverFrame(0xAABBCCDD, 2, 3, True, 5, b"\x05", b"\x80", b"sealed"),
            "00000026 07 aabbccdd 0000000000000002 00000003 01 0000000000000005 0001 05 0001 80"
            + b"sealed".hex(),
        ),
        (AckFrame(1, 2, b"\x03"), "00000014 08 0000000000000001 0000000000000002 0001 03"),
        (frames.Ping(request=7), "0000000b 1b 81 a7 72657175657374 07"),
    ],
)
def test_the_bytes_are_those_of_the_reference(frame: Frame, expected: str) -> None:
    assert b"".join(encode(frame)).hex() == expected.replace(" ", "")


def test_a_sealed_batch_is_never_copied() -> None:
    sealed = bytearray(b"a sealed batch")
    publish = encode(PublishFrame(1, False, sealed))
    deliver = encode(DeliverFrame(1, 1, 0, False, 1, b"", b"", sealed))
    assert publish[-1] is sealed
    assert deliver[-1] is sealed
    body = bytearray(b"".join(publish)[HEAD.size :])
    frame = decode(FrameType.PUBLISH, memoryview(body))
    assert isinstance(frame, PublishFrame)
    body[-1:] = b"!"
    assert bytes(frame.sealed) == b"a sealed batc!"


def test_the_flags_that_are_not_in_use_are_ignored() -> None:
    body = bytearray(body_of(PublishFrame(1, False, b"x")))
    body[8] = 0b1111_1110
    assert decode(FrameType.PUBLISH, memoryview(body)) == PublishFrame(1, False, b"x")


def test_members_that_are_not_known_are_ignored() -> None:
    body = msgspec.msgpack.encode({"request": 3, "colour": "green", "deep": {"er": [1]}})
    assert decode(FrameType.PING, memoryview(body)) == frames.Ping(request=3)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (FrameType.PUBLISH, b"short", "PUBLISH"),
        (FrameType.CONFIRM, b"\x02" + bytes(8), "CONFIRM"),
        (FrameType.CONFIRM, bytes(10), "CONFIRM"),
        (FrameType.DELIVER, bytes(24), "DELIVER"),
        (FrameType.DELIVER, bytes(25), "`bitmap`"),
        (FrameType.DELIVER, bytes(25) + b"\0\5abc", "`bitmap`"),
        (FrameType.DELIVER, bytes(27) + b"\0", "`dead`"),
        (FrameType.DELIVER, bytes(27) + b"\0\5abc", "`dead`"),
        (FrameType.ACK, bytes(17), "ACK"),
        (FrameType.ACK, bytes(16) + b"\0\2a", "`bitmap`"),
        (FrameType.ACK, bytes(16) + b"\0\0a", "`bitmap`"),
        (FrameType.PING, b"", "PING"),
        (FrameType.PING, b"\xc1", "PING"),
        (FrameType.PING, b"\x80", "`request`"),
        (FrameType.PING, msgspec.msgpack.encode({"request": "one"}), r"\$\.request"),
        (FrameType.PING, msgspec.msgpack.encode({"request": True}), r"\$\.request"),
        (FrameType.PING, msgspec.msgpack.encode({"request": 1}) + b"\0", "PING"),
        (FrameType.PING, b"\x81\xa7reques\xff\x01", "PING"),
        (FrameType.KEY_GET, b"\x82\xa7request\x01\xa6client\xa1\xff", "KEY_GET"),
        (FrameType.OK, b"\x82\xa7request\x01\xa6result" + b"\x91" * 30_000 + b"\x00", "OK"),
        (FrameType.OK, b"\x82\xa7request\x01\xa6result\xdd\xff\xff\xff\xff", "OK"),
    ],
)
def test_a_malformed_body_names_frame_and_member(kind: FrameType, body: bytes, said: str) -> None:
    with pytest.raises(MalformedFrame, match=said) as caught:
        decode(kind, memoryview(body))
    assert kind.name in str(caught.value)


@pytest.mark.parametrize("kind", list(FrameType))
def test_no_frame_may_be_cut_short(kind: FrameType) -> None:
    body = body_of(example(kind))
    whole = decode(kind, memoryview(body))
    for end in range(len(body)):
        try:
            assert decode(kind, memoryview(body)[:end]) != whole
        except MalformedFrame:
            continue


@pytest.mark.parametrize(
    "frame",
    [
        PublishFrame(-1, False, b""),
        PublishFrame(2**64, False, b""),
        ConfirmFrame(ConfirmKind.ACK, 2**64),
        DeliverFrame(2**32, 1, 0, False, 0, b"", b"", b""),
        DeliverFrame(1, 1, 0, False, 0, bytes(2**16), b"", b""),
        AckFrame(1, 1, bytes(2**16)),
        frames.Ok(request=1, result=object()),
        frames.Ok(request=2**64),
        frames.KeyGet(request=1, client="\ud800"),
    ],
)
def test_what_does_not_fit_is_the_senders_own_mistake(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError, match=frame.TYPE.name):
        encode(frame)


def test_every_type_has_a_rule_and_a_class_of_its_own() -> None:
    assert set(RULES) == set(FrameType)
    assert [RULES[kind].frame.TYPE for kind in FrameType] == list(FrameType)
