"""The supervisor: one process that is steered, and steers the workers that serve.

It holds the configuration and the listening sockets, answers the control socket, and counts what
must be counted over all workers. No session's bytes pass through it, so whatever it is busy with,
they flow.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ciphermq import limits
from ciphermq.errors import CipherMQError, ProxyError
from ciphermq.proxy.change import Change, ReplaceAll
from ciphermq.proxy.config import load
from ciphermq.proxy.control.desk import Desk
from ciphermq.proxy.control.lookup import with_addresses
from ciphermq.proxy.crew import Crew
from ciphermq.proxy.handover import Handover, Predecessor, Succession
from ciphermq.proxy.limits import ConnectionLimits
from ciphermq.proxy.listeners import ListeningSockets, close_sockets
from ciphermq.proxy.logs import Lines, Writer
from ciphermq.proxy.messages import (
    Apply,
    AskHealth,
    AskReport,
    Begin,
    Closed,
    DoSession,
    DoVhost,
    Drain,
    Estate,
    Held,
    ListSessions,
    Log,
    MayOpen,
    Steering,
    StopAccepting,
)
from ciphermq.proxy.metrics import Facts, MetricsPage
from ciphermq.proxy.model import Configuration, Listener
from ciphermq.proxy.office import SessionAct, VhostAct
from ciphermq.proxy.options import Options
from ciphermq.proxy.process import claim_control, notify, process_now, raise_open_files
from ciphermq.proxy.sampling import Sampler
from ciphermq.proxy.statistics import Snapshot
from ciphermq.proxy.statsd import StatsdSender
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.telemetry import get_logger

_log = get_logger("proxy.supervisor")


class Supervisor:
    """Implements `office.Office` and `handover.Testator`. For the event loop's thread."""

    def __init__(self, options: Options, writer: Writer) -> None:
        self._options = options
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._lines = Lines(
            writer.take,
            console=options.console_level,
            file=options.file_level,
            as_json=options.log_as_json,
        )
        self._configuration = Configuration()
        self._first_id = 1
        self._changing = asyncio.Lock()
        self._bequeathed = False
        """Whether `_changing` is held for a successor."""
        self._ending = asyncio.Event()
        self._told_to_end = False
        """By a signal, which the second time means at once."""
        self._succeeded = False
        self._owns_control = False
        self._sockets = ListeningSockets(options.workers)
        self._limits = ConnectionLimits()
        self._crew = Crew(options.workers, self._beginning, self._told, self._died)
        self._sampler = Sampler(
            lambda: self._crew.ask_all(lambda _: AskReport()), process_now, options.period
        )
        self._control: asyncio.Server | None = None
        self._handover: Handover | None = None
        self._predecessor: Predecessor | None = None
        self._metrics: MetricsPage | None = None
        self._statsd: StatsdSender | None = None
        self._background: set[asyncio.Task[Any]] = set()

    # --- from start to end ---

    async def run(self, ready: Callable[[Sequence[Listener]], None]) -> None:
        """Serve until told to end; `ready` is told where, once it does. Raises why it can't."""
        self._lines.start()
        succession: Succession | None = None
        try:
            raise_open_files()
            if self._options.take_over:
                succession = await Succession.begin(self._options.control)
                configuration = self._inherit(succession)
            else:
                configuration = await with_addresses(self._first_configuration())
            await self._start(configuration, succession)
            self._watch_signals()
            ready(configuration.listeners)
            notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=Serving")
            await self._ending.wait()
            await self._end()
        finally:
            if succession is not None:
                succession.abandon()
            await self._clear()

    def _first_configuration(self) -> Configuration:
        path = self._options.config_file
        configuration = load(path, missing_ok=True) if path is not None else Configuration()
        if path is not None and not path.exists():
            _log.warning("there is no configuration yet", path=str(path), remedy="CONFIG SAVE")
        for change in self._options.changes:
            configuration = change.apply(configuration)
        return configuration

    def _inherit(self, succession: Succession) -> Configuration:
        estate = succession.estate
        self._sockets.adopt(estate.listeners, succession.take_descriptors())
        self._first_id = estate.next_id
        return estate.configuration

    async def _start(self, configuration: Configuration, succession: Succession | None) -> None:
        control = None
        if succession is None:
            control = claim_control(self._options.control)
            self._owns_control = True
        wanted = configuration.listeners
        self._sockets.settle(wanted, self._sockets.prepare(wanted))
        self._configuration = configuration
        self._set_levels()
        await self._crew.start()
        if succession is not None:
            # From here on there is no way back: the old process lets go.
            self._predecessor = await succession.finish()
            control = succession.control
            self._owns_control = True
        if configuration.metrics is not None:
            self._metrics = MetricsPage(configuration.metrics, self._facts)
            await self._metrics.start()
        self._set_statsd()
        self._control = await asyncio.start_unix_server(
            Desk(self).serve,
            sock=control,
            limit=limits.PROXY_CONTROL_LINE,
            backlog=limits.PROXY_BACKLOG,
        )
        self._handover = Handover(self._options.control, self)

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._asked_to_end)
        self._loop.add_signal_handler(signal.SIGHUP, self._soon, self._reload)
        self._loop.add_signal_handler(signal.SIGUSR2, self._soon, self._start_successor)

    def _asked_to_end(self) -> None:
        if self._told_to_end or (self._ending.is_set() and not self._succeeded):
            # Asked twice: whoever waits no longer is not kept.
            os.write(2, b"ciphermq-proxy: ended at once\n")
            os._exit(1)
        self._told_to_end = True
        if self._succeeded:
            # A service manager asks all processes: its sessions are told what the others are.
            self._soon(self.follow, self._stopping())
        self.exit()

    async def _reload(self) -> None:
        path = self._options.config_file
        if path is None:
            _log.error("no configuration file to reload", remedy="start with --config FILE")
            return
        try:
            await self.change(ReplaceAll(await with_addresses(load(path))))
        except CipherMQError as error:
            _log.error("the configuration is not reloaded", reason=str(error))
        else:
            _log.info("the configuration is reloaded", path=str(path))

    async def _start_successor(self) -> asyncio.subprocess.Process:
        arguments = [word for word in sys.orig_argv[1:] if word != "--take-over"]
        # Its own process group: it outlives this one, whose terminal or job may end.
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, "--take-over", start_new_session=True
        )

    def _stopping(self) -> Drain:
        return Drain(0.0, 0.0, self._timeouts().drain, "the proxy is stopping")

    async def _end(self) -> None:
        """Drain, in order; everything is let go of by `_clear`."""
        question = self._stopping()
        if self._succeeded:
            seconds = self._options.handover_drain
            question = Drain(
                seconds,
                min(seconds, limits.PROXY_HANDOVER_SPREAD),
                question.close_seconds,
                "the proxy was replaced",
            )
        else:
            notify("STOPPING=1\nSTATUS=Draining sessions")
            self._sockets.close()
            await self._crew.ask_all(lambda _: StopAccepting(drain_backlog=True))
        _log.info("sessions are drained", seconds=question.patience + question.close_seconds)
        whole = question.patience + question.spread + question.close_seconds
        patience = whole + limits.PROXY_WORKER_KILL
        if self._succeeded:
            cut = _sum(await self._crew.ask_all(lambda _: question, patience=patience))
            if self._predecessor is not None:
                # Whoever steers this process' sessions reaches that one's through it.
                await self._predecessor.ended()
        else:
            cut = _sum(await self._ask_everybody(question, patience))
        _log.info("the end", sessions_cut_off=cut)

    async def _clear(self) -> None:
        if self._handover is not None:
            self._handover.close(unlink=not self._succeeded)
        if self._control is not None:
            self._control.close()
        if self._owns_control:
            self._options.control.unlink(missing_ok=True)
        if self._metrics is not None:
            await self._metrics.close()
        if self._statsd is not None:
            await self._statsd.close()
        await self._crew.stop()
        if self._predecessor is not None:
            self._predecessor.close()
        self._sockets.close()
        for task in self._background:
            task.cancel()
        self._lines.stop()

    def _soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        task = self._loop.create_task(work(*arguments))
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("what a signal or a change asked for failed", exc_info=error)

    # --- what commands ask: see `office.Office` ---

    @property
    def configuration(self) -> Configuration:
        """See `office.Office`."""
        return self._configuration

    @property
    def config_file(self) -> Path | None:
        """See `office.Office`."""
        return self._options.config_file

    async def change(self, change: Change) -> None:
        """See `office.Office`."""
        async with self._changing:
            if self._ending.is_set():
                raise ProxyError("The proxy is ending: nothing is changed any more.")
            now = change.apply(self._configuration)
            if now != self._configuration or change.rereads:
                await self._turn_to(now, change)

    async def _turn_to(self, now: Configuration, change: Change) -> None:
        before = self._configuration
        prepared = self._sockets.prepare(now.listeners)
        page = None
        if now.metrics is not None and now.metrics != before.metrics:
            page = MetricsPage(now.metrics, self._facts)
            try:
                await page.start()
            except ProxyError:
                close_sockets(prepared)
                raise
        # Nothing is awaited until every worker has been asked: one that is started anew just now
        # is either told all of it, or the change as well.
        self._configuration = now
        self._sockets.settle(now.listeners, prepared)
        fresh = tuple(prepared)
        shares = [self._sockets.of(number, fresh) for number in range(self._crew.size)]
        asking = [
            self._crew.ask_all(
                lambda number: Apply(change, shares[number][0]), lambda number: shares[number][1]
            )
        ]
        if self._predecessor is not None:
            asking.append(self._predecessor.ask(Apply(change)))
        self._set_levels()
        if now.metrics != before.metrics:
            page, self._metrics = self._metrics, page
            if page is not None:
                await page.close()
        self._set_statsd()
        await asyncio.gather(*asking)

    async def _ask_everybody(
        self, question: Steering, patience: float = limits.PROXY_ANSWER_TIMEOUT
    ) -> list[Any]:
        """The answers of all who have sessions: of the workers, and of the process before this one
        while its own last."""
        asking = [self._crew.ask_all(lambda _: question, patience=patience)]
        if self._predecessor is None:
            return await asking[0]
        answers, its = await asyncio.gather(*asking, self._predecessor.ask(question, patience))
        return [*answers, its]

    async def sessions(self) -> list[Mapping[str, object]]:
        """See `office.Office`."""
        answers = await self._ask_everybody(ListSessions())
        sessions = [session for answer in answers if answer for session in answer]
        return sorted(sessions, key=lambda session: session["id"])

    async def session(self, number: int, act: SessionAct) -> bool:
        """See `office.Office`."""
        return any(await self._ask_everybody(DoSession(number, act)))

    async def vhost(self, vhost: str, act: VhostAct) -> int:
        """See `office.Office`."""
        return _sum(await self._ask_everybody(DoVhost(vhost, act)))

    def statistics(self) -> AsyncGenerator[Snapshot, None]:
        """See `office.Office`."""
        return self._sampler.snapshots()

    async def health(self) -> Mapping[str, Mapping[str, object]]:
        """See `office.Office`."""
        worst: dict[str, Mapping[str, object]] = {}
        for answer in await self._crew.ask_all(lambda _: AskHealth()):
            for name, standing in (answer or {}).items():
                known = worst.get(name)
                if known is None or standing["failures"] > known["failures"]:
                    worst[name] = standing
        return worst

    def exit(self) -> None:
        """See `office.Office`."""
        self._ending.set()

    async def restart(self) -> None:
        """See `office.Office`."""
        successor = await self._start_successor()
        ways = {
            self._loop.create_task(successor.wait()),
            self._loop.create_task(self._ending.wait()),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        if not self._succeeded:
            raise ProxyError("The new process did not take over; standard error has its reason.")

    # --- what the successor asks: see `handover.Testator` ---

    async def bequeath(self) -> tuple[Estate, list[int]]:
        """See `handover.Testator`."""
        if self._ending.is_set() or self._control is None:
            raise ProxyError("The running proxy is ending: start without --take-over.")
        await self._changing.acquire()
        try:
            reports = await self._crew.ask_all(lambda _: AskReport())
        except BaseException:
            self._changing.release()
            raise
        self._bequeathed = True
        listeners, descriptors = self._sockets.all()
        next_id = max([self._first_id, *(report.next_id for report in reports if report)])
        estate = Estate(
            configuration=self._configuration,
            listeners=listeners,
            next_id=next_id + limits.PROXY_HANDOVER_NUMBERS,
        )
        return estate, [self._control.sockets[0].fileno(), *descriptors]

    def keep(self) -> None:
        """See `handover.Testator`."""
        if self._bequeathed:
            self._bequeathed = False
            self._changing.release()

    async def let_go(self) -> None:
        """See `handover.Testator`."""
        if not self._bequeathed:
            raise ProxyError("Nothing was handed over yet.")
        self._succeeded = True
        self._owns_control = False
        self._ending.set()
        self._changing.release()
        if self._control is not None:
            self._control.close()
        if self._metrics is not None:
            await self._metrics.close()
        if self._statsd is not None:
            await self._statsd.close()
        self._sockets.close()
        await self._crew.ask_all(lambda _: StopAccepting(drain_backlog=False))

    async def follow(self, message: Steering) -> Any:
        """See `handover.Testator`."""
        match message:
            case Apply():
                # Of what it changes only sessions are left here: no socket, and no page.
                self._configuration = message.change.apply(self._configuration)
                await self._ask_everybody(message)
            case ListSessions():
                return await self.sessions()
            case DoSession():
                return await self.session(message.number, message.act)
            case DoVhost():
                return await self.vhost(message.vhost, message.act)
            case Drain():
                whole = message.patience + message.spread + message.close_seconds
                return _sum(await self._ask_everybody(message, whole + limits.PROXY_WORKER_KILL))
        return None

    # --- what workers say ---

    def _beginning(self, number: int) -> tuple[Begin, list[int]]:
        listeners, descriptors = self._sockets.of(number)
        begin = Begin(
            worker=number,
            workers=self._crew.size,
            first_id=self._sampler.next_id(number) or self._first_id + number,
            configuration=self._configuration,
            console_level=self._options.console_level,
            file_level=self._options.file_level,
            log_as_json=self._options.log_as_json,
            listeners=listeners,
        )
        return begin, descriptors

    async def _told(self, worker: int, message: Any) -> Any:
        match message:
            case Log():
                self._writer.take(message.file, message.console)
            case MayOpen():
                now = self._loop.time()
                return self._limits.admit(self._configuration, message.vhost, worker, now)
            case Closed():
                self._limits.release(message.vhost, worker)
            case Held():
                self._limits.recount(worker, message.vhosts)
        return None

    def _died(self, worker: int) -> None:
        self._limits.forget(worker)
        self._sampler.lost(worker)

    # --- its own parts ---

    def _timeouts(self) -> Timeouts:
        return Timeouts(**self._configuration.timeouts)

    def _set_levels(self) -> None:
        console, file = self._configuration.console_level, self._configuration.file_level
        self._lines.set_levels(
            console=self._options.console_level if console is None else console,
            file=self._options.file_level if file is None else file,
        )

    def _set_statsd(self) -> None:
        wanted = self._configuration.statsd
        if self._statsd is not None and self._statsd.destination != wanted:
            self._soon(self._statsd.close)
            self._statsd = None
        if wanted is not None and self._statsd is None:
            self._statsd = StatsdSender(
                wanted, self._sampler.snapshots, lambda: self._configuration.per_source
            )

    async def _facts(self) -> Facts:
        sample, health = await self._sampler.sample(), await self.health()
        return Facts(
            sample=sample,
            backends_up={name: one["state"] == "healthy" for name, one in health.items()},
            worker_restarts=self._crew.restarts,
            log_lines_dropped=self._writer.dropped,
            statsd_lost=self._statsd.lost if self._statsd is not None else 0,
        )


def _sum(answers: Sequence[int | None]) -> int:
    """What all have counted together; who has died has counted nothing."""
    return sum(answer for answer in answers if answer)
