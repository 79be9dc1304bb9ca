"""Proxy sessions in the test's own loop, and scripted peers for both of their sides.

::

    async with Rig() as rig:                      # a listener, whose sessions go to `rig.backends`
        broker = await rig.broker()               # a scripted broker: what it gets is the test's
        client = await rig.client()               # a scripted client, connected to the listener
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ciphermq.errors import CipherMQError
from ciphermq.proxy.gate import Admission, Opening
from ciphermq.proxy.model import Backend, Configuration, Listener, TlsSettings
from ciphermq.proxy.session import Session, accept
from ciphermq.proxy.statistics import Ending
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.proxy.tls import Contexts
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.frames import Frame, FrameReader

PATIENCE = 30.0
"""No wait of a test is longer: whatever is waited for has failed by then."""


class Peer:
    """One end of a connection, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = FrameReader(1 << 30)

    def send(self, *parts: bytes) -> None:
        """Write without waiting."""
        self.writer.write(b"".join(parts))

    async def exactly(self, size: int) -> bytes:
        """So many bytes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def frame(self) -> Frame:
        """The next frame that is no heartbeat."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while (frame := self._frames.next()) is None:
                    data = await self.reader.read(65_536)
                    assert data, "the connection ended instead of another frame"
                    self._frames.feed(data)
                if frame.type != 8:
                    return frame

    async def method(self, number: int) -> Frame:
        """The next frame, which is this method of class connection."""
        frame = await self.frame()
        assert frame.method == (10, number), frame
        return frame

    async def end(self) -> bytes:
        """What comes until the end of the stream, in order or not."""
        async with asyncio.timeout(PATIENCE):
            got = self._frames.rest()
            try:
                while data := await self.reader.read(65_536):
                    got += data
            except OSError:
                pass
            return got

    async def settle(self) -> None:
        """All that was sent has gone to the kernel."""
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    def close(self) -> None:
        """End in order (of TCP)."""
        self.writer.close()

    def reset(self) -> None:
        """End with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class FixedGate:
    """Lets everybody in, to all backends in their order; a test changes what it likes."""

    def __init__(self) -> None:
        self.backends: Sequence[Backend] = ()
        self.admission = Admission()
        self.openings: list[Opening] = []
        self.alive: list[str] = []
        self.failures: list[tuple[str, Exception]] = []
        self.endings: list[Ending] = []
        self.alarms = 0
        self.refusal: CipherMQError | None = None
        self.released = asyncio.Event()
        """While clear, clients are held as those of a paused vhost are."""
        self.released.set()

    async def admit(self, opening: Opening, session: Session) -> Admission:
        self.openings.append(opening)
        if not self.released.is_set():
            with session.held():
                await self.released.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.admission

    def route(self, opening: Opening) -> Sequence[Backend]:
        return self.backends

    def connected(self, backend: Backend) -> None:
        self.alive.append(backend.name)

    def failed(self, backend: Backend, error: Exception) -> None:
        self.failures.append((backend.name, error))

    def opened(self, session: Session) -> None:
        pass

    def ended(self, session: Session, how: Ending) -> None:
        self.endings.append(how)

    def alarm(self, session: Session, rate: float) -> None:
        self.alarms += 1


class Rig:
    """A listener with sessions, and peers, all closed at the end."""

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        host: str = "127.0.0.1",
        proxy_header: bool = False,
        ingress: TlsSettings | None = None,
        egress: TlsSettings | None = None,
    ) -> None:
        self.gate = FixedGate()
        self.sessions: dict[int, Session] = {}
        self.timeouts = timeouts or Timeouts()
        self._contexts = Contexts(
            Configuration(ingress=ingress or TlsSettings(), egress=egress or TlsSettings())
        )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=1024)
        self._socket.setblocking(False)
        self.host, self.port = self._socket.getsockname()[:2]
        self._listener = Listener(
            port=self.port, secure=ingress is not None, proxy_header=proxy_header
        )
        self._number = 0
        self._peers: list[Peer] = []
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._accept)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for session in list(self.sessions.values()):
            session.force_disconnect()
        for peer in self._peers:
            peer.writer.transport.abort()
        for server in self._servers:
            server.close()
            await server.wait_closed()

    def _accept(self) -> None:
        try:
            sock, address = self._socket.accept()
        except BlockingIOError:
            return
        self._number += 1
        self.sessions[self._number] = accept(
            sock,
            address[:2],
            self._listener,
            self.gate,
            self._contexts,
            self.timeouts,
            lambda session: self.sessions.pop(session.id, None),
            self._number,
        )

    # --- peers --------------------------------------------------------------------------------

    async def client(self, context: ssl.SSLContext | None = None) -> Peer:
        """A scripted client, connected."""
        reader, writer = await asyncio.open_connection(
            self.host, self.port, ssl=context, server_hostname="localhost" if context else None
        )
        peer = Peer(reader, writer)
        self._peers.append(peer)
        return peer

    async def broker(
        self,
        *,
        name: str = "scripted",
        context: ssl.SSLContext | None = None,
        proxy_protocol: int = 0,
        host: str = "127.0.0.1",
    ) -> Broker:
        """A scripted broker, which becomes the last of the backends."""
        broker = Broker()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            self._peers.append(peer)
            broker.connections.put_nowait(peer)

        server = await asyncio.start_server(connected, host, 0, ssl=context)
        self._servers.append(server)
        broker.port = server.sockets[0].getsockname()[1]
        self.add(
            Backend(
                name=name,
                datacenter="",
                host="localhost" if context else host,
                port=broker.port,
                proxy_protocol=proxy_protocol,  # type: ignore[arg-type]
                tls=context is not None,
            )
        )
        return broker

    def add(self, backend: Backend) -> None:
        """One more backend, the last to be tried."""
        self.gate.backends = [*self.gate.backends, backend]

    async def opened(self) -> tuple[Peer, Peer]:
        """A client and its broker, between whom bytes go both ways."""
        broker = await self.broker()
        client = await self.client()
        client.send(HEADER, START_OK, TUNE_OK, OPEN)
        peer = await broker.accept()
        await peer.open()
        for number in (10, 30, 41):
            await client.method(number)
        return client, peer

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that the loop does."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0.005)

    async def over(self) -> None:
        """Wait until no session is left."""
        await self.until(lambda: not self.sessions)


class Broker:
    """A scripted broker's connections, in the order in which they came."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: asyncio.Queue[BrokerPeer] = asyncio.Queue()

    async def accept(self) -> BrokerPeer:
        """The next connection."""
        async with asyncio.timeout(PATIENCE):
            peer = await self.connections.get()
        peer.__class__ = BrokerPeer
        return peer


