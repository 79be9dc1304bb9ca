"""Keys of 1.x receivers, for a cmq/2 client: those that a person has pinned, and no others.

The broker gives them out and can say of them what it likes, so each is compared with the pin, and
the pin is read anew, each time a key is used. Asking is what is saved: a key is kept for as long
as a verified key record, and so many of them at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ciphermq import limits
from ciphermq.client.trust import TrustFile
from ciphermq.directory.onex import check_pinned
from ciphermq.errors import PinnedKeyChanged

Ask = Callable[[str], Awaitable[bytes]]
"""What the broker says a client's key is now."""


class _Known(NamedTuple):
    key: bytes
    until: float
    """By the loop's clock."""


class OnexKeys:
    """Receivers' 1.x keys, by client id."""

    def __init__(
        self,
        trust: TrustFile,
        ask: Ask,
        *,
        lifetime: float = limits.KEY_CACHE_LIFETIME,
        most: int = limits.ONEX_KEY_CACHE,
    ) -> None:
        """`lifetime`: seconds after which a key is asked for again."""
        self._trust = trust
        self._ask = ask
        self._lifetime = lifetime
        self._most = most
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[bytes]] = {}

    async def key(self, client: str) -> bytes:
        """The key to seal to. Raises `KeyNotPinned`, `PinnedKeyChanged`, or what asking does."""
        known = self._known.get(client)
        if known is not None and known.until >= asyncio.get_running_loop().time():
            try:
                return await self._checked(client, known.key)
            except PinnedKeyChanged:
                # Pinned anew since: what is kept is the former one.
                del self._known[client]
        return await self.newest(client)

    async def newest(self, client: str) -> bytes:
        """The key that the broker gives out now; raises as `key`."""
        task = self._asking.get(client)
        if task is None:
            task = asyncio.ensure_future(self._ask(client))
            self._asking[client] = task
            task.add_done_callback(lambda task: self._asked(client, task))
        return await self._checked(client, await asyncio.shield(task))

    async def _checked(self, client: str, key: bytes) -> bytes:
        pinned = await asyncio.to_thread(self._trust.onex_pin, client)
        return check_pinned(client, key, pinned)

    def _asked(self, client: str, task: asyncio.Task[bytes]) -> None:
        del self._asking[client]
        # Looked at even if who asked has given up, lest it count as never seen.
        if task.cancelled() or task.exception() is not None:
            return
        self._known.pop(client, None)
        while len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        until = asyncio.get_running_loop().time() + self._lifetime
        self._known[client] = _Known(task.result(), until)
