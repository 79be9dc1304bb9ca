"""Take connections: TCP, then TLS, then the session that speaks the protocol TLS agreed on.

Whoever is refused, and wherever on that way, is logged with address and reason; a refusal that
can be said in the protocol is said to the peer as well.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ciphermq import limits
from ciphermq.errors import (
    AccessRefused,
    CertificateError,
    CipherMQError,
    ConfigError,
    ProtocolNotOffered,
    ResourceLimit,
    TlsFailed,
)
from ciphermq.net import address
from ciphermq.net.address import HostPort
from ciphermq.net.channel import Buffers, Channel
from ciphermq.net.link import Link
from ciphermq.net.options import LinkOptions
from ciphermq.net.tls import ALPN, TLS_1_3
from ciphermq.pki.names import client_id_of
from ciphermq.telemetry import Counters, get_logger

StartSession = Callable[[Channel, str], None]
"""Called with a new channel and its client's id: attaches what talks through it."""

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
        context: ssl.SSLContext,
        sessions: Mapping[str | None, StartSession],
        *,
        options: LinkOptions | None = None,
        max_connections: int = limits.MAX_CONNECTIONS,
        max_connections_per_client: int = limits.MAX_CONNECTIONS_PER_CLIENT,
        check: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """`sessions`: by the protocol's name in TLS; None stands for a peer that names none.

        `check` is given each client's certificate (DER), and raises `CertificateError`."""
        self.where = where
        self.counters = Counters("accepted", "refused", "tls_failed", "accept_pauses")
        self._context = context
        self._sessions = sessions
        self._options = options or LinkOptions()
        self._most = max_connections
        self._most_per_client = max_connections_per_client
        self._check = check
        self._socket: socket.socket | None = None
        self._full = False
        self._resume: asyncio.TimerHandle | None = None
        self._handshakes: set[Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[Channel, str] = {}
        self._per_client: Counter[str] = Counter()
        self._buffers = Buffers()

    @property
    def connections(self) -> int:
        """How many there are, with those still in their handshake."""
        return len(self._clients) + len(self._handshakes)

    @property
    def channels(self) -> list[Channel]:
        """The connections past their TLS handshake."""
        return list(self._clients)

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
        if self.connections >= self._most:
            sock.close()
            self._refused(peer, f"all {self._most} connections are taken")
            return
        self.counters.add("accepted")
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        channel = Channel(
            self._context,
            self._secured,
            partial(self._failed, peer),
            options=self._options,
            buffers=self._buffers,
        )
        channel.on_end(partial(self._shaken, channel))
        self._handshakes.add(channel)
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
            self._refused(peer, str(error))
            self._shaken(channel)
        except asyncio.CancelledError:
            sock.close()
            raise

    def _shaken(self, channel: Channel) -> None:
        """A connection is past its handshake, or has ended."""
        self._handshakes.discard(channel)
        if self._full:
            self._full = False
            self._accepting(True)

    def _failed(self, peer: str, error: CipherMQError) -> None:
        self.counters.add("tls_failed")
        self.counters.add("refused")
        _log.error("TLS handshake failed", peer=peer, reason=str(error))

    def _secured(self, channel: Channel) -> None:
        """TLS is up: find out who it is, and hand the channel to the protocol it chose."""
        self._shaken(channel)
        self._clients[channel] = ""
        channel.on_end(partial(self._forget, channel))
        try:
            # Who names no protocol speaks 1.x, if that is let in at all, and 1.x knows no usages.
            required = channel.protocol is not None or None not in self._sessions
            client = client_id_of(channel.peer_certificate, usage_required=required)
            self._check(channel.peer_certificate)
            start = self._start_of(channel, client)
        except CertificateError as error:
            self._turn_away(channel, AccessRefused(str(error)))
        except CipherMQError as error:
            self._turn_away(channel, error)
        else:
            self._per_client[client] += 1
            self._clients[channel] = client
            start(channel, client)

    def _start_of(self, channel: Channel, client: str) -> StartSession:
        start = self._sessions.get(channel.protocol)
        if channel.protocol is not None and channel.tls_version != TLS_1_3:
            raise TlsFailed(
                f"{client} at {channel.peer} came with {channel.tls_version}, which is for "
                f"CipherMQ 1.x alone: {channel.protocol} is spoken in {TLS_1_3}"
            )
        if start is None:
            offered = ", ".join(sorted(name for name in self._sessions if name))
            raise ProtocolNotOffered(
                f"{client} at {channel.peer} offered none of: {offered} (ALPN)"
            )
        if self._per_client[client] >= self._most_per_client:
            raise ResourceLimit(f"{client} has {self._most_per_client} connections already")
        return start

    def _turn_away(self, channel: Channel, error: CipherMQError) -> None:
        if channel.protocol == ALPN:
            self._refused(channel.peer, str(error))
            Link(channel).fail(error)
        else:  # it would not understand a frame
            channel.abort(error)

    def _refused(self, peer: str, reason: str) -> None:
        self.counters.add("refused")
        _log.warning("connection refused", peer=peer, reason=reason)

    def _forget(self, channel: Channel) -> None:
        client = self._clients.pop(channel)
        if client:
            self._per_client[client] -= 1
            if not self._per_client[client]:
                del self._per_client[client]


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
