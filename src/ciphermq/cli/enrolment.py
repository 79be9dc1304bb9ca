"""What the commands that make and move identities share."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli import passphrases
from ciphermq.cli.common import HOME_VARIABLE
from ciphermq.cli.completing import identities

if TYPE_CHECKING:
    from ciphermq.cli.deployment import Deployment
    from ciphermq.model.suites import Suite
    from ciphermq.pki.authority import Authority

NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The identity's name.", autocompletion=identities),
]
NoPassphraseOption = Annotated[
    bool,
    typer.Option("--no-passphrase", help="Don't ask: the file permissions alone protect the keys."),
]
SuiteOption = Annotated[
    str,
    typer.Option(help="What messages to it are sealed with: MLKEM768_X25519, X25519 or P256."),
]


def now_ms() -> int:
    """This machine's clock."""
    return int(time.time() * 1000)


def suite_named(name: str) -> Suite:
    """The suite that ``--suite`` names."""
    from ciphermq.errors import UsageError
    from ciphermq.model.suites import Suite

    try:
        return Suite[name.upper()]
    except KeyError:
        allowed = ", ".join(Suite.__members__)
        raise UsageError(f"--suite {name!r}: it must be one of {allowed}") from None


def open_authority(deployment: Deployment, passphrase_file: Path | None) -> Authority:
    """The deployment's authority, with its passphrase if it needs one."""
    needed = deployment.authority().encrypted
    return deployment.open_authority(
        passphrases.existing(passphrase_file, "the authority", needed=needed)
    )


def check_new(path: Path) -> Path:
    """`path`, where nothing may be yet: asked before anything is made that would go there."""
    from ciphermq.errors import UsageError

    if path.exists():
        raise UsageError(f"{path} exists; nothing is overwritten: name another file")
    return path


def write_new(path: Path, data: bytes) -> None:
    """Write a private file that must not exist."""
    from ciphermq.custody import disk

    try:
        disk.write_file(path, data)
    except FileExistsError:
        check_new(path)
        raise


def describe(path: Path) -> dict[str, Any]:
    """What is known of an identity without opening its keys."""
    from ciphermq.client import view

    return view.describe(path, now_ms())


def home_words(home: Path | None) -> str:
    """`` --home DIR`` for a suggested command, where it would not find `home` by itself."""
    if home is None or os.environ.get(HOME_VARIABLE) == str(home):
        return ""
    return f" --home {shlex.quote(str(home))}"


def until(entry: dict[str, Any]) -> str:
    """Half a sentence on when an identity ends."""
    return f"valid until {entry['not_after'][:10]}"
