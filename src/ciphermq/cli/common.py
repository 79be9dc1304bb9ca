"""Options that commands share, and what they lead to: an identity, a connection, a loop."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
import typer.core

from ciphermq.cli.completing import identities

T = TypeVar("T")

HOME_VARIABLE: Final = "CIPHERMQ_HOME"
PASSPHRASE_VARIABLE: Final = "CIPHERMQ_PASSPHRASE"  # noqa: S105  (its name, not its value)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar=HOME_VARIABLE,
        help="Deployment directory that `ciphermq init` made. Default: this one, if it holds "
        "ca/, else ./ciphermq.",
        show_default=False,
    ),
]
IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        "-i",
        envvar="CIPHERMQ_IDENTITY",
        help="Who to be: an identity's directory or name. Default: the only one there is.",
        autocompletion=identities,
        show_default=False,
    ),
]
AdministratorOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        "-i",
        envvar="CIPHERMQ_IDENTITY",
        help="Who to be: an identity's directory or name. Default: the deployment's `admin`, where "
        "that is here, else the only one there is.",
        autocompletion=identities,
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="CIPHERMQ_URL",
        help="Broker, cmq://HOST:PORT or zmq+tls://HOST:PORT. Default: the identity's own.",
        show_default=False,
    ),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help=f"File whose first line is the passphrase. Otherwise {PASSPHRASE_VARIABLE}, "
        "otherwise a prompt.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text, also for errors.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


class DefaultsToList(typer.core.TyperGroup):
    """A group of commands that, named alone, does its ``list``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``list`` before what is no subcommand but an option, or nothing at all."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def home_directory(home: Path | None) -> Path:
    """The deployment directory meant by ``--home``, or the default where that is None."""
    if home is not None:
        return home
    here = Path()
    return here if (here / "ca").is_dir() else here / "ciphermq"


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what can't be undone; `UsageError` where nobody is there to answer."""
    import sys

    from ciphermq.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to answer: say --yes to go on")
    typer.confirm(question, abort=True, err=True)


def check_apart(option: str, path: Path | None, *others: Path | None) -> None:
    """`UsageError` when the file of `option` is given as another, too: it can't be both."""
    from ciphermq.errors import UsageError

    if path is not None and path.resolve() in [each.resolve() for each in others if each]:
        raise UsageError(f"{option} {path}: this file is given twice, and can't be both")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end on a fast event loop. Ctrl-C cancels it, cleanly, and is raised."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def read_passphrase_file(path: Path) -> str:
    """The first line of `path`, without its end."""
    from ciphermq.errors import PassphraseError

    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PassphraseError(f"{path}: the passphrase file can't be read: {error}") from error


def given_passphrase(path: Path | None) -> str | None:
    """What the option or the environment gives, without asking; None where neither does."""
    if path is not None:
        return read_passphrase_file(path)
    return os.environ.get(PASSPHRASE_VARIABLE)
