"""``ciphermq demo``: real lines through a broker that is killed on the way.

Four processes as in production: a broker, a sender with an Outbox, a receiver with an Inbox, and
this one, which watches, kills the others with SIGKILL, starts them again, and at the end compares
what came out with what went in. No process is told that it is being watched: what is known of
them is known from their files.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ciphermq.cli.common import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from ciphermq.cli.rehearsal import Outcome

_MESSAGES: Final = 100_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    messages: Annotated[
        int, typer.Option("--messages", "-n", min=1, help="Lines to send, a message each.")
    ] = _MESSAGES,
    kill: Annotated[
        bool, typer.Option("--kill/--no-kill", help="Kill broker and receiver in the middle.")
    ] = True,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            help="New directory to work in and to leave, for a look around.",
            show_default=False,
        ),
    ] = None,
    softhsm: Annotated[
        bool,
        typer.Option(
            "--softhsm",
            help="Keep the receiver's key on a token of SoftHSM, which is made for it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send real lines through a broker that is killed on the way, and count what comes out.

    Makes a deployment of its own, runs broker, sender and receiver as processes over mutual TLS,
    and leaves nothing running. The exit status is 0 only if no line was lost or shown twice.
    """
    from rich.console import Console

    from ciphermq.cli.rehearsal import Rehearsal

    with _interrupted_by_signals(), _directory(keep) as directory:
        rehearsal = Rehearsal(
            directory,
            messages,
            kill=kill,
            console=Console(stderr=True, quiet=as_json),
            softhsm=softhsm,
        )
        outcome = rehearsal.run()
    if as_json:
        print(json.dumps(outcome.as_dict()))
    else:
        _show(outcome, keep, Console())
    if not outcome.perfect:
        raise typer.Exit(1)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)  # a new one: the demo never writes over anything
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ciphermq-demo-") as name:
        yield Path(name)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does: with everything put away."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(outcome: Outcome, keep: Path | None, console: Console) -> None:
    from rich.table import Table

    table = Table(show_header=False, title="What came of it", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    good = "green" if outcome.perfect else "red"
    for name, value in (
        ("sent", f"{outcome.sent:,}"),
        ("confirmed, on the broker's disk", f"{outcome.confirmed:,}"),
        ("received", f"{outcome.received:,}"),
        ("SIGKILLs on the way", f"{outcome.kills}"),
        ("duplicates dropped", f"{outcome.duplicates_dropped:,}"),
        ("shown twice", f"[{good}]{outcome.shown_twice:,}"),
        ("lost", f"[{good}]{outcome.lost:,}"),
        ("checksums", f"[{good}]{'equal' if outcome.checksum_equal else 'DIFFERENT'}"),
        ("messages a second, kills and all", f"{outcome.messages_per_second:,}"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(_where_next(keep), highlight=False, soft_wrap=True)


def _where_next(keep: Path | None) -> str:
    if keep is None:
        return """Where to look next:
  docs/tutorial/first-queue.md          makes a queue of your own in ten minutes
  docs/explanation/exactly-once.md      says why nothing was lost
  ciphermq demo --keep DIR              leaves all of this to look at"""
    home = keep / "run" / "deployment"
    return f"""Everything is in {keep}. Have a look around:
  ciphermq server --home {home} &
  ciphermq status --home {home} -i admin
  ciphermq journal stats {home / "server" / "data"}"""
