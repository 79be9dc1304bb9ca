"""Frames of every type, and two machines that have greeted each other."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st

from ciphermq.wire.cmq2.frames import ConfirmKind, Frame, FrameType, Hello
from ciphermq.wire.cmq2.machine import Cmq2Machine
from ciphermq.wire.cmq2.table import RULES, Role

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=40),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)

_MEMBERS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    int | None: st.none() | u32,
    bool: st.booleans(),
    str: texts,
    str | None: st.none() | texts,
    bytes: st.binary(max_size=128),
    dict[str, bool]: st.dictionaries(texts, st.booleans(), max_size=3),
    dict[str, Any] | None: st.none() | st.dictionaries(texts, plain, max_size=3),
    Any: plain,
    bytes | bytearray | memoryview: st.binary(max_size=300),
    ConfirmKind: st.sampled_from(ConfirmKind),
}
_NARROW = {
    ("DeliverFrame", "consumer"): u32,
    ("DeliverFrame", "redeliveries"): u32,
    **{
        (name, member): u64
        for name, members in {
            "PublishFrame": ["seq"],
            "ConfirmFrame": ["number"],
            "DeliverFrame": ["tag", "published_ms"],
            "AckFrame": ["number", "tag"],
        }.items()
        for member in members
    },
    ("Hello", "version"): st.just(2),
}


def of_type(kind: FrameType) -> st.SearchStrategy[Frame]:
    """Frames of one type, with any members its places can hold."""
    frame = RULES[kind].frame
    hints = typing.get_type_hints(frame)
    return st.builds(
        frame,
        **{
            field.name: _NARROW.get((frame.__name__, field.name), _MEMBERS[hints[field.name]])
            for field in msgspec.structs.fields(frame)
        },
    )


any_frame: st.SearchStrategy[Frame] = st.one_of([of_type(kind) for kind in FrameType])


def example(kind: FrameType) -> Frame:
    """The plainest frame of a type; numbered ones have number 1."""
    members: dict[Any, Any] = {int: 1, bool: False, str: "x", bytes: b"x", Any: None}
    members |= {int | None: 1, str | None: "x", ConfirmKind: ConfirmKind.PUBLISH}
    members[bytes | bytearray | memoryview] = b"sealed"
    frame = RULES[kind].frame
    hints = typing.get_type_hints(frame)
    required = [field for field in msgspec.structs.fields(frame) if field.required]
    return frame(**{field.name: members[hints[field.name]] for field in required})


def transfer(sender: Cmq2Machine, receiver: Cmq2Machine, frame: Frame) -> list[Frame]:
    """Send one frame over; what the receiver made of it."""
    receiver.receive_data(b"".join(sender.send(frame)))
    return receiver.events()


def greeted() -> tuple[Cmq2Machine, Cmq2Machine]:
    """A client and a server, both open."""
    client, server = Cmq2Machine(Role.CLIENT), Cmq2Machine(Role.SERVER)
    transfer(client, server, Hello())
    transfer(server, client, Hello())
    return client, server


def to_server(client: Cmq2Machine, frames: Iterable[Frame]) -> bytes:
    """The bytes of several frames."""
    return b"".join(bytes(piece) for frame in frames for piece in client.send(frame))
