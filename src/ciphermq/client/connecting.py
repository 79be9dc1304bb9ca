"""From an identity and an address to a connected client: `connect`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ciphermq import limits
from ciphermq.client import places
from ciphermq.client.connection import Client
from ciphermq.client.core import Core, Patience
from ciphermq.client.identity import Identity
from ciphermq.errors import UsageError
from ciphermq.net.options import LinkOptions

HOME_VARIABLE: Final = "CIPHERMQ_HOME"
IDENTITY_VARIABLE: Final = "CIPHERMQ_IDENTITY"
PASSPHRASE_VARIABLE: Final = "CIPHERMQ_PASSPHRASE"  # noqa: S105 - its name, not its value
URL_VARIABLE: Final = "CIPHERMQ_URL"


class Connecting:
    """What `connect` gives: ``async with`` it, or ``await`` it for a client to close by hand."""

    def __init__(self, open_client: Callable[[], Awaitable[Client]]) -> None:
        self._open = open_client
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._open()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.close(error)


def connect(
    url: str | None = None,
    *,
    identity: Identity | str | Path | None = None,
    passphrase: str | None = None,
    wait: float = 0.0,
    connect_timeout: float = limits.CONNECT_TIMEOUT,
    request_timeout: float = limits.REQUEST_TIMEOUT,
    send_timeout: float = limits.SEND_TIMEOUT,
    close_timeout: float = limits.CLOSE_TIMEOUT,
    send_window: int = limits.SEND_WINDOW,
    options: LinkOptions | None = None,
) -> Connecting:
    """Connect to the broker at `url` as `identity`.

    `identity`: one that is loaded, its directory, or its name in the deployment ($CIPHERMQ_HOME)
    or among the user's own; by default $CIPHERMQ_IDENTITY, else the only one there is. `url`: by
    default $CIPHERMQ_URL, else the identity's. `passphrase`: by default $CIPHERMQ_PASSPHRASE.

    Times are in seconds. `wait`: how long to go on trying when the broker is away (nothing
    listens, or can't be reached), `math.inf` for ever; by default the first failure is raised. What
    no waiting mends, such as a name without an address or a certificate that is refused, is raised
    at once. `connect_timeout`: for each step of one try. `request_timeout`: for an answer,
    `send_timeout`: for a confirmation, both with the wait for a connection; `close_timeout`: for
    what is under way at the end. `send_window`: unconfirmed batches at a time.

    Raises `IdentityError`; `ConnectFailed` (`HostUnknown`), `TlsFailed`, `ProtocolNotOffered`,
    `WaitTimeout`.
    """
    if send_window < 1:
        raise UsageError("send_window is 1 or more")
    patience = Patience(
        connect=connect_timeout, request=request_timeout, send=send_timeout, close=close_timeout
    )

    async def open_client() -> Client:
        who = identity
        if not isinstance(who, Identity):
            who = await asyncio.to_thread(load_identity, who, passphrase)
        where = url or os.environ.get(URL_VARIABLE) or who.url
        if not where:
            raise UsageError(f"where is the broker? {who.path} has no url: give one")
        link = options or LinkOptions(
            connect_timeout=connect_timeout, handshake_timeout=connect_timeout
        )
        core = Core(who, where, patience, link)
        client = Client(core, send_window)
        await core.start(wait)
        return client

    return Connecting(open_client)


def load_identity(selector: str | Path | None, passphrase: str | None) -> Identity:
    """The identity that `connect` means by these two, open. Raises as `Identity.load` does.

    It reads disks and stretches a passphrase, which takes half a second."""
    chosen = selector or os.environ.get(IDENTITY_VARIABLE)
    home = os.environ.get(HOME_VARIABLE)
    default = Path() if Path("ca").is_dir() else Path("ciphermq")
    path = places.find(None if chosen is None else str(chosen), Path(home) if home else default)
    secret = passphrase if passphrase is not None else os.environ.get(PASSPHRASE_VARIABLE)
    return Identity.load(path, secret)
