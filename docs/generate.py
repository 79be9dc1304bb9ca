"""Writes the reference pages that are made from the code itself. `make docs` runs it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import typer
import typer.main

from ciphermq import errors, limits
from ciphermq.cli import errors as endings
from ciphermq.cli.main import app
from ciphermq.proxy import config, ctl, model
from ciphermq.proxy.control import words
from ciphermq.proxy.control.commands import RULES
from ciphermq.proxy.control.grammar import KINDS
from ciphermq.proxy.timeouts import Timeouts
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
            if sub.__module__ == errors.__name__:
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


_CONTROL = """\
`ciphermq-proxy-ctl CONTROL_SOCKET WORD...` says one command and shows the answer; so does whatever
else writes a line to the socket. Words in capitals may be said in any case, what is in brackets may
be left out, `A|B` is one of the two, and `...` is one or more. A command that was done and has
nothing to show says nothing.

"""


def control_page() -> str:
    """Every command of the proxy's control language, as its grammar has it."""
    form, _, rules = (words.__doc__ or "").split("::\n\n")[1].partition("\n\n")
    form = "\n".join(line.removeprefix("    ") for line in form.splitlines())
    statuses = re.findall(r"(\d) ([^,.]+)", (ctl.__doc__ or "").partition("Exit statuses:")[2])
    page = [
        f"# The proxy's control language\n\n{NOTICE}{_CONTROL}```\n{form}\n```\n\n",
        f"{_prose(rules)}\n\n| exit status of `ciphermq-proxy-ctl` | |\n| --- | --- |\n",
        *(f"| {number} | {meaning} |\n" for number, meaning in statuses[:4]),
        "\n`amqpprox_ctl` is the same program, without `--json` and status 3.\n\n",
        "| argument | is |\n| --- | --- |\n",
        *(f"| `{name}` | {text} |\n" for name, (_, text) in sorted(KINDS.items())),
        "| any other | a name of 1 to 255 bytes |\n",
    ]
    verb = ""
    ordered = sorted(RULES, key=lambda one: one.usage.verb)
    for rule, following in zip_longest(ordered, ordered[1:]):
        if rule.usage.verb != verb:
            verb = rule.usage.verb
            page.append(f"\n## {verb}\n\n")
        # Of several that are done by one function, the last has what is to be said of all.
        alike = following is not None and rule.do is not None and rule.do is following.do
        about = "" if alike else _prose(rule.about)
        page.append(f"- `{rule.usage.text}`\n  {f'{rule.help}. {about}'.strip()}\n")
    return "".join(page)


_TABLES = {
    "": model.Configuration,
    "backends.NAME": model.Backend,
    "farms.NAME": model.Farm,
    "listeners": model.Listener,
    "ingress": model.TlsSettings,
    "ingress.certificates": model.Certificate,
    "limits.KIND": model.Limit,
    "auth": model.AuthService,
    "external.CERTIFICATE": model.ExternalUser,
    "statsd": model.Destination,
}
_TYPES = {
    "str": "text",
    "int": "number",
    "float": "number",
    "bool": "`true` or `false`",
    "Port": "1 to 65535",
    "Verbosity": "0 to 5",
    "Target": '`{ farm = "NAME" }` or `{ backend = "NAME" }`',
}


_BELOW = "a table, below"


def _type(annotation: str) -> str:
    """A type as a reader of TOML knows it."""
    annotation = annotation.removesuffix(" | None")
    if annotation.startswith("Mapping"):
        member = _type(annotation.partition(", ")[2].removesuffix("]"))
        return "tables, below" if member == _BELOW else f"table of {member}"
    if annotation.startswith("tuple"):
        member = _type(annotation.removeprefix("tuple[").partition(",")[0])
        return "tables, below" if member == _BELOW else f"list of {member}"
    if annotation.startswith("Literal"):
        return ", ".join(f"`{one}`" for one in ast.literal_eval(annotation[7:]))
    if annotation == "VerifyMode":
        return ", ".join(f'`"{one}"`' for one in get_args(model.VerifyMode))
    return _TYPES.get(annotation, _BELOW)


_FILE = """\
TOML, at the control socket's path with `.toml` behind it unless `--config` names another.
`CONFIG SAVE` writes it, `CONFIG DIFF` compares it, `CONFIG RELOAD` takes it over. Each key is what
[a command](proxy-control.md) sets, and what is not in the file is as in a proxy that was just
started. A key that is not here, or a file that others may write, is an error, and then nothing of
the file is used.

"""


def proxy_file_page() -> str:
    """Every key of the proxy's file, from the types it is made of."""
    example = (config.__doc__ or "").split("::\n\n")[1].partition("\n\nWhat is not")[0]
    example = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    page = [f"# The proxy's configuration file\n\n{NOTICE}{_FILE}```toml\n{example}\n```\n"]
    for heading, struct in _TABLES.items():
        page.append(f"\n## {f'`[{heading}]`' if heading else 'The top'}\n\n")
        page.append(f"{_prose(struct.__doc__)}\n\n| key | |\n| --- | --- |\n")
        for name, annotation in struct.__annotations__.items():
            if name not in {"name", "address"} or struct is model.Listener:
                page.append(f"| `{name}` | {_type(annotation)} |\n")
    page.append(
        f"\nKinds of limits are {', '.join(f'`{kind}`' for kind in get_args(model.LimitKind))}.\n"
        "`egress` has the same keys as `ingress`, but no certificates; `metrics` the same as\n"
        "`statsd`. `vhosts` says which are paused, of those that ever were. `timeouts` (seconds): "
        + ", ".join(f"`{name}` ({each:g})" for name, each in asdict(Timeouts()).items())
        + ".\n"
    )
    return "".join(page)


PAGES = {
    "proxy-control.md": control_page,
    "proxy-config.md": proxy_file_page,
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
