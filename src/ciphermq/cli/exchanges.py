"""``ciphermq exchanges``, ``bind`` and ``unbind``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ciphermq.cli.access import Access, with_administration
from ciphermq.cli.common import DefaultsToList, JsonOption

group = typer.Typer(cls=DefaultsToList)


class Kind(StrEnum):
    """How an exchange chooses; the values of `model.topology.ExchangeType`."""

    DIRECT = "direct"
    FANOUT = "fanout"
    TOPIC = "topic"


ExchangeArgument = Annotated[str, typer.Argument(metavar="EXCHANGE", help="The exchange's name.")]
QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
KeyOption = Annotated[
    str,
    typer.Option(
        "--key",
        "-k",
        help="Routing key to match; for a topic exchange a pattern, * one word and # any number.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="exchanges", help="List, declare and delete exchanges.")
    app.command()(bind)
    app.command()(unbind)


@group.command("list")
@with_administration
def list_exchanges(access: Access, as_json: JsonOption = False) -> None:
    """List exchanges. This is what `exchanges` alone does."""
    from ciphermq.cli.asking import list_rows
    from ciphermq.cli.output import print_json, print_table

    rows = list_rows(access, "exchanges")
    if as_json:
        print_json(rows)
        return
    print_table(
        ("exchange", "type", "owner"),
        ((row["name"], row["type"], row["owner"] or None) for row in rows),
    )


@group.command()
@with_administration
def bindings(access: Access, as_json: JsonOption = False) -> None:
    """List which exchange leads to which queue."""
    from ciphermq.cli.asking import list_rows
    from ciphermq.cli.output import print_json, print_table

    rows = list_rows(access, "bindings")
    if as_json:
        print_json(rows)
        return
    print_table(
        ("exchange", "key", "queue"),
        ((row["exchange"], row["routing_key"], row["queue"]) for row in rows),
    )


@group.command()
@with_administration
def declare(
    access: Access,
    exchange: ExchangeArgument,
    kind: Annotated[
        Kind, typer.Option("--type", "-t", help="How it chooses among its bindings.")
    ] = Kind.DIRECT,
    as_json: JsonOption = False,
) -> None:
    """Make an exchange, which is yours; nothing happens if it is there already, just so."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import report
    from ciphermq.wire.cmq2 import frames

    ask(access, frames.Declare, exchange={"name": exchange, "type": kind.value})
    report(f"exchange {exchange!r} is there", {"exchange": exchange}, as_json=as_json)


@group.command()
@with_administration
def delete(
    access: Access,
    exchange: ExchangeArgument,
    if_unused: Annotated[
        bool, typer.Option("--if-unused", help="Only if nothing is bound to it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an exchange and its bindings. No message is lost: exchanges hold none."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import report
    from ciphermq.wire.cmq2 import frames

    ask(access, frames.Delete, exchange=exchange, if_unused=if_unused)
    report(f"exchange {exchange!r} is deleted", {"exchange": exchange}, as_json=as_json)


@with_administration
def bind(
    access: Access,
    exchange: ExchangeArgument,
    queue: QueueArgument,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Have what an exchange gets with a matching key go to a queue."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import report
    from ciphermq.wire.cmq2 import frames

    binding = {"exchange": exchange, "queue": queue, "routing_key": key}
    ask(access, frames.Bind, **binding)
    report(f"{exchange!r} leads to {queue!r} for the key {key!r}", binding, as_json=as_json)


@with_administration
def unbind(
    access: Access,
    exchange: ExchangeArgument,
    queue: QueueArgument,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Undo a `bind`; the key is the one it was made with."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import report
    from ciphermq.wire.cmq2 import frames

    binding = {"exchange": exchange, "queue": queue, "routing_key": key}
    ask(access, frames.Unbind, **binding)
    said = f"{exchange!r} leads to {queue!r} for the key {key!r} no longer"
    report(said, binding, as_json=as_json)
