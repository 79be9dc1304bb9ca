"""What commands print: JSON for programs, tables and sentences for people.

Names come from other clients, so on a terminal nothing is printed that could steer it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output; bytes as hexadecimal digits."""
    # In one write, also where Python does not buffer: nobody else's line comes into the middle.
    sys.stdout.write(f"{json_text(value)}\n")
    sys.stdout.flush()


def json_text(value: Any) -> str:
    """One line of JSON, safe to show on a terminal."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    # JSON escapes the control characters of ASCII only.
    return text if text.isprintable() else "".join(map(_json_character, text))


def _json_character(character: str) -> str:
    if character.isprintable():
        return character
    return json.dumps(character)[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def printable(text: str) -> str:
    """`text` with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; numbers to the right. Nothing but the header where there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    body = [[_cell(value) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(body) and all(_is_number(row[index]) for row in body)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else 10_000  # a pipe has no edge to fold at
    Console(width=width, highlight=False).print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """One ``name  value`` a line."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        print(f"{printable(name):<{width}}  {_cell(value)}")


def report(sentence: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """What a command did: a sentence for people, the facts for programs."""
    if as_json:
        print_json(facts)
    else:
        print(printable(sentence))


def counted(number: int, noun: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    return printable(str(value))


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).isdigit() or cell == "-"


def moment(milliseconds: int | None) -> str | None:
    """Milliseconds since the epoch as RFC 3339, UTC; None stays None (and 0 is never)."""
    from datetime import UTC, datetime

    if not milliseconds:
        return None
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"  # no date at all, so the broker made it up
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
