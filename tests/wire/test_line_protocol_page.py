"""The line protocol's page says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.model.onex import _MEMBERS
from ciphermq.wire.lines import codec
from ciphermq.wire.lines.speech import Said

PAGE = Path(__file__).parents[2].joinpath("docs/reference/line-protocol.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
TABLE = PAGE.partition("## Commands")[2].partition("## ")[0]
COMMANDS = {row[0].strip("`").split()[0]: row for row in ROWS if f"| {row[0]} |" in TABLE}
COMMANDS = {verb: row for verb, row in COMMANDS.items() if row[0].startswith("`")}


def test_every_command_and_no_other() -> None:
    assert COMMANDS.keys() == {verb.decode() for verb in codec.RULES}


@pytest.mark.parametrize("verb", sorted(codec.RULES))
def test_every_command_with_its_words(verb: bytes) -> None:
    spelt, said = COMMANDS[verb.decode()]
    rule = codec.RULES[verb]
    words = [word for word in spelt.strip("`").split()[1:] if word != "[CLIENT]"]
    assert len(words) == rule.words
    assert f"`{rule.missing}`" in said or said.startswith("the same")


@pytest.mark.parametrize("said", list(Said))
def test_every_fixed_reply(said: Said) -> None:
    assert f"`{said}`" in PAGE


@pytest.mark.parametrize("prefix", [codec._MESSAGE, *codec._REPLIES])
def test_every_other_reply(prefix: bytes) -> None:
    assert f"`{prefix.decode()}" in PAGE


@pytest.mark.parametrize("member", _MEMBERS)
def test_every_member_of_a_message(member: str) -> None:
    assert f"`{member}`" in PAGE


@pytest.mark.parametrize(
    "limit",
    [
        limits.MAX_LINE,
        limits.MAX_ONEX_MESSAGE,
        limits.MAX_BATCH_LINE,
        limits.MAX_ONEX_BATCH,
        limits.MAX_ONEX_ID,
        limits.MAX_ONEX_COMMANDS,
        limits.ONEX_WINDOW,
        limits.FRAME_TIMEOUT,
    ],
)
def test_every_limit(limit: float) -> None:
    assert f"{limit:,.0f}" in [row[1].removesuffix(" bytes") for row in ROWS if len(row) == 2]


def test_how_long_a_client_id_may_be() -> None:
    assert f"1 to {limits.MAX_CLIENT_ID} letters" in PAGE
