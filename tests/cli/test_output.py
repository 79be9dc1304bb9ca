"""What commands print."""

from __future__ import annotations

import json

import pytest

from ciphermq.cli import output


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"id": b"\1\2", "text": "é\n", "when": None})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"id": "0102", "text": "é\n", "when": None}


@pytest.mark.parametrize("text", ["\x9b2J", "a\u2028b", "\u202ex", "\x7f", "é \U0001f511"])
def test_json_can_not_steer_the_terminal_either(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output.print_json({text: [text]})
    out = capsys.readouterr().out.removesuffix("\n")
    assert out.isprintable()
    assert json.loads(out) == {text: [text]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\u202ex", "\\u202ex"),
    ],
)
def test_names_can_not_steer_the_terminal(text: str, shown: str) -> None:
    assert output.printable(text) == shown


def test_a_table_has_a_header_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["queue", "ready"], [["a[b]", 5], ["long name\x1b[2J", 12345], ["c", None]])
    assert capsys.readouterr().out.splitlines() == [
        "queue             ready",
        "a[b]                  5",
        "long name\\x1b[2J  12345",
        "c                     -",
    ]


def test_an_empty_table_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["queue"], [])
    assert capsys.readouterr().out.split() == ["queue"]


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields({"a": True, "longer": b"\1", "none": None})
    assert capsys.readouterr().out == "a       yes\nlonger  01\nnone    -\n"


def test_moments() -> None:
    assert output.moment(1_800_000_000_123) == "2027-01-15T08:00:00.123Z"
    assert output.moment(None) is None
    assert output.moment(0) is None
    assert output.moment((1 << 64) - 1) == "18446744073709551615 ms"
