"""Keeping a connection: made, mended by a new one, replaced while it still works.

There is one current session at most. When it ends, the next is opened, with patience that grows
and no end. When the broker asks for a replacement (its TLS keys have encrypted enough), the next
is opened first: who uses the connection turns to it at once, but still has answers to await on
the old one, which is closed when all of them say that they are done with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from ciphermq import limits
from ciphermq.client.backoff import Backoff
from ciphermq.client.session import Session
from ciphermq.errors import (
    CipherMQError,
    ConnectFailed,
    ConnectionLost,
    HostUnknown,
    Refused,
    Unavailable,
    UsageError,
    WaitTimeout,
)
from ciphermq.telemetry import get_logger

_log = get_logger("client")
_news = get_logger("client.connection")
"""What a person who waits should be told."""

Open = Callable[["Line"], Awaitable[Session]]

_AWAY: Final = (ConnectFailed, ConnectionLost, Unavailable)


def is_away(error: BaseException) -> bool:
    """Whether a connection failed only because the broker is not there at the moment. A name
    without an address, and what TLS or the broker refuses, no waiting mends."""
    return isinstance(error, _AWAY) and not isinstance(error, HostUnknown)


class Party(Protocol):
    """Who uses the connection."""

    def attach(self, session: Session) -> None:
        """Use this one from now on. The one before may still be alive: finish on it."""

    def detach(self, session: Session) -> None:
        """That one has ended."""

    def ending(self, session: Session) -> None:
        """The broker closes that one: say what is done, now or never."""

    def settled(self, session: Session) -> bool:
        """Whether nothing of yours waits for an answer on that one."""


class Publishing(Protocol):
    """The party that publishes: the only one whom single frames concern."""

    def confirmed(self, session: Session, number: int) -> None: ...
    def returned(self, session: Session, seq: int, error: Refused) -> None: ...
    def writable(self, session: Session) -> None: ...


class Line:
    """The connection of one client, whichever session it is at the moment."""

    def __init__(self, url: str, opener: Open, close_timeout: float) -> None:
        """`opener` opens a session whose owner is the line."""
        self.url = url
        self.parties: list[Party] = []
        self.publishing: Publishing | None = None
        self.sessions = 0
        """Opened so far."""
        self._opener = opener
        self._close_timeout = close_timeout
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff()
        self._current: Session | None = None
        self._retiring: dict[Session, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._waiting: set[asyncio.Future[Session]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._down_since = self._loop.time()
        self._last_error: Exception | None = None

    # --- for its users ------------------------------------------------------------------------

    @property
    def current(self) -> Session | None:
        """The session to use now; None while there is none."""
        session = self._current
        return session if session is not None and session.alive else None

    async def session(self, limit: float) -> Session:
        """The current session, waited for if need be; `WaitTimeout` after `limit` seconds."""
        if self._closed:
            raise UsageError("this client is closed")
        if (session := self.current) is not None:
            return session
        waiting: asyncio.Future[Session] = self._loop.create_future()
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(limit):
                return await waiting
        except TimeoutError:
            raise WaitTimeout(f"waited {limit:.3g} s for a connection: {self.describe()}") from None
        finally:
            self._waiting.discard(waiting)

    def describe(self) -> str:
        """The state of the connection, for an error's last words."""
        if self.current is not None:
            return f"the connection to {self.url} is up"
        down = self._loop.time() - self._down_since
        why = f" ({self._last_error})" if self._last_error is not None else ""
        return f"there has been no connection to {self.url} for {down:.0f} s{why}"

    def join(self, party: Party) -> None:
        """Have `party` use the connection, now and whenever it changes."""
        self.parties.append(party)
        if (session := self.current) is not None:
            party.attach(session)

    def leave(self, party: Party) -> None:
        """The reverse of `join`."""
        if party in self.parties:
            self.parties.remove(party)

    async def start(self, wait: float) -> None:
        """Make the first connection. The first failure is raised; with `wait`, a broker that is
        away is tried again for so many seconds, and the last failure is raised."""
        deadline = self._loop.time() + wait
        while True:
            try:
                self._adopt(await self._opener(self))
                break
            except CipherMQError as error:
                delay = self._backoff.next()
                if not is_away(error) or self._loop.time() + delay > deadline:
                    raise
                _log.info("no connection yet", url=self.url, error=str(error))
                await asyncio.sleep(delay)
        self._keeper = self._loop.create_task(self._keep(), name="ciphermq connection")
        self._keeper.add_done_callback(self._kept)

    async def close(self) -> None:
        """End all sessions, in order where they are alive."""
        self._closed = True
        tasks = [task for task in (self._keeper, *self._retiring.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sessions = [self._current, *self._retiring]
        self._fail_waiting(UsageError("this client is closed"))
        for session in sessions:
            if session is not None:
                session.close("done")
                await session.wait_closed()

    # --- keeping it -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            session = self.current
            if session is None or session.replacing:
                self._adopt(await self._open_patiently())
                continue
            await self._changed.wait()
            self._changed.clear()

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """The keeper has ended: at `close`, or by a fault of this program, which nobody who
        waits for a connection may have to sit out."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            _log.error("the connection can't be kept", url=self.url, exc_info=error)
            self._fail_waiting(error)

    async def _open_patiently(self) -> Session:
        told = ""
        while True:
            await asyncio.sleep(self._backoff.next() if self._backoff.attempts else 0.0)
            try:
                session = await self._opener(self)
            except (CipherMQError, OSError) as error:
                self._last_error = error
                if not self._backoff.attempts:
                    self._backoff.next()
                reason = str(error)
                if reason != told:  # once for each: it can take hours
                    event = (
                        "waiting for the broker" if is_away(error) else "no connection, trying on"
                    )
                    _news.warning(event, url=self.url, reason=reason)
                    told = reason
            else:
                if told:
                    _news.warning("the broker is reached again", url=self.url)
                return session

    def _adopt(self, session: Session) -> None:
        old, self._current = self._current, session
        self.sessions += 1
        if old is not None:
            self._calm(old)
            self._retiring[old] = self._loop.create_task(self._retire(old))
        for party in list(self.parties):
            party.attach(session)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(session)

    def _calm(self, session: Session) -> None:
        """One that lasted only a moment must not be begun again in a tight circle: after one that
        was of use there is a short pause, after others a longer one each time."""
        lasted = self._loop.time() - session.opened_at
        if session.useful or lasted > limits.RECONNECT_MOST:
            self._backoff.reset()
        if lasted <= limits.RECONNECT_MOST:
            self._backoff.next()

    async def _retire(self, session: Session) -> None:
        """Close a replaced session once nobody waits for anything on it."""
        deadline = self._loop.time() + self._close_timeout
        while session.alive and self._loop.time() < deadline:
            if all(party.settled(session) for party in self.parties):
                break
            await asyncio.sleep(limits.RETIRE_POLL)
        session.close("replaced")

    # --- what happens on sessions (session.Owner) ---------------------------------------------

    def confirmed(self, session: Session, number: int) -> None:
        """To the publisher."""
        if self.publishing is not None:
            self.publishing.confirmed(session, number)

    def returned(self, session: Session, seq: int, error: Refused) -> None:
        """To the publisher."""
        if self.publishing is not None:
            self.publishing.returned(session, seq, error)

    def writable(self, session: Session) -> None:
        """To the publisher."""
        if self.publishing is not None:
            self.publishing.writable(session)

    def replace(self, session: Session) -> None:
        """The broker wants this one replaced."""
        if session is self._current:
            self._changed.set()

    def ending(self, session: Session) -> None:
        """To all: the broker is closing."""
        for party in list(self.parties):
            party.ending(session)

    def ended(self, session: Session, error: CipherMQError) -> None:
        """A session is over."""
        self._retiring.pop(session, None)
        if session is self._current:
            self._current = None
            self._down_since = self._loop.time()
            self._last_error = error
            self._calm(session)
            self._changed.set()
            if not self._closed:
                _log.info("the connection to the broker ended", url=self.url, error=str(error))
        for party in list(self.parties):
            party.detach(session)

    def _fail_waiting(self, error: BaseException) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)
