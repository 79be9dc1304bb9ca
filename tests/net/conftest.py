"""A listener and what it takes, on either event loop; sockets of TLS over ZeroMQ."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from zmq_kit import Clock, Echo, client
from zmq_kit import server as server_tls

from ciphermq.errors import CipherMQError
from ciphermq.net.channel import Channel
from ciphermq.net.dialler import dial
from ciphermq.net.link import Link
from ciphermq.net.listener import Listener
from ciphermq.net.options import LinkOptions
from ciphermq.net.zmq import ends
from ciphermq.wire.cmq2.frames import Close, Frame, Hello
from ciphermq.zmq import TlsDealer
from support.certificates import Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Servers run on uvloop; the client's synchronous face and its users may be on asyncio's."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class End:
    """One end of a link: what it was told, and what it does with it."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.lost: asyncio.Future[CipherMQError | None] = asyncio.get_running_loop().create_future()
        self.writable = 0
        self.link: Link | None = None
        self._arrived = asyncio.Event()

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._arrived.set()
        if isinstance(frame, Close) and self.link is not None:
            self.link.close()

    def on_lost(self, error: CipherMQError | None) -> None:
        self.lost.set_result(error)

    def on_writable(self) -> None:
        self.writable += 1
        self._arrived.set()

    async def until(self, done: Callable[[End], Any]) -> None:
        """Wait until `done` of what has come."""
        async with asyncio.timeout(20):
            while not done(self):
                self._arrived.clear()
                await self._arrived.wait()

    async def end(self) -> CipherMQError | None:
        """What the link ended of."""
        async with asyncio.timeout(20):
            return await self.lost


class Server:
    """A listener whose sessions greet, collect, and answer CLOSE."""

    def __init__(self, certificates: Certificates, **options: Any) -> None:
        self.certificates = certificates
        self.ends: asyncio.Queue[End] = asyncio.Queue()
        options.setdefault("context", certificates.server())
        options.setdefault("options", LinkOptions(linger=0.3))
        context = options.pop("context")
        self.listener = Listener(
            ("127.0.0.1", 0), lambda: context, {"cmq/2": self._session}, **options
        )
        self.port = self.listener.start()[1]
        self.url = f"cmq://127.0.0.1:{self.port}"

    def _session(self, channel: Channel, client: str) -> None:
        end = End()
        end.link = link = Link(channel)

        def on_frame(frame: Frame) -> None:
            if isinstance(frame, Hello):
                link.send(Hello(client=client))
            end.on_frame(frame)

        link.attach(on_frame, end.on_lost, end.on_writable)
        self.ends.put_nowait(end)

    async def next(self) -> End:
        """The end of the next connection that was let in."""
        async with asyncio.timeout(20):
            return await self.ends.get()

    async def dial(
        self, name: str = "alice", *, options: LinkOptions | None = None, **changes: Any
    ) -> End:
        """A client's end, greeted."""
        end = End()
        changes.setdefault("context", self.certificates.client(name))
        end.link = await dial(
            changes.pop("url", self.url),
            changes.pop("context"),
            hello=Hello(),
            on_frame=end.on_frame,
            on_lost=end.on_lost,
            on_writable=end.on_writable,
            options=options,
            **changes,
        )
        return end

    async def stop(self) -> None:
        self.listener.stop()
        for channel in self.listener.channels:
            channel.abort()
            await channel.wait_closed()


@pytest.fixture
async def start(certificates: Certificates) -> AsyncIterator[Callable[..., Server]]:
    """Makes servers, and ends them."""
    started: list[Server] = []

    def make(**options: Any) -> Server:
        started.append(Server(certificates, **options))
        return started[-1]

    yield make
    for server in started:
        await server.stop()


@pytest.fixture
async def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the listener logged about connections it refused."""
    caplog.set_level("INFO", "ciphermq")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """However slow the machine is, no session gets older than a test wants it to."""
    made = Clock()
    monkeypatch.setattr(ends, "time", made)
    return made


@pytest.fixture
def echo(certificates: Certificates) -> Iterator[Callable[..., Echo]]:
    made: list[Echo] = []

    def make(tls: ssl.SSLContext | None = None, **options: Any) -> Echo:
        made.append(Echo(tls or server_tls(certificates), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def dealer(certificates: Certificates) -> Iterator[Callable[..., TlsDealer]]:
    made: list[TlsDealer] = []

    def make(
        address: str, name: str = "alice", kind: type[TlsDealer] = TlsDealer, **options: Any
    ) -> TlsDealer:
        tls = options.pop("tls", None) or client(certificates, name)
        made.append(kind(tls, server_name="localhost", **options))
        made[-1].socket.linger = 0
        if address:
            made[-1].connect(address)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def authority(tmp_path: Path) -> Certificates:
    """One whose revocation list a test may change."""
    return Certificates(tmp_path)
