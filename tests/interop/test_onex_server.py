"""The client programs of 1.x against the server itself, which is killed on the way.

The server is a process of its own, on a configuration and certificates as 1.x has them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ciphermq.cli.processes import Process, free_port
from interop.onex_clients import (
    TLS_1_2,
    TLS_1_3,
    Binding,
    PipelinedSender,
    Place,
    Receiver,
    Sender,
)
from support.onex_certificates import make_certificates

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

BINDING = Binding("receiver_1_queue", "CipherMQ_exchange", "receiver_1_key")
PRIVATE = bytes(range(32))
VERSIONS = {TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}
KILLS = 2


class Server:
    """One that comes back on its port with what is on its disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        make_certificates(directory / "certs", "sender_1", "sender_2", "receiver_1")
        self.config = directory / "config.toml"
        self.config.write_text(f"""
[server]
address = "127.0.0.1:{self.port}"
connection_type = "tls"

[tls]
cert_path = "certs/server.crt"
key_path = "certs/server.key"
ca_cert_path = "certs/ca.crt"

[logging]
level = "info"
info_file_path = "logs/server_info.log"
debug_file_path = "logs/server_debug.log"
error_file_path = "logs/server_error.log"
rotation = "daily"
max_size_mb = 100

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
""")
        self.process: Process

    async def start(self) -> None:
        log = self.directory / "output"
        words = ["server", "--config", str(self.config)]
        environment = {"CIPHERMQ_STORAGE__RESERVE_MB": "1"}
        self.process = Process("server", words, log=log, environment=environment)
        await asyncio.to_thread(self.process.wait_for, "ciphermq ready on")

    def place(self, name: str, tls: object) -> Place:
        certs = self.directory / "certs"
        mine = certs / "clients" / name
        files = (certs / "ca.crt", mine / "client.crt", mine / "client.key")
        return Place(self.port, *files, tls=tls)  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    yield found
    found.process.kill()


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[None]:
    task = asyncio.create_task(receiver.run())
    try:
        await until(lambda: "Subscribed to queue" in receiver.heard)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def send_and_kill(server: Server, sender: Sender, receiver: Receiver, count: int) -> None:
    """At least so many messages, two kills in their midst; what came must be what was sent."""
    await server.start()
    texts: list[str] = []
    killed = 0

    def source() -> Iterator[str]:
        """The sender can't be done before both kills, however fast it is."""
        while len(texts) < count or killed < KILLS:
            texts.append(f"message {len(texts)}: 21.5 °C")
            yield texts[-1]

    async with receiving(receiver):
        sending = asyncio.create_task(sender.run(source()))
        for part in range(1, KILLS + 1):
            least = count * part // (KILLS + 1)
            await until(lambda least=least: len(receiver.received) > least)  # type: ignore[misc]
            server.process.kill()  # nothing else of this program runs meanwhile
            assert not sending.done(), sending.exception()
            killed += 1
            await server.start()
        await sending
        await until(lambda: len(receiver.received) >= len(texts))
        # Replies come in order: the acks before have been heard once this one has its own.
        await receiver.say("ack the-last-of-all")
        await until(lambda: "ACK_CONFIRMED the-last-of-all" in receiver.heard)
    assert sender.given_up == sender.replies == []
    assert dict(receiver.received) == sender.sent
    assert sorted(text for _, text in receiver.received) == sorted(texts)
    assert receiver.connections > KILLS
    await nothing_left(sender, receiver)


async def nothing_left(sender: Sender, receiver: Receiver) -> None:
    """Only what was given twice can be left in the queue: 1.x acks nothing a second time. A new
    receiver, which has seen nothing, empties it."""
    fresh = Receiver(
        receiver.place, receiver.name, BINDING, PRIVATE, receiver.version, pause=receiver.pause
    )
    async with receiving(fresh):
        await sender.run(["the end"])  # which comes after all that was left
        await until(lambda: "the end" in [text for _, text in fresh.received])
        left = {message_id for message_id, text in fresh.received if text != "the end"}
        assert left <= set(receiver.repeated)
        await until(lambda: len(confirmed(fresh)) == len(left) + 1)
    assert fresh.repeated == []


def confirmed(receiver: Receiver) -> list[str]:
    return [line for line in receiver.heard if line.startswith("ACK_CONFIRMED ")]


@pytest.mark.parametrize("tls", VERSIONS, ids=VERSIONS.values())
@pytest.mark.parametrize("version", ["1.4.0", "1.4", "1.5"])
async def test_none_is_lost_and_none_shown_twice(server: Server, tls: object, version: str) -> None:
    kind = PipelinedSender if version == "1.5" else Sender
    place = server.place("sender_1", tls)
    sender = kind(place, "sender_1", "receiver_1", BINDING, version, tries=2000, pause=0.05)
    place = server.place("receiver_1", tls)
    receiver = Receiver(place, "receiver_1", BINDING, PRIVATE, version, pause=0.05)
    await send_and_kill(server, sender, receiver, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("tls", VERSIONS, ids=VERSIONS.values())
async def test_ten_thousand(server: Server, tls: object) -> None:
    place = server.place("sender_1", tls)
    sender = PipelinedSender(
        place, "sender_1", "receiver_1", BINDING, "1.5", tries=2000, pause=0.05
    )
    place = server.place("receiver_1", tls)
    receiver = Receiver(place, "receiver_1", BINDING, PRIVATE, "1.5", pause=0.05)
    await send_and_kill(server, sender, receiver, 10_000)
