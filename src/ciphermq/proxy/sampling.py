"""The whole proxy's statistics, out of what its workers report.

Nothing is asked while nobody wants to know. Who wants a stream of snapshots shares one round of
questions a second with all others who do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

from ciphermq.errors import ProxyError
from ciphermq.proxy.messages import Report
from ciphermq.proxy.statistics import Process, Snapshot, Tally
from ciphermq.telemetry import get_logger

_log = get_logger("proxy.statistics")


class Sample(NamedTuple):
    """All workers at one moment, summed."""

    at: float
    tally: Tally
    process: Process
    spilled: int
    pools: dict[int, tuple[int, int]]
    reports: Sequence[Report | None]
    """Each worker's, by number; None for one that is just being started."""


class Sampler:
    """Sums the workers' reports; what a dead worker had counted is kept."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Sequence[Report | None]]],
        own: Callable[[], Process],
        period: float,
    ) -> None:
        """`own` is what the supervisor itself has used; `period` is that of `snapshots`."""
        self._ask = ask
        self._own = own
        self._period = period
        self._loop = asyncio.get_running_loop()
        self._last: dict[int, Report] = {}
        self._last_ids: dict[int, int] = {}
        self._retired = Tally()
        self._spent = Process()
        self._next: asyncio.Future[Snapshot] | None = None
        self._readers = 0
        self._ticker: asyncio.Task[None] | None = None

    def lost(self, worker: int) -> None:
        """A worker has died: what it reported last is all that is known of it."""
        report = self._last.pop(worker, None)
        if report is not None:
            self._retired.add(report.tally.without_gauges())
            self._spent.user += report.process.user
            self._spent.system += report.process.system

    def next_id(self, worker: int) -> int:
        """The next session's number in that worker, when it last said; 0 if it never has."""
        return self._last_ids.get(worker, 0)

    async def sample(self) -> Sample:
        """Ask everybody now."""
        reports = await self._ask()
        tally, process = Tally(), Process()
        tally.add(self._retired)
        process.add(self._spent)
        process.add(self._own())
        spilled = 0
        pools: dict[int, tuple[int, int]] = {}
        for number, report in enumerate(reports):
            if report is None:
                continue
            self._last[number] = report
            self._last_ids[number] = report.next_id
            tally.add(report.tally)
            process.add(report.process)
            spilled += report.spilled
            for size, (now, most) in report.pools.items():
                current, highest = pools.get(size, (0, 0))
                pools[size] = current + now, highest + most
        return Sample(self._loop.time(), tally, process, spilled, pools, reports)

    async def snapshots(self) -> AsyncGenerator[Snapshot, None]:
        """One a period, until the iterator is closed."""
        self._readers += 1
        if self._ticker is None:
            self._ticker = self._loop.create_task(self._tick())
        try:
            while True:
                if self._next is None:
                    self._next = self._loop.create_future()
                yield await asyncio.shield(self._next)
        finally:
            self._readers -= 1
            if not self._readers and self._ticker is not None:
                self._ticker.cancel()
                self._ticker = self._next = None

    async def _tick(self) -> None:
        before = await self._try_sample()
        due = self._loop.time()
        while True:
            due = max(due + self._period, self._loop.time())
            await asyncio.sleep(due - self._loop.time())
            now = await self._try_sample()
            if now is None:
                continue
            if before is not None and self._next is not None:
                waiting, self._next = self._next, None
                waiting.set_result(_between(before, now))
            before = now

    async def _try_sample(self) -> Sample | None:
        try:
            return await self.sample()
        except (ProxyError, OSError) as error:
            # Out of descriptors, a process can't look at itself either. All who listen wait for
            # the next sample, so there must be one.
            _log.error("no statistics", reason=str(error))
            return None


def _between(before: Sample, now: Sample) -> Snapshot:
    """What was added from one sample to the next, in a second."""
    seconds = max(now.at - before.at, 1e-3)
    return Snapshot(
        tally=now.tally.since(before.tally),
        cpu_user=max(0.0, now.process.user - before.process.user) / seconds,
        cpu_system=max(0.0, now.process.system - before.process.system) / seconds,
        rss_kb=now.process.rss_kb,
        spilled=now.spilled,
        pools=now.pools,
    )
