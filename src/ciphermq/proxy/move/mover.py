"""The move itself: its steps, in their order, and what becomes of it when one of them fails.

Until the first message is moved, whatever goes wrong ends with the vhost unpaused where it was:
clients have noticed nothing but a reconnect. From then on until the last is moved, the vhost stays
paused, because part of each queue is at either side: the move has to be taken up again, forwards
or back. Back means first forwards to the end, then everything back: a queue's beginning can't be
put before its rest, but the whole of it can be moved in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from ciphermq import limits
from ciphermq.errors import CipherMQError, MoveError, MoveRefused, MoveStopped
from ciphermq.proxy.move.broker import Broker
from ciphermq.proxy.move.control import Proxy
from ciphermq.proxy.move.copying import copy_vhost, remove_exchanges
from ciphermq.proxy.move.definitions import is_movable
from ciphermq.proxy.move.draining import drain_vhost
from ciphermq.proxy.move.guard import Guard
from ciphermq.proxy.move.plan import Options
from ciphermq.proxy.move.progress import Progress
from ciphermq.proxy.move.record import Record, Shelf, Step

_POLL = 0.05
_SLOW = 6.0
"""Seconds after which a wait is explained: a broker's list of connections may be 5 s old."""


class Mover:
    """Takes one vhost from where it is to where its record says."""

    def __init__(
        self,
        record: Record,
        shelf: Shelf,
        proxy: Proxy,
        brokers: tuple[Broker, Broker],
        options: Options,
        progress: Progress,
    ) -> None:
        self.record = record
        self._shelf = shelf
        self._proxy = proxy
        self._source, self._target = brokers
        self._options = options
        self._progress = progress
        self._held = False
        self._guard = Guard()
        self._keep_file: bool | None = None

    @property
    def vhost(self) -> str:
        """What is moved."""
        return self.record.vhost

    async def go_on(self) -> int:
        """Do all steps that are still to be done; how many messages were moved.

        Raises MoveRefused when the vhost is again as it was, MoveStopped when it is between the
        two sides.
        """
        return await self._guarded(self._to_the_end)

    async def undo(self) -> int:
        """Bring everything back that an unfinished move has moved already."""
        return await self._guarded(self._back)

    async def _guarded(self, work: Callable[[], Awaitable[int]]) -> int:
        try:
            try:
                return await work()
            finally:
                await self._guard.close()
        except (CipherMQError, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            why = "interrupted" if cancelled else str(error)
            if self.record.step != "prepared":
                raise MoveStopped(self._advice(why)) from error
            await asyncio.shield(self._let_go())
            raise MoveRefused(
                f"Vhost {self.vhost!r} was not moved, and its clients go on at "
                f"{self.record.source}: {why}"
            ) from error
        except BaseException:
            # A fault of our own: nobody should have to wait for its repair.
            if self.record.step == "prepared":
                await asyncio.shield(self._let_go())
            raise

    def _advice(self, why: str) -> str:
        if self.record.step == "remapped":
            return f"{why}. Vhost {self.vhost!r} has been moved, but is still paused: run it again"
        return (
            f"{why}. Vhost {self.vhost!r} is between {self.record.source} and "
            f"{self.record.target}, and its clients are held: run the same command again to go "
            "on, or with --back to undo it"
        )

    # --- the steps ------------------------------------------------------------------------------

    async def _to_the_end(self) -> int:
        moved = 0
        if self.record.step == "returning":
            return await self._return()
        if self.record.step != "remapped":
            moved = await self._across()
            self._progress.step(f"Map to {self.record.target}")
            await self._proxy.remap(self.vhost, self.record.target)
            self._note("remapped")
            await self._save()
        else:
            self._keep_file = await self._proxy.file_is_current()
        await self._finish("done")
        return moved

    async def _back(self) -> int:
        if self.record.step == "draining":
            await self._across()
        return await self._return()

    async def _across(self) -> int:
        """Everything up to the last message, from a state in which nobody has been remapped."""
        self._progress.step(f"Copy definitions to {self.record.target}")
        await self._copy()
        for broker in (self._source, self._target):
            # Better now than when everybody waits.
            link = await broker.link(self.vhost)
            await link.close()
        await self._watch()
        await self._hold()
        await self._copy()
        self._note("draining")
        return await self._drain(self._source, self._target)

    async def _return(self) -> int:
        await self._hold()
        self._note("returning")
        moved = await self._drain(self._target, self._source)
        await self._finish("undone")
        return moved

    async def _copy(self) -> None:
        prune = self._options.prune and self.record.step == "prepared"
        new = await copy_vhost(self.vhost, self._source, self._target, prune=prune)
        user = self._target.side.user
        if new and user not in await self._source.api.permissions(self.vhost):
            self.record.granted.add(self._target.api.url)
            self._shelf.write(self.record)
        for broker in (self._source, self._target):
            if broker.api.url not in self.record.granted and await broker.let_us_in(self.vhost):
                self.record.granted.add(broker.api.url)
                self._shelf.write(self.record)

    async def _watch(self) -> None:
        """Stay with queues that would go with their consumers."""
        listed = await self._source.api.queues(self.vhost)
        names = [each["name"] for each in listed if each["auto_delete"] and is_movable(each)]
        await self._guard.watch(self._source, self.vhost, names)

    async def _drain(self, source: Broker, target: Broker) -> int:
        self._progress.step(f"Move messages from {source} to {target}")
        return await drain_vhost(self.vhost, source, target, self._progress)

    async def _finish(self, step: Literal["done", "undone"]) -> None:
        self._progress.step("Unpause")
        await self._let_go()
        if self._keep_file is False:
            self._progress.step(
                "The proxy's configuration file differs from what runs (CONFIG DIFF shows how): "
                "CONFIG SAVE, or a restart sends clients to where they were"
            )
        for broker in (self._source, self._target):
            with contextlib.suppress(CipherMQError):  # the vhost is moved; this is only tidiness
                await remove_exchanges(self.vhost, broker)
                if broker.api.url in self.record.granted:
                    user = broker.side.user
                    await broker.api.ask("DELETE", "permissions", self.vhost, user)
        self.record.granted.clear()
        self._note(step)

    def _note(self, step: Step) -> None:
        self.record.step = step
        self._shelf.write(self.record)

    # --- clients --------------------------------------------------------------------------------

    async def _hold(self) -> None:
        """No client of the vhost has a connection to either broker when this returns."""
        self._progress.step(f"Pause vhost {self.vhost!r}")
        if not self._held:
            self._keep_file = await self._proxy.file_is_current()
        self._held = True
        await self._proxy.pause(self.vhost)
        await self._save()
        await self._end_sessions()
        await self._until_quiet()

    async def _let_go(self) -> None:
        if self._held or self.record.step != "prepared":
            await self._proxy.unpause(self.vhost)
            await self._save()
            self._held = False

    async def _save(self) -> None:
        """Where the proxy's file was up to date it stays so: a proxy that is restarted must hold
        the vhost still, and must not send clients to where it was."""
        if self._keep_file:
            await self._proxy.save()

    async def _end_sessions(self) -> None:
        """Ask clients to end, then make them. They come again, and the proxy holds them."""
        asked: set[int] = set()
        deadline = time.monotonic() + limits.MOVE_CLOSE_TIMEOUT
        while sessions := set(await self._proxy.sessions(self.vhost)):
            if new := sessions - asked:
                self._progress.step(f"Ask {len(new):,} clients to connect again")
            for session in new:
                await self._proxy.end_session(session, force=False)
            asked |= sessions
            if time.monotonic() > deadline:
                for session in sessions:
                    await self._proxy.end_session(session, force=True)
                deadline += limits.MOVE_CLOSE_TIMEOUT
            await asyncio.sleep(_POLL)

    async def _until_quiet(self) -> None:
        """Wait until the source knows that its clients are gone: only then have all unacknowledged
        messages come back to their queues, in their places."""
        began = time.monotonic()
        deadline, told = began + limits.MOVE_QUIET_TIMEOUT, False
        while clients := await self._source.clients(self.vhost):
            names = ", ".join(each["name"] for each in clients[:3])
            if not told and time.monotonic() > began + _SLOW:
                told = True
                self._progress.step(
                    f"Wait for {len(clients):,} clients that {self._source} still has, and that "
                    f"this proxy does not: {names}"
                )
            if self._options.close_others or time.monotonic() > deadline:
                for each in clients:
                    await self._source.api.close_connection(each["name"])
            if time.monotonic() > deadline + limits.MOVE_QUIET_TIMEOUT:
                raise MoveError(f"{self._source} still has clients in this vhost: {names}")
            await asyncio.sleep(_POLL)
