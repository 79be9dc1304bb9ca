"""``ciphermq backup`` and ``ciphermq restore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ciphermq.cli.common import JsonOption

if TYPE_CHECKING:
    from ciphermq.cli.archive import Summary

CONFIG = "config.toml"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(backup)
    app.command()(restore)


def backup(
    directory: Annotated[
        Path,
        typer.Argument(
            help="The server's directory (or its config.toml).", exists=True, show_default=False
        ),
    ],
    target: Annotated[Path, typer.Argument(help="A new directory.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy a broker's journal, catalog, configuration and keys, while it runs, and check the copy.

    The copy holds all that was confirmed when the command began. It is as private as the
    server's own directory. A catalog in PostgreSQL is not in it: back that up by its own tools
    (pg_dump), after this.
    """
    from ciphermq.cli.archive import back_up
    from ciphermq.cli.progress import bar

    config = directory / CONFIG if directory.is_dir() else directory
    with bar("copying", shown=not as_json) as progress:
        done = back_up(config, target, progress=progress)
    _show("backed up to", done, as_json=as_json)


def restore(
    backup: Annotated[
        Path,
        typer.Argument(
            help="What `ciphermq backup` made.", exists=True, file_okay=False, show_default=False
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(help="The server's directory, new or empty.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Put a backup back in place, and check every byte of it.

    A restored broker delivers again what was acknowledged after the backup; Inboxes know it. A
    catalog in PostgreSQL is restored by its own tools (pg_restore).
    """
    from ciphermq.cli.archive import restore as put_back
    from ciphermq.cli.progress import bar

    with bar("restoring", shown=not as_json) as progress:
        done = put_back(backup, directory, progress=progress)
    _show("restored to", done, as_json=as_json)


def _show(what: str, done: Summary, *, as_json: bool) -> None:
    import msgspec

    from ciphermq.cli.errors import STORED
    from ciphermq.cli.output import print_json

    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        print(
            f"{what} {done.directory}: {done.files} files, {done.size} bytes; "
            f"{done.records} journal records and {done.keys} key records"
        )
        if done.elsewhere:
            print(f"not in it: {done.elsewhere}; that has its own tools (pg_dump, pg_restore)")
        for problem in done.damaged:
            print(f"damaged before it was copied: {problem}")
    if done.damaged:
        raise typer.Exit(STORED)
