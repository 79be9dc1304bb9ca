"""Where passphrases come from: a file, the environment, or the person at the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ciphermq.cli.common import PASSPHRASE_VARIABLE, given_passphrase, read_passphrase_file

IDENTITY_VARIABLE: Final = "CIPHERMQ_IDENTITY_PASSPHRASE"

AuthorityPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File whose first line is the authority's passphrase. Otherwise "
        f"{PASSPHRASE_VARIABLE}, otherwise a prompt.",
        show_default=False,
    ),
]
IdentityPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--identity-passphrase-file",
        help=f"File with the passphrase of the identity's own keys. Otherwise {IDENTITY_VARIABLE}, "
        "otherwise a prompt.",
        show_default=False,
    ),
]


def existing(file: Path | None, what: str, *, needed: bool) -> str | None:
    """The passphrase that opens `what`; None when it is not `needed`."""
    if not needed:
        return None
    given = given_passphrase(file)
    return given if given is not None else _ask(f"Passphrase of {what}")


def existing_identity(file: Path | None, what: str, *, needed: bool) -> str | None:
    """As `existing`, where the authority's passphrase is asked for as well."""
    if not needed:
        return None
    given = _given_for_identity(file)
    return given if given is not None else _ask(f"Passphrase of {what}")


def new_authority(file: Path | None) -> str:
    """A passphrase to lock the authority's key with."""
    given = given_passphrase(file)
    return given if given is not None else _ask("New passphrase for the authority", confirm=True)


def new_identity(file: Path | None, what: str) -> str | None:
    """A passphrase to lock the keys of `what` with; None when none is given or typed."""
    given = _given_for_identity(file)
    return given if given is not None else _ask_optional(what)


def new_file(file: Path | None, what: str) -> str | None:
    """As `new_identity`, where no authority's passphrase is in play."""
    given = given_passphrase(file)
    return given if given is not None else _ask_optional(what)


def _given_for_identity(file: Path | None) -> str | None:
    return read_passphrase_file(file) if file is not None else os.environ.get(IDENTITY_VARIABLE)


def _ask(prompt: str, *, confirm: bool = False) -> str:
    from ciphermq.errors import PassphraseError

    if not sys.stdin.isatty():
        raise PassphraseError(
            f"{prompt[0].lower()}{prompt[1:]}: there is no terminal to ask at; give it with "
            f"--passphrase-file or in {PASSPHRASE_VARIABLE}"
        )
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def _ask_optional(what: str) -> str | None:
    """Nobody to ask means none, as an empty line does: the files' permissions protect them."""
    if not sys.stdin.isatty():
        return None
    while typed := _hidden(f"New passphrase for {what} (empty: none)"):
        if _hidden("Repeat for confirmation") == typed:
            return typed
        typer.echo("The two don't match: again, please.", err=True)
    return None


def _hidden(prompt: str) -> str:
    return str(typer.prompt(prompt, default="", show_default=False, hide_input=True, err=True))
