"""``ciphermq status`` and ``ciphermq trace``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ciphermq.cli.access import Access, with_access
from ciphermq.cli.common import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(status)
    app.command()(trace)


@with_access
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


@with_access
def trace(
    access: Access,
    message: Annotated[
        str, typer.Argument(metavar="MESSAGE_ID", help="A message's id, or its batch's.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what became of a message's batch: published, delivered, acknowledged, dead.

    The broker keeps this for some days, by batch; content it can't show.
    """
    from ciphermq.cli.asking import ask
    from ciphermq.cli.output import moment, print_fields, print_json
    from ciphermq.errors import NotFound
    from ciphermq.model.ids import message_id, parse_message_id
    from ciphermq.wire.cmq2 import frames

    batch_id, index = parse_message_id(message)
    found = ask(access, frames.Trace, batch_id=batch_id)
    if found is None:
        raise NotFound(
            f"the broker knows nothing of {message}: never published there, longer ago than it "
            "remembers, or none of this identity's business"
        )
    found["batch_id"] = message_id(batch_id, 0)
    found["index"] = index
    for name in [name for name in found if name.endswith("_ms")]:
        found[name.removesuffix("_ms")] = moment(found.pop(name))
    if as_json:
        print_json(found)
    else:
        print_fields({name.replace("_", " "): value for name, value in found.items()})
