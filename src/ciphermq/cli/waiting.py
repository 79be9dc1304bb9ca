"""What waits in queues: ``ciphermq purge``, ``peek`` and ``dead``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ciphermq import limits
from ciphermq.cli.access import Access, with_administration
from ciphermq.cli.common import DefaultsToList, JsonOption, YesOption

dead = typer.Typer(cls=DefaultsToList)

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(purge)
    app.command()(peek)
    app.add_typer(dead, name="dead", help="Dead letters: look at them, put them back.")


@with_administration
def purge(
    access: Access, queue: QueueArgument, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Remove all that waits in a queue, for good. What receivers hold stays theirs."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.common import confirm
    from ciphermq.cli.output import counted, report
    from ciphermq.wire.cmq2 import frames

    confirm(f"Remove all messages that wait in {queue!r}, for good?", yes=yes)
    removed = ask(access, frames.Purge, queue=queue)
    said = f"{counted(removed, 'message')} removed from {queue!r}"
    report(said, {"queue": queue, "messages": removed}, as_json=as_json)


@with_administration
def peek(
    access: Access,
    queue: QueueArgument,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=limits.MAX_PEEK, help="Batches to show.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show the headers of a queue's first batches. Nobody but their receiver can see more."""
    from ciphermq.cli.output import print_json

    rows = _peeked(access, queue, count)
    if as_json:
        print_json(rows)
    else:
        _print_batches(rows)


@dead.command("list")
@with_administration
def list_dead(
    access: Access,
    queue: Annotated[
        str | None,
        typer.Argument(
            metavar="QUEUE",
            help="The queue whose dead letters to show.  [default: how many each queue has]",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=limits.MAX_PEEK, help="Batches to show.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """List dead letters and why they are dead. This is what `dead` alone does."""
    from ciphermq.cli.asking import list_rows
    from ciphermq.cli.output import print_json, print_table
    from ciphermq.model.ids import DEAD_PREFIX

    if queue is not None:
        rows = _peeked(access, dead_queue(queue), count)
        if as_json:
            print_json(rows)
        else:
            _print_batches(rows)
        return
    rows = list_rows(access, "queues", DEAD_PREFIX)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("queue", "dead letters", "batches", "bytes"),
        (
            [row["name"].removeprefix(DEAD_PREFIX)]
            + [row[column] for column in ("messages_ready", "batches", "bytes")]
            for row in rows
        ),
    )


@dead.command()
@with_administration
def redrive(
    access: Access,
    queue: QueueArgument,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="Messages, oldest first.  [default: all]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put a queue's dead letters back where they were, unchanged, once the cause is mended."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import counted, report
    from ciphermq.wire.cmq2 import frames

    moved = ask(access, frames.Redrive, queue=dead_queue(queue), messages=count)
    said = f"{counted(moved, 'message')} put back from {dead_queue(queue)!r}"
    report(said, {"queue": queue, "messages": moved}, as_json=as_json)


def dead_queue(queue: str) -> str:
    """The dead-letter queue of `queue`, or itself when it is one."""
    from ciphermq.model.ids import DEAD_PREFIX

    return queue if queue.startswith(DEAD_PREFIX) else DEAD_PREFIX + queue


def _peeked(access: Access, queue: str, count: int) -> list[dict[str, Any]]:
    """The broker's rows with ids and times spelt for people."""
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import moment
    from ciphermq.model.ids import message_id
    from ciphermq.wire.cmq2 import frames

    rows = ask(access, frames.Peek, queue=queue, batches=count)
    for row in rows:
        row["batch_id"] = message_id(row["batch_id"], 0)
        for name in ("created", "expires", "published"):
            row[name] = moment(row.pop(f"{name}_ms"))
        if row["dead"]:
            row["dead"]["at"] = moment(row["dead"].pop("at_ms", None))
    return list(rows)


def _print_batches(rows: list[dict[str, Any]]) -> None:
    from ciphermq.cli.output import print_table

    columns = ["batch", "messages", "bytes", "from", "to", "key", "published", "tries"]
    dead_letters = any(row["dead"] for row in rows)
    if dead_letters:
        columns += ["from queue", "reason", "detail"]
    table = []
    for row in rows:
        cells = [row["batch_id"], row["messages"], row["size"], row["sender"]]
        cells += [",".join(row["receivers"]), row["routing_key"] or None]
        cells += [row["published"], row["redeliveries"]]
        if dead_letters:
            why = row["dead"] or {}
            cells += [why.get("queue"), why.get("reason"), why.get("detail") or None]
        table.append(cells)
    print_table(columns, table)
