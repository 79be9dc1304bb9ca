"""A queue's connection over ZeroMQ, and over TCP, where it ends badly: the reason that is told is
the right one, and whatever one connection does, the others go on."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zmq

from ciphermq.errors import CipherMQError, ConnectionLost, WaitTimeout
from ciphermq.net.conduit import Conduit
from ciphermq.net.dialler import dial
from ciphermq.net.link import Link
from ciphermq.net.options import LinkOptions
from ciphermq.net.reception import Reception
from ciphermq.net.zmq import dialler, ends
from ciphermq.net.zmq.channel import ZmqChannel
from ciphermq.net.zmq.listener import ZmqListener
from ciphermq.net.zmq.wires import Wires
from ciphermq.wire.cmq2.codec import encode
from ciphermq.wire.cmq2.frames import Hello, Ping
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import Buffer, Head, Kind, parse
from support.certificates import Certificates

SOON = 30.0
BAD_RECORD = b"\x17\x03\x03\x00\x30" + bytes(48)
TOKEN = b"t" * 16


class Talker:
    """Collects what comes, and may answer it."""

    def __init__(self, channel: Conduit, answer: bytes = b"") -> None:
        self.heard = b""
        self.lost_of: asyncio.Future[BaseException | None] = channel._loop.create_future()
        self._channel = channel
        self._answer = answer
        self._room = memoryview(bytearray(70_000))
        channel.attach(self)

    def get_buffer(self) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += self._room[:nbytes]

    def received(self) -> None:
        if self.heard and self._answer:
            self._channel.write([self._answer])

    def resume_writing(self) -> None:
        pass

    def lost(self, error: BaseException | None) -> None:
        self.lost_of.set_result(error)

    async def end(self) -> BaseException | None:
        async with asyncio.timeout(SOON):
            return await self.lost_of


class Pair:
    """A client's channel and a server's, and what is on its way between them."""

    def __init__(
        self, certificates: Certificates, *, answer: bytes = b"", linger: float = 5.0
    ) -> None:
        self.to_server: deque[list[bytes]] = deque()
        self.to_client: deque[list[bytes]] = deque()
        self.talkers: dict[Role, Talker] = {}
        options = LinkOptions(linger=linger)

        def make(role: Role, pump: TlsPump, way: deque[list[bytes]]) -> ZmqChannel:
            def secure(channel: Conduit) -> None:
                said = answer if role is Role.SERVER else b""
                self.talkers[role] = Talker(channel, said)

            return ZmqChannel(
                pump,
                TOKEN,
                lambda frames: way.append([bytes(frame) for frame in frames]),
                secure,
                lambda error: pytest.fail(str(error)),
                role=role,
                peer="the other end",
                before=(b"",),
                options=options,
            )

        pump = TlsPump(certificates.client("alice"), server_name="localhost")
        self.client = make(Role.CLIENT, pump, self.to_server)
        self.server = make(Role.SERVER, TlsPump(certificates.server()), self.to_client)
        self.client.begin()
        while len(self.talkers) < 2 or self.to_server or self.to_client:
            self.carry()

    def carry(self) -> None:
        for way, channel in ((self.to_server, self.server), (self.to_client, self.client)):
            if way:
                _, head, body = parse(way.popleft())
                channel.receive(head, body)

    def to_the_server(self, *body: bytes) -> None:
        """As a client that has taken all would send it."""
        session = self.server.session
        self.server.receive(Head(Kind.DATA, TOKEN, session._in, session._out), body)

    async def close(self) -> None:
        for channel in (self.client, self.server):
            channel.abort()
            await channel.wait_closed()


# --- a bad record ---------------------------------------------------------------------------------


async def test_an_answer_behind_a_bad_record_leaves_the_reason_as_it_is(
    certificates: Certificates,
) -> None:
    pair = Pair(certificates, answer=b"an answer")
    pair.client._pump.write(b"good")
    pair.to_the_server(pair.client._pump.outgoing() + BAD_RECORD)
    talker = pair.talkers[Role.SERVER]
    assert "bad record mac" in str(await talker.end())
    assert talker.heard == b"good"
    while pair.to_client:
        pair.carry()
    assert "the alert bad_record_mac" in str(await pair.talkers[Role.CLIENT].end())
    await pair.close()


async def test_a_bad_record_that_opens_the_window_ends_its_own_connection_alone(
    certificates: Certificates,
) -> None:
    pair = Pair(certificates)
    pair.server.write([bytes(60_000)] * 300)
    assert not pair.server.session.room
    pair.to_the_server(BAD_RECORD)  # raises nothing: others share the socket
    pair.server.tick()
    assert "bad record mac" in str(await pair.talkers[Role.SERVER].end())
    await pair.close()


async def test_an_answer_behind_a_bad_record_over_tcp(
    server: Any, certificates: Certificates
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    pump = TlsPump(certificates.client("alice"), server_name="localhost")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(SOON):
        while not pump.handshake():
            writer.write(pump.outgoing())
            pump.receive(await reader.read(65_536))
        for piece in encode(Hello()):
            pump.write(piece)
        writer.write(pump.outgoing() + BAD_RECORD)  # the HELLO will be answered
        end = await server.next()
        pump.receive(await reader.read(-1))
        with pytest.raises(OSError, match="BAD_RECORD_MAC"):
            pump.fill(memoryview(bytearray(65_536)))
        writer.close()
    assert "bad record mac" in str(await end.end())
    assert [type(frame) for frame in end.frames] == [Hello]
    assert faults == []


# --- the end of time ------------------------------------------------------------------------------


async def test_a_close_that_waits_in_vain_says_so(certificates: Certificates) -> None:
    pair = Pair(certificates, linger=0.1)
    pair.server.write([bytes(60_000)] * 300)
    pair.server.close()
    error = await pair.talkers[Role.SERVER].end()
    assert isinstance(error, WaitTimeout)
    assert "did not take all that was sent to it within 0.1 s" in str(error)
    await pair.close()


# --- a listener -----------------------------------------------------------------------------------


class Broker:
    """A listener, and the links of those it has let in."""

    def __init__(self, certificates: Certificates, **bounds: Any) -> None:
        self.links: list[Link] = []
        self.lost: list[CipherMQError | None] = []
        tls = certificates.server()
        self.listener = ZmqListener(
            ("127.0.0.1", 0), lambda: tls, Reception({"cmq/2": self._session}, **bounds)
        )
        self.url = f"zmq+tls://127.0.0.1:{self.listener.start()[1]}"

    async def close(self) -> None:
        await self.listener.close()

    def _session(self, channel: Conduit, client: str) -> None:
        link = Link(channel)
        link.attach(lambda _: link.send(Hello(client=client)), self.lost.append)
        self.links.append(link)


@pytest.fixture
async def listen(certificates: Certificates) -> AsyncIterator[Callable[..., Broker]]:
    """Makes brokers, and closes them."""
    made: list[Broker] = []

    def make(**bounds: Any) -> Broker:
        made.append(Broker(certificates, **bounds))
        return made[-1]

    yield make
    for broker in made:
        await broker.close()


async def joined(broker: Broker, certificates: Certificates) -> asyncio.Future[Any]:
    """What a client's link that was let in ends of."""
    lost = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(SOON):
        await dial(
            broker.url,
            certificates.client("alice"),
            hello=Hello(),
            on_frame=lambda _: None,
            on_lost=lost.set_result,
        )
    return lost


