"""Who is let in: from a secure connection to the session that speaks its protocol.

Whoever is refused, and wherever on that way, is logged with address and reason; a refusal that can
be said in the protocol is said to the peer as well. One reception serves all the roads of a server,
so that a client's connections count together.
"""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from ciphermq import limits
from ciphermq.errors import (
    AccessRefused,
    CertificateError,
    CipherMQError,
    ProtocolNotOffered,
    ResourceLimit,
    TlsFailed,
)
from ciphermq.net.conduit import Conduit
from ciphermq.net.link import Link
from ciphermq.net.tls import ALPN, TLS_1_3
from ciphermq.pki.names import client_id_of
from ciphermq.telemetry import Counters, get_logger

StartSession = Callable[[Conduit, str], None]
"""Called with a new conduit and its client's id: attaches what talks through it."""

Check = Callable[[bytes, ssl.SSLContext], None]
"""Called with a client's certificate (DER) and the context of its handshake; raises
`CertificateError` for one that is not let in all the same."""

_log = get_logger("net")


def let_in(certificate: bytes, context: ssl.SSLContext) -> None:
    """The check that finds nothing."""


class Reception:
    """The connections that are past their TLS handshake."""

    def __init__(
        self,
        sessions: Mapping[str | None, StartSession],
        *,
        max_connections: int = limits.MAX_CONNECTIONS,
        max_connections_per_client: int = limits.MAX_CONNECTIONS_PER_CLIENT,
        check: Check = let_in,
    ) -> None:
        """`sessions`: by the protocol's name in TLS; None stands for a peer that names none."""
        self.counters = Counters("accepted", "refused", "tls_failed", "accept_pauses")
        self.max_connections = max_connections
        self.handshaking = 0
        """Connections that are in their handshake, on all roads."""
        self._displaced = 0
        self._displaced_told = 0.0
        self._sessions = sessions
        self._check = check
        self._most_per_client = max_connections_per_client
        self._clients: dict[Conduit, str] = {}
        self._per_client: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many there are, with those still in their handshake."""
        return len(self._clients) + self.handshaking

    @property
    def channels(self) -> list[Conduit]:
        """The connections past their TLS handshake."""
        return list(self._clients)

    def full(self, peer: str) -> bool:
        """Whether there is no place for one more; then `peer` has been refused."""
        if self.connections < self.max_connections:
            return False
        self.refused(peer, f"all {self.max_connections} connections are taken")
        return True

    def failed(self, peer: str, error: CipherMQError) -> None:
        """A handshake has failed."""
        self.counters.add("tls_failed")
        self.counters.add("refused")
        _log.error("TLS handshake failed", peer=peer, reason=str(error))

    def displaced(self, peer: str) -> None:
        """A handshake had to make way for a newer one. There may be thousands in a second, so that
        one line a second says so."""
        self.counters.add("refused")
        self._displaced += 1
        if (now := time.monotonic()) - self._displaced_told >= 1:
            _log.warning("handshakes make way for newer ones", peer=peer, number=self._displaced)
            self._displaced, self._displaced_told = 0, now

    def refused(self, peer: str, reason: str) -> None:
        """Somebody was not let in."""
        self.counters.add("refused")
        _log.warning("connection refused", peer=peer, reason=reason)

    def welcome(self, channel: Conduit, context: ssl.SSLContext) -> None:
        """TLS is up, by `context`: find out who it is, and hand the channel to the protocol it
        chose."""
        self._clients[channel] = ""
        channel.on_end(partial(self._forget, channel))
        try:
            # Who names no protocol speaks 1.x, if that is let in at all, and 1.x knows no usages.
            required = channel.protocol is not None or None not in self._sessions
            client = client_id_of(channel.peer_certificate, usage_required=required)
            self._check(channel.peer_certificate, context)
            start = self._start_of(channel, client)
        except CertificateError as error:
            self._turn_away(channel, AccessRefused(str(error)))
        except CipherMQError as error:
            self._turn_away(channel, error)
        else:
            self._per_client[client] += 1
            self._clients[channel] = client
            start(channel, client)

    def _start_of(self, channel: Conduit, client: str) -> StartSession:
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

    def _turn_away(self, channel: Conduit, error: CipherMQError) -> None:
        if channel.protocol == ALPN:
            self.refused(channel.peer, str(error))
            Link(channel).fail(error)
        else:  # it would not understand a frame
            channel.abort(error)

    def _forget(self, channel: Conduit) -> None:
        client = self._clients.pop(channel)
        if client:
            self._per_client[client] -= 1
            if not self._per_client[client]:
                del self._per_client[client]
