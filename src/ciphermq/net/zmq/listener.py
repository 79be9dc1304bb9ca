"""The queue's server on a ZeroMQ socket: a session for each routing envelope and token."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial

import zmq

from ciphermq import limits
from ciphermq.errors import CipherMQError, ConfigError, ConnectionLost, RemoteProtocolError
from ciphermq.net import address
from ciphermq.net.address import HostPort
from ciphermq.net.conduit import Buffers, Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.net.reception import Reception
from ciphermq.net.zmq.channel import ZmqChannel
from ciphermq.net.zmq.ends import configure, size_buffer
from ciphermq.net.zmq.wires import Wires
from ciphermq.telemetry.logger import get_logger
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import (
    DELIMITER,
    Buffer,
    Envelope,
    Head,
    Kind,
    parse,
    spell_envelope,
)
from ciphermq.wire.tlszmq.session import reset_message

_Key = tuple[Envelope, bytes]

_log = get_logger("net.zmq")


class ZmqListener:
    """A ROUTER and the connections that came through it."""

    def __init__(
        self,
        where: HostPort,
        context: Callable[[], ssl.SSLContext],
        reception: Reception,
        *,
        options: LinkOptions | None = None,
    ) -> None:
        """`context` is asked for that of each new session; `reception` may be shared with other
        roads."""
        self.where = where
        self._context = context
        self._reception = reception
        self._options = options or LinkOptions()
        self._zmq: zmq.Context[zmq.Socket[bytes]] | None = None
        self._wires: Wires | None = None
        self._channels: dict[_Key, ZmqChannel] = {}
        self._handshakes: dict[_Key, ZmqChannel] = {}
        self._buffers = Buffers()
        self._ticker: asyncio.TimerHandle | None = None
        self._stopping = False

    def start(self) -> HostPort:
        """Listen; the address that was bound. `ConfigError` naming it when that can't be done."""
        # A context of its own: its threads end with it, and nobody else's sockets hold them up.
        self._zmq = zmq.Context()
        sock = self._zmq.socket(zmq.ROUTER)
        configure(sock)
        sock.ipv6 = ":" in self.where[0]
        here = f"tcp://{_spell_host(self.where[0])}:{self.where[1] or '*'}"
        size_buffer(sock, here)
        try:
            sock.bind(here)
        except zmq.ZMQError as error:
            sock.close()
            self._zmq.term()
            raise ConfigError(
                f"the server can't listen at zmq+tls://{address.spell(self.where)}: "
                f"{error.strerror}; is the port taken?"
            ) from error
        bound = sock.getsockopt_string(zmq.LAST_ENDPOINT)
        self.where = self.where[0], int(bound.rpartition(":")[2])
        self._wires = Wires(sock, self._receive, self._broken)
        self._tick()
        return self.where

    def stop(self) -> None:
        """Take no more connections, and end those still in their handshake. May be repeated."""
        self._stopping = True
        for channel in list(self._handshakes.values()):
            channel.abort()

    async def close(self) -> None:
        """End the connections that are left, and close the socket, once what waits in it has been
        sent or `limits.LINGER` is over."""
        self.stop()
        for channel in list(self._channels.values()):
            channel.abort(ConnectionLost("the server has closed its ZeroMQ socket"))
        if self._ticker is not None:
            self._ticker.cancel()
        wires, context = self._wires, self._zmq
        self._wires = self._zmq = None  # nothing can be sent from here on
        if wires is not None and context is not None:
            wires.close()
            await asyncio.to_thread(context.term)

    def _broken(self, error: zmq.ZMQError) -> None:
        """ZeroMQ itself has failed: nobody can come any more, nor be sent anything."""
        _log.error(
            f"the server has lost its ZeroMQ socket, and must be started again: {error}",
            connections=len(self._channels),
        )
        for channel in list(self._channels.values()):
            channel.unreachable(str(error))

    # --- messages ---------------------------------------------------------------------------

    def _receive(self, frames: list[Buffer]) -> None:
        try:
            envelope, head, body = parse(frames)
        except RemoteProtocolError:
            self._reception.counters.add("zmq_dropped")
            return
        key = (envelope, head.token)
        channel = self._channels.get(key)
        if channel is None:
            if head.kind is Kind.DATA and head.number == 0 and not self._stopping:
                channel = self._begin(key, head)
            elif head.kind in (Kind.DATA, Kind.ASK):
                stops = self._stopping and head.kind is Kind.DATA and head.number == 0
                reason = "the server is stopping" if stops else "it is unknown here, or has ended"
                self._send(reset_message(envelope, head, reason))
            else:  # a REQ can't carry a queue's connection, and the rest needs no answer
                self._reception.counters.add("zmq_dropped")
        if channel is not None:
            channel.receive(head, body)

    def _begin(self, key: _Key, head: Head) -> ZmqChannel | None:
        envelope, token = key
        peer = f"zmq:{spell_envelope(envelope)}"
        if self._reception.full(peer):
            reason = f"all {self._reception.max_connections} connections are taken"
            self._send(reset_message(envelope, head, reason))
            return None
        if len(self._handshakes) >= limits.MAX_HANDSHAKES:
            # A flood of new identities must not shut out who comes after it.
            # It is forgotten here and now: its end comes a turn of the loop later, and many more
            # identities may come before that.
            oldest, first = next(iter(self._handshakes.items()))
            self._forget(oldest, first)
            first.abort()
            self._reception.displaced(first.peer)
        self._reception.counters.add("accepted")
        context = self._context()
        channel = ZmqChannel(
            TlsPump(context),
            token,
            self._send_hard,
            partial(self._secured, key, context),
            partial(self._failed, key),
            role=Role.SERVER,
            peer=peer,
            before=(*envelope, DELIMITER),
            options=self._options,
            buffers=self._buffers,
        )
        self._channels[key] = self._handshakes[key] = channel
        self._reception.handshaking += 1
        channel.on_end(partial(self._forget, key, channel))
        return channel

    def _secured(self, key: _Key, context: ssl.SSLContext, channel: Conduit) -> None:
        self._shaken(key)
        self._reception.welcome(channel, context)

    def _failed(self, key: _Key, error: CipherMQError) -> None:
        channel = self._channels.get(key)
        if channel is not None:  # else it had to make way, which was said
            self._reception.failed(channel.peer, error)

    def _shaken(self, key: _Key) -> None:
        if self._handshakes.pop(key, None) is not None:
            self._reception.handshaking -= 1

    def _forget(self, key: _Key, channel: ZmqChannel) -> None:
        if self._channels.get(key) is channel:  # else it was forgotten already
            del self._channels[key]
            self._shaken(key)

    # --- sending ----------------------------------------------------------------------------

    def _send_hard(self, frames: list[Buffer]) -> None:
        if self._wires is not None:
            self._wires.send(frames)

    def _send(self, frames: list[Buffer]) -> None:
        """What is not worth a second try."""
        try:
            self._send_hard(frames)
        except zmq.ZMQError:
            self._reception.counters.add("zmq_dropped")

    def _tick(self) -> None:
        # First, or one channel that fails would stop the clocks of all others.
        self._ticker = asyncio.get_running_loop().call_later(limits.ZMQ_TICK, self._tick)
        for channel in list(self._channels.values()):
            channel.tick()


def _spell_host(host: str) -> str:
    """For ZeroMQ, which knows names of interfaces and addresses, and no other names."""
    if host in ("0.0.0.0", "::", "*"):  # noqa: S104 - it is only recognised here
        return "*"
    if host == "localhost":
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