async def test_a_full_server_says_that_it_is(
    listen: Callable[..., Broker], certificates: Certificates
) -> None:
    broker = listen(max_connections=1)
    lost = await joined(broker, certificates)
    with pytest.raises(ConnectionLost, match="all 1 connections are taken"):
        await joined(broker, certificates)
    broker.links[0].abort()
    async with asyncio.timeout(SOON):
        await lost


async def test_a_server_that_stops_says_so_and_ends_whom_it_has(
    listen: Callable[..., Broker],
    certificates: Certificates,
) -> None:
    broker = listen()
    lost = await joined(broker, certificates)
    broker.listener.stop()
    with pytest.raises(ConnectionLost, match="the server is stopping"):
        await joined(broker, certificates)
    await broker.listener.close()
    async with asyncio.timeout(SOON):
        assert "has dropped this session" in str(await lost)
    assert "has closed its ZeroMQ socket" in str(broker.lost[0])


async def test_a_link_on_its_way_to_a_socket_that_closes_fails_nobody(
    listen: Callable[..., Broker],
    certificates: Certificates,
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    broker = listen()
    lost = await joined(broker, certificates)
    closing = asyncio.create_task(broker.listener.close())
    await asyncio.sleep(0)
    broker.links[0].send(Ping(request=1))
    broker.links[0].close()
    await closing
    async with asyncio.timeout(SOON):
        await lost
    assert faults == []


async def test_one_that_fails_does_not_stop_the_clocks_of_others(
    listen: Callable[..., Broker], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    broker = listen()
    await joined(broker, certificates)
    (channel,) = broker.listener._channels.values()

    looked: list[int] = []

    def fails() -> None:
        looked.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(channel, "tick", fails)
    async with asyncio.timeout(SOON):
        while len(looked) < 3:
            await asyncio.sleep(0.01)
    assert all(isinstance(fault["exception"], ZeroDivisionError) for fault in faults)


# --- wires ----------------------------------------------------------------------------------------


@pytest.fixture
def context() -> Any:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


async def test_a_message_that_fails_does_not_leave_the_next_lying_there(
    context: zmq.Context[Any],
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    heard: list[bytes] = []
    done = asyncio.Event()

    def take(frames: list[Buffer]) -> None:
        heard.append(bytes(frames[0]))
        if len(heard) == 3:
            done.set()
        raise ZeroDivisionError

    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.bind("inproc://wires")
    there.connect("inproc://wires")
    wires = Wires(here, take)
    for message in (b"1", b"2", b"3"):
        there.send(message)
    async with asyncio.timeout(SOON):
        await done.wait()
    assert heard == [b"1", b"2", b"3"]
    wires.close()


async def test_a_client_is_told_that_its_context_has_ended(
    listen: Callable[..., Broker], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    context: zmq.Context[Any] = zmq.Context()
    make: Callable[..., Any] = ends.new_socket
    monkeypatch.setattr(dialler, "new_socket", lambda kind: make(kind, context))
    broker = listen()
    lost = await joined(broker, certificates)
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    async with asyncio.timeout(SOON):
        error = await lost
        while thread.is_alive():
            await asyncio.sleep(0.01)
    assert "ZeroMQ has no way to the server" in str(error)
    assert "terminated" in str(error)
    assert faults == []


async def test_a_server_whose_context_has_ended_says_so_and_ends_its_links(
    listen: Callable[..., Broker], certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    broker = listen()
    lost = await joined(broker, certificates)
    assert broker.listener._zmq is not None
    thread = threading.Thread(target=broker.listener._zmq.term, daemon=True)
    thread.start()
    async with asyncio.timeout(SOON):
        while not broker.lost or thread.is_alive():
            await asyncio.sleep(0.01)
    assert "terminated" in str(broker.lost[0])
    assert "has lost its ZeroMQ socket" in caplog.text
    lost.cancel()
