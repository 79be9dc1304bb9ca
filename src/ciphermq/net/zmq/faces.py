"""What a socket says of its TLS sessions, on an event loop or not."""

from __future__ import annotations

import ssl

import zmq

from ciphermq.errors import UsageError
from ciphermq.net.zmq.ends import new_token
from ciphermq.wire.tlszmq.dealer import DealerMachine, Times
from ciphermq.wire.tlszmq.header import Kind
from ciphermq.wire.tlszmq.router import RouterMachine


def dealer_machine(
    tls: ssl.SSLContext, kind: Kind, server_name: str, *, bare: bool, times: Times | None
) -> DealerMachine:
    """The machine behind a DEALER, or a REQ where `kind` is REQUEST; `bare` is for that alone."""
    if bare and kind is not Kind.REQUEST:
        raise UsageError("the bare protocol is for TlsReq")
    return DealerMachine(
        tls,
        Kind.BARE if bare else kind,
        server_name=server_name,
        new_token=new_token,
        where=server_name,
        times=times,
    )


def socket_type(kind: Kind) -> int:
    """ZeroMQ's for sessions of this kind."""
    return zmq.REQ if kind is Kind.REQUEST else zmq.DEALER


class DealerFace:
    """A client's."""

    _machine: DealerMachine

    @property
    def peer_certificate(self) -> bytes:
        """The server's, DER; empty while there is no session."""
        return self._machine.peer_certificate

    @property
    def tls_version(self) -> str:
        """``TLSv1.3`` or ``TLSv1.2``; empty while there is no session."""
        return self._machine.tls_version

    @property
    def sessions(self) -> int:
        """TLS sessions begun so far."""
        return self._machine.sessions


class RouterFace:
    """A server's."""

    _machine: RouterMachine

    @property
    def sessions(self) -> int:
        """How many TLS sessions there are."""
        return self._machine.sessions
