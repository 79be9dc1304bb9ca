"""Clients of 1.x against the server with PostgreSQL behind it; both are killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ciphermq
from ciphermq.cli.deployment import ADMINISTRATOR
from ciphermq.cli.processes import Stage, free_port
from interop.onex_clients import Binding, PipelinedSender, Place, Receiver
from support.postgres import PASSWORD, USER, Postgres, required_binaries

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]

BINDING = Binding("receiver_1_queue", "CipherMQ_exchange", "receiver_1_key")
PRIVATE = bytes(range(32))
COUNT = 10_000
CONFIG = """\
[server]
address = "127.0.0.1:{port}"
connection_type = "tls"

[tls]
cert_path = "server.crt"
key_path = "server.key"
ca_cert_path = "ca.crt"

[logging]
level = "info"
info_file_path = "logs/server_info.log"
debug_file_path = "logs/server_debug.log"
error_file_path = "logs/server_error.log"
rotation = "hourly"
max_size_mb = 1

[database]
host = "127.0.0.1"
port = {database}
user = "{user}"
password = "{password}"
dbname = "ciphermq"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"""


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres(required_binaries()) as running:
        # What it committed must survive its own SIGKILL; the machine does not go down here.
        asyncio.run(running.execute("CREATE DATABASE ciphermq"))
        yield running


class Run:
    """Ten thousand messages, and what goes wrong meanwhile."""

    def __init__(self, stage: Stage, postgres: Postgres) -> None:
        self.stage = stage
        self.postgres = postgres
        self.broker = stage.broker()
        self.over = False
        """All kills are: until then the sender can't be done."""
        self.texts: list[str] = []
        self.most_waiting = 0
        self.receiver = Receiver(
            self.place("receiver_1"), "receiver_1", BINDING, PRIVATE, "1.5", pause=0.05
        )
        self.sender = PipelinedSender(
            self.place("sender_1"), "sender_1", "receiver_1", BINDING, "1.5", tries=2000, pause=0.05
        )

    def place(self, name: str) -> Place:
        home = self.stage.deployment.identity(name)
        files = (home / "ca.crt", home / "cert.pem", home / "key.pem")
        return Place(self.stage.port, *files)

    def source(self) -> Iterator[str]:
        while len(self.texts) < COUNT or not self.over:
            self.texts.append(f"message {len(self.texts)}")
            yield self.texts[-1]

    async def received(self, count: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(120):
            while len(self.receiver.received) < count:
                await asyncio.sleep(0.002)

    async def status(self, part: str = "catalog") -> dict[str, Any]:
        """What an operator sees of a part of the broker."""
        admin = self.stage.deployment.identity(ADMINISTRATOR)
        async with ciphermq.connect(self.stage.url, identity=admin, passphrase="") as watcher:
            return dict((await watcher.status())[part])

    async def restart_broker(self) -> None:
        self.broker.kill()
        self.broker = await asyncio.to_thread(self.stage.broker)

    async def database_away(self, until: int) -> None:
        """Kill it; see that the backlog shows, and that messages go on; start it again."""
        self.postgres.kill()
        await self.received(until)
        async with asyncio.timeout(60):
            while True:
                catalog = await self.status()
                if "away" in catalog["database"] and catalog["metadata_rows_waiting"]:
                    break
                await asyncio.sleep(0.02)
        assert catalog["metadata_rows_dropped"] == 0
        await asyncio.to_thread(self.postgres.start)
        async with asyncio.timeout(60):
            while (await self.status())["database"] != "connected":
                await asyncio.sleep(0.02)

    async def written(self) -> None:
        """Wait until nothing waits to be written."""
        async with asyncio.timeout(60):
            while (await self.status())["metadata_rows_waiting"]:
                await asyncio.sleep(0.02)


async def test_ten_thousand_with_postgresql_killed_and_the_broker_killed_twice(
    tmp_path: Path, postgres: Postgres
) -> None:
    with Stage(tmp_path / "stage", ["sender_1", "receiver_1"], port=free_port()) as stage:
        stage.deployment.config.write_text(
            CONFIG.format(port=stage.port, database=postgres.port, user=USER, password=PASSWORD)
        )
        run = Run(stage, postgres)
        receiving = asyncio.create_task(run.receiver.run())
        async with asyncio.timeout(30):
            while "Subscribed to queue" not in run.receiver.heard:
                await asyncio.sleep(0.002)
        sending = asyncio.create_task(run.sender.run(run.source()))
        await run.received(COUNT // 5)
        await run.restart_broker()
        await run.received(2 * COUNT // 5)
        await run.database_away(until=3 * COUNT // 5)
        await run.received(4 * COUNT // 5)
        await run.restart_broker()
        run.over = True
        assert not sending.done()
        await sending
        await run.received(len(run.texts))
        await run.receiver.say("ack the-last-of-all")
        async with asyncio.timeout(30):
            while "ACK_CONFIRMED the-last-of-all" not in run.receiver.heard:
                await asyncio.sleep(0.002)
        await run.written()
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await receiving
        rows = await postgres.rows(
            "SELECT message_id, client_id, exchange_name, routing_key, sent_time, "
            "delivered_time, acknowledged_time FROM message_metadata",
            "ciphermq",
        )
        left = (await run.status("engine"))["messages"]
        assert run.broker.stop() == 0
    assert run.sender.given_up == run.sender.replies == []
    assert dict(run.receiver.received) == run.sender.sent
    assert sorted(text for _, text in run.receiver.received) == sorted(run.texts)
    assert len(run.sender.sent) >= COUNT
    found = {row[0]: row for row in rows}
    assert found.keys() == run.sender.sent.keys()
    for _, client, exchange, key, *_ in rows:
        assert (client, exchange, key) == ("sender_1", "CipherMQ_exchange", "receiver_1_key")
    assert all(sent and delivered for *_, sent, delivered, _ in rows)
    # A receiver of 1.x acks nothing that it has seen before: what a kill took the ack of stays in
    # the queue. What one turn of the loop had in hand may have been durable before it was noted.
    assert sum(row[6] is None for row in rows) <= left + 100
    for log in (tmp_path / "stage").rglob("server_*.log*"):
        for line in log.read_text().splitlines():
            assert json.loads(line)["timestamp"]
