"""How long each phase of a session may take. None lasts for ever."""

from __future__ import annotations

from dataclasses import dataclass

from ciphermq import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds, each counted from the phase's beginning. `Configuration.timeouts` sets them."""

    ingress_tls: float = limits.PROXY_CLIENT_TIMEOUT
    """The client's PROXY header, where one is expected, and TLS handshake."""
    header: float = limits.PROXY_CLIENT_TIMEOUT
    """Until the client's protocol header."""
    start_ok: float = limits.PROXY_CLIENT_TIMEOUT
    tune_ok: float = limits.PROXY_CLIENT_TIMEOUT
    open: float = limits.PROXY_CLIENT_TIMEOUT
    admission: float = limits.PROXY_ADMISSION_TIMEOUT
    """The authentication service, names, and limits counted elsewhere."""
    paused_hold: float = limits.PROXY_PAUSED_HOLD
    """How long a client of a paused vhost is held before it is closed with 320."""
    connect: float = limits.PROXY_CONNECT_TIMEOUT
    """One backend: its name and TCP."""
    egress_tls: float = limits.PROXY_BROKER_TIMEOUT
    start: float = limits.PROXY_BROKER_TIMEOUT
    tune: float = limits.PROXY_BROKER_TIMEOUT
    open_ok: float = limits.PROXY_OPEN_OK_TIMEOUT
    close_ok: float = limits.PROXY_CLOSE_OK_TIMEOUT
    """For the answer to a Close of ours, and for what is left to be written at the end."""
    stall: float = limits.PROXY_STALL_TIMEOUT
    """Data sent and not acknowledged by the peer's machine for this long: it is gone
    (TCP_USER_TIMEOUT); and a silent one is asked by keepalive after as long."""
    drain: float = limits.PROXY_DRAIN
    """At exit and restart: how long sessions may still go on after their Close."""
