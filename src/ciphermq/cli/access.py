"""The options of every command that talks to a broker, and the connection they lead to."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from ciphermq import limits
from ciphermq.cli.common import (
    AdministratorOption,
    HomeOption,
    IdentityOption,
    PassphraseFileOption,
    UrlOption,
)
from ciphermq.cli.tokens import PinFileOption

if TYPE_CHECKING:
    from ciphermq.client import Client
    from ciphermq.client.identity import Identity

_DEFAULT_TIMEOUT: Final = 30.0

TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.1, metavar="SECONDS", help="Longest wait for the broker's answer."
    ),
]
BrokerWaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait-for-broker",
        min=0,
        metavar="SECONDS",
        help="Longest wait for a broker that is away; 0: none.",
        show_default=False,
    ),
]


class Access(NamedTuple):
    """Who to be, and where the broker is, as the options say."""

    identity: str | None
    url: str | None
    home: Path | None
    passphrase_file: Path | None
    timeout: float
    pin_file: Path | None = None


def _access(
    *,
    identity: IdentityOption = None,
    url: UrlOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    pin_file: PinFileOption = None,
    timeout: TimeoutOption = _DEFAULT_TIMEOUT,
) -> Access:
    return Access(identity, url, home, passphrase_file, timeout, pin_file)


def with_access(
    command: Callable[..., None], *, identity: Any = IdentityOption
) -> Callable[..., None]:
    """`command`, whose first parameter is an `Access`, with the options that make one."""
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    options = dict(inspect.signature(_access, eval_str=True).parameters)
    options["identity"] = options["identity"].replace(annotation=identity)

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        access = _access(**{name: given.pop(name) for name in options})
        command(access, **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(each.replace(kind=keyword) for each in own), *options.values()]
    )
    return wrapper


def with_administration(command: Callable[..., None]) -> Callable[..., None]:
    """`with_access`, for a command that is the administrator's by default."""
    return with_access(command, identity=AdministratorOption)


def load_identity(access: Access, *, administers: bool = False) -> Identity:
    """The identity that is meant, its keys open; says on standard error what ends soon.

    Who `administers` is by default the administrator, where that identity is here.
    """
    from ciphermq.cli import passphrases, tokens
    from ciphermq.cli.common import home_directory
    from ciphermq.cli.deployment import ADMINISTRATOR
    from ciphermq.client import places
    from ciphermq.client.identity import Identity
    from ciphermq.client.layout import WRAPPED

    home = home_directory(access.home)
    selector = access.identity
    if selector is None and administers and (home / ADMINISTRATOR).is_dir():
        selector = ADMINISTRATOR
    path = places.find(selector, home)
    encrypted = (path / WRAPPED).exists()
    passphrase = passphrases.existing(
        access.passphrase_file, f"the identity {path.name!r}", needed=encrypted
    )
    pin = tokens.identity_pin(path, access.pin_file)
    identity = Identity.load(path, passphrase, pin=pin)
    for warning in identity.warnings(int(time.time() * 1000)):
        print(f"ciphermq: warning: {warning}", file=sys.stderr)
    return identity


@asynccontextmanager
async def connected(
    access: Access, identity: Identity, *, wait: float = 0.0
) -> AsyncIterator[Client]:
    """A connection to the broker as `identity`, closed when the block ends.

    A broker that is away is waited for `wait` seconds, one that goes away later without end;
    both are said on standard error.
    """
    from ciphermq.cli import news

    with news.shown():
        client = await _connect(access, identity, wait)
        try:
            yield client
        except BaseException as error:
            await client.close(error)
            raise
        await client.close()


async def _connect(access: Access, identity: Identity, wait: float) -> Client:
    import ciphermq
    from ciphermq.cli.news import say
    from ciphermq.client.reconnect import is_away
    from ciphermq.errors import CipherMQError

    connect = functools.partial(
        ciphermq.connect,
        access.url,
        identity=identity,
        connect_timeout=min(limits.CONNECT_TIMEOUT, access.timeout),
        request_timeout=access.timeout,
    )
    try:
        return await connect()
    except CipherMQError as error:
        if not wait or not is_away(error):
            raise
        most = "" if math.isinf(wait) else f", {wait:g} s at most"
        say(f"waiting for the broker{most}: {error}")
    client = await connect(wait=wait)
    say("the broker is reached")
    return client
