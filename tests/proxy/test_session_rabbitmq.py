"""Sessions between ordinary clients and a real broker."""

from __future__ import annotations

import asyncio

import aiormq

from ciphermq.proxy.model import Backend
from ciphermq.wire.amqp import closing, properties
from support.rabbitmq import Node
from support.sessions import CAPABLE, HEADER, TUNE_OK, Peer, Rig, open_, start_ok


def backend(node: Node) -> Backend:
    return Backend(name=node.name, datacenter="", host="127.0.0.1", port=node.port)


async def test_messages_go_there_and_back(blue: Node) -> None:
    with blue.vhost() as vhost:
        async with Rig() as rig:
            rig.add(backend(blue))
            connection = await aiormq.connect(blue.url(vhost.name, port=rig.port))
            channel = await connection.channel()
            await channel.queue_declare("q")
            for body in (b"", b"tiny", bytes(300_000)):
                await channel.basic_publish(body, routing_key="q")
                got = await channel.basic_get("q", no_ack=True)
                assert got.body == body
            await connection.close()
            await rig.over()
        assert rig.gate.endings == ["graceful"]


async def refused(port: int, node: Node, *, password: str, vhost: bytes) -> tuple[int, str]:
    """The Close that a client gets which says this."""
    peer = Peer(*await asyncio.open_connection("127.0.0.1", port))
    login = f"\0{node.user}\0{password}".encode()
    for said in (HEADER, start_ok(CAPABLE, response=login), TUNE_OK + open_(vhost)):
        peer.send(said)
        got = await peer.frame()
        if got.method == (10, 50):
            break
    while got.method != (10, 50):
        got = await peer.frame()
    peer.send(closing.CLOSE_OK)
    await peer.end()
    peer.close()
    return properties.read_close(got.payload)


async def test_a_refusal_is_the_brokers_own(blue: Node) -> None:
    """A wrong password, a wrong vhost: the same code and words with and without the proxy."""
    async with Rig() as rig:
        rig.add(backend(blue))
        for password, vhost, code in (("wrong", b"/", 403), (blue.password, b"nowhere", 530)):
            direct, through = [
                await refused(port, blue, password=password, vhost=vhost)
                for port in (blue.port, rig.port)
            ]
            assert direct == through
            assert direct[0] == code
        await rig.over()
        assert rig.gate.failures == []


async def test_the_broker_shows_who_the_client_is(blue: Node) -> None:
    with blue.vhost() as vhost:
        async with Rig() as rig:
            rig.add(backend(blue))
            connection = await aiormq.connect(blue.url(vhost.name, port=rig.port))
            shown = blue.evaluate(
                "[rabbit_networking:connection_info(P, [client_properties])"
                f" || P <- rabbit_networking:connections_local(), [{{vhost, V}}] <-"
                " [rabbit_networking:connection_info(P, [vhost])],"
                f' V =:= <<"{vhost.name}">>]'
            )
            for text in ("amqpprox_client", "127.0.0.1:", "amqpprox_host", f"(:{rig.port}) "):
                assert ",".join(str(byte) for byte in text.encode()) in shown
            await connection.close()
            await rig.over()
