"""What the parts of one client share: who it is, its connection, its limits of patience."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

from ciphermq import limits
from ciphermq.client.identity import Identity
from ciphermq.client.reconnect import Line
from ciphermq.client.session import Session, now_ms, open_session
from ciphermq.errors import (
    CipherMQError,
    ConnectionLost,
    NotFound,
    ReceiverFault,
    Refused,
    TlsFailed,
    TokenAway,
    WaitTimeout,
)
from ciphermq.net.options import LinkOptions
from ciphermq.telemetry import get_logger
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.cmq2.frames import Request

_log = get_logger("client")
_token_log = get_logger("client.token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things are waited for, in seconds."""

    connect: float = limits.CONNECT_TIMEOUT
    """For each step of making a connection: TCP, TLS, HELLO."""
    request: float = limits.REQUEST_TIMEOUT
    """For the answer to a request, and for a connection to ask it on."""
    send: float = limits.SEND_TIMEOUT
    """For the confirmation of a message."""
    close: float = limits.CLOSE_TIMEOUT
    """For what is under way when something is closed."""


class Core:
    """One client's identity and connection. Made and started by `connect`."""

    def __init__(self, identity: Identity, url: str, patience: Patience, link: LinkOptions) -> None:
        self.identity = identity
        self.patience = patience
        self._link = link
        self.line = Line(url, self._open, patience.close)
        self._round: asyncio.Task[None] | None = None
        self._registered: Session | None = None
        self._registering = asyncio.Lock()
        self._receives = False

    @property
    def name(self) -> str:
        """Client id."""
        return self.identity.name

    async def start(self, wait: float) -> None:
        """See `Line.start`. Raises `CertificateError` before anything else when the own
        certificate doesn't count now: the broker would refuse it with fewer words. A kind of
        `TokenError` when its token won't do; one that is merely away may come."""
        await asyncio.to_thread(self.identity.check, now_ms())
        for warning in self.identity.warnings(now_ms()):
            _log.warning(warning)
        try:
            await asyncio.to_thread(self.identity.check_token)
        except TokenAway as away:
            _token_log.warning("a token is away: what needs it will wait", reason=str(away))
        await self.line.start(wait)
        self._round = asyncio.get_running_loop().create_task(self._rounds())

    async def close(self) -> None:
        """End the connection."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)
        await self.line.close()

    # --- requests -------------------------------------------------------------------------------

    async def ask(
        self,
        kind: type[Request],
        *,
        again: bool = False,
        limit: float | None = None,
        **members: Any,
    ) -> Any:
        """The result of a request, once there is a connection.

        `again`: asking twice does no harm, so a connection that ends meanwhile is waited out, in
        `limit` seconds all together (by default the patience for requests).
        Raises the broker's refusal, `WaitTimeout`, or (not `again`) `ConnectionLost`, when nobody
        knows whether it was done.
        """
        limit = self.patience.request if limit is None else limit
        deadline = asyncio.get_running_loop().time() + limit
        while True:
            left = deadline - asyncio.get_running_loop().time()
            session = await self.line.session(max(0.0, left))
            try:
                return await session.ask(kind, **members)
            except ConnectionLost:
                if not again:
                    raise

    # --- connecting -----------------------------------------------------------------------------

    async def _open(self, line: Line) -> Session:
        try:
            session = await open_session(
                line.url,
                lambda: asyncio.to_thread(self._newest_context),
                line,
                server_name=self.identity.server_name,
                options=self._link,
                request_timeout=self.patience.request,
            )
        except TlsFailed:
            # Where our own files say why, they also say what to do.
            await asyncio.to_thread(self.identity.check, now_ms())
            raise
        try:
            self._look_at(session)
            if session.hello.crl_number > self.identity.verifier.crl_number:
                await self.refresh_crl(session)
        except BaseException:
            session.close()
            raise
        return session

    def _newest_context(self) -> ssl.SSLContext:
        """Read anew each time: a renewed certificate or a newer list counts at once."""
        self._refresh()
        return self.identity.ssl_context()

    def _refresh(self) -> None:
        if self.identity.refresh():
            _log.info("took over renewed files of the identity", client=self.name)

    def _look_at(self, session: Session) -> None:
        hello = session.hello
        if hello.client != self.name:
            _log.warning("the broker takes this client for another", broker_says=hello.client)
        if abs(session.skew_ms) > limits.CLOCK_SKEW * 500:
            _log.warning(
                "this machine's clock and the broker's differ", milliseconds=session.skew_ms
            )

    async def refresh_crl(self, session: Session | None = None) -> bool:
        """Take over the broker's revocation list, if it is newer; whether it was.

        A broker can't do harm by it: only a list that our authority signed, and no older one than
        was seen, is taken.
        """
        session = session or await self.line.session(self.patience.request)
        der = await session.ask(frames.CrlGet)
        try:
            return await asyncio.to_thread(self.identity.install_crl, der)
        except ReceiverFault as error:
            _log.warning("the broker's revocation list was not taken", error=str(error))
            return False

    # --- the own key record ----------------------------------------------------------------------

    async def register(self, session: Session) -> None:
        """See that the broker has this client's newest key record, and so that its inbox is
        there. Once a session: who receives needs it."""
        self._receives = True
        async with self._registering:
            if self._registered is not session:
                await self.register_key(session)
                self._registered = session

    async def register_key(self, session: Session | None = None) -> bytes:
        """Register this client's key record, made anew if it must be; the record."""
        session = session or await self.line.session(self.patience.request)
        record = await asyncio.to_thread(self.identity.key_record, now_ms())
        try:
            known = await session.ask(frames.KeyGet, client=self.name)
        except NotFound:
            known = b""
        if known != record:
            await session.ask(frames.KeyPut, record=record)
            _log.info("registered the key record", client=self.name)
        return record

    # --- once in a while --------------------------------------------------------------------------

    async def _rounds(self) -> None:
        """What a connection that lasts for weeks would otherwise miss."""
        while True:
            await asyncio.sleep(limits.CLIENT_ROUND)
            try:
                await asyncio.to_thread(self._refresh)
                await self.refresh_crl()
                if self._receives:
                    await self.register_key()
            except (Refused, ConnectionLost, WaitTimeout) as error:
                _log.info("the hourly look at the broker failed", error=str(error))
            # A disk that is full or read-only for once must not end the looking for good.
            except (CipherMQError, OSError) as error:
                _log.warning("the hourly look at the broker failed", error=str(error))
