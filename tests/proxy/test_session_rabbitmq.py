"""Sessions between ordinary clients and a real broker."""

from __future__ import annotations

import aiormq


from ciphermq.proxy.model import Backend
from support.rabbitmq import Node
from support.sessions import Rig


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
