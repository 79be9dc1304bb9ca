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
from ciphermq.proxy import config, ctl, metrics, model, statistics
from ciphermq.proxy import main as proxy_main
from ciphermq.proxy.control import words
from ciphermq.proxy.control.commands import RULES
from ciphermq.proxy.control.grammar import KINDS
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.settings.server import sections
from ciphermq.wire.amqp.handshake import TABLE as HANDSHAKE
from ciphermq.wire.amqp.handshake import Method, State

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
    # Of an option with two defaults the more common one; the other stands at its commands.
    dearest = {record[0]: record for record, count in shared.most_common()[::-1] if count > 8}
    common = [record for record in shared if record in dearest.values()]
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


def proxy_command_page() -> str:
    """Every flag of ``ciphermq-proxy``, from its parser."""
    page = [f"# The proxy's command line\n\n{NOTICE}{_PROXY_COMMAND}| flag | |\n| --- | --- |\n"]
    for action in proxy_main.parser()._actions:  # noqa: SLF001  (there is no other way)
        spelt = ", ".join(f"`{name}`" for name in action.option_strings)
        value = f" `{action.metavar}`" if action.metavar else ""
        # The number of cores is this machine's.
        text = (action.help or "") % {"default": action.default}
        page.append(f"| {spelt}{value} | {text} |\n")
    return "".join(page) + _PROXY_SIGNALS


_PROXY_COMMAND = """`ciphermq-proxy` serves until it is told to end, and prints one line when it
is ready. Flags that amqpprox has are also spelt as there; under the name `amqpprox` it has that
program's defaults (its control socket in the system's directory for temporary files,
`--logDirectory logs`, `-v 0`), prints its two lines, and exits as it does. With `--take-over` the
configuration is the running proxy's: flags that would set some of it (`--metrics`, `--listen-port`
…) count at a start afresh only.

"""

_PROXY_SIGNALS = """
## Signals

| signal | |
| --- | --- |
| `SIGTERM`, `SIGINT` | end in order: accept nobody, Close 320 to clients, wait for them \
as long as `timeouts.drain`; a second one ends at once |
| `SIGHUP` | `CONFIG RELOAD` |
| `SIGUSR2` | be replaced by a new process with the same command line (`--take-over`) |

Exit status: 0 when it was told to end, 1 when it can't start, with the reason on standard error.
"""


def proxy_metrics_page() -> str:
    """Every metric, from the table that the page is made of."""
    rows = [
        f"| `{metrics.PREFIX}{family.name}{'_total' if family.kind == 'counter' else ''}` "
        f"| {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in metrics.FAMILIES
    ]
    members = [f"| `{member}` | {_MEMBERS[member]} |" for member in statistics.MEMBERS]
    return (
        f"# The proxy's metrics and statistics\n\n{NOTICE}{_METRICS}"
        "| metric | kind | labels | |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + _STATISTICS
        + "\n".join(members)
        + _FILTERS
    )


_METRICS = """Two ways to the same numbers, which are summed over all workers.

## For Prometheus

`--metrics [HOST:]PORT`, `METRICS START port` or `[metrics]` in the file serve `/metrics`, and
`/health`, which answers 200 while every worker takes new connections and 503 otherwise. The page
needs no password: it is on loopback unless told otherwise. A `vhost` label is empty for clients
that never named a virtual host that leads anywhere. Totals begin at 0 when the proxy starts; what a
worker that died had counted is kept as far as it was last asked.

"""

_STATISTICS = """

## As amqpprox has them

`STAT LISTEN json|human [what]` prints a line each second until its reader leaves, `STAT SEND host
port` sends the same to statsd, a metric a datagram. Every number is of the second before, but the
first two, which are as of now.

| member | |
| --- | --- |
"""

_MEMBERS = {
    "pausedConnectionCount": "sessions that are held back now",
    "activeConnectionCount": "sessions now, of any state",
    "authDeniedConnectionCount": "refused by the authentication service, or for want of a user",
    "limitedConnectionCount": "refused over a limit",
    "removedConnectionGraceful": "ended in order: a Close of either side's, or of the proxy's own",
    "removedConnectionBrokerSnapped": "ended by the loss of the broker",
    "removedConnectionClientSnapped": "ended by the loss of the client",
    "packetsReceived": "reads from clients that brought something",
    "packetsSent": "reads from brokers that brought something",
    "framesReceived": "AMQP frames from clients",
    "framesSent": "AMQP frames from brokers",
    "bytesReceived": "bytes from clients",
    "bytesSent": "bytes from brokers",
}

