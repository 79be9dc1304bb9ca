"""A real broker, and clients that speak its protocol frame by frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from ciphermq.cli.processes import free_port
from ciphermq.errors import CipherMQError, refusal
from ciphermq.model import bitmap, envelope
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.ids import new_batch_id
from ciphermq.model.suites import Suite
from ciphermq.net.dialler import dial
from ciphermq.net.link import Link
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    Cancelled,
    Close,
    ConfirmFrame,
    ConfirmKind,
    DeliverFrame,
    Error,
    Frame,
    Hello,
    KeyPut,
    Ok,
    PublishFrame,
    Request,
    Return,
)
from support.broker import Broker, running_broker
from support.deployment import Deployment, make_deployment

CLIENTS = ["alice", "bob", "carol"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What a real server runs on."""
    return {"uvloop": uvloop.new_event_loop}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def batch(
    sender: str = "alice",
    *,
    to: str = "",
    exchange: str = "",
    receivers: tuple[str, ...] = ("bob",),
    count: int = 1,
    size: int = 100,
    created_ms: int | None = None,
    expires_ms: int = 0,
    batch_id: bytes | None = None,
) -> bytes:
    """A batch as brokers see it: a true header, and a body that nobody could open."""
    header = Header(
        sender=sender,
        certificate_sha256=bytes(32),
        batch_id=batch_id or new_batch_id(now_ms()),
        created_ms=now_ms() if created_ms is None else created_ms,
        expires_ms=expires_ms,
        exchange=exchange,
        routing_key=to,
        count=count,
        commitment=bytes(32),
        receivers=tuple(ReceiverRef(name, bytes(16), Suite.X25519) for name in sorted(receivers)),
    )
    body = bytes(max(size, 19 + 16 * count))
    wraps = bytes(Suite.X25519.wrap_size * len(receivers))
    return envelope.build(envelope.encode_header(header), wraps, body, (b"chain",), b"signature")


class Client:
    """A client that does nothing by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link
        self.frames: list[Frame] = []
        self.deliveries: list[DeliverFrame] = []
        self.confirmed = {ConfirmKind.PUBLISH: 0, ConfirmKind.ACK: 0}
        self.returned: dict[int, Return] = {}
        self.cancelled: list[Cancelled] = []
        self.lost: asyncio.Future[CipherMQError | None] = asyncio.get_running_loop().create_future()
        self._seq = self._acks = self._request = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._arrived = asyncio.Event()

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, DeliverFrame):
            self.deliveries.append(frame)
        elif isinstance(frame, ConfirmFrame):
            self.confirmed[frame.kind] = frame.number
        elif isinstance(frame, Return):
            self.returned[frame.seq] = frame
        elif isinstance(frame, Cancelled):
            self.cancelled.append(frame)
        elif isinstance(frame, Ok):
            self._answers.pop(frame.request).set_result(frame.result)
        elif isinstance(frame, Error):
            error = refusal(frame.code, frame.message)
            self._answers.pop(frame.request).set_exception(error)
        elif isinstance(frame, Close):
            self.link.close()
        self._arrived.set()

    def on_lost(self, error: CipherMQError | None) -> None:
        self.lost.set_result(error)
        self._arrived.set()

    async def until(self, done: Callable[[], Any]) -> None:
        """Wait until `done`, looking again whenever a frame has come."""
        async with asyncio.timeout(20):
            while not done():
                self._arrived.clear()
                await self._arrived.wait()

    async def ended(self) -> CipherMQError | None:
        """What the connection ended of."""
        async with asyncio.timeout(20):
            return await self.lost

    # --- what it says -----------------------------------------------------------------------

    def asking(self, kind: type[Request], **members: Any) -> asyncio.Future[Any]:
        self._request += 1
        answer = asyncio.get_running_loop().create_future()
        self._answers[self._request] = answer
        self.link.send(kind(request=self._request, **members))
        return answer

    async def ask(self, kind: type[Request], **members: Any) -> Any:
        """A request's result; raises what it was refused with."""
        async with asyncio.timeout(20):
            return await self.asking(kind, **members)

    def publish(self, sealed: bytes, *, restart: bool = False) -> int:
        self._seq += 1
        self.link.send(PublishFrame(self._seq, restart, sealed))
        return self._seq

    async def settled(self, seq: int) -> str:
        """How a publish was answered: "" or the code it was returned with."""
        await self.until(lambda: seq in self.returned or self.confirmed[ConfirmKind.PUBLISH] >= seq)
        return self.returned[seq].code if seq in self.returned else ""

    async def send(self, sealed: bytes, *, restart: bool = False) -> str:
        """Publish, and how that was answered."""
        return await self.settled(self.publish(sealed, restart=restart))

    def ack(self, tag: int, *indices: int) -> int:
        self._acks += 1
        bits = bitmap.of(indices)
        data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        self.link.send(AckFrame(self._acks, tag, data))
        return self._acks

    async def acked(self, number: int) -> None:
        await self.until(lambda: self.confirmed[ConfirmKind.ACK] >= number)

    async def leave(self) -> None:
        self.link.close()
        await self.ended()


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Certificates for all tests; each test's broker has a directory of its own."""
    return make_deployment(tmp_path_factory.mktemp("server"), CLIENTS, suite=Suite.X25519)


class Rig:
    """A broker and its clients."""

    def __init__(self, deployment: Deployment, broker: Broker) -> None:
        self.deployment = deployment
        self.broker = broker
        self.clients: list[Client] = []

    async def client(
        self,
        name: str = "alice",
        *,
        options: LinkOptions | None = None,
        hello: Hello | None = None,
        zmq: bool = False,
    ) -> Client:
        """A client that is connected; `zmq`: over ZeroMQ."""
        client = Client(name)
        client.link = await dial(
            self.broker.zmq_url if zmq else self.broker.url,
            self.deployment.load(name).ssl_context(),
            hello=hello or Hello(),
            on_frame=client.on_frame,
            on_lost=client.on_lost,
            options=options,
        )
        self.clients.append(client)
        return client

    async def registered(self, name: str) -> Client:
        """A client that is connected and has an inbox."""
        client = await self.client(name)
        record = self.deployment.load(name).make_key_record(now_ms())
        await client.ask(KeyPut, record=record)
        return client


@pytest.fixture
async def start(deployment: Deployment, tmp_path: Any) -> AsyncIterator[Callable[..., Any]]:
    """Makes a rig with the options and settings that a test wants."""
    async with asyncio.timeout(100):
        contexts = []

        async def begin(options: LinkOptions | None = None, **sections: Any) -> Rig:
            sections.setdefault("storage", {})["directory"] = tmp_path / f"data{len(contexts)}"
            if "server" in sections:
                sections["server"].setdefault("address", ("127.0.0.1", free_port()))
            context = running_broker(deployment, options or LinkOptions(linger=0.3), **sections)
            rig = Rig(deployment, await context.__aenter__())
            contexts.append((context, rig))
            return rig

        yield begin
        for context, rig in contexts:
            for client in rig.clients:
                client.link.abort()
            await context.__aexit__(None, None, None)


@pytest.fixture
async def rig(start: Callable[..., Any]) -> Rig:
    """One with the defaults."""
    return await start()
