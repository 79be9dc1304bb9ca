"""``ciphermq queues``: list, declare, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from ciphermq.cli.access import Access, with_administration
from ciphermq.cli.common import DefaultsToList, JsonOption, YesOption

group = typer.Typer(cls=DefaultsToList)

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="queues", help="List, declare and delete queues.")


@group.command("list")
@with_administration
def list_queues(
    access: Access,
    prefix: Annotated[str, typer.Argument(help="Only names that begin with it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List queues, with what waits in them. This is what `queues` alone does."""
    from ciphermq.cli.asking import list_rows
    from ciphermq.cli.output import print_json, print_table

    rows = list_rows(access, "queues", prefix)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("queue", "kind", "owner", "ready", "unacked", "batches", "bytes", "consumers"),
        (
            (
                row["name"],
                _kind(row["name"], inbox=row["inbox"]),
                row["owner"] or None,
                row["messages_ready"],
                row["messages_unacked"],
                row["batches"],
                row["bytes"],
                row["consumers"],
            )
            for row in rows
        ),
    )


def _kind(name: str, *, inbox: bool) -> str:
    from ciphermq.model.ids import DEAD_PREFIX

    if inbox:
        return "inbox"
    return "dead letters" if name.startswith(DEAD_PREFIX) else "queue"


@group.command()
@with_administration
def declare(
    access: Access,
    queue: QueueArgument,
    max_messages: Annotated[
        int | None,
        typer.Option(min=1, help="Messages it holds; more are refused.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Sealed bytes it holds; more are refused.", show_default=False),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="Longest time a message waits here before it goes to the dead letters.",
            show_default=False,
        ),
    ] = None,
    dead_letter_exchange: Annotated[
        str | None,
        typer.Option(help="Where dead letters go.  [default: dead.QUEUE]", show_default=False),
    ] = None,
    dead_letter_key: Annotated[
        str | None,
        typer.Option(help="Their routing key.  [default: their own]", show_default=False),
    ] = None,
    max_tries: Annotated[
        int | None,
        typer.Option(min=1, help="Failed tries until a message is dead.", show_default=False),
    ] = None,
    ack_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="How long a receiver may hold a batch without acknowledging any of it.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a queue, which is yours; nothing happens if it is there already, just so."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import report
    from ciphermq.wire.cmq2 import frames

    asked = {
        "max_messages": max_messages,
        "max_bytes": max_bytes,
        "ttl_ms": _milliseconds(ttl),
        "dead_letter_exchange": dead_letter_exchange,
        "dead_letter_key": dead_letter_key,
        "max_tries": max_tries,
        "ack_timeout_ms": _milliseconds(ack_timeout),
    }
    spec = {"name": queue, **{key: value for key, value in asked.items() if value is not None}}
    ask(access, frames.Declare, queue=spec)
    report(f"queue {queue!r} is there", {"queue": queue}, as_json=as_json)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


@group.command()
@with_administration
def delete(
    access: Access,
    queue: QueueArgument,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Only if no message is in it.")
    ] = False,
    if_unused: Annotated[
        bool, typer.Option("--if-unused", help="Only if nobody receives from it.")
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a queue and all that waits in it."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.common import confirm
    from ciphermq.cli.output import counted, report
    from ciphermq.wire.cmq2 import frames

    if not if_empty:
        confirm(f"Delete the queue {queue!r} with all that waits in it?", yes=yes)
    lost = ask(access, frames.Delete, queue=queue, if_empty=if_empty, if_unused=if_unused)
    said = f"queue {queue!r} is deleted, and {counted(lost, 'message')} with it"
    report(said, {"queue": queue, "messages": lost}, as_json=as_json)
