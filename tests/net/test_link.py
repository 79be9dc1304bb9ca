"""A link over real TLS: frames, the ways to end, peers that misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.errors import (
    ConnectionLost,
    FrameTooLarge,
    LocalProtocolError,
    QueueFull,
    Refused,
    RemoteProtocolError,
    TransportError,
    UnknownFrame,
    WaitTimeout,
)
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.codec import HEAD, encode
from ciphermq.wire.cmq2.frames import (
    Close,
    ConfirmFrame,
    ConfirmKind,
    Credit,
    Frame,
    FrameType,
    Hello,
    Ok,
    Ping,
    PublishFrame,
    Reconnect,
)
from support.certificates import Certificates

QUICK = LinkOptions(frame_timeout=0.4, heartbeat=0.4, write_stall_timeout=0.4, linger=0.2)


class Stranger:
    """A peer that has a good certificate and says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext, *, greet: bool = True) -> Stranger:
        stranger = cls(
            *await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost", limit=2**22
            )
        )
        if greet:
            stranger.say(Hello())
        return stranger

    def say(self, frame: Frame) -> None:
        self.writer.writelines(encode(frame))

    async def hear(self) -> bytes:
        """Everything until the server ends the connection."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""

    def leave(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def stranger(start: Callable[..., Any], certificates: Certificates) -> Any:
    """A function: a server with some options, its end of a stranger's connection, the stranger."""
    met: list[Stranger] = []

    async def meet(options: LinkOptions = QUICK, *, greet: bool = True) -> Any:
        server = start(options=options)
        met.append(await Stranger.connect(server.port, certificates.client("alice"), greet=greet))
        return await server.next(), met[-1]

    yield meet
    for each in met:
        each.leave()


async def test_both_know_each_other(server, certificates: Certificates) -> None:
    client = await server.dial("alice")
    end = await server.next()
    assert client.link.hello == Hello(client="alice")
    assert end.link.hello == Hello()
    assert client.link.protocol == end.link.protocol == "cmq/2"
    assert client.link.peer == f"127.0.0.1:{server.port}"
    assert end.link.peer.startswith("127.0.0.1:")
    assert ssl.DER_cert_to_PEM_cert(end.link.peer_certificate) == (
        certificates.path("alice", "crt").read_text()
    )
    assert client.link.open
    assert client.link.writable


async def test_frames_in_both_directions_and_of_all_sizes(server) -> None:
    client = await server.dial()
    end = await server.next()
    sizes = [0, 1, 3000, 70_000, limits.MAX_FRAME - 100, 17]
    for seq, size in enumerate(sizes, 1):
        client.link.send(PublishFrame(seq, False, bytes([seq]) * size))
        client.link.send(Credit(consumer=1, messages=seq))
    await end.until(lambda end: len(end.frames) == 1 + 2 * len(sizes))
    published = [frame for frame in end.frames if isinstance(frame, PublishFrame)]
    assert [bytes(frame.sealed) for frame in published] == [
        bytes([seq]) * size for seq, size in enumerate(sizes, 1)
    ]
    end.link.send(ConfirmFrame(ConfirmKind.PUBLISH, len(sizes)))
    await client.until(lambda end: end.frames)
    assert client.frames == [ConfirmFrame(ConfirmKind.PUBLISH, len(sizes))]


async def test_frames_of_one_turn_share_a_record(server) -> None:
    client = await server.dial()
    end = await server.next()
    before = client.link._channel.records
    for messages in range(200):
        client.link.send(Credit(consumer=1, messages=messages))
    await end.until(lambda end: len(end.frames) == 201)
    assert client.link._channel.records == before + 1


async def test_a_close_in_order_loses_nothing(server) -> None:
    client = await server.dial()
    end = await server.next()
    client.link.send(PublishFrame(1, False, bytes(500_000)))
    client.link.close("done")
    assert not client.link.open
    assert await client.end() is None
    assert await end.end() is None
    assert [type(frame) for frame in end.frames] == [Hello, PublishFrame, Close]
    client.link.send(PublishFrame(2, False, b""))  # nothing, and no error
    client.link.close()
    await client.link.wait_closed()
    assert server.listener.connections == 0


async def test_what_a_client_may_not_send(server) -> None:
    client = await server.dial()
    with pytest.raises(LocalProtocolError):
        client.link.send(Reconnect())
    with pytest.raises(LocalProtocolError):
        client.link.send(PublishFrame(7, False, b""))


