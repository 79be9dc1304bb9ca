"""Where a server is, and by which road: ``cmq://host:port`` or ``zmq+tls://host:port``."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from ciphermq.errors import UsageError

SCHEME: Final = "cmq"
"""TLS over TCP."""
ZMQ_SCHEME: Final = "zmq+tls"
"""TLS over ZeroMQ."""

DEFAULT_PORT: Final = 7443
DEFAULT_ZMQ_PORT: Final = 7444

_PORTS: Final = {SCHEME: DEFAULT_PORT, ZMQ_SCHEME: DEFAULT_ZMQ_PORT}

HostPort = tuple[str, int]


def parse_url(url: str) -> HostPort:
    """Host and port of ``cmq://host[:port]`` or ``zmq+tls://host[:port]``.

    `UsageError` says what is wrong with it."""
    return parse_road(url)[1]


def parse_road(url: str) -> tuple[str, HostPort]:
    """The scheme too: which road to take."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise UsageError(f"{url!r} is no server's URL: {error}") from None
    scheme = parts.scheme
    if scheme not in _PORTS:
        raise UsageError(
            f"{url!r} is no server's URL: it must begin with {SCHEME}:// (TCP) or {ZMQ_SCHEME}:// "
            "(ZeroMQ)"
        )
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{url!r} is no server's URL: only {scheme}://host:port is allowed")
    if not host:
        raise UsageError(f"{url!r} is no server's URL: the host is missing")
    return scheme, (host, _PORTS[scheme] if port is None else port)


def spell(name: object) -> str:
    """``host:port`` of a host and port, or of what a socket calls its own or its peer's name."""
    if not isinstance(name, tuple) or len(name) < 2:
        return str(name) if name else "an unknown address"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
