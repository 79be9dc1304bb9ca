"""A connection to a backend: its name, TCP, a PROXY header, TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from ciphermq.errors import CipherMQError, ConnectFailed, HostUnknown, TlsFailed, WaitTimeout
from ciphermq.proxy import proxyheader
from ciphermq.proxy.end import End, prepare
from ciphermq.proxy.gate import Contexts
from ciphermq.proxy.model import Backend
from ciphermq.proxy.proxyheader import Source
from ciphermq.proxy.timeouts import Timeouts


class Place(NamedTuple):
    """One address to try."""

    family: int
    address: tuple[Any, ...]


async def dial(backend: Backend, source: Source, contexts: Contexts, timeouts: Timeouts) -> End:
    """A connection to `backend` on which AMQP can begin.

    `source` is the client, for a backend that wants a PROXY header.
    Raises `TransportError` kinds and `ConfigError`, all of which are the backend's failure.
    """
    sock = await _connect(backend, timeouts)
    end = End(sock, asyncio.get_running_loop())
    try:
        if backend.proxy_protocol:
            end.write(proxyheader.write(backend.proxy_protocol, source))
        if backend.tls:
            await _start_tls(end, backend, contexts, timeouts)
    except BaseException:
        end.close(at_once=True)
        raise
    return end


async def _connect(backend: Backend, timeouts: Timeouts) -> socket.socket:
    """TCP to the first of its addresses that answers."""
    last: CipherMQError | None = None
    try:
        async with asyncio.timeout(timeouts.connect):
            for place in await _places(backend):
                try:
                    return await _connect_to(place, timeouts.stall)
                except OSError as error:
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
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        pass
    else:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        return [Place(family, (host, backend.port))]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, backend.port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise HostUnknown(
            f"no address is known for {host!r} of backend {backend.name}: {error}"
        ) from error
    return [Place(family, address) for family, _, _, _, address in found]


async def _connect_to(place: Place, stall: float) -> socket.socket:
    sock = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        prepare(sock, stall)
        await asyncio.get_running_loop().sock_connect(sock, place.address)
    except BaseException:
        sock.close()
        raise
    return sock


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
