"""The command line of a move, and the logins that belong to it. Secrets are never on it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from ciphermq.errors import UsageError
from ciphermq.proxy.move.record import default_directory

PROGRAM: Final = "ciphermq-proxy-ctl SOCKET vhost move"
SOURCE_VARIABLE: Final = "CIPHERMQ_SOURCE_PASSWORD"
TARGET_VARIABLE: Final = "CIPHERMQ_TARGET_PASSWORD"
_AMQP, _AMQPS = 5672, 5671

_EPILOG: Final = f"""\
Passwords: the first line of the files named, or {SOURCE_VARIABLE} and {TARGET_VARIABLE}.
Exit codes: 0 done; 1 wrong usage; 2 the proxy or a broker can't be reached, nothing was changed;
3 refused, the vhost is where it was; 4 stopped part-way, clients are held: run it again, or with
--back.
"""


class Login(NamedTuple):
    """A management API and whom to be there."""

    url: str
    user: str
    password: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {PROGRAM} --help explains")


def parser() -> argparse.ArgumentParser:
    """What can be said after ``vhost move``."""
    made = _Parser(
        prog=PROGRAM,
        description="Move a virtual host to another farm: definitions and messages, while its "
        "clients stay or come again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("vhost")
    made.add_argument("--to", metavar="FARM", help="where it goes")
    made.add_argument("--back", action="store_true", help="undo the last move, or a part of one")
    made.add_argument("--dry-run", action="store_true", help="show the plan and change nothing")
    made.add_argument("--json", action="store_true", help="the plan, the result, errors as JSON")
    for side, where in (("source", "now"), ("target", "then")):
        made.add_argument(
            f"--{side}",
            metavar="URL",
            help=f"management API of where it is {where}: http[s]://USER@HOST:PORT",
        )
        made.add_argument(
            f"--{side}-password-file", metavar="FILE", type=Path, help="the user's password"
        )
        made.add_argument(
            f"--{side}-amqp",
            metavar="HOST:PORT",
            action="append",
            default=[],
            help="AMQP address to move messages by (amqps://HOST:PORT with TLS), instead of the "
            "farm's backends",
        )
    made.add_argument("--ca", metavar="FILE", type=Path, help="authority of both, for https, amqps")
    made.add_argument(
        "--leave-behind",
        action="store_true",
        help="move the vhost without what can't be moved: streams' content, queues that the server "
        "has named",
    )
    made.add_argument(
        "--close-others",
        action="store_true",
        help="disconnect clients that don't come through the proxy",
    )
    made.add_argument(
        "--prune", action="store_true", help="delete at the target what the source doesn't have"
    )
    made.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        default=default_directory(),
        help="where the move's record is kept (default: %(default)s)",
    )
    return made


def read(words: Sequence[str]) -> argparse.Namespace:
    """The arguments. Raises UsageError; ends the process for ``--help``."""
    arguments = parser().parse_args(list(words))
    if bool(arguments.to) == bool(arguments.back):
        raise UsageError("Say either --to FARM or --back")
    return arguments


def login(url: str, user: str | None, password_file: Path | None, variable: str) -> Login:
    """An URL with its user and password. Raises UsageError for what is missing or too much."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{url}: a management API is http[s]://USER@HOST:PORT")
    if parts.password is not None:
        raise UsageError(
            f"{parts.hostname}: the password must not be in the URL, where every process sees it: "
            f"put it into a file or into {variable}"
        )
    found = user or (unquote(parts.username) if parts.username else None)
    if found is None:
        raise UsageError(f"{url}: say as whom to log in, {parts.scheme}://USER@{parts.hostname}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    where = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
    return Login(where, found, _password(password_file, variable, os.environ))


def _password(file: Path | None, variable: str, environment: Mapping[str, str]) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: the password can't be read: {error}") from error
    if variable not in environment:
        option = f"--{variable.split('_')[1].lower()}-password-file"
        raise UsageError(f"There is no password: say {option} FILE or set {variable}")
    return environment[variable]


def address(text: str) -> tuple[str, int, bool]:
    """Host, port, and whether by TLS. Raises UsageError."""
    parts = urlsplit(text if "://" in text else f"amqp://{text}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in {"amqp", "amqps"} or not parts.hostname or parts.username or port == 0:
        raise UsageError(f"{text}: an AMQP address is HOST:PORT or amqps://HOST:PORT")
    secure = parts.scheme == "amqps"
    return parts.hostname, port or (_AMQPS if secure else _AMQP), secure
