"""Frames to bytes and back. The layouts are in the docstring of `frames`.

Nothing here copies a sealed batch: `encode` gives it back as it came, beside a few bytes that go
before it, and `decode` gives a view of the bytes it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Final

import msgspec

from ciphermq.errors import LocalProtocolError, MalformedFrame
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    ConfirmFrame,
    ConfirmKind,
    DeliverFrame,
    Frame,
    FrameType,
    Packed,
    PublishFrame,
)
from ciphermq.wire.cmq2.table import RULES

Buffer = bytes | bytearray | memoryview

HEAD: Final = Struct("!IB")
"""Length of type and body; type."""

LENGTH_SIZE: Final = 4

_PUBLISH: Final = Struct("!QB")
_CONFIRM: Final = Struct("!BQ")
_DELIVER: Final = Struct("!IQIBQ")
_ACK: Final = Struct("!QQH")
_U16: Final = Struct("!H")

_HEAD_PUBLISH: Final = Struct("!IBQB")
_HEAD_CONFIRM: Final = Struct("!IBBQ")
_HEAD_DELIVER: Final = Struct("!IBIQIBQ")
_HEAD_ACK: Final = Struct("!IBQQH")

_FLAG: Final = 1
"""The one bit of flags in use: `restart` in PUBLISH, `redelivered` in DELIVER."""


# --- to bytes -------------------------------------------------------------------------------


def _encode_publish(frame: PublishFrame) -> list[Buffer]:
    sealed = frame.sealed
    length = 1 + _PUBLISH.size + len(sealed)
    return [_HEAD_PUBLISH.pack(length, FrameType.PUBLISH, frame.seq, frame.restart), sealed]


def _encode_confirm(frame: ConfirmFrame) -> list[Buffer]:
    length = 1 + _CONFIRM.size
    return [_HEAD_CONFIRM.pack(length, FrameType.CONFIRM, frame.kind, frame.number)]


def _encode_deliver(frame: DeliverFrame) -> list[Buffer]:
    bitmap, dead, sealed = frame.bitmap, frame.dead, frame.sealed
    length = 1 + _DELIVER.size + 4 + len(bitmap) + len(dead) + len(sealed)
    head = _HEAD_DELIVER.pack(
        length,
        FrameType.DELIVER,
        frame.consumer,
        frame.tag,
        frame.redeliveries,
        frame.redelivered,
        frame.published_ms,
    )
    return [
        b"".join((head, _U16.pack(len(bitmap)), bitmap, _U16.pack(len(dead)), dead)),
        sealed,
    ]


def _encode_ack(frame: AckFrame) -> list[Buffer]:
    bitmap = frame.bitmap
    length = 1 + _ACK.size + len(bitmap)
    return [_HEAD_ACK.pack(length, FrameType.ACK, frame.number, frame.tag, len(bitmap)) + bitmap]


_pack: Final = msgspec.msgpack.Encoder().encode


def _encode_packed(frame: Packed) -> list[Buffer]:
    body = _pack(frame)
    kind: FrameType = frame.TYPE  # type: ignore[attr-defined]
    return [HEAD.pack(1 + len(body), kind) + body]


_ENCODERS: Final[Mapping[FrameType, Callable[[Any], list[Buffer]]]] = {
    FrameType.PUBLISH: _encode_publish,
    FrameType.CONFIRM: _encode_confirm,
    FrameType.DELIVER: _encode_deliver,
    FrameType.ACK: _encode_ack,
}


def encode(frame: Frame) -> list[Buffer]:
    """The frame's bytes in pieces, a sealed batch being the last piece, untouched.

    Raises `LocalProtocolError` for a member that its place can't hold.
    """
    try:
        return _ENCODERS.get(frame.TYPE, _encode_packed)(frame)
    except (StructError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"a {frame.TYPE.name} frame can't be encoded: {error}") from error


# --- from bytes -----------------------------------------------------------------------------


def _decode_publish(body: memoryview) -> PublishFrame:
    seq, flags = _PUBLISH.unpack_from(body)
    return PublishFrame(seq, bool(flags & _FLAG), body[_PUBLISH.size :])


def _decode_confirm(body: memoryview) -> ConfirmFrame:
    kind, number = _CONFIRM.unpack(body)
    return ConfirmFrame(ConfirmKind(kind), number)


def _prefixed(body: memoryview, at: int, member: str) -> tuple[bytes, int]:
    """The u16-prefixed bytes at `at`, and where they end."""
    if len(body) < at + 2:
        raise ValueError(f"it ends before the length of `{member}`")
    start = at + 2
    end = start + _U16.unpack_from(body, at)[0]
    if end > len(body):
        raise ValueError(f"`{member}` runs past its end")
    return bytes(body[start:end]), end


def _decode_deliver(body: memoryview) -> DeliverFrame:
    consumer, tag, redeliveries, flags, published_ms = _DELIVER.unpack_from(body)
    bitmap, at = _prefixed(body, _DELIVER.size, "bitmap")
    dead, at = _prefixed(body, at, "dead")
    redelivered = bool(flags & _FLAG)
    return DeliverFrame(
        consumer, tag, redeliveries, redelivered, published_ms, bitmap, dead, body[at:]
    )


def _decode_ack(body: memoryview) -> AckFrame:
    number, tag, size = _ACK.unpack_from(body)
    if len(body) != _ACK.size + size:
        raise ValueError(f"`bitmap` of {size} bytes doesn't end where the frame does")
    return AckFrame(number, tag, bytes(body[_ACK.size :]))


_DECODERS: Final[Mapping[int, Callable[[memoryview], Any]]] = {
    **{
        int(kind): msgspec.msgpack.Decoder(rule.frame).decode
        for kind, rule in RULES.items()
        if issubclass(rule.frame, Packed)
    },
    FrameType.PUBLISH: _decode_publish,
    FrameType.CONFIRM: _decode_confirm,
    FrameType.DELIVER: _decode_deliver,
    FrameType.ACK: _decode_ack,
}


def decode(kind: int, body: memoryview) -> Frame:
    """The frame of a known type with this body; a sealed batch in it is a view of `body`.

    Raises `MalformedFrame` naming the frame, and the member where there is one.
    """
    try:
        frame: Frame = _DECODERS[kind](body)
    except (StructError, ValueError, OverflowError, RecursionError) as error:
        # ValueError: msgspec's own errors and bad UTF-8. RecursionError: nested too deep.
        name = FrameType(kind).name
        raise MalformedFrame(f"a malformed {name} frame of {len(body)} bytes: {error}") from error
    return frame
