"""Writes the reference pages that are made from the code itself. `make docs` runs it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from ciphermq import errors, limits
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
    """What typer says of every command and option."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "ciphermq.cli.main", "utils", "docs", "--name", "ciphermq"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    head, _, rest = made.stdout.partition("\n")
    return f"{head}\n\n{NOTICE}{rest.strip()}\n"


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
