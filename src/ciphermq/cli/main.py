"""The ``ciphermq`` command: its tree of commands, and the one place where a run ends.

Nothing heavy is imported here or at the top of a command's file, so that ``--help`` and
completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Final

import typer

from ciphermq.cli import (
    backup,
    ca,
    config,
    demo,
    exchanges,
    identity,
    init,
    journal,
    keys,
    onexclients,
    queues,
    receive,
    send,
    server,
    status,
    waiting,
)
from ciphermq.cli.errors import ending

COMMANDS: Final[tuple[ModuleType, ...]] = (
    init,
    server,
    config,
    identity,
    ca,
    keys,
    send,
    receive,
    onexclients,
    queues,
    exchanges,
    waiting,
    status,
    backup,
    journal,
    demo,
)
"""Modules with a ``register(app)``, in the order of the help."""

PANELS: Final = {
    "Set up": ("init", "server", "config", "identity", "ca", "keys"),
    "Messages": ("send", "receive"),
    "As CipherMQ 1.x did": ("sender", "receiver"),
    "Look inside and put in order": (
        "queues",
        "exchanges",
        "bind",
        "unbind",
        "purge",
        "peek",
        "dead",
        "status",
        "trace",
    ),
    "Keep": ("backup", "restore", "journal"),
    "See it work": ("demo",),
}
"""Headings of the help; what is under none of them stands first."""

app = typer.Typer(
    name="ciphermq",
    help="A message queue whose middle can't read, forge, swap or lose what it carries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ciphermq {version('ciphermq')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the command itself; each subcommand has its own."""


def _panel(name: str) -> str | None:
    return next((panel for panel, names in PANELS.items() if name in names), None)


for module in COMMANDS:
    module.register(app)
for command in app.registered_commands:
    command.rich_help_panel = _panel(command.callback.__name__ if command.callback else "")
for group in app.registered_groups:
    group.rich_help_panel = _panel(group.name or "")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit status. Every error becomes one clear line."""
    with ending("--json" in arguments) as end:
        status = typer.main.get_command(app)(
            args=list(arguments), prog_name="ciphermq", standalone_mode=False
        )
        end.status = status if isinstance(status, int) else 0
    return end.status


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))
