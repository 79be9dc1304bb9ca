"""``ciphermq status`` and ``ciphermq trace``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ciphermq.cli.access import Access, with_administration
from ciphermq.cli.common import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(status)
    app.command()(trace)


@with_administration
def status(
    access: Access,
    connections: Annotated[
        bool, typer.Option("--connections", help="Who is connected, instead of the counters.")
    ] = False,
    consumers: Annotated[
        bool, typer.Option("--consumers", help="Who receives from what, instead of the counters.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how the broker is: counters of server, engine, journal, catalog and log."""
    from ciphermq.cli.asking import ask, list_rows
    from ciphermq.cli.output import print_json
    from ciphermq.wire.cmq2 import frames

    if connections or consumers:
        rows = list_rows(access, "connections" if connections else "consumers")
        if as_json:
            print_json(rows)
        else:
            _print_rows(rows)
        return
    parts = ask(access, frames.Status)
    if as_json:
        print_json(parts)
        return
    for number, (part, counters) in enumerate(parts.items()):
        print(f"{'' if number == 0 else chr(10)}{part}")
        _print_counters(counters)


def _print_counters(counters: dict[str, Any]) -> None:
    from ciphermq.cli.output import print_fields

    print_fields(
        {
            f"  {name.replace('_', ' ')}": round(value, 3) if isinstance(value, float) else value
            for name, value in counters.items()
        }
    )


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from ciphermq.cli.output import moment, print_table

    for row in rows:
        if "since_ms" in row:
            row["since"] = moment(row.pop("since_ms"))
    columns = list(rows[0]) if rows else ["client"]
    print_table([column.replace("_", " ") for column in columns], [[*row.values()] for row in rows])


@with_administration
def trace(
    access: Access,
    message: Annotated[
        str, typer.Argument(metavar="MESSAGE_ID", help="A message's id, or its batch's.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what became of a message's batch: published, delivered, acknowledged, dead.

    The broker keeps this for some days, by batch; content it can't show. A message of CipherMQ 1.x
    has a row of its own, by its own id (the header `message_id` where it was received).
    """
    from ciphermq.cli.access import connected, load_identity
    from ciphermq.cli.common import run
    from ciphermq.cli.output import print_fields, print_json
    from ciphermq.errors import NotFound, UsageError
    from ciphermq.model.ids import batch_of
    from ciphermq.model.onex import is_message_id

    if not is_message_id(message):
        raise UsageError(f"{message!r} is not a message id: it has no white space in it")
    identity = load_identity(access, administers=True)

    async def work() -> dict[str, Any] | None:
        async with connected(access, identity) as client:
            return await client.trace(message)

    found = run(work())
    if found is None:
        raise NotFound(
            f"the broker knows nothing of {message}: never published there, longer ago than it "
            "remembers, or none of this identity's business"
        )
    if batch_of(message) is not None and "message_id" not in found:
        found = _batch(message, found)
    if as_json:
        print_json(found)
    else:
        print_fields({name.replace("_", " "): value for name, value in found.items()})


def _batch(message: str, found: dict[str, Any]) -> dict[str, Any]:
    """A batch's row, ids and times spelt for people."""
    from ciphermq.cli.output import moment
    from ciphermq.model.ids import message_id, parse_message_id

    batch_id, index = parse_message_id(message)
    row = found | {"batch_id": message_id(batch_id, 0), "index": index}
    for name in [name for name in row if name.endswith("_ms")]:
        row[name.removesuffix("_ms")] = moment(row.pop(name))
    return row
