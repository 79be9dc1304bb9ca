"""A worker: one process, one event loop, its share of the sessions.

Started by the supervisor as ``python -m ciphermq.proxy.worker FD``, where FD is its end of the
conversation. It does what it is told there, and knows nothing else: no configuration file, no
control socket. When the supervisor is gone it accepts nothing more, lets its sessions go on for the
drain time, closes them in order, and ends.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

import uvloop

from ciphermq import limits
from ciphermq.proxy import exiting
from ciphermq.proxy.gatekeeper import Gatekeeper
from ciphermq.proxy.health import Health
from ciphermq.proxy.ipc import Channel
from ciphermq.proxy.listeners import Acceptor, Address
from ciphermq.proxy.logs import Lines
from ciphermq.proxy.messages import (
    Apply,
    AskHealth,
    AskReport,
    Begin,
    DoSession,
    DoVhost,
    Drain,
    ListSessions,
    Log,
    Report,
    StopAccepting,
    ToWorker,
)
from ciphermq.proxy.model import Configuration, Listener
from ciphermq.proxy.office import SessionAct, VhostAct
from ciphermq.proxy.process import process_now
from ciphermq.proxy.routing import Router
from ciphermq.proxy.session import Session, accept
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.proxy.tls import Contexts
from ciphermq.telemetry import get_logger

_log = get_logger("proxy.worker")


class Worker:
    """All of a worker; `handle` is what the supervisor talks to, after its `Begin`."""

    def __init__(self, channel: Channel, begin: Begin, descriptors: list[int]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._configuration = configuration = begin.configuration
        self._sessions: dict[int, Session] = {}
        self._next_id, self._step = begin.first_id, begin.workers
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._dropped = 0
        self._levels = begin.console_level, begin.file_level
        self._lines = Lines(self._say, console=0, file=0, as_json=begin.log_as_json)
        self._set_levels()
        self._lines.start()
        self._timeouts = Timeouts(**configuration.timeouts)
        self._contexts = Contexts(configuration)
        self._health = Health()
        router = Router(
            configuration,
            start=begin.worker,
            health=self._health,
            complain=_log.error,
        )
        self._gate = Gatekeeper(configuration, router, channel)
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(1, (open_files - limits.PROXY_DESCRIPTOR_RESERVE) // 2)
        self._acceptor = Acceptor(self._accept, lambda: len(self._sessions), most)
        # What there is by now stays: the collector needs not look at it again.
        gc.collect()
        gc.freeze()
        self._listen(begin.listeners, descriptors)

    # --- what the supervisor says ---

    async def handle(self, question: Any, descriptors: list[int]) -> Any:
        """Do as told. Messages are begun in the order in which they were sent."""
        match question:
            case Apply():
                self._update(question.change.apply(self._configuration))
                if question.change.rereads:
                    self._contexts = Contexts(self._configuration)
                self._listen(question.listeners, descriptors)
            case ListSessions():
                return [self._sessions[number].describe() for number in sorted(self._sessions)]
            case DoSession():
                return self._do_session(question.number, question.act)
            case DoVhost():
                return self._do_vhost(question.vhost, question.act)
            case AskReport():
                return self._report()
            case AskHealth():
                return self._health_of_backends()
            case StopAccepting():
                self._acceptor.close(drain_backlog=question.drain_backlog)
            case Drain():
                return await self._drain(question)
        return None

    def _listen(self, listeners: tuple[Listener, ...], descriptors: list[int]) -> None:
        for listener, descriptor in zip(listeners, descriptors, strict=True):
            self._acceptor.add(listener, socket.socket(fileno=descriptor))
        descriptors.clear()

    def _update(self, configuration: Configuration) -> None:
        before, self._configuration = self._configuration, configuration
        gone = set(before.listeners) - set(configuration.listeners)
        self._acceptor.remove(gone)
        self._timeouts = Timeouts(**configuration.timeouts)
        if (configuration.ingress, configuration.egress) != (before.ingress, before.egress):
            self._contexts = Contexts(configuration)
        self._set_levels()
        resumed = {
            vhost
            for vhost in configuration.vhosts
            if before.paused(vhost) and not configuration.paused(vhost)
        }
        if resumed:
            # Whoever was connected already goes to where the vhost is by now, by coming again.
            for session in list(self._sessions.values()):
                if session.vhost in resumed and not session.waits:
                    session.disconnect_graceful()
        self._gate.update(configuration)
        if configuration.limits != before.limits:
            self._set_rates(before)

    def _set_rates(self, before: Configuration) -> None:
        """Rates hold for sessions that are open already, too."""
        now = self._configuration
        for session in self._sessions.values():
            vhost = session.vhost
            rates = now.limit("data_rate", vhost), now.limit("data_rate_alarm", vhost)
            if rates != (before.limit("data_rate", vhost), before.limit("data_rate_alarm", vhost)):
                session.set_rates(*rates)

    def _set_levels(self) -> None:
        console, file = self._configuration.console_level, self._configuration.file_level
        self._lines.set_levels(
            console=self._levels[0] if console is None else console,
            file=self._levels[1] if file is None else file,
        )

    # --- sessions ---

    def _accept(self, sock: socket.socket, address: Address, listener: Listener) -> None:
        number = self._next_id
        self._next_id += self._step
        self._emptied.clear()
        self._sessions[number] = accept(
            sock,
            address,
            listener,
            self._gate,
            self._contexts,
            self._timeouts,
            self._ended,
            number,
        )

    def _ended(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        if not self._sessions:
            self._emptied.set()

    def _do_session(self, number: int, act: SessionAct) -> bool:
        session = self._sessions.get(number)
        if session is None:
            return False
        match act:
            case "pause":
                session.pause()
            case "unpause":
                session.unpause()
            case "disconnect_graceful":
                session.disconnect_graceful()
            case "force_disconnect":
                session.force_disconnect()
        return True

    def _do_vhost(self, vhost: str, act: VhostAct) -> int:
        sessions = [session for session in self._sessions.values() if session.vhost == vhost]
        for session in sessions:
            if act == "backend_disconnect":
                session.disconnect_backend()
            else:
                session.force_disconnect()
        return len(sessions)

    async def _drain(self, drain: Drain) -> int:
        cut = await exiting.drain(
            lambda: list(self._sessions.values()),
            self._emptied,
            patience=drain.patience,
            spread=drain.spread,
            close_seconds=drain.close_seconds,
            reason=drain.reason,
        )
        # The answer may be the last that is read of this process.
        self._lines.pass_on()
        return cut

    # --- what it tells ---

    def _report(self) -> Report:
        sessions = self._sessions.values()
        return Report(
            tally=self._gate.count(sessions),
            process=process_now(),
            spilled=sum(session.spilled > 0 for session in sessions),
            pools={limits.PROXY_BUFFER: (1, 1)},
            next_id=self._next_id,
            accepting=self._acceptor.accepting,
        )

    def _health_of_backends(self) -> Mapping[str, Mapping[str, object]]:
        found = {}
        for name in self._configuration.backends:
            standing = self._health.standing(name, self._loop.time())
            found[name] = {
                "state": standing.state,
                "failures": standing.failures,
                "rest": round(standing.rest, 3),
                "error": standing.error,
            }
        return found

    def _say(self, file: bytes, console: bytes) -> None:
        """Hand log lines on; a supervisor that takes none costs lines, not memory."""
        if self._channel.queued > limits.PROXY_LOG_BACKLOG:
            self._dropped += file.count(b"\n") or console.count(b"\n")
            return
        if self._dropped:
            note = f"WARN: worker: {self._dropped} log lines were dropped\n".encode()
            file, console, self._dropped = note + file, note + console, 0
        self._channel.tell(Log(file, console))

    # --- the end ---

    async def end_alone(self) -> None:
        """The supervisor is gone: take nobody in, let the others finish."""
        self._acceptor.close(drain_backlog=False)
        seconds = self._timeouts.drain
        await self._drain(Drain(seconds, 0.0, seconds, "the proxy has lost its supervisor"))


async def _serve(descriptor: int) -> None:
    worker: Worker | None = None
    lost = asyncio.Event()

    async def handle(question: Any, descriptors: list[int]) -> Any:
        nonlocal worker
        if worker is None:
            worker = Worker(channel, question, descriptors)
            return None
        return await worker.handle(question, descriptors)

    channel = Channel(socket.socket(fileno=descriptor), ToWorker, handle, lost.set)
    await lost.wait()
    if worker is not None:
        await worker.end_alone()


def main() -> None:
    """Serve until the supervisor is gone and all sessions have ended."""
    # A terminal's Ctrl-C and a service manager's SIGTERM go to all processes; the supervisor
    # decides what is to be done about them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    uvloop.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
