"""The receiver of 1.x against a server with faults: nothing twice, no ack before the disk."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from ciphermq.client.classic import receiver as module
from ciphermq.client.classic.keys import find_own_key
from ciphermq.client.classic.peer import Peer, dialect_of
from ciphermq.client.classic.receiver import ClassicReceiver
from ciphermq.client.classic.record import Record
from ciphermq.custody.onex import OnexKey
from ciphermq.errors import IdentityError, Refused, TlsFailed
from ciphermq.model.onex import Dialect, PayloadCipher, SessionSeal
from ciphermq.sealing.onex import seal_message
from ciphermq.settings.onexclient import ReceiverFile, load_client_file
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.machine import ServerLines
from ciphermq.wire.lines.speech import Command, Failed, Message, Reply, Wrong
from interop.little_server import LittleServer
from interop.onex_clients import make_message
from support.classic import QUEUE, ClassicDeployment
from support.onex_certificates import make_certificates

PRIVATE = bytes(range(32))
PUBLIC = bindings.crypto_scalarmult_base(PRIVATE)


class Server(LittleServer):
    """With answers to commands of a kind that a test gives it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context)
        self.instead: dict[type, list[list[Reply]]] = {}
        self.acks: list[str] = []

    def _answer(self, command: Command | Wrong, writer: asyncio.StreamWriter) -> list[Reply]:
        if isinstance(command, speech.Ack):
            self.acks.append(command.message_id)
        if self.instead.get(type(command)):
            return self.instead[type(command)].pop(0)
        return super()._answer(command, writer)

    def push(self, *messages: Message) -> None:
        for message in messages:
            self.queues[QUEUE][message.message_id] = message.message
            for consumer in self._consumers[QUEUE]:
                consumer.write(ServerLines().send(message))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> ClassicDeployment:
    return ClassicDeployment(tmp_path_factory.mktemp("classic"))


@pytest.fixture
async def server(deployment: ClassicDeployment) -> AsyncIterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    certs = deployment.certificates
    context.load_verify_locations(certs / "ca.crt")
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    running = Server(context)
    await running.start()
    yield running
    await running.stop()


