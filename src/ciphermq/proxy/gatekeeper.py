"""The gate of one worker: whether a session may come in, where to, and what is counted of it.

In this order: is the vhost mapped anywhere? Is it paused? What does the authentication service say,
or whom does the client's certificate stand for? Is there room within its limits? What is the client
called? Only then a backend is chosen.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ciphermq import limits
from ciphermq.errors import ChannelLost
from ciphermq.proxy.auth import ACCESS_REFUSED, Authenticator
from ciphermq.proxy.gate import Admission, Credentials, Opening, Refusal
from ciphermq.proxy.hostnames import Hostnames
from ciphermq.proxy.ipc import Channel
from ciphermq.proxy.limits import CAPS, RATES, Verdict
from ciphermq.proxy.messages import Closed, Held, MayOpen
from ciphermq.proxy.model import Backend, Configuration, ExternalUser
from ciphermq.proxy.routing import CONNECTION_FORCED, NOT_ALLOWED, Router
from ciphermq.proxy.statistics import Counts, Ending, Lines, Tally
from ciphermq.telemetry import get_logger

if TYPE_CHECKING:
    from ciphermq.proxy.session import Session

RESOURCE_ERROR: Final = 506
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Faults of this machine, which say nothing about a backend."""

_log = get_logger("proxy.session")


