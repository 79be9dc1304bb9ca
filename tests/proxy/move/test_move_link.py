"""Connections to a real node, and what it means when there is none."""

from __future__ import annotations

import asyncio
import ssl

import pamqp.commands as spec
import pytest

from ciphermq.cli.processes import free_port
from ciphermq.errors import CipherMQError, ConnectFailed, ConnectionLost, MoveError, TlsFailed
from ciphermq.proxy.move.link import Address, Link
from support.rabbitmq import Node, wait_until


def address(node: Node, **changes: object) -> Address:
    return Address("127.0.0.1", node.port, node.user, node.password)._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "vhost", "error", "text"),
    [
        ({"password": "wrong"}, "/", MoveError, "refused: 403 ACCESS_REFUSED"),
        ({}, "no such vhost", MoveError, "refused: 530 NOT_ALLOWED"),
        ({"port": 9}, "/", ConnectFailed, "127.0.0.1:9 can't be reached"),
    ],
)
async def test_a_connection_that_can_not_be_made(
    blue: Node, changes: dict[str, object], vhost: str, error: type[CipherMQError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await Link.open(address(blue, **changes), vhost)


async def test_a_password_is_in_no_text(blue: Node) -> None:
    assert blue.password not in repr(address(blue))


async def test_tls_is_checked(blue: Node) -> None:
    trusting = ssl.create_default_context(cafile=blue.authority)
    with blue.vhost() as vhost:
        secure = address(blue, host="localhost", port=blue.tls_port, tls=trusting)
        link = await Link.open(secure, vhost.name)
        assert await link.call(spec.Queue.Declare(queue="q", exclusive=True), spec.Queue.DeclareOk)
        await link.close()
        strict = ssl.create_default_context()
        with pytest.raises(TlsFailed, match="no TLS with this broker"):
            await Link.open(secure._replace(tls=strict), vhost.name)


async def test_frames_are_no_larger_than_is_asked_for(blue: Node) -> None:
    with blue.vhost() as vhost:
        link = await Link.open(address(blue), vhost.name, frame_max=8192)
        assert link.frame_max == 8192
        await link.close()


async def test_a_refused_method_ends_the_link_with_its_code(blue: Node) -> None:
    with blue.vhost() as vhost:
        link = await Link.open(address(blue), vhost.name)
        with pytest.raises(MoveError, match="404 NOT_FOUND"):
            await link.messages("missing")
        assert link.reply == 404
        with pytest.raises(MoveError, match="404 NOT_FOUND"):
            await link.messages("any")
        await link.close()


async def test_a_connection_that_is_cut_is_noticed(blue: Node) -> None:
    with blue.vhost() as vhost:
        link = await Link.open(address(blue), vhost.name)
        failed = asyncio.get_running_loop().create_future()
        link.on_failure = failed.set_result
        where = f"vhosts/{vhost.quoted}/connections"
        await asyncio.to_thread(wait_until, lambda: blue.api("GET", where))
        (connection,) = blue.api("GET", where)
        blue.api("DELETE", f"connections/{connection['name']}")
        error = await failed
        assert isinstance(error, MoveError)
        assert "320 CONNECTION_FORCED" in str(error)
        await link.close()


class Odd(asyncio.Protocol):
    """A server that says one thing to everybody."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._said)
        transport.close()


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        (b"", ConnectionLost, "ended the connection"),
        (b"AMQP\x00\x01\x00\x00", CipherMQError, "does not speak AMQP 0.9.1"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 99, CipherMQError, "does not speak AMQP 0.9.1"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x1e\x00", CipherMQError, "without its end"),
        (b"\x02\x00\x01\x7f\xff\xff\xff" + bytes(99), CipherMQError, "a frame of 2,147,483,647"),
        (b"\x01\x00\x01\x7f\xff\xff\xff" + bytes(99), CipherMQError, "a frame of 2,147,483,647"),
        (b"\x03\x00\x01\x00\x00\x00\x01x\xce", CipherMQError, "belongs to no method"),
    ],
)
async def test_what_is_no_broker_is_told(
    said: bytes, error: type[CipherMQError], text: str
) -> None:
    port = free_port()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Odd(said), "127.0.0.1", port)
    async with server:
        with pytest.raises(error, match=text):
            await Link.open(Address("127.0.0.1", port, "u", "p"), "/")
