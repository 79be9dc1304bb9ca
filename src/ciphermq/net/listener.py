"""Take connections over TCP: a listening socket, and the handshakes of those who come."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.net import address
from ciphermq.net.address import HostPort
from ciphermq.net.channel import Channel
from ciphermq.net.conduit import Buffers, Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.net.reception import Check, Reception, StartSession, let_in
from ciphermq.telemetry import get_logger

_ACCEPTS_A_TURN: Final = 64
_ACCEPT_PAUSE: Final = 1.0
"""Seconds until accepting is tried again after descriptors ran out."""

_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})

_log = get_logger("net")


class Listener:
    """A listening socket and the connections that came through it."""

    def __init__(
        self,
        where: HostPort,
        context: Callable[[], ssl.SSLContext],
        sessions: Mapping[str | None, StartSession] | Reception,
        *,
        options: LinkOptions | None = None,
        max_connections: int = limits.MAX_CONNECTIONS,
        max_connections_per_client: int = limits.MAX_CONNECTIONS_PER_CLIENT,
        check: Check = let_in,
    ) -> None:
        """`context` is asked for that of each new connection. `sessions`: by the protocol's name in
        TLS, None for a peer that names none; or a reception shared with other roads, whose bounds
        and check then count."""
        self.where = where
        if not isinstance(sessions, Reception):
            sessions = Reception(
                sessions,
                max_connections=max_connections,
                max_connections_per_client=max_connections_per_client,
                check=check,
            )
        self.reception = sessions
        self.counters = sessions.counters
        self._context = context
        self._options = options or LinkOptions()
        self._socket: socket.socket | None = None
        self._full = False
        self._resume: asyncio.TimerHandle | None = None
        self._handshakes: set[Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._buffers = Buffers()

    @property
    def connections(self) -> int:
        """How many there are, with those still in their handshake."""
        return self.reception.connections

    @property
    def channels(self) -> list[Conduit]:
        """The connections past their TLS handshake."""
        return self.reception.channels

    def start(self) -> HostPort:
        """Listen; the address that was bound. `ConfigError` naming it when that can't be done."""
        try:
            self._socket = _listen(self.where)
        except OSError as error:
            raise ConfigError(_cannot_listen(self.where, error)) from error
        self.where = self._socket.getsockname()[:2]
        self._accepting(True)
        return self.where

    def stop(self) -> None:
        """Take no more connections, and end those still in their handshake. May be repeated."""
        if self._socket is None:
            return
        self._accepting(False)
        self._socket.close()
        self._socket = None
        for task in self._tasks:
            task.cancel()
        for channel in self._handshakes:
            channel.abort()

    # --- TCP --------------------------------------------------------------------------------

    def _accepting(self, on: bool) -> None:
        loop = asyncio.get_running_loop()
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket is not None:
            if on:
                loop.add_reader(self._socket, self._accept)
            else:
                loop.remove_reader(self._socket)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            # Strangers who connect and say nothing get this many places and no more.
            if self._socket is None or len(self._handshakes) >= limits.MAX_HANDSHAKES:
                self._accepting(False)
                self._full = True
                return
            try:
                sock, name = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._accepted(sock, address.spell(name))

    def _accepted(self, sock: socket.socket, peer: str) -> None:
        if self.reception.full(peer):
            sock.close()
            return
        self.counters.add("accepted")
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        context = self._context()
        channel = Channel(
            context,
            partial(self._secured, context),
            partial(self.reception.failed, peer),
            options=self._options,
            buffers=self._buffers,
        )
        channel.on_end(partial(self._shaken, channel))
        self._handshakes.add(channel)
        self.reception.handshaking += 1
        task = asyncio.get_running_loop().create_task(self._begin(channel, sock, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory: what is connected goes on, newcomers wait in the kernel."""
        self.counters.add("accept_pauses")
        self._accepting(False)
        self._resume = asyncio.get_running_loop().call_later(_ACCEPT_PAUSE, self._accepting, True)
        advice = "; raise the limit of open files (ulimit -n)" if error.errno in _NO_FILES else ""
        _log.error(
            f"no connection can be accepted for now: {error.strerror}{advice}",
            connections=self.connections,
        )

    # --- TLS --------------------------------------------------------------------------------

    async def _begin(self, channel: Channel, sock: socket.socket, peer: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: channel, sock)
        except OSError as error:
            sock.close()
            self.reception.refused(peer, str(error))
            self._shaken(channel)
        except asyncio.CancelledError:
            sock.close()
            raise

    def _shaken(self, channel: Channel) -> None:
        """A connection is past its handshake, or has ended."""
        if channel in self._handshakes:
            self._handshakes.discard(channel)
            self.reception.handshaking -= 1
        if self._full:
            self._full = False
            self._accepting(True)

    def _secured(self, context: ssl.SSLContext, channel: Conduit) -> None:
        """TLS is up."""
        if isinstance(channel, Channel):
            self._shaken(channel)
        self.reception.welcome(channel, context)


def _listen(where: HostPort) -> socket.socket:
    """A listening socket; for ``::`` it takes IPv4 as well."""
    family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    sock = socket.create_server(
        where,
        family=family,
        backlog=limits.LISTEN_BACKLOG,
        dualstack_ipv6=where[0] == "::" and socket.has_dualstack_ipv6(),
    )
    sock.setblocking(False)
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out about peers that are gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", limits.KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", limits.KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", limits.KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):  # not every system can set it for one socket
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _cannot_listen(where: HostPort, error: OSError) -> str:
    what = f"the server can't listen at {address.spell(where)}"
    if error.errno == errno.EADDRINUSE:
        return f"{what}: the port is taken, perhaps by another broker; stop it or choose another"
    if error.errno == errno.EACCES:
        return f"{what}: ports below 1024 need a privilege; choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{what}: this machine has no such address"
    return f"{what}: {error.strerror or error}"
