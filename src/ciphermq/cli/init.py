"""``ciphermq init``: an authority, a broker's directory and an administrator, in one go."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from ciphermq.cli import passphrases
from ciphermq.cli.common import HOME_VARIABLE, JsonOption
from ciphermq.cli.enrolment import home_words
from ciphermq.cli.output import print_json

_DEFAULT = Path("ciphermq")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]",
            envvar=HOME_VARIABLE,
            help="A new directory for the deployment.",
            show_envvar=False,
        ),
    ] = _DEFAULT,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name or address that clients find the broker under; repeat it for more. "
            "The first goes into the clients' URL.  [default: localhost, 127.0.0.1, ::1]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The broker's port.")] = 7443,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address the broker listens on.  [default: 127.0.0.1 if all hosts are this "
            "machine, else 0.0.0.0]",
            show_default=False,
        ),
    ] = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    identity_passphrase_file: passphrases.IdentityPassphraseOption = None,
    no_passphrase: Annotated[
        bool,
        typer.Option(
            "--no-passphrase", help="Leave all keys in the clear: for demonstrations and tests."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an authority, a broker's directory and an administrator's identity."""
    from ciphermq.cli import deployment
    from ciphermq.client.enrol import fingerprint_of
    from ciphermq.directory.records import fingerprint
    from ciphermq.errors import UsageError

    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty: nothing is overwritten; choose another name")
    hosts = tuple(host or deployment.DEFAULT_HOSTS)
    authority_passphrase = admin_passphrase = None
    if not no_passphrase:
        authority_passphrase = passphrases.new_authority(passphrase_file)
        admin_passphrase = passphrases.new_identity(
            identity_passphrase_file, "the administrator's keys"
        )
    made = deployment.make(
        directory,
        now_ms=int(time.time() * 1000),
        passphrase=authority_passphrase,
        hosts=hosts,
        listen=listen,
        port=port,
        admin_passphrase=admin_passphrase,
    )
    url, _ = made.broker()
    digest = fingerprint_of(made.authority().certificate)
    if as_json:
        print_json(
            {
                "home": str(made.home),
                "url": url,
                "hosts": list(hosts),
                "config": str(made.config),
                "admin": str(made.admin),
                "authority_fingerprint": digest.hex(),
                "authority_encrypted": authority_passphrase is not None,
            }
        )
        return
    protection = "its key is under your passphrase"
    if authority_passphrase is None:
        protection = "its key is IN THE CLEAR (--no-passphrase): not for production"
    at = "" if directory == _DEFAULT else home_words(directory)
    server = "" if directory == _DEFAULT else f" --config {shlex.quote(str(made.config))}"
    print(
        f"""Made a deployment in {made.home}:

  ca/           the authority; {protection}.
                It is needed only to issue. Keep it offline, and back it up.
  server/       all that the broker's machine needs. Copy this there, and nothing else.
  admin/        the administrator's identity
  identities/   will hold those that you add

Clients find the broker at {url}
(its certificate is for {", ".join(hosts)}).
Authority's fingerprint, to compare by telephone:
  {fingerprint(digest)}

Next:
  ciphermq server{server}
  ciphermq identity add alice{at}
  ciphermq identity add bob{at}"""
    )
