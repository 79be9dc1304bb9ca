"""The server: its parts, their order at the start, and their order at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ciphermq import limits
from ciphermq.catalog.face import Catalog
from ciphermq.engines.face import Engine
from ciphermq.errors import AccessRefused, CertificateError, InternalError, Unavailable
from ciphermq.net import address, tls
from ciphermq.net.address import HostPort
from ciphermq.net.conduit import Conduit
from ciphermq.net.lines import LineLink
from ciphermq.net.link import Link
from ciphermq.net.listener import Listener
from ciphermq.net.options import LinkOptions
from ciphermq.net.reception import Reception, StartSession
from ciphermq.net.zmq.listener import ZmqListener
from ciphermq.server.access import Access
from ciphermq.server.flow import Flow
from ciphermq.server.keys import KeyDirectory
from ciphermq.server.onex import OnexSession
from ciphermq.server.renewal import TrustKeeper
from ciphermq.server.services import Services
from ciphermq.server.session import Session
from ciphermq.server.trust import Trust
from ciphermq.settings import ServerSettings
from ciphermq.telemetry import get_logger
from ciphermq.telemetry.traffic import Traffic
from ciphermq.version import __version__

_STOPPING: Final = "the broker is stopping"
_DRAIN_STEP: Final = 0.02
_JOURNAL_PREFIX: Final = "journal_"

_log = get_logger("server")


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Server:
    """A broker that clients can reach.

    It starts and stops the `engine` and the `catalog` it is given.
    """

    def __init__(
        self,
        settings: ServerSettings,
        engine: Engine,
        catalog: Catalog,
        *,
        options: LinkOptions | None = None,
        now_ms: Callable[[], int] = _wall_clock_ms,
        log_stats: Callable[[], Mapping[str, int]] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Reads the certificates; raises `IdentityError` or `ConfigError` naming what is wrong.

        `log_stats`: the logs' counters, for the status; `traffic`: their ear for messages.
        """
        self._settings = settings
        self._engine = engine
        self._catalog = catalog
        self._now_ms = now_ms
        self._log_stats = log_stats or dict
        self._started_ms = now_ms()
        self._trust = TrustKeeper(
            settings.tls,
            tls_1_2=settings.one_x.enabled and settings.one_x.tls_1_2,
            now_ms=now_ms,
        )
        self.services = Services(
            engine=engine,
            catalog=catalog,
            access=Access(settings.access.administrators, allow_all=settings.access.allow_all),
            keys=KeyDirectory(engine, catalog, self._trust.verifier),
            flow=Flow(engine),
            now_ms=now_ms,
            status=self.status,
            max_publish_window=settings.limits.max_publish_window,
            one_x=settings.one_x.enabled,
            traffic=traffic or Traffic(),
        )
        self.reception = Reception(
            self._protocols(),
            max_connections=settings.server.max_connections,
            max_connections_per_client=settings.server.max_connections_per_client,
            check=self._trust.check_client,
        )
        context, address_zmq = self._trust.context, settings.server.zmq_address
        self.listener = Listener(settings.server.address, context, self.reception, options=options)
        self.zmq_listener = (
            ZmqListener(address_zmq, context, self.reception, options=options)
            if address_zmq is not None
            else None
        )
        self.zmq_where: HostPort | None = None
        """Where it listens over ZeroMQ; None: it doesn't, or not yet."""
        self._failure: asyncio.Future[None] | None = None
        self._reminder: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopped = False

    # --- life -------------------------------------------------------------------------------

    async def run(self, *, ready: Callable[[HostPort], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set; raises what the server failed of.

        `ready` is called with the bound address once clients can connect.
        """
        where = await self.start()
        try:
            ready(where)
            await self._until(stop)
        finally:
            await self.stop()

    async def start(self) -> HostPort:
        """Open the stores, then listen; the bound address."""
        self._failure = asyncio.get_running_loop().create_future()
        engine, catalog = self._engine, self._catalog
        engine.on_failure(self._failed)
        engine.on_event(catalog.note_event)
        for sentence in self._settings.left_out:
            _log.warning(sentence)
        if (stray := self._trust.current.stray_key) is not None:
            _log.warning(stray)
        if self._settings.access.allow_all:
            _log.warning("every client may do what an administrator may (access.allow_all)")
        await catalog.start()
        try:
            await engine.start()
            try:
                where = self.listener.start()
                self._start_zmq()
            except BaseException:
                self.listener.stop()
                await engine.stop()
                raise
        except BaseException:
            await catalog.stop()
            raise
        self._remind()
        watching = self._trust.watch(self._settings.tls.reload_seconds, self._judge_again)
        self._watcher = asyncio.get_running_loop().create_task(watching)
        _log.info("ready", address=address.spell(where))
        return where

    def _start_zmq(self) -> None:
        if self.zmq_listener is not None:
            self.zmq_where = self.zmq_listener.start()
            bound = address.spell(self.zmq_where)
            _log.info("listens over ZeroMQ too", address=f"{address.ZMQ_SCHEME}://{bound}")

    async def stop(self) -> None:
        """Let clients finish for `server.drain_seconds`, then close everything. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.listener.stop()
        if self.zmq_listener is not None:
            self.zmq_listener.stop()
        if self._reminder is not None:
            self._reminder.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._drain(self._settings.server.drain_seconds)
        await self._close_links()
        if self.zmq_listener is not None:
            await self.zmq_listener.close()
        await self._engine.stop()
        await self._catalog.stop()
        _log.info("stopped")

    async def _until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`, or raise what the engine failed of."""
        if self._failure is None:
            raise InternalError("a server must be started before it is waited for")
        stopped = asyncio.create_task(stop.wait())
        waiting: list[asyncio.Future[Any]] = [stopped, self._failure]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if self._failure.done():
            self._failure.result()

    async def _drain(self, seconds: float) -> None:
        """Ask clients to leave, and wait until nothing is owed and nothing held, for so long."""
        sessions = self.services.sessions
        for session in list(sessions):
            session.drain(_STOPPING)
        deadline = asyncio.get_running_loop().time() + seconds
        failed = self._failure is not None and self._failure.done()
        while sessions and not failed and asyncio.get_running_loop().time() < deadline:
            if all(session.idle and not session.consuming.held for session in sessions):
                break
            await asyncio.sleep(_DRAIN_STEP)

    async def _close_links(self) -> None:
        for session in self.services.sessions:
            session.link.close(_STOPPING, Unavailable.code)
        ends = [asyncio.create_task(channel.wait_closed()) for channel in self.reception.channels]
        if ends:
            await asyncio.wait(ends, timeout=2 * limits.LINGER)

    def _failed(self, error: Exception) -> None:
        """The engine can confirm nothing any more: better to end than to look alive."""
        _log.error("the engine has failed; the server stops", reason=str(error))
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _remind(self) -> None:
        """Tell the operator, at the start and every day, what is about to expire."""
        for warning in self._trust.current.warnings(self._now_ms()):
            _log.warning(warning)
        self._reminder = asyncio.get_running_loop().call_later(limits.DAY, self._remind)

    # --- certificates -----------------------------------------------------------------------

    def reread(self) -> None:
        """Read certificate, key, authority and revocation list anew: SIGHUP."""
        self._trust.ask()

    async def _judge_again(self, before: Trust, now: Trust) -> None:
        """End the connections whose certificates the new files don't let in."""
        # Only then: to look at a signature takes many times as long as to look for a number.
        gone = bool({*before.verifier.authorities} - {*now.verifier.authorities})
        for count, session in enumerate(list(self.services.sessions), 1):
            try:
                now.judge(session.link.peer_certificate, issuer=gone)
            except CertificateError as error:
                self._shut_out(session, str(error))
            if count % limits.EXPEL_SLICE == 0:
                await asyncio.sleep(0)

    def _shut_out(self, session: Session | OnexSession, reason: str) -> None:
        self._trust.counters.add("clients_shut_out")
        fields = {"client": session.client, "peer": session.link.peer}
        _log.warning("client shut out", reason=reason, **fields)
        error = AccessRefused(f"{session.client!r} is let in no more: {reason}")
        try:
            session.shut_out(error)
        except Exception:  # noqa: BLE001  (he goes all the same, and so do those after him)
            _log.error("a client could not be told that it is shut out", exc_info=True, **fields)
            session.link.abort(error)

    # --- sessions and status ----------------------------------------------------------------

    def _protocols(self) -> dict[str | None, StartSession]:
        """What is spoken: by its name in TLS; 1.x names none."""
        found: dict[str | None, StartSession] = {tls.ALPN: self._start_session}
        if self._settings.one_x.enabled:
            found[None] = self._start_onex_session
        return found

    def _start_onex_session(self, channel: Conduit, client: str) -> None:
        OnexSession(self.services, LineLink(channel), client)

    def _start_session(self, channel: Conduit, client: str) -> None:
        Session(self.services, Link(channel), client)

    def status(self) -> dict[str, dict[str, int | float | str]]:
        """What STATUS tells: one map a part."""
        services, engine = self.services, self._engine.stats()
        journal = {
            name.removeprefix(_JOURNAL_PREFIX): value
            for name, value in engine.items()
            if name.startswith(_JOURNAL_PREFIX)
        }
        now_ms = self._now_ms()
        server: dict[str, int | float | str] = {
            "version": __version__,
            "now_ms": now_ms,
            "uptime_seconds": (now_ms - self._started_ms) / 1000,
            "connections": self.reception.connections,
            "consumers": sum(len(session.consuming.consumers) for session in services.sessions),
            "batches_held": sum(session.consuming.held for session in services.sessions),
            "publisher_stops": services.flow.stops,
            "crl_number": services.keys.crl_number,
            **self._trust.counters.snapshot(),
            **self.reception.counters.snapshot(),
            **services.counters.snapshot(),
        }
        return {
            "server": server,
            "engine": {
                name: value
                for name, value in engine.items()
                if not name.startswith(_JOURNAL_PREFIX)
            },
            "journal": journal,
            "catalog": self._catalog.stats(),
            "log": {**self._log_stats()},
        }