class Gatekeeper:
    """Implements `gate.Gate`. All of it is for the event loop's thread."""

    def __init__(self, configuration: Configuration, router: Router, supervisor: Channel) -> None:
        self._configuration = configuration
        self._router = router
        self._supervisor = supervisor
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._released: dict[str, asyncio.Event] = {}
        self._admitted: Counter[str] = Counter()
        self._holders: dict[int, str] = {}
        self._asking: dict[int, asyncio.Future[Verdict]] = {}
        """By session: what the supervisor has not answered yet, or nobody has taken in."""
        self._authenticator: Authenticator | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.hostnames = Hostnames()
        self._ended = Tally()
        self._lately: dict[Lines, Counts] = {}
        self.update(configuration)

    def update(self, configuration: Configuration) -> None:
        """Take over a configuration; clients of vhosts that are paused no longer go on."""
        before, self._configuration = self._configuration, configuration
        self._router.update(configuration)
        for vhost in [vhost for vhost in self._released if not configuration.paused(vhost)]:
            self._released.pop(vhost).set()
        service = self._authenticator.service if self._authenticator is not None else None
        if service != configuration.auth:
            self._replace_authenticator()
        if configuration.limits != before.limits:
            held = {vhost: n for vhost, n in self._admitted.items() if self._limited(vhost)}
            self._supervisor.tell(Held(held))

    async def admit(self, opening: Opening, session: Session) -> Admission:
        """See `gate.Gate`."""
        vhost = opening.vhost
        if _log.isEnabledFor(20):
            _log.info(
                f'Starting connection for: connectionName="{opening.connection_name}" '
                f"tlsEnabled={'secure' if opening.tls else 'insecure'}",
                vhost=vhost,
                session=session.id,
            )
        if self._configuration.target(vhost) is None:
            raise Refusal(NOT_ALLOWED, f"NOT_ALLOWED - vhost '{vhost}' is not mapped")
        while self._configuration.paused(vhost):
            released = self._released.setdefault(vhost, asyncio.Event())
            with session.held():
                await released.wait()
        admission = await self._authenticate(opening)
        await self._take_place(vhost, session.id)
        configuration = self._configuration
        name = None
        if configuration.hostnames:
            name = await self.hostnames.name(opening.client)
        return replace(
            admission,
            client_name=name,
            data_rate=configuration.limit("data_rate", vhost),
            data_rate_alarm=configuration.limit("data_rate_alarm", vhost),
        )

    def route(self, opening: Opening) -> Sequence[Backend]:
        """See `gate.Gate`."""
        return self._router.route(opening.vhost, opening.client, self._now())

    def connected(self, backend: Backend) -> None:
        """See `gate.Gate`."""
        self._router.health.connected(backend.name)

    def failed(self, backend: Backend, error: Exception) -> None:
        """See `gate.Gate`."""
        if isinstance(error, OSError) and error.errno in _OURS:
            _log.error("no descriptor for a backend", backend=backend.name, reason=str(error))
            return
        _log.warning("backend failed", backend=backend.name, reason=str(error))
        self._router.health.failed(backend.name, self._now(), str(error))

    def opened(self, session: Session) -> None:
        """See `gate.Gate`."""
        if session.backend is not None:
            self._router.opened(session.backend.name)

    def ended(self, session: Session, how: Ending) -> None:
        """See `gate.Gate`."""
        if session.opened and session.backend is not None:
            self._router.ended(session.backend.name)
        asking = self._asking.pop(session.id, None)
        if asking is None:
            self._give_place_back(session.id)
        else:
            # Whoever leaves before the answer may have been refused a place: giving that back
            # would make room for one too many.
            asking.add_done_callback(partial(self._answered_too_late, session.id))
        counts = _counts(session)
        counts.paused = counts.active = 0
        setattr(counts, how, 1)
        lines = self._lines(session)
        lately = self._lately.get(lines)
        if lately is not None:
            lately.add(counts)
            return
        if len(self._lately) >= limits.PROXY_SOURCES:
            self._settle()
        self._lately[lines] = counts

    def alarm(self, session: Session, rate: float) -> None:
        """See `gate.Gate`."""
        _log.warning("Data Rate Alarm", vhost=session.vhost, session=session.id, rate=int(rate))

    # --- counting ---

    def count(self, sessions: Iterable[Session]) -> Tally:
        """Everything so far: sessions that have ended, and these, which there are."""
        self._settle()
        tally = Tally()
        tally.add(self._ended)
        together: dict[Lines, Counts] = {}
        for session in sessions:
            lines = self._lines(session)
            counts = together.get(lines)
            if counts is None:
                together[lines] = _counts(session)
            else:
                counts.add(_counts(session))
        for lines, counts in together.items():
            tally.count(counts, lines)
        return tally

    def _settle(self) -> None:
        """Sessions that ended lately are summed by the lines they share, and only now by each:
        most share all of them, and a session that ends need not pay for five sums."""
        for lines, counts in self._lately.items():
            self._ended.count(counts, lines)
        self._lately.clear()

    def _lines(self, session: Session) -> Lines:
        """Which lines of the statistics a session belongs to.

        A vhost that leads nowhere is a name some stranger made up: it gets none of its own.
        """
        vhost, backend = session.vhost, session.backend
        return Lines(
            vhost if self._configuration.target(vhost) is not None else "",
            backend.name if backend is not None else "",
            f"{session.backend_host}_{backend.port}" if backend is not None else "",
            self.hostnames.known(session.client),
        )

    # --- who may come in ---

    async def _authenticate(self, opening: Opening) -> Admission:
        external = opening.mechanism == "EXTERNAL"
        name = opening.certificate_name
        if external and name is None:
            raise _denied("EXTERNAL needs a client certificate")
        if self._authenticator is not None:
            proof = name.encode() if external and name is not None else None
            admission = await self._authenticator.admit(opening, proof)
            if admission.mechanism is not None or not external:
                return admission
        else:
            admission = Admission()
        if not external or name is None:
            return admission
        # The client's EXTERNAL must never reach the broker: to it, the certificate of the TLS
        # connection is the proxy's own, and the client would be whoever the proxy is.
        user = self._configuration.external.get(name)
        if user is None:
            raise _denied(f"certificate '{name}' stands for no user")
        return replace(admission, mechanism="PLAIN", credentials=_plain(user))

    async def _take_place(self, vhost: str, number: int) -> None:
        self._admitted[vhost] += 1
        self._holders[number] = vhost
        if not self._limited(vhost):
            return
        asking = self._asking[number] = self._supervisor.ask(MayOpen(vhost))
        try:
            verdict = await asyncio.shield(asking)
        except ChannelLost as error:
            self._asking.pop(number, None)
            self._forget_place(number)
            raise Refusal(CONNECTION_FORCED, "CONNECTION_FORCED - the proxy is ending") from error
        self._asking.pop(number, None)
        for sentence in verdict.alarms:
            _log.warning(sentence, vhost=vhost, session=number)
        if verdict.refusal:
            self._forget_place(number)
            _log.info(verdict.refusal, vhost=vhost, session=number)
            raise Refusal(RESOURCE_ERROR, f"RESOURCE_ERROR - {verdict.refusal}", "limited")

    def _answered_too_late(self, number: int, asking: asyncio.Future[Verdict]) -> None:
        if asking.cancelled() or asking.exception() or asking.result().refusal:
            self._forget_place(number)
        else:
            self._give_place_back(number)

    def _give_place_back(self, number: int) -> None:
        vhost = self._forget_place(number)
        if vhost is not None and self._limited(vhost):
            self._supervisor.tell(Closed(vhost))

    def _forget_place(self, number: int) -> str | None:
        vhost = self._holders.pop(number, None)
        if vhost is not None:
            self._admitted[vhost] -= 1
            if not self._admitted[vhost]:
                del self._admitted[vhost]
        return vhost

    def _limited(self, vhost: str) -> bool:
        """Whether the supervisor must be asked: it counts over all workers."""
        configuration = self._configuration
        return bool(configuration.limits) and any(
            configuration.limit(kind, vhost) is not None for kind in (*CAPS, *RATES)
        )

    def _replace_authenticator(self) -> None:
        old, service = self._authenticator, self._configuration.auth
        self._authenticator = Authenticator(service) if service is not None else None
        if old is not None:
            # Whom it is just asked about shall have its answer.
            task = asyncio.get_running_loop().create_task(old.close(limits.PROXY_AUTH_TIMEOUT))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _counts(session: Session) -> Counts:
    """A session's numbers, as of now."""
    received, sent = session.received, session.sent
    return Counts(
        paused=int(session.paused),
        active=1,
        packets_received=received.packets,
        frames_received=received.frames,
        bytes_received=received.bytes,
        packets_sent=sent.packets,
        frames_sent=sent.frames,
        bytes_sent=sent.bytes,
    )


def _denied(sentence: str) -> Refusal:
    return Refusal(ACCESS_REFUSED, f"ACCESS_REFUSED - {sentence}", "denied")


def _plain(user: ExternalUser) -> Credentials:
    """What a client with this user's password would send."""
    try:
        password = Path(user.password_file).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        _log.error("password file", path=user.password_file, reason=str(error))
        raise _denied(f"the password of user '{user.user}' can't be read at the proxy") from error
    return Credentials(b"\0" + user.user.encode() + b"\0" + password.encode())
