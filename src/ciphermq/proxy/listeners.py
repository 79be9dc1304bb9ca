"""Listening sockets: opened once by the supervisor, accepted from by the workers.

Every worker has a socket of its own for each listener (SO_REUSEPORT), and the kernel deals new
connections out among them. The supervisor keeps all of them open: what has connected to a worker
that dies waits in its socket for the next one, and a restart hands the sockets themselves over, so
there is never a moment in which a client is refused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ciphermq import limits
from ciphermq.errors import ListenFailed
from ciphermq.proxy.model import Listener
from ciphermq.telemetry import get_logger

_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What `accept` says when it is the machine that can't, not the connection."""

_log = get_logger("proxy.listeners")

Address = tuple[str, int]
OnAccept = Callable[[socket.socket, Address, Listener], None]


def open_sockets(listener: Listener, count: int) -> list[socket.socket]:
    """`count` sockets for every address of `listener`, which take connections at once.

    `ListenFailed` when its port is somebody else's already, or its address isn't here.
    """
    opened: list[socket.socket] = []
    try:
        for family, address in _addresses(listener):
            # SO_REUSEPORT would share a port with another program of this user without a word:
            # a first socket without it finds that one.
            _open(family, address, shared=False).close()
            opened += [_open(family, address, shared=True) for _ in range(count)]
    except OSError as error:
        for sock in opened:
            sock.close()
        raise ListenFailed(_sentence(listener, error)) from error
    return opened


