"""Where a server is: ``cmq://host:port``."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from ciphermq.errors import UsageError

SCHEME: Final = "cmq"
DEFAULT_PORT: Final = 7443

HostPort = tuple[str, int]


def parse_url(url: str) -> HostPort:
    """Host and port of ``cmq://host[:port]``; `UsageError` with what is wrong with it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise UsageError(f"{url!r} is no server's URL: {error}") from None
    if parts.scheme != SCHEME:
        raise UsageError(f"{url!r} is no server's URL: it must begin with {SCHEME}://")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{url!r} is no server's URL: only {SCHEME}://host:port is allowed")
    if not host:
        raise UsageError(f"{url!r} is no server's URL: the host is missing")
    return host, DEFAULT_PORT if port is None else port


def spell(name: object) -> str:
    """``host:port`` of a host and port, or of what a socket calls its own or its peer's name."""
    if not isinstance(name, tuple) or len(name) < 2:
        return str(name) if name else "an unknown address"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
