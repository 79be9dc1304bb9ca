"""The relay: takes messages out of an Outbox, in order, until the broker has confirmed them.

::

    waiting rows ─ seal ─► one commit: sealed rows in, waiting rows out ─► send ─► confirmed ─► out

Several batches share a commit. What is confirmed is deleted with the next one: a crash before that
sends it again, and the broker knows it.

Its database work is done in a thread of its own, on a connection of its own: it waits for locks and
disks, and an application that holds a transaction open in the event loop must be able to end it.
"""

from __future__ import annotations

import asyncio
import os
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from ciphermq import limits
from ciphermq.client.lane import Lane, Route, Sealer
from ciphermq.client.outbox_rows import Failing, Losing, Rows, SealedRow, Sealing, Waiting
from ciphermq.client.publisher import Publisher
from ciphermq.client.window import Parcel
from ciphermq.custody import disk
from ciphermq.errors import (
    BadRequest,
    BatchError,
    CipherMQError,
    ConflictingDuplicate,
    ConnectionLost,
    Refused,
    ResourceLimit,
    StoreError,
    UsageError,
    WaitTimeout,
)
from ciphermq.telemetry import get_logger

P = ParamSpec("P")
T = TypeVar("T")

_log = get_logger("client")

_HOPELESS: Final = (BadRequest, ConflictingDuplicate, ResourceLimit, BatchError)
"""What no retry can change: too old, expired, or under an id that stands for something else."""

_TOGETHER: Final = 8
"""Batches for one commit: it takes a sync of the disk, whatever is in it."""


