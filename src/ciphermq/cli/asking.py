"""One question to the broker, on a connection of its own: what administration commands do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ciphermq.cli.access import Access, connected, load_identity
from ciphermq.cli.common import run

if TYPE_CHECKING:
    from ciphermq.wire.cmq2.frames import Request


def ask(access: Access, kind: type[Request], **members: Any) -> Any:
    """The broker's answer to a request of `kind`; its refusals are raised.

    Administration is by default the administrator's, where that identity is here.
    """
    identity = load_identity(access, administers=True)

    async def question() -> Any:
        async with connected(access, identity) as client:
            return await client.ask(kind, **members)

    return run(question())


def list_rows(access: Access, what: str, prefix: str = "") -> list[dict[str, Any]]:
    """All rows of one of the broker's lists, whose names begin with `prefix`."""
    identity = load_identity(access, administers=True)

    async def collect() -> list[dict[str, Any]]:
        async with connected(access, identity) as client:
            return [row async for row in client.rows(what, prefix)]

    return run(collect())