def _addresses(listener: Listener) -> list[tuple[socket.AddressFamily, Address]]:
    """Where it listens. Both families have sockets of their own, so that a client's address has
    only one spelling (not ``::ffff:192.0.2.1``)."""
    if listener.address:
        found = socket.getaddrinfo(
            listener.address,
            listener.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE,
        )
        return [(found[0][0], (str(found[0][4][0]), listener.port))]
    everywhere = [(socket.AF_INET, ("0.0.0.0", listener.port))]  # noqa: S104  (asked for)
    if _has_ipv6():
        everywhere.append((socket.AF_INET6, ("::", listener.port)))
    return everywhere


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _open(family: socket.AddressFamily, address: Address, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(address)
        sock.listen(limits.PROXY_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _sentence(listener: Listener, error: OSError) -> str:
    place = (
        f"{listener.address} port {listener.port}"
        if listener.address
        else (f"port {listener.port}")
    )
    reasons = {
        errno.EADDRINUSE: "another program listens there",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    }
    return f"Can't listen on {place}: {reasons.get(error.errno or 0, error.strerror or error)}."


def shares(sockets: Sequence[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Who accepts from which: all sockets are dealt out, and every worker has one if there are
    enough. (After a restart with another number of workers there may not be.)"""
    return [list(sockets[worker::workers]) for worker in range(workers)]


class Acceptor:
    """Takes new connections in, as long as there are descriptors for them.

    A session needs two descriptors, so beyond `most` sessions nothing is accepted until some have
    ended; the same when the process or the machine has none left. What is not accepted waits in the
    kernel, and the sessions that are there don't notice.
    """

    def __init__(self, on_accept: OnAccept, held: Callable[[], int], most: int) -> None:
        """`held` tells how many sessions there are now."""
        self._on_accept = on_accept
        self._held = held
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[Listener, list[socket.socket]] = {}
        self._resume: asyncio.TimerHandle | None = None
        # Given up for a moment when there is none left, so that the log and the control socket
        # go on working.
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self.refused = 0
        """How often accepting had to stop."""

    @property
    def accepting(self) -> bool:
        """Whether new connections are taken in now."""
        return self._resume is None and bool(self._sockets)

    def add(self, listener: Listener, sock: socket.socket) -> None:
        """Accept from `sock`, which is this worker's from now on."""
        sock.setblocking(False)
        self._sockets.setdefault(listener, []).append(sock)
        if self._resume is None:
            self._watch(sock, listener)

    def remove(self, listeners: Iterable[Listener], *, drain_backlog: bool = True) -> None:
        """Let go of their sockets. With `drain_backlog` whoever has connected is taken in first:
        closing would reset them."""
        for listener in list(listeners):
            for sock in self._sockets.pop(listener, []):
                self._loop.remove_reader(sock.fileno())
                if drain_backlog and self._resume is None:
                    self._accept(sock, listener, limits.PROXY_BACKLOG)
                sock.close()

    def close(self, *, drain_backlog: bool) -> None:
        """Let go of all of them."""
        self.remove(self._sockets, drain_backlog=drain_backlog)
        if self._resume is not None:
            self._resume.cancel()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _watch(self, sock: socket.socket, listener: Listener) -> None:
        at_once = limits.PROXY_ACCEPTS_AT_ONCE
        self._loop.add_reader(sock.fileno(), self._accept, sock, listener, at_once)

    def _accept(self, sock: socket.socket, listener: Listener, at_once: int) -> None:
        for _ in range(at_once):
            if self._held() >= self._most:
                self._pause(f"{self._most} sessions are all its descriptors allow")
                return
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SCARCE:
                    self._pause(error.strerror or "no descriptors")
                    return
                # The client has gone again, or the network has said something about it.
                continue
            connection.setblocking(False)
            self._on_accept(connection, (address[0], address[1]), listener)

    def _pause(self, reason: str) -> None:
        """Accept nothing for a moment. The sockets stay open: whoever connects waits."""
        if self._resume is not None:
            return
        self.refused += 1
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        for sockets in self._sockets.values():
            for sock in sockets:
                self._loop.remove_reader(sock.fileno())
        self._resume = self._loop.call_later(limits.PROXY_ACCEPT_PAUSE, self._again)
        _log.error(
            "no new connections are accepted until descriptors are free",
            reason=reason,
            sessions=self._held(),
            remedy="raise the limit on open files (LimitNOFILE), or add workers",
        )

    def _again(self) -> None:
        self._resume = None
        try:
            if self._spare is None:
                self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._resume = self._loop.call_later(limits.PROXY_ACCEPT_PAUSE, self._again)
            return
        if self._held() >= self._most:
            self._resume = self._loop.call_later(limits.PROXY_ACCEPT_PAUSE, self._again)
            return
        _log.info("new connections are accepted again", sessions=self._held())
        for listener, sockets in self._sockets.items():
            for sock in sockets:
                self._watch(sock, listener)


class ListeningSockets:
    """All listening sockets of the proxy, in the supervisor's hands."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._open: dict[Listener, list[socket.socket]] = {}

    def prepare(self, wanted: Sequence[Listener]) -> dict[Listener, list[socket.socket]]:
        """The sockets for those of `wanted` that have none; nothing changes until `settle`.

        A listener that only changes its ways (TLS, PROXY headers) keeps its port's sockets.
        `ListenFailed`: then none has been opened.
        """
        by_key = {old.key: old for old in self._open if old not in wanted}
        prepared: dict[Listener, list[socket.socket]] = {}
        try:
            for listener in wanted:
                if listener in self._open:
                    continue
                former = by_key.get(listener.key)
                if former is not None:
                    prepared[listener] = [sock.dup() for sock in self._open[former]]
                else:
                    prepared[listener] = open_sockets(listener, self._workers)
        except (ListenFailed, OSError):
            close_sockets(prepared)
            raise
        return prepared

    def settle(
        self, wanted: Sequence[Listener], prepared: dict[Listener, list[socket.socket]]
    ) -> None:
        """Take over what was prepared, and close what isn't wanted any more."""
        for listener in [one for one in self._open if one not in wanted]:
            close_sockets({listener: self._open.pop(listener)})
        self._open.update(prepared)

    def adopt(self, listeners: Sequence[Listener], descriptors: Sequence[int]) -> None:
        """Take over sockets that another process has opened, one a listener named."""
        for listener, descriptor in zip(listeners, descriptors, strict=True):
            self._open.setdefault(listener, []).append(socket.socket(fileno=descriptor))

    def of(
        self, worker: int, listeners: Iterable[Listener] | None = None
    ) -> tuple[tuple[Listener, ...], list[int]]:
        """What one worker accepts from: of these listeners, or of all."""
        wanted = self._open if listeners is None else listeners
        return _flat({one: shares(self._open[one], self._workers)[worker] for one in wanted})

    def all(self) -> tuple[tuple[Listener, ...], list[int]]:
        """Everything, to be handed over."""
        return _flat(self._open)

    def close(self) -> None:
        """Close them here; a process that was given them still has them."""
        close_sockets(self._open)
        self._open.clear()


def _flat(
    sockets: Mapping[Listener, Sequence[socket.socket]],
) -> tuple[tuple[Listener, ...], list[int]]:
    pairs = [(listener, sock.fileno()) for listener, some in sockets.items() for sock in some]
    return tuple(listener for listener, _ in pairs), [descriptor for _, descriptor in pairs]


def close_sockets(sockets: Mapping[Listener, Sequence[socket.socket]]) -> None:
    """Close all of them."""
    for some in sockets.values():
        for sock in some:
            sock.close()