class Relay:
    """Sends what is in an Outbox. Made by `Client.relay`; one at a time for an Outbox."""

    def __init__(
        self,
        publisher: Publisher,
        sealer: Sealer,
        name: str,
        path: Path,
        *,
        patient: bool,
        window: int,
        close_timeout: float,
        progress: Callable[[int], object] | None,
    ) -> None:
        """See `Client.relay`."""
        self.confirmed = 0
        """Messages that the broker has confirmed since this relay began."""
        self._publisher = publisher
        self._sealer = sealer
        self._name = name
        self._path = path
        self._patient = patient
        self._window = window
        self._close_timeout = close_timeout
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ciphermq-outbox")
        self._store: Rows | None = None
        self._lock: int | None = None
        self._routes: dict[int, Route] = {}
        self._lanes: dict[int, Lane] = {}
        self._unsent: defaultdict[int, list[SealedRow]] = defaultdict(list)
        """Sealed and not under way, by route."""
        self._under_way: dict[int, Parcel] = {}
        self._holds: dict[int, float] = {}
        """Routes that failed: by the loop's clock, until when they are left alone."""
        self._confirmed: list[int] = []
        self._failed: list[Failing] = []
        self._wipe_at: float | None = None
        """When to wipe what was sent out of the database's log, by the loop's clock."""
        self._moved = asyncio.Event()
        self._round = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits for a round, from that number on, in which nothing is left."""
        self._task: asyncio.Task[None] | None = None
        self._error: CipherMQError | None = None
        self._closing = False

    # --- for its users ------------------------------------------------------------------------

    @property
    def refusal(self) -> Refused | None:
        """What the broker says for as long as it takes nothing more for some route (a queue or
        its disk is full); None while it does, or there is no connection."""
        refusals = (lane.refusal for lane in self._lanes.values())
        return next((refusal for refusal in refusals if refusal is not None), None)

    async def drained(self, limit: float | None = None) -> None:
        """Wait until everything that is promised has been confirmed.

        Raises what keeps it from being sent, unless the relay is patient. After `limit` seconds
        it raises the broker's `refusal` where that is the reason, otherwise `WaitTimeout`.
        """
        if self._task is None:
            raise UsageError("the relay has not begun: use it as `async with`")
        empty: asyncio.Future[None] = self._loop.create_future()
        # Not the round that is going on: it may have looked before the last message was added.
        self._waiters.append((self._round + 1, empty))
        await asyncio.wait((empty, self._task), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        elif not empty.done():
            empty.cancel()
            said = f"not all of the outbox {self._path} was confirmed within {limit:g} s"
            if self._any_held():
                raise WaitTimeout(f"{said}: {self._error}")
            held = next((lane for lane in self._lanes.values() if lane.refusal), None)
            raise self._publisher.gave_up(said, held)

    async def __aenter__(self) -> Self:
        try:
            self._store = await self._in_thread(Rows, self._path)
            self._lock = await self._in_thread(_lock, self._path)
            await self._in_thread(self._rows.claim, self._name)
            self._routes = await self._in_thread(self._rows.routes)
            for row in await self._in_thread(self._rows.sealed):
                self._unsent[row.route].append(row)
        except BaseException:
            await self._close_store()
            raise
        self._task = self._loop.create_task(self._run(), name="ciphermq relay")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Seal nothing more, wait a while for the confirmations of what is under way, and note
        them. The rest stays promised, and so does what the broker refuses for now."""
        failure = None
        self._closing = True
        self._moved.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=self._close_timeout)
            self._task.cancel()
            (failure,) = await asyncio.gather(self._task, return_exceptions=True)
        self._abandon(list(self._under_way.values()))
        try:
            await self._note()
            await self._in_thread(self._rows.wipe_log)
        finally:
            await self._close_store()
        if error is None and isinstance(failure, Exception):
            raise failure

    async def _close_store(self) -> None:
        if self._store is not None:
            await self._in_thread(self._store.close)
        if self._lock is not None:
            os.close(self._lock)
        self._thread.shutdown(wait=False)

    @property
    def _rows(self) -> Rows:
        if self._store is None:
            raise UsageError("the relay has not begun: use it as `async with`")
        return self._store

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))

    # --- the work -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._moved.clear()
            self._round += 1
            if self._error is not None and not self._patient:
                await self._note()
                raise self._error
            # Asked first: a hold that ends during the round has kept its route out of it.
            held = self._any_held()
            try:
                if await self._work():
                    continue
            except StoreError as error:
                if not self._patient or self._closing:
                    raise
                _log.error("the outbox can't be used for now", reason=str(error))
                await self._pause(limits.OUTBOX_HOLD)
                continue
            if self._closing:
                self._abandon(self._refused())
            if not self._under_way:
                if self._closing:
                    return
                if not any(self._unsent.values()) and not held:
                    self._tell_drained()
                    await self._wipe_in_time()
            await self._pause(limits.OUTBOX_POLL)

    async def _work(self) -> bool:
        """Do what can be done now; whether there was anything to send."""
        worked = await self._send_sealed()
        if not self._closing:
            worked = await self._seal_some() or worked
        if not worked:
            await self._note()
        return worked

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Say why: nobody may be waiting for a relay that is to go on for ever."""
        if self._patient and not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "the relay has ended: nothing is sent", outbox=str(self._path), exc_info=error
            )

    def _tell_drained(self) -> None:
        for number, waiter in self._waiters:
            if number <= self._round and not waiter.done():
                waiter.set_result(None)
        self._waiters = [each for each in self._waiters if not each[1].done()]

    async def _pause(self, seconds: float) -> None:
        """Until something under way is answered, or so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._moved.wait()
        except TimeoutError:
            pass

    async def _note(self) -> None:
        """Commit what was learnt, if anything was."""
        if self._confirmed or self._failed:
            await self._commit()

    async def _commit(
        self, sealed: Sequence[Sealing] = (), lost: Sequence[Losing] = ()
    ) -> list[SealedRow]:
        """Commit these and what was learnt; the new rows. What was learnt is known until then."""
        confirmed, failed = self._confirmed.copy(), self._failed.copy()
        rows = await self._in_thread(
            self._rows.move, sealed=sealed, confirmed=confirmed, failed=failed, lost=lost
        )
        del self._confirmed[: len(confirmed)], self._failed[: len(failed)]
        self._wipe_at = self._loop.time() + limits.OUTBOX_WIPE
        return rows

    async def _wipe_in_time(self) -> None:
        """Wipe the log once nothing has been written for a while: it takes two syncs."""
        if self._wipe_at is not None and self._wipe_at <= self._loop.time():
            wiped = await self._in_thread(self._rows.wipe_log)
            self._wipe_at = None if wiped else self._loop.time() + limits.OUTBOX_WIPE

    async def _send_sealed(self) -> bool:
        """Send what is sealed and has room under way; whether there was any."""
        sent = False
        for route, rows in list(self._unsent.items()):
            while rows and self._room(route) > 0 and not self._closing:
                first = rows[0]
                data = await self._in_thread(self._rows.load, first.seq)
                # Meanwhile one that was sent before it may have come back, to go before it.
                if rows[0] is first and not self._held(route):
                    self._send(rows.pop(0), data)
                    sent = True
        return sent

    async def _seal_some(self) -> bool:
        """Seal the next messages, commit that, send them; whether there were any."""
        room = {route: self._room(route) for route in self._routes}
        # A batch that waits to be sent again goes before those that come after it.
        room |= {route: 0 for route, rows in self._unsent.items() if rows}
        waiting = await self._in_thread(self._rows.waiting, room, _TOGETHER)
        sealed: list[Sealing] = []
        lost: list[Losing] = []
        for each in waiting:
            if self._held(each.route):
                continue
            try:
                sealed.append(Sealing(each, await self._seal(each)))
            except _HOPELESS as error:
                lost.append(Losing(each, error.code, str(error)))
                self._fail(each.route, error, hold=False)
            except CipherMQError as error:
                self._fail(each.route, error)
        if not sealed and not lost:
            return False
        rows = await self._commit(sealed, lost)
        for row, sealing in zip(rows, sealed, strict=True):
            if self._held(row.route) or self._unsent[row.route]:
                self._unsent[row.route].append(row)  # one before it has come back meanwhile
            else:
                self._send(row, sealing.data)
        return True

    async def _seal(self, waiting: Waiting) -> bytes:
        route = self._routes.get(waiting.route)
        if route is None:
            self._routes = await self._in_thread(self._rows.routes)
            route = self._routes[waiting.route]
        keys = await self._sealer.keys(route)
        order = self._sealer.order(waiting.body, route, keys, waiting.expires_ms)
        return await self._sealer.seal(order)

    # --- under way ------------------------------------------------------------------------------

    def _room(self, route: int) -> int:
        """How many batches of a route may be sent now."""
        if self._held(route):
            return 0
        return self._window - self._lane(route).out

    def _lane(self, route: int) -> Lane:
        lane = self._lanes.get(route)
        if lane is None:
            lane = self._lanes[route] = Lane(self._publisher, self._window)
        return lane

    def _send(self, row: SealedRow, data: bytes) -> None:
        def landed(error: BaseException | None) -> None:
            self._under_way.pop(row.seq, None)
            self._landed(row, error)

        self._under_way[row.seq] = self._lane(row.route).send(data, landed)

    def _landed(self, row: SealedRow, error: BaseException | None) -> None:
        self._moved.set()
        if error is None:
            self._confirmed.append(row.seq)
            self.confirmed += row.count
            if self._progress is not None:
                self._progress(self.confirmed)
        elif isinstance(error, _HOPELESS):
            self._failed.append(Failing(row, error.code, str(error)))
            self._fail(row.route, error, hold=False)
        elif isinstance(error, CipherMQError) and not isinstance(error, ConnectionLost):
            # It goes again, later: before those of its route that have not been sent.
            insort(self._unsent[row.route], row)
            self._fail(row.route, error)

    def _refused(self) -> list[Parcel]:
        """What is under way and is not stored for certain: the broker takes none of it for now."""
        refusal = self._publisher.refusal
        return [
            parcel
            for parcel in self._under_way.values()
            if not parcel.sent and refusal(parcel.lane) is not None
        ]

    def _abandon(self, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            self._publisher.abandon(parcel, ConnectionLost("the relay was closed"))

    # --- failing --------------------------------------------------------------------------------

    def _held(self, route: int) -> bool:
        return self._holds.get(route, 0.0) > self._loop.time()

    def _any_held(self) -> bool:
        return any(map(self._held, self._holds))

    def _fail(self, route: int, error: CipherMQError, *, hold: bool = True) -> None:
        """Something of a route can't be sent: end with it, or (patient) go on."""
        self._error = self._error or error
        if hold:
            self._holds[route] = self._loop.time() + limits.OUTBOX_HOLD
        _log.warning(
            "the outbox keeps messages back" if hold else "the outbox put messages aside",
            receivers=list(self._routes[route].to) if route in self._routes else [],
            code=error.code,
            reason=str(error),
        )


def _lock(path: Path) -> int:
    try:
        return disk.claim(path.with_name(path.name + ".relay"))
    except BlockingIOError as error:
        raise StoreError(
            f"the outbox {path} is being relayed already, by this process or another: one at a "
            "time, or its messages would lose their order"
        ) from error
