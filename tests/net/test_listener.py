"""Accepting: bounds, exhaustion, ports."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.errors import ConfigError, ResourceLimit, TransportError
from ciphermq.net.listener import Listener
from ciphermq.net.options import LinkOptions
from support.certificates import Certificates


async def test_the_port_is_taken(server, certificates: Certificates) -> None:
    other = Listener(("127.0.0.1", server.port), certificates.server, {})
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}: the port is taken"):
        other.start()
    other.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_that_is_not_ours(certificates: Certificates, host: str) -> None:
    with pytest.raises(ConfigError, match=f"{host}:0: this machine has no such address"):
        Listener((host, 0), certificates.server, {}).start()


async def test_every_interface_of_both_kinds(certificates: Certificates) -> None:
    listener = Listener(("::", 0), certificates.server, {})
    port = listener.start()[1]
    for host in ("127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
    listener.stop()
    listener.stop()


async def test_connections_are_bounded(start: Callable[..., Any], refusals) -> None:
    server = start(max_connections=2)
    first = await server.dial("alice")
    await server.dial("bob")
    with pytest.raises(TransportError):
        await server.dial("carol")
    assert any("all 2 connections are taken" in line for line in refusals())
    first.link.close()
    await first.end()
    while server.listener.connections == 2:
        await asyncio.sleep(0.01)
    await server.dial("carol")


async def test_connections_of_one_client_are_bounded(start: Callable[..., Any], refusals) -> None:
    server = start(max_connections_per_client=2)
    first = await server.dial("alice")
    await server.dial("alice")
    with pytest.raises(ResourceLimit, match="alice has 2 connections already"):
        await server.dial("alice")
    assert any("alice has 2 connections already" in line for line in refusals())
    first.link.close()
    await first.end()
    await server.dial("alice")


async def test_silent_strangers_do_not_take_every_place(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HANDSHAKES", 3)
    server = start(options=LinkOptions(handshake_timeout=1))
    silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(6)]
    async with asyncio.timeout(10):
        await server.dial("alice")  # once the first have been turned out
    assert server.listener.connections <= 4
    for _, writer in silent:
        writer.transport.abort()


async def test_descriptors_run_out_and_come_back(
    server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ciphermq")
    monkeypatch.setattr("ciphermq.net.listener._ACCEPT_PAUSE", 0.05)
    real = server.listener._socket
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2

    class Exhausted:
        """The listening socket of a process without descriptors."""

        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop()
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(server.listener, "_socket", Exhausted())
    client = await server.dial("alice")
    assert client.link.open
    assert server.listener.counters["accept_pauses"] == 2
    lines = [record.getMessage() for record in caplog.records]
    assert any("Too many open files" in line and "ulimit" in line for line in lines)


async def test_a_listener_that_stops_keeps_what_it_has(server) -> None:
    client = await server.dial("alice")
    server.listener.stop()
    with pytest.raises(TransportError):
        await server.dial("bob")
    assert client.link.open
    assert not client.lost.done()


async def test_who_comes_and_goes_leaves_nothing(server) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.abort()
    async with asyncio.timeout(10):
        while server.listener.counters["accepted"] < 20 or server.listener.connections:
            await asyncio.sleep(0.01)
    assert not server.listener._tasks