async def test_a_close_with_a_code_is_the_peers_refusal(server) -> None:
    client = await server.dial()
    end = await server.next()
    end.link.fail(QueueFull("it is full"))
    error = await client.end()
    assert isinstance(error, QueueFull)
    assert str(error) == "it is full"
    assert isinstance(await end.end(), QueueFull)


async def test_who_does_not_close_his_side_is_closed(stranger) -> None:
    end, _ = await stranger()
    await end.until(lambda end: end.frames)
    end.link.close()
    error = await end.end()
    assert isinstance(error, ConnectionLost)
    assert "did not close its side within 0.2 s" in str(error)


async def test_the_network_ends(server) -> None:
    client = await server.dial()
    end = await server.next()
    client.link.abort()
    await client.end()
    error = await end.end()
    assert isinstance(error, ConnectionLost)
    assert "ended the connection" in str(error)


async def test_a_frame_is_cut_short(stranger) -> None:
    end, peer = await stranger()
    peer.writer.write(HEAD.pack(1000, FrameType.PUBLISH) + b"not all of it")
    await end.until(lambda end: end.frames)
    await asyncio.sleep(0.02)
    peer.leave()
    assert "in the middle of a frame" in str(await end.end())


@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        (HEAD.pack(limits.MAX_FRAME + 1, FrameType.PUBLISH), FrameTooLarge, "frame-too-large"),
        (HEAD.pack(5, 99) + b"what", UnknownFrame, "unknown-frame"),
        (b"GET / HTTP/1.1\r\n\r\n", UnknownFrame, "unknown-frame"),
        (b"".join(encode(Hello(version=3))), RemoteProtocolError, "protocol"),
        (b"".join(encode(Reconnect())), RemoteProtocolError, "protocol"),
    ],
)
async def test_what_breaks_the_protocol_is_said_to_both(stranger, data, error, code) -> None:
    end, peer = await stranger(greet="version" not in repr(data) and data[4] != FrameType.HELLO)
    peer.writer.write(data)
    heard = await peer.hear()
    assert code.encode() in heard  # a CLOSE with that code
    reason = await end.end()
    assert type(reason) is error
    assert " at 127.0.0.1:" in str(reason)
    assert " broke the protocol: " in str(reason)


async def test_a_peer_without_hello(stranger) -> None:
    end, _ = await stranger(LinkOptions(handshake_timeout=1), greet=False)
    error = await end.end()
    assert isinstance(error, WaitTimeout)
    assert "sent no HELLO within 1 s" in str(error)


async def test_a_peer_that_drips(stranger) -> None:
    end, peer = await stranger(LinkOptions(frame_timeout=0.4, heartbeat=5, linger=0.2))
    data = b"".join(encode(PublishFrame(1, False, bytes(1000))))
    for byte in data:
        if end.lost.done():
            break
        peer.writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    error = await end.end()
    assert isinstance(error, WaitTimeout)
    assert "began a frame and did not end it within 0.4 s" in str(error)


async def test_a_silent_peer(stranger) -> None:
    end, peer = await stranger()
    heard = await peer.hear()  # the stranger reads, but never answers a PING
    assert b"".join(encode(Ping(request=0))) in heard
    error = await end.end()
    assert isinstance(error, ConnectionLost)
    assert "silent for 1.2 s" in str(error)


async def test_links_keep_each_other_alive(start: Callable[..., Any]) -> None:
    server = start(options=QUICK)
    client = await server.dial(options=QUICK)
    end = await server.next()
    await asyncio.sleep(4 * 0.4)
    assert not client.lost.done()
    assert not end.lost.done()
    # Heartbeats are between the links alone.
    assert client.frames == []
    assert end.frames == [Hello()]


async def test_a_ping_of_ones_own_is_answered(server) -> None:
    client = await server.dial()
    client.link.send(Ping(request=5))
    await client.until(lambda end: end.frames)
    assert client.frames == [Ok(request=5)]