class Run:
    """One program on its record, and what it has said."""

    def __init__(
        self,
        deployment: ClassicDeployment,
        server: Server,
        directory: Path,
        dialect: str | None = None,
        *,
        count: int | None = None,
        wait: float | None = None,
        **changes: Any,
    ) -> None:
        values = deployment.values("1.4", "receiver") | {"server_port": server.port} | changes
        for name in ("certificate_path", "client_cert_path", "client_key_path"):
            path = deployment.directory / "1.4" / "receiver" / values["tls"][name]
            values["tls"][name] = os.path.normpath(path)
        path = directory / "config.json"
        path.write_text(json.dumps(values))
        file, _ = load_client_file(path, ReceiverFile)
        self.said: list[tuple[str, str]] = []
        self.record = Record(directory / "data" / "received_messages.jsonl")
        self.program = ClassicReceiver(
            file,
            Peer.of(file),
            OnexKey(PRIVATE),
            dialect_of(file, dialect, v1_5=False),
            self.record,
            self._say,
            count=count,
            wait=wait,
        )

    def _say(self, event: str, line: str, /, **facts: Any) -> None:
        self.said.append((event, line))

    def count(self, event: str) -> int:
        return sum(one == event for one, _ in self.said)

    @property
    def texts(self) -> list[str]:
        lines = self.record.path.read_text().splitlines()
        return [json.loads(line)["message"] for line in lines]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until the block ends; then it is stopped in order."""
        task = asyncio.create_task(self.program.run())
        try:
            yield
            self.program.stop()
            async with asyncio.timeout(20):
                await task
        finally:
            task.cancel()
            self.record.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


def message(text: str, message_id: str, version: str = "1.4") -> Message:
    made = make_message(version, "sender_1", "receiver_1", PUBLIC, text)
    return Message(message_id, json.dumps(made | {"message_id": message_id}).encode())


async def test_shown_kept_and_acknowledged(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.push(message("before", "m-0"))
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("confirmed") == 1)
        server.push(message("one", "m-1"), message("two", "m-2", "1.4.0"))
        await run.until(lambda: run.count("confirmed") == 3)
    assert run.texts == ["before", "one", "two"]
    assert server.acks == ["m-0", "m-1", "m-2"]
    assert ("decrypted", "Decrypted message m-1: one") in run.said
    assert server.queues[QUEUE] == {}


async def test_what_comes_again_is_acknowledged_and_not_shown(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.deaf_acks = 1
    server.push(message("one", "m-1"))
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("confirmed") == 1)
        assert run.count("duplicate") == 1
    assert run.texts == ["one"]
    # After a restart, too.
    server.push(message("one", "m-1"), message("one", "m-1"))
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("confirmed") == 1)
    assert run.texts == ["one"]
    assert run.count("decrypted") == 0


async def test_no_ack_before_it_is_on_the_disk(
    deployment: ClassicDeployment,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(deployment, server, tmp_path)
    synced: list[list[str]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(list(server.acks))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    async with run.running():
        server.push(message("one", "m-1"))
        await run.until(lambda: run.count("confirmed") == 1)
    assert synced == [[]]


async def test_an_ack_that_nobody_confirms_is_sent_again(
    deployment: ClassicDeployment,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ACK_TIMEOUT", 0.05)
    server.instead[speech.Ack] = [[], [], [], []]
    server.push(message("one", "m-1"))
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("ack_failed") == 1)
        assert server.acks == ["m-1"] * 3
        # It comes again, and so does its ack.
        server.push(message("one", "m-1"))
        await run.until(lambda: run.count("confirmed") == 1)
    assert run.texts == ["one"]


async def test_a_server_that_restarts(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("subscribed") == 1)
        await server.stop()
        server.push(message("while away", "m-1"))
        await server.start()
        await run.until(lambda: run.count("confirmed") == 1)
    assert run.texts == ["while away"]


async def test_what_does_not_open_stays_with_the_server(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    wrong = message("for another", "m-3")
    bad = Message("m-2", b'{"message_id": "m-2"}')
    server.push(message("of 1.5", "m-1", "1.5"), bad, message("fine", "m-4"))
    server.push(Message("m-3", wrong.message.replace(b'"nonce": "', b'"nonce": "AAAA')))
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("confirmed") == 1 and run.count("refused") == 3)
        assert "ciphermq-1.5" in next(line for event, line in run.said if event == "refused")
        server.push(bad)
        server.push(message("more", "m-5"))
        await run.until(lambda: run.count("confirmed") == 2)
    assert run.count("refused") == 3
    assert run.texts == ["fine", "more"]
    assert set(server.queues[QUEUE]) == {"m-1", "m-2", "m-3"}


@pytest.mark.parametrize("cipher", list(PayloadCipher))
@pytest.mark.parametrize("separate_tag", [False, True])
async def test_either_cipher_where_the_file_does_not_say_which(
    deployment: ClassicDeployment,
    server: Server,
    tmp_path: Path,
    cipher: PayloadCipher,
    separate_tag: bool,
) -> None:
    dialect = Dialect(SessionSeal.V1_4, cipher, separate_tag)
    sealed = seal_message(
        b"text", message_id="m", receiver="receiver_1", public_key=PUBLIC, dialect=dialect
    )
    server.push(Message("m", sealed))
    run = Run(deployment, server, tmp_path, count=1)
    await run.program.run()
    assert run.texts == ["text"]
    run.record.close()


async def test_a_cipher_that_the_file_names_is_the_only_one(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.push(message("text", "m-1"))
    run = Run(deployment, server, tmp_path, one_x={"cipher": "aes-256-gcm"})
    async with run.running():
        await run.until(lambda: run.count("refused") == 1)


async def test_the_newer_dialect(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.push(message("text", "m-1", "1.5"))
    run = Run(deployment, server, tmp_path, "ciphermq-1.5", count=1)
    await run.program.run()
    assert run.texts == ["text"]
    run.record.close()


async def test_it_ends_when_it_has_enough_and_leaves_the_rest(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.push(*(message(str(number), f"m-{number}") for number in range(5)))
    run = Run(deployment, server, tmp_path, count=3)
    await run.program.run()
    assert run.texts == ["0", "1", "2"]
    assert set(server.queues[QUEUE]) == {"m-3", "m-4"}
    run.record.close()


async def test_it_ends_when_nothing_comes(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path, wait=0.2)
    await run.program.run()
    await server.stop()
    run.record.close()
    run = Run(deployment, server, tmp_path, wait=0.2)
    await run.program.run()
    assert run.count("lost") >= 1
    run.record.close()


@pytest.mark.parametrize("kind", [speech.RegisterKey, speech.Consume])
async def test_a_refusal_at_the_start_ends_it(
    deployment: ClassicDeployment, server: Server, tmp_path: Path, kind: type
) -> None:
    server.instead[kind] = [[Failed("not for you")]]
    run = Run(deployment, server, tmp_path)
    with pytest.raises(Refused, match="not for you"):
        await run.program.run()
    run.record.close()


async def test_a_refusal_later_may_pass(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("subscribed") == 1)
        server.instead[speech.RegisterKey] = [[Failed("the catalog is away")]]
        await server.stop()
        await server.start()
        server.push(message("text", "m-1"))
        await run.until(lambda: run.count("confirmed") == 1)


async def test_ids_that_no_ack_could_carry_are_refused(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path)
    async with run.running():
        await run.until(lambda: run.count("subscribed") == 1)
        for consumer in server._consumers[QUEUE]:
            consumer.write(b"Message:  {}\nMessage: \x07 {}\nsomething else\n")
        await run.until(lambda: run.count("refused") == 2)
        assert run.count("unexpected") == 1


async def test_another_authority(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others", "receiver_1")
    tls = deployment.values("1.4", "receiver")["tls"] | {
        "certificate_path": str(others / "ca.crt"),
        "verify_mode": "CERT_NONE",
    }
    run = Run(deployment, server, tmp_path, tls=tls)
    with pytest.raises(TlsFailed, match="wrong CA"):
        await run.program.run()
    run.record.close()


@pytest.mark.parametrize(
    "place", ["keys", "certs", ".", "../../create_ca_key/Rust_Key_Maker_X25519"]
)
def test_where_the_key_is_looked_for(tmp_path: Path, place: str) -> None:
    base = tmp_path / "clients" / "Receiver_1"
    base.mkdir(parents=True)
    with pytest.raises(IdentityError, match="--key"):
        find_own_key(base, None)
    directory = base / place
    directory.mkdir(parents=True, exist_ok=True)
    made = OnexKey.create(directory)
    found = find_own_key(base, None)
    assert found.key.public_key == made.public_key
    assert found.of_1_5 == place.startswith("..")
