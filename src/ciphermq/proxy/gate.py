"""What a session asks of the rest of the proxy, and what it is told.

A session knows bytes and sockets; who may come in, where to, and how many, is decided behind the
`Gate`. A worker has one gate for all of its sessions.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ciphermq.errors import SessionRefused
from ciphermq.proxy.model import Backend, Listener
from ciphermq.proxy.statistics import Ending

if TYPE_CHECKING:
    from ciphermq.proxy.session import Session

__all__ = ["Admission", "Contexts", "Credentials", "Gate", "Opening", "Refusal"]

Refusal = SessionRefused
"""What a gate says no with."""


class Credentials(bytes):
    """A client's SASL response, which no log line, traceback or format shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Credentials(hidden)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is known of a client when its Open has come, before a broker is chosen."""

    vhost: str
    client: str
    """Its address: the socket's, or what a PROXY header said."""
    client_port: int
    connection_name: str
    """Client-property `connection_name`; empty if there is none."""
    mechanism: str
    credentials: Credentials = field(repr=False)
    listen_port: int
    tls: bool
    certificate_name: str | None
    """Common name of the certificate the client proved to have, if it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The client may come in; what is not None replaces what it sent itself."""

    mechanism: str | None = None
    credentials: Credentials | None = field(default=None, repr=False)
    auth_reason: str | None = None
    """Goes to the broker as client-property `amqpprox_auth`."""
    client_name: str | None = None
    """How the client is called in `amqpprox_client` instead of by its address (reverse DNS)."""
    data_rate: int | None = None
    """Bytes a second from the client, paced."""
    data_rate_alarm: int | None = None
    """Bytes a second from the client, beyond which `Gate.alarm` is told, at most once a second."""


class Gate(Protocol):
    """Decisions about sessions, and what is to be known of them."""

    async def admit(self, opening: Opening, session: Session) -> Admission:
        """May this client come in? Raises `Refusal`.

        While the vhost is paused it waits, inside ``with session.held():``, which counts the
        session as paused and gives it `Timeouts.paused_hold` instead of `Timeouts.admission`.
        Cancelled when the client leaves meanwhile.
        """

    def route(self, opening: Opening) -> Sequence[Backend]:
        """The backends in the order in which they are to be tried. Raises `Refusal`.

        Asked once, when the client is admitted. When all have failed, the client is told so with
        Close 320.
        """

    def connected(self, backend: Backend) -> None:
        """The backend answered with its Start."""

    def failed(self, backend: Backend, error: Exception) -> None:
        """The backend could not be reached, or ended or stalled before its Start."""

    def opened(self, session: Session) -> None:
        """The broker's OpenOk came: bytes go both ways from now on."""

    def ended(self, session: Session, how: Ending) -> None:
        """Nothing is left of it. Called once for every session, opened or not."""

    def alarm(self, session: Session, rate: float) -> None:
        """The client sends more bytes a second than `Admission.data_rate_alarm`."""


class Contexts(Protocol):
    """TLS contexts as they are now; `tls.Contexts` makes them of the configuration."""

    def ingress(self, listener: Listener) -> ssl.SSLContext:
        """For clients of a secure listener. Raises `ConfigError` when there is no certificate."""

    def egress(self, backend: Backend) -> ssl.SSLContext:
        """For a backend that wants TLS. Raises `ConfigError`."""
