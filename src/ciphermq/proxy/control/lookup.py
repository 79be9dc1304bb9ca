"""Host names in commands: looked up while whoever typed them is still there to be told."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from msgspec.structs import replace

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.model import Backend, Configuration


async def address_of(host: str, patience: float = limits.PROXY_RESOLVE_TIMEOUT) -> str:
    """A host's first address. `ProxyError` if it has none, or nobody says within `patience`."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(patience):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ProxyError(
            f"Nobody said within {patience:.0f} s which address '{host}' has."
        ) from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ProxyError(f"'{host}' has no address: {reason}") from None
    return str(found[0][4][0])


async def with_addresses(configuration: Configuration) -> Configuration:
    """A configuration out of a file, with the addresses that its backends' names have now.

    A name that has none now keeps none: it is looked up again when a session needs it.
    """

    async def look(backend: Backend) -> Backend:
        if backend.dns or backend.address:
            return backend
        try:
            return replace(backend, address=await address_of(backend.host))
        except ProxyError:
            return backend

    backends = await asyncio.gather(*map(look, configuration.backends.values()))
    return replace(configuration, backends={backend.name: backend for backend in backends})
