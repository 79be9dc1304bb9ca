"""Where a server is: ``cmq://host:port``."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ciphermq.errors import UsageError

SCHEME: Final = "cmq"
DEFAULT_PORT: Final = 7443


class Address(NamedTuple):
    """A host name or IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address in ``cmq://host[:port]``; `UsageError` with what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME:
        raise UsageError(f"{url!r} is no server's URL: it must begin with {SCHEME}://")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{url!r} is no server's URL: only {SCHEME}://host:port is allowed")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no server's URL: {error}") from None
    if not host:
        raise UsageError(f"{url!r} is no server's URL: the host is missing")
    return Address(host, DEFAULT_PORT if port is None else port)


def of_socket(name: object) -> str:
    """``host:port`` of what a socket calls its own or its peer's name."""
    if isinstance(name, tuple) and len(name) >= 2:
        return str(Address(str(name[0]), int(name[1])))
    return str(name) if name else "an unknown address"
