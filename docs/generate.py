"""Writes the reference pages that are made from the code itself. `make docs` runs it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from ciphermq import errors, limits
from ciphermq.cli import errors as endings
from ciphermq.cli.main import app
from ciphermq.settings.server import sections

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Written by `make docs` from the code: change it there. -->\n\n"


def _prose(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def error_page() -> str:
    """The tree as drawn in `errors.py`, then every error with its code and meaning."""
    drawing = (errors.__doc__ or "").split("::\n\n", 1)[1].split("\n\nA message says")[0]
    rows = []

    def walk(cls: type[errors.CipherMQError]) -> None:
        rows.append(f"| `{cls.__name__}` | `{cls.code}` | {_prose(cls.__doc__)} |")
        for sub in cls.__subclasses__():
            walk(sub)

    walk(errors.CipherMQError)
    tree = "\n".join(line.removeprefix("    ") for line in drawing.splitlines())
    table = "\n".join(rows)
    return (
        f"# Errors\n\n{NOTICE}"
        "Everything the package raises on purpose. A message says what happened, to what, and\n"
        "what to do. The code is stable: it is on the wire for refusals, in dead letters for\n"
        "faults of a batch, and in `--json` for all.\n\n"
        f"```\n{tree}\n```\n\n"
        f"| error | code | meaning |\n| --- | --- | --- |\n{table}\n"
    )


def limit_page() -> str:
    """Every bound of `limits.py` with the reason that stands beside it, section by section."""
    source = (Path(limits.__file__)).read_text(encoding="utf-8")
    lines = source.splitlines()
    page = ["# Limits", "", NOTICE.strip(), "", "Sizes are bytes; times are seconds.", ""]
    heads = {
        number: line.strip("# -")
        for number, line in enumerate(lines, 1)
        if line.startswith("# ---")
    }
    rows: list[list[str]] = []

    def flush() -> None:
        page.extend(f"| `{name}` | {value} | {reason} |" for name, value, reason in rows)
        rows.clear()

    for node in ast.parse(source).body:
        for number in [number for number in heads if number < node.lineno]:
            flush()
            page.extend(["", f"## {heads.pop(number).capitalize()}", ""])
            page.extend(["| limit | value | why |", "| --- | --- | --- |"])
        if isinstance(node, ast.AnnAssign) and "##" in "".join(page):
            name = ast.unparse(node.target)
            rows.append([name, f"{getattr(limits, name):,}", ""])
        elif isinstance(node, ast.Expr) and rows:
            rows[-1][2] = " ".join(str(ast.literal_eval(node.value)).split())
    flush()
    return "\n".join(page).replace("\n\n\n", "\n\n") + "\n"


def settings_page() -> str:
    """Every key of the server's configuration, as `ciphermq init` writes it."""
    rows = []
    for name, section in sections().items():
        purpose = _prose(section.__doc__).partition(": ")[2]
        rows.append(f"\n## `[{name}]`\n\n{purpose[:1].upper()}{purpose[1:]}\n")
        rows.append("| key | default | what is allowed |\n| --- | --- | --- |")
        for key, member in section.model_fields.items():
            default = json.dumps(member.default, default=str)
            rows.append(f"| `{key}` | `{default}` | {member.description} |")
    return (
        f"# The server's configuration\n\n{NOTICE}"
        "`config.toml`, in the directory that `ciphermq init` made. Relative paths are relative\n"
        "to it. `CIPHERMQ_SECTION__KEY` in the environment goes before the file, as in\n"
        "`CIPHERMQ_SERVER__ADDRESS=0.0.0.0:7443`. A key that is not here is an error.\n"
        + "\n".join(rows)
        + "\n"
    )


def command_page() -> str:
    """Every command with its arguments and options; those that many share, only once."""
    commands = list(_commands(typer.main.get_command(app), None))
    shared = Counter(record for _, _, records in commands for record in records)
    common = [record for record, count in shared.items() if count > 8]
    page = [f"# The command line\n\n{NOTICE}{_statuses()}\n## Options that many commands have\n"]
    page += _rows(common)
    for usage, text, records in commands:
        page.append(f"\n## {usage[0]}\n\n```\n{' '.join(usage)}\n```\n\n{text}\n")
        page += _rows([record for record in records if record not in common])
        if names := [_long_name(record) for record in records if record in common]:
            page.append(f"\nAlso {', '.join(names)}.")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(page)) + "\n"


def _commands(
    command: Any, parent: typer.Context | None
) -> Iterator[tuple[list[str], str, list[tuple[str, str]]]]:
    """Usage (command, then its arguments), help, and a row for each argument and option."""
    context = typer.Context(command, info_name=command.name or "ciphermq", parent=parent)
    usage = [context.command_path, *command.collect_usage_pieces(context)]
    records = [record for param in command.params if (record := param.get_help_record(context))]
    if hasattr(command, "commands"):
        for name in command.commands:
            yield from _commands(command.commands[name], context)
    else:
        yield usage, (command.help or "").strip(), records


def _long_name(record: tuple[str, str]) -> str:
    return f"`{next(word for word in record[0].replace(',', ' ').split() if word[:2] == '--')}`"


def _rows(records: list[tuple[str, str]]) -> list[str]:
    return [f"- `{name}`: {' '.join(text.split())}" for name, text in records]


def _statuses() -> str:
    """The table of exit statuses, from where they are defined."""
    lines = (endings.__doc__ or "").splitlines()
    rows = [line.split(None, 1) for line in lines if re.match(r"\d+ ", line)]
    return "| exit status | meaning |\n| --- | --- |\n" + "".join(
        f"| {number} | {meaning} |\n" for number, meaning in rows
    )


PAGES = {
    "cli.md": command_page,
    "settings.md": settings_page,
    "errors.md": error_page,
    "limits.md": limit_page,
}


def main() -> None:
    """Write every page whose text has changed."""
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
