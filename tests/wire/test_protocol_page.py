"""The protocol's page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from ciphermq import limits
from ciphermq.errors import (
    REFUSALS,
    FrameTooLarge,
    MalformedFrame,
    RemoteProtocolError,
    UnknownFrame,
)
from ciphermq.wire.cmq2.frames import FrameType, Hello, Packed
from ciphermq.wire.cmq2.table import LENGTHS, RULES, Role, State

PAGE = Path(__file__).parents[2].joinpath("docs/reference/protocol.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]


@pytest.mark.parametrize("kind", list(FrameType))
def test_every_type_with_its_number_and_lengths(kind: FrameType) -> None:
    rule = RULES[kind]
    client = f"{rule.client:,}" if rule.client else ""
    broker = f"{rule.server:,}" if rule.server else ""
    line = f"| {int(kind)} | {kind.name} | {client} | {broker} |"
    assert re.sub(" +", " ", line) in re.sub(" +", " ", PAGE)


@pytest.mark.parametrize(
    "kind", [kind for kind in FrameType if issubclass(RULES[kind].frame, Packed)]
)
def test_every_member_is_named(kind: FrameType) -> None:
    for field in msgspec.structs.fields(RULES[kind].frame):
        if field.name != "request":
            assert f"`{field.name}`" in PAGE, f"{kind.name}.{field.name}"


def test_hello_member_by_member() -> None:
    start = next(at for at, row in enumerate(ROWS) if row[0] == "`version`")
    fields = [field.name for field in msgspec.structs.fields(Hello)]
    assert [row[0].strip("`") for row in ROWS[start : start + len(fields)]] == fields


@pytest.mark.parametrize("state", [State.WAITING, State.NEW, State.CLOSING])
def test_the_states(state: State) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {state.name} |"))
    _, _, client, broker, _, _ = line.split("|")
    for role, cell in ((Role.CLIENT, client), (Role.SERVER, broker)):
        said = {name.strip() for name in cell.split(",") if name.strip()}
        assert said == {FrameType(kind).name for kind in LENGTHS[role, state]}


def test_every_code() -> None:
    codes = {error.code for error in REFUSALS.values()} - {"refused"}
    codes |= {RemoteProtocolError.code, FrameTooLarge.code, UnknownFrame.code, MalformedFrame.code}
    for code in codes:
        assert f"`{code}`" in PAGE


def test_the_times() -> None:
    for seconds in (
        limits.HANDSHAKE_TIMEOUT,
        limits.FRAME_TIMEOUT,
        limits.HEARTBEAT,
        3 * limits.HEARTBEAT,
        limits.WRITE_STALL_TIMEOUT,
        limits.LINGER,
    ):
        assert any(row[-1].split()[0] == f"{seconds:g}" for row in ROWS if row[-1])
