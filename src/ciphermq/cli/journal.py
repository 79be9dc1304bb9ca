"""``ciphermq journal``: look at a broker's log, and salvage a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ciphermq.cli.common import JsonOption, YesOption

if TYPE_CHECKING:
    from ciphermq.journal.tools import Problem

group = typer.Typer(no_args_is_help=True)

DirectoryArgument = Annotated[
    Path,
    typer.Argument(
        help="The broker's data directory (or the journal in it).",
        exists=True,
        file_okay=False,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="journal", help="Look at a broker's log, or salvage a damaged one.")


def journal_in(directory: Path) -> Path:
    """The journal in a data directory, in a server's directory, or the directory itself."""
    from ciphermq.settings.server import JOURNAL_DIRECTORY

    for place in (directory / JOURNAL_DIRECTORY, directory / "data" / JOURNAL_DIRECTORY):
        if place.is_dir():
            return place
    return directory


@group.command()
def verify(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Read the whole log and list what is not good. Changes nothing; a broker may be running."""
    import msgspec

    from ciphermq.cli.errors import STORED
    from ciphermq.cli.output import print_json
    from ciphermq.cli.progress import bar
    from ciphermq.journal import tools

    with bar("verifying", shown=not as_json) as progress:
        found = tools.verify(journal_in(directory), progress=progress)
    if as_json:
        print_json(msgspec.to_builtins(found, enc_hook=str))
    else:
        print(
            f"{found.segments} segments, {found.size} bytes, {found.groups} groups, "
            f"{found.records} records, {found.payloads} payloads"
        )
        if found.torn is not None:
            print(f"unfinished end, which a start cuts off: {found.torn.describe()}")
        _print_problems(found.problems)
    if found.problems:
        raise typer.Exit(STORED)


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems:
        print(problem.describe())
    if problems:
        print("damaged: `ciphermq journal repair` salvages what is good into a new log")
    else:
        print("sound")


@group.command()
def repair(
    directory: DirectoryArgument, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Salvage what is good into a new log; the old files are kept beside it.

    The broker must be stopped. A sound log is left as it is.
    """
    import msgspec

    from ciphermq.cli.common import confirm
    from ciphermq.cli.output import print_json
    from ciphermq.cli.progress import bar
    from ciphermq.journal.repair import repair as repair_journal

    journal = journal_in(directory)
    confirm(f"Write a new journal of what is good in {journal}?", yes=yes)
    with bar("salvaging", shown=not as_json) as progress:
        done = repair_journal(journal, progress=progress)
    if as_json:
        print_json(msgspec.to_builtins(done, enc_hook=str))
    elif not done.changed:
        print(f"sound: {done.records} records, nothing was changed")
    else:
        print(f"salvaged: {done.records} records are in the new journal")
        for problem in done.lost:
            print(f"lost: {problem.describe()}")
        if done.snapshot:
            print(done.snapshot)
        print(f"the old files are in {done.aside}")


@group.command()
def stats(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Show each segment in numbers. Changes nothing; a broker may be running."""
    import msgspec

    from ciphermq.cli.output import print_json, print_table
    from ciphermq.journal import tools

    rows = tools.stats(journal_in(directory))
    if as_json:
        print_json(msgspec.to_builtins(rows))
        return
    print_table(
        ["segment", "bytes", "groups", "records", "payload bytes", "first", "last"],
        [
            (
                row.segment,
                row.size,
                row.groups,
                row.records,
                row.payload_bytes,
                row.first_lsn,
                row.last_lsn,
            )
            for row in rows
        ],
    )
