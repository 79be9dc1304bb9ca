"""The queue's client on a ZeroMQ socket: one DEALER for one connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import zmq

from ciphermq import limits
from ciphermq.errors import CipherMQError, RemoteProtocolError
from ciphermq.net import address
from ciphermq.net.address import HostPort
from ciphermq.net.conduit import Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.net.zmq.channel import ZmqChannel
from ciphermq.net.zmq.ends import configure, new_socket, new_token, size_buffer
from ciphermq.net.zmq.wires import Wires
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import DELIMITER, Buffer, parse


class _Dealer:
    """The socket of one channel, for as long as that lasts."""

    def __init__(self, where: HostPort) -> None:
        sock = new_socket(zmq.DEALER)
        configure(sock)
        sock.ipv6 = ":" in where[0]
        there = f"tcp://{address.spell(where)}"
        size_buffer(sock, there)
        sock.connect(there)
        self.channel: ZmqChannel | None = None
        self.wires = Wires(sock, self._receive, self._broken)
        self._loop = asyncio.get_running_loop()
        self._ticker = self._loop.call_later(limits.ZMQ_TICK, self._tick)

    def _receive(self, frames: list[Buffer]) -> None:
        try:
            _, head, body = parse(frames)
        except RemoteProtocolError:
            return  # not TLS over ZeroMQ: the handshake won't end in time, and that is said
        channel = self.channel
        if channel is not None and head.token == channel.session.token:
            channel.receive(head, body)

    def _broken(self, error: zmq.ZMQError) -> None:
        if self.channel is not None:
            self.channel.unreachable(str(error))

    def _tick(self) -> None:
        if self.channel is not None:
            self.channel.tick()
        self._ticker = self._loop.call_later(limits.ZMQ_TICK, self._tick)

    def close(self) -> None:
        """The channel has ended."""
        self._ticker.cancel()
        self.wires.close()


def open_channel(
    where: HostPort,
    context: ssl.SSLContext,
    on_secure: Callable[[Conduit], None],
    on_failed: Callable[[CipherMQError], None],
    *,
    server_name: str,
    options: LinkOptions,
) -> ZmqChannel:
    """Begin a connection to the server that is at `where`, perhaps behind some hops."""
    dealer = _Dealer(where)
    channel = dealer.channel = ZmqChannel(
        TlsPump(context, server_name=server_name),
        new_token(),
        dealer.wires.send,
        on_secure,
        on_failed,
        role=Role.CLIENT,
        peer=f"zmq:{address.spell(where)}",
        before=(DELIMITER,),
        options=options,
    )
    channel.on_end(dealer.close)
    channel.begin()
    return channel
