"""What can be set on a link; the defaults are the system's limits."""

from __future__ import annotations

from dataclasses import dataclass

from ciphermq import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """Times in seconds, sizes in bytes. Tests make them short."""

    connect_timeout: float = limits.CONNECT_TIMEOUT
    """For the name's look-up and TCP."""
    handshake_timeout: float = limits.HANDSHAKE_TIMEOUT
    """For TLS, and then again for the peer's HELLO."""
    frame_timeout: float = limits.FRAME_TIMEOUT
    heartbeat: float = limits.HEARTBEAT
    write_stall_timeout: float = limits.WRITE_STALL_TIMEOUT
    linger: float = limits.LINGER
    write_high_water: int = limits.WRITE_HIGH_WATER
    most_untaken: int = limits.MAX_UNTAKEN
    tls_records: int = limits.TLS_RECORDS_BEFORE_RECONNECT
    """Records in one direction after which the connection is to be replaced."""

    @property
    def tick(self) -> float:
        """How often a link looks at its clocks: often enough to be late by a quarter at most."""
        times = (self.handshake_timeout, self.frame_timeout, self.heartbeat)
        return min(*times, self.write_stall_timeout) / 4