async def test_a_peer_that_stops_reading(stranger) -> None:
    end, peer = await stranger(
        LinkOptions(write_stall_timeout=0.4, heartbeat=5, linger=0.2, write_high_water=100_000)
    )
    await end.until(lambda end: end.frames)
    peer.writer.transport.pause_reading()
    request = 0
    while not end.lost.done():
        if end.link.writable:
            request += 1
            end.link.send(Ok(request=request, result=bytes(50_000)))
        await asyncio.sleep(0.001)
    assert request < 500  # what is under way is bounded by the sockets' buffers
    error = await end.end()
    assert isinstance(error, TransportError)
    assert "took none of the" in str(error)


async def test_a_peer_that_takes_nothing_is_not_read_until_it_does(start) -> None:
    server = start(options=LinkOptions(write_high_water=100_000, most_untaken=500_000))
    client = await server.dial()
    end = await server.next()
    await end.until(lambda end: end.frames)
    assert client.link is not None
    client.link.pause_reading()
    request = 0
    while not end.link.behind:
        request += 1
        end.link.send(Ok(request=request, result=bytes(50_000)))
        await asyncio.sleep(0)
    client.link.send(Ping(request=7))
    client.link.send(Credit(consumer=1, messages=1))
    await end.until(lambda end: len(end.frames) == 2)
    for messages in range(2, 5):
        client.link.send(Credit(consumer=1, messages=messages))
    await asyncio.sleep(0.1)
    assert len(end.frames) == 2
    # Whoever held it back for a reason of his own does not undo this one.
    end.link.pause_reading()
    end.link.resume_reading()
    await asyncio.sleep(0.1)
    assert len(end.frames) == 2
    client.link.resume_reading()
    await end.until(lambda end: len(end.frames) == 5)
    await client.until(lambda end: Ok(request=7) in end.frames)


async def test_writable_turns_true_again(server) -> None:
    client = await server.dial(options=LinkOptions(write_high_water=100_000))
    end = await server.next()
    end.link.pause_reading()
    seq = 0
    while client.link.writable:
        seq += 1
        client.link.send(PublishFrame(seq, False, bytes(50_000)))
        await asyncio.sleep(0)
    assert client.writable == 0
    end.link.resume_reading()
    await client.until(lambda end: end.writable)
    assert client.link.writable
    await end.until(lambda end: len(end.frames) == 1 + seq)


async def test_writable_counts_what_this_turn_has_sent(server) -> None:
    client = await server.dial(options=LinkOptions(write_high_water=100_000))
    client.link.send(PublishFrame(1, False, bytes(100_000)))
    assert not client.link.writable
    await client.until(lambda end: end.writable)
    assert client.link.writable


async def test_a_connection_is_replaced_before_its_keys_are_used_up(
    start: Callable[..., Any],
) -> None:
    options = LinkOptions(tls_records=100)
    server = start(options=options)
    client = await server.dial()
    end = await server.next()
    client.link.send(PublishFrame(1, False, bytes(1_000_000)))
    client.link.send(PublishFrame(2, False, bytes(1_000_000)))
    await client.until(lambda end: end.frames)
    assert [type(frame) for frame in client.frames] == [Reconnect]
    assert not end.lost.done()
    client.link.send(PublishFrame(3, False, bytes(1_000_000)))
    client.link.send(PublishFrame(4, False, bytes(1_000_000)))
    assert "was not replaced" in str(await end.end())


async def test_a_client_replaces_a_connection_by_its_own_count(server) -> None:
    client = await server.dial(options=LinkOptions(tls_records=100))
    client.link.send(PublishFrame(1, False, bytes(1_000_000)))
    client.link.send(PublishFrame(2, False, bytes(1_000_000)))
    await client.until(lambda end: end.frames)
    assert isinstance(client.frames[0], Reconnect)
    assert not client.lost.done()


async def test_dialling_can_be_given_up(server, certificates: Certificates) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # greets never

    silent = await asyncio.start_server(hold, "127.0.0.1", 0, ssl=certificates.server())
    port = silent.sockets[0].getsockname()[1]
    task = asyncio.create_task(server.dial(url=f"cmq://127.0.0.1:{port}"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(WaitTimeout, match="sent no HELLO"):
        options = LinkOptions(handshake_timeout=1)
        await server.dial(url=f"cmq://127.0.0.1:{port}", options=options)
    silent.close()


async def test_a_refusal_before_the_greeting(start: Callable[..., Any]) -> None:
    server = start(max_connections_per_client=1)
    await server.dial("alice")
    with pytest.raises(Refused, match="alice has 1 connections already"):
        await server.dial("alice")
    await server.dial("bob")
