"""What strangers and bad clients do to a server over ZeroMQ: a hundred thousand identities, answers
that nobody takes. Memory stays bounded, and those who behave are served."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import threading
import time
from pathlib import Path

import pytest
import zmq

from ciphermq import limits
from ciphermq.net.reception import Reception
from ciphermq.net.zmq.channel import ZmqChannel
from ciphermq.net.zmq.listener import ZmqListener
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import Buffer, Head, Kind
from ciphermq.wire.tlszmq.parts import ALPN
from ciphermq.zmq import Bounds, TlsRouter
from support.certificates import Certificates

IDENTITIES = 100_000
START = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""Of a ClientHello whose rest never comes."""

MOST_GROWTH = 100 * limits.MIB
"""Of the process, for what would take some gigabytes if each identity were kept."""

SOON = 60.0


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Strangers:
    """One DEALER as the last hop of a hundred thousand clients, each with a session of its own."""

    def __init__(self, address: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger, self._socket.sndtimeo = 0, int(SOON * 1000)
        self._socket.connect(address)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        send = self._socket.send_multipart
        for number in range(IDENTITIES):
            head = Head(Kind.DATA, number.to_bytes(16, "big")).encode()
            send([b"%d" % number, b"", head + START])

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._socket.close()


def test_a_router_among_a_hundred_thousand_identities(certificates: Certificates) -> None:
    tls, bounds = certificates.server(protocols=(ALPN,)), Bounds(handshakes=100)
    with TlsRouter(tls, bounds=bounds) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        before, most = resident(), 0
        deadline = time.monotonic() + SOON
        with Strangers(f"tcp://127.0.0.1:{port}"):
            while router._machine.refused < IDENTITIES - 100:
                router._end.take_in()
                router._end.push()
                most = max(most, router.sessions)
                assert time.monotonic() < deadline, router._machine.refused
        assert most == router.sessions == 100
        assert resident() - before < MOST_GROWTH


async def flooded_broker(tls: ssl.SSLContext) -> int:
    """The most connections there were at a time."""
    reception, most = Reception({}), 0
    listener = ZmqListener(("127.0.0.1", 0), lambda: tls, reception)
    port = listener.start()[1]
    async with asyncio.timeout(SOON):
        with Strangers(f"tcp://127.0.0.1:{port}"):
            while reception.counters["accepted"] < IDENTITIES:
                most = max(most, len(listener._channels), reception.connections)
                await asyncio.sleep(0)
    await listener.close()
    return most


def test_a_broker_among_a_hundred_thousand_identities(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tls = certificates.server(protocols=(ALPN,))
    before = resident()
    assert asyncio.run(flooded_broker(tls)) == limits.MAX_HANDSHAKES
    assert resident() - before < MOST_GROWTH
    lines = [line for line in caplog.messages if "make way" in line]
    assert 0 < len(lines) <= SOON + 1
    # Those that still were there at the end are told of one by one.
    assert len(caplog.messages) <= len(lines) + limits.MAX_HANDSHAKES


async def test_answers_that_nobody_takes_do_not_pile_up(certificates: Certificates) -> None:
    sent: list[list[Buffer]] = []
    room = True

    def send(frames: list[Buffer]) -> None:
        if not room:
            raise zmq.Again
        sent.append(frames)

    def unused(_: object) -> None:
        raise AssertionError("there is no handshake in this test")

    channel = ZmqChannel(
        TlsPump(certificates.server(protocols=(ALPN,))),
        b"t" * 16,
        send,
        unused,
        unused,
        role=Role.SERVER,
        peer="a peer",
        before=(b"",),
    )
    room = False
    for _ in range(1000):
        channel.receive(Head(Kind.ASK, b"t" * 16), [])
    assert len(channel._stuck) == 1
    room = True
    channel.tick()
    assert len(sent) == 2  # the one that was stuck, and one for all the others
    channel._finish()
    channel._on_failed = lambda _: None
    await channel.wait_closed()