_FILTERS = """

A session is counted once when it ends: in order, by a loss, denied or limited. One that failed
before it was open (garbage, a time-out, no broker) is in none of these; the metrics count it as
`failed`.

*What* is `all` (which is also what nothing means), `all-except-per-source`, `overall`, `process`
(all processes together: shares of one core in per cent, `mem_rss_kb`), `bufferpool`, `vhost=NAME`,
`backend=NAME` (or its address and port, `10.0.0.1_5672`) and `source=CLIENT`.

Towards statsd the first four members are gauges, the others counters:
`amqpprox.bytesSent,rmqEndpointType=overall:42|c`. Virtual hosts have the tags
`rmqEndpointType=vhost,rmqVhostName=NAME`, backends
`rmqEndpointType=backends,rmqEndpointHostname=…`, and after `STAT ENABLE per-source` clients'
machines `rmqEndpointType=sources,…`. Signs that would end a tag stand as `_`. A host that is gone
costs datagrams, which are counted, and nothing else.
"""


def handshake_page() -> str:
    """The table that the proxy's handshakes are made of, both sides."""
    page = [f"# The AMQP handshake through the proxy\n\n{NOTICE}{_HANDSHAKE}"]
    for title, states in _SIDES.items():
        methods = [
            method for method in Method if any((state, method) in HANDSHAKE for state in states)
        ]
        rows = [
            f"| {state.value} | " + " | ".join(_cell(state, method) for method in methods) + " |"
            for state in states
        ]
        names = [_METHOD_NAMES.get(method, _camel(method.name)) for method in methods]
        done = [
            f"- {_METHOD_NAMES.get(method, _camel(method.name))} while waiting for {state.value}: "
            f"{rule.does}."
            for (state, method), rule in HANDSHAKE.items()
            if state in states and rule.does
        ]
        page.append(
            f"\n## {title}\n\n| it waits for | {' | '.join(names)} |\n"
            f"| --- {'| --- ' * len(methods)}|\n" + "\n".join(rows) + "\n"
        )
        if done:
            page.append("\n" + "\n".join(done) + "\n")
    return "".join([*page, _CLOSES])


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _cell(state: State, method: Method) -> str:
    """What the proxy sends, and what it waits for then."""
    rule = HANDSHAKE.get((state, method))
    if rule is None:
        return "–"
    then = rule.next.value.removeprefix("nothing: the connection is ")
    sends = f"sends {rule.answer}; " if rule.answer else ""
    return (
        f"{sends}then {then}" if rule.next not in (State.DONE, State.CLOSED) else f"{sends}{then}"
    )


_SIDES = {
    "Towards clients, as a broker": (
        State.HEADER,
        State.START_OK,
        State.TUNE_OK,
        State.OPEN,
        State.HELD,
    ),
    "Towards brokers, as a client": (State.START, State.TUNE, State.OPEN_OK),
    "After the proxy's own Close, on either side": (State.CLOSING,),
}
_METHOD_NAMES = {Method.PROTOCOL_HEADER: "protocol header"}
_HANDSHAKE = """Until a connection is open the proxy speaks AMQP 0.9.1 itself: to clients as a
broker, to brokers as the client. From OpenOk on bytes go by, and only frames are counted. The
tables below are the ones the proxy runs by: what has a dash is refused with a code of the list at
the end.

The client may cut and join what it says as it likes, down to header, StartOk, TuneOk and Open in
one write, with channels already opened behind them: that is kept for the broker. Heartbeats are
taken in every state, and sent to a client that waits for its broker.

A broker is chosen when Open has come, since Open names the virtual host. Until the broker's OpenOk
the client has heard nothing of it, so a broker that fails is passed over for the next one of its
farm, and the same is said to that one. A broker that *refuses* (403, 530, …) is not passed over:
the client gets its Close, byte by byte.
"""
_CLOSES = """
## Codes

| code | the client gets it when |
| --- | --- |
| 200 | an operator disconnects the session |
| 320 | a phase took too long; no broker can be reached; the broker was lost; the proxy ends |
| 403 | it wants EXTERNAL and has no certificate that stands for a user |
| 501 | what it sends is no frame, has a wrong end byte, or is larger than 131,072 bytes |
| 502 | a method's fields are longer than the method, or a name is not UTF-8 |
| 503 | a method comes that is not waited for |
| 504 | a channel is used before the connection is open |
| 505 | content comes instead of a method |
| 506 | a limit on connections is reached |
| 530 | the virtual host is mapped nowhere |
| 541 | the broker sent what is no frame, or the proxy itself failed |

Close is sent only between two frames. Where the broker is lost in the middle of one, the client
would take a Close for the rest of that frame, so the connection just ends. What does not begin with
AMQP 0.9.1's header gets that header back, and the end.
"""


PAGES = {
    "proxy-handshake.md": handshake_page,
    "proxy-command.md": proxy_command_page,
    "proxy-metrics.md": proxy_metrics_page,
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