class BrokerPeer(Peer):
    """A connection from the proxy."""

    async def open(self) -> Frame:
        """The whole handshake; the StartOk that came."""
        assert await self.exactly(8) == HEADER
        self.send(closing.start("PLAIN"))
        start_ok = await self.method(11)
        self.send(closing.TUNE)
        await self.method(31)
        await self.method(40)
        self.send(OPEN_OK)
        return start_ok


# --- what clients and brokers say -----------------------------------------------------------------


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame."""
    return (
        bytes([kind])
        + channel.to_bytes(2, "big")
        + len(payload).to_bytes(4, "big")
        + payload
        + b"\xce"
    )


def method(number: int, arguments: bytes = b"", *, channel: int = 0, of: int = 10) -> bytes:
    """A method frame."""
    return frame(1, channel, of.to_bytes(2, "big") + number.to_bytes(2, "big") + arguments)


def long(data: bytes) -> bytes:
    """A long string."""
    return len(data).to_bytes(4, "big") + data


def short(data: bytes) -> bytes:
    """A short string."""
    return bytes([len(data)]) + data


def start_ok(
    properties: bytes = b"",
    *,
    mechanism: bytes = b"PLAIN",
    response: bytes = b"\0user\0a very secret password",
) -> bytes:
    """A client's StartOk; `properties` is the table without its length."""
    return method(11, long(properties) + short(mechanism) + long(response) + short(b"en_US"))


def text(name: bytes, value: bytes) -> bytes:
    """A string field of a table."""
    return short(name) + b"S" + long(value)


def tune_ok(heartbeat: int = 60) -> bytes:
    """A client's TuneOk."""
    return method(31, b"\x07\xff\x00\x02\x00\x00" + heartbeat.to_bytes(2, "big"))


def open_(vhost: bytes = b"/") -> bytes:
    """A client's Open."""
    return method(40, short(vhost) + b"\0\0")


HEADER = closing.PROTOCOL_HEADER
CAPABLE = short(b"capabilities") + b"F" + long(short(b"authentication_failure_close") + b"t\1")
START_OK = start_ok(text(b"product", b"test") + CAPABLE)
TUNE_OK = tune_ok()
OPEN = open_()
OPEN_OK = method(41, b"\0")
