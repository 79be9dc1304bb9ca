"""Receivers' public keys: fetched from the broker, believed only as far as they prove themselves.

The broker serves the records and is the adversary. What is checked, and remembered across runs, is
in `ciphermq.directory.records` and `ciphermq.client.trust`; here records are fetched and kept for
a while. A record that doesn't pass stops the send with the error that says which check it failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from ciphermq import limits
from ciphermq.client.core import Core
from ciphermq.client.session import now_ms
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import NotFound, RevocationListStale, UnknownReceiver
from ciphermq.sealing.seal import ReceiverKey
from ciphermq.wire.cmq2 import frames


class _Known(NamedTuple):
    key: ReceiverKey
    until: float
    """By the loop's clock."""
    ends_ms: int


class Directory:
    """Verified keys of receivers, by client id."""

    def __init__(self, core: Core, lifetime: float = limits.KEY_CACHE_LIFETIME) -> None:
        """`lifetime`: seconds after which a key is asked for again."""
        self._core = core
        self._lifetime = lifetime
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[ReceiverKey]] = {}

    async def keys(self, clients: Iterable[str]) -> list[ReceiverKey]:
        """The keys to seal to for these clients.

        Raises `UnknownReceiver` or another `KeyRecordError`; `WaitTimeout` without a connection.
        """
        wanted = list(clients)
        found = [self._fresh(client) for client in wanted]
        if None not in found:
            return [key for key in found if key is not None]
        return list(await asyncio.gather(*map(self._key, wanted)))

    async def record(self, client: str) -> VerifiedRecord:
        """The newest key record of `client`, verified; and remembered, as all that is seen."""
        core = self._core
        try:
            answer = await core.ask(
                frames.KeyGet, again=True, limit=core.patience.send, client=client
            )
        except NotFound as error:
            raise UnknownReceiver(
                f"nobody named {client!r} has registered a key: a client does so when it first "
                f"receives (`ciphermq receive` there, or `ciphermq keys renew`)"
            ) from error
        try:
            return await self._accept(client, answer)
        except RevocationListStale:
            # Ours has run out; the broker may have the next one.
            if not await core.refresh_crl():
                raise
            return await self._accept(client, answer)

    def forget(self, client: str) -> None:
        """Ask again next time."""
        self._known.pop(client, None)

    async def _accept(self, client: str, record: bytes) -> VerifiedRecord:
        # In a thread, since it locks, reads and may write the trust file.
        return await asyncio.to_thread(self._core.identity.accept, record, client, now_ms())

    def _fresh(self, client: str) -> ReceiverKey | None:
        known = self._known.get(client)
        if known is None or known.until < asyncio.get_running_loop().time():
            return None
        return known.key if now_ms() <= known.ends_ms else None

    async def _key(self, client: str) -> ReceiverKey:
        if (key := self._fresh(client)) is not None:
            return key
        task = self._asking.get(client)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(client))
            self._asking[client] = task
            task.add_done_callback(lambda task: self._asked(client, task))
        return await asyncio.shield(task)

    def _asked(self, client: str, task: asyncio.Task[ReceiverKey]) -> None:
        self._asking.pop(client, None)
        if not task.cancelled():
            task.exception()  # seen: who asked may have given up

    async def _ask(self, client: str) -> ReceiverKey:
        record = await self.record(client)
        key = ReceiverKey(client, record.key_id, record.suite, record.public_key)
        until = asyncio.get_running_loop().time() + self._lifetime
        self._known[client] = _Known(key, until, record.not_after_ms)
        return key
