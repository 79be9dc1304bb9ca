"""A connection to a backend: its name, TCP, a PROXY header, TLS."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ciphermq.errors import CipherMQError, ConnectFailed, HostUnknown, TlsFailed, WaitTimeout
from ciphermq.proxy import proxyheader
from ciphermq.proxy.end import End, prepare
from ciphermq.proxy.gate import Contexts
from ciphermq.proxy.model import Backend
from ciphermq.proxy.proxyheader import Source
from ciphermq.proxy.timeouts import Timeouts

_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Faults of this machine: no other address would do."""


class Place(NamedTuple):
    """One address to try."""

    family: int
    address: tuple[Any, ...]


async def dial(backend: Backend, source: Source, contexts: Contexts, timeouts: Timeouts) -> End:
    """A connection to `backend` on which AMQP can begin.

    `source` is the client, for a backend that wants a PROXY header.
    Raises `TransportError` kinds and `ConfigError`, all of which are the backend's failure.
    """
    end = await _connect(backend, timeouts)
    try:
        if backend.proxy_protocol:
            end.write(proxyheader.write(backend.proxy_protocol, source))
        if backend.tls:
            await _start_tls(end, backend, contexts, timeouts)
    except BaseException:
        end.close(at_once=True)
        raise
    return end


async def _connect(backend: Backend, timeouts: Timeouts) -> End:
    """TCP to the first of its addresses that answers."""
    last: CipherMQError | None = None
    try:
        async with asyncio.timeout(timeouts.connect):
            for place in await _places(backend):
                try:
                    return await _connect_to(place, timeouts.stall)
                except OSError as error:
                    if error.errno in _OURS:
                        raise
                    last = ConnectFailed(
                        f"backend {backend.name} at {place.address[0]}:{place.address[1]} can't "
                        f"be reached: {error.strerror or error}"
                    )
    except TimeoutError as error:
        raise WaitTimeout(
            f"backend {backend.name} at {backend.host}:{backend.port} did not answer within "
            f"{timeouts.connect:g} s"
        ) from error
    raise last or HostUnknown(f"no address is known for {backend.host!r}")


async def _places(backend: Backend) -> Sequence[Place]:
    host = backend.host if backend.dns else backend.address or backend.host
    family = _family(host)
    if family is not None:
        return (Place(family, (host, backend.port)),)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, backend.port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise HostUnknown(
            f"no address is known for {host!r} of backend {backend.name}: {error}"
        ) from error
    return [Place(family, address) for family, _, _, _, address in found]


@lru_cache(1024)
def _family(host: str) -> int | None:
    """The family of an address; None if it is a name."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


async def _connect_to(place: Place, stall: float) -> End:
    sock = socket.socket(place.family, socket.SOCK_STREAM)
    end = End(sock, asyncio.get_running_loop())
    try:
        prepare(sock, stall)
        code = sock.connect_ex(place.address)
        if code == errno.EINPROGRESS:
            if not _is_connected(sock):
                await end.connected()
        elif code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        end.close(at_once=True)
        raise
    return end


def _is_connected(sock: socket.socket) -> bool:
    """Whether it is so already, as it always is on one machine: no need to wait then."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _start_tls(end: End, backend: Backend, contexts: Contexts, timeouts: Timeouts) -> None:
    where = f"backend {backend.name} at {backend.host}:{backend.port}"
    try:
        async with asyncio.timeout(timeouts.egress_tls):
            await end.start_tls(contexts.egress(backend), server_name=backend.host)
    except TimeoutError as error:
        raise WaitTimeout(
            f"{where} did not finish its TLS handshake within {timeouts.egress_tls:g} s"
        ) from error
    except TlsFailed as error:
        raise TlsFailed(f"{where}: {error}") from error
