"""The sender of 1.x against a server with faults: what it retries, gives up and promises."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from ciphermq import limits
from ciphermq.client.classic.keys import ReceiversKeys
from ciphermq.client.classic.peer import Peer, dialect_of
from ciphermq.client.classic.sender import ClassicSender, _pause
from ciphermq.errors import ConnectFailed, PinnedKeyChanged, Unfinished, UnknownReceiver
from ciphermq.model import onex
from ciphermq.settings.onexclient import SenderFile, load_client_file
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Command, Failed, InvalidBatch, Reply, Wrong
from interop.little_server import LittleServer
from interop.onex_clients import open_message
from support.classic import EXCHANGE, KEY, QUEUE, ClassicDeployment

PRIVATE = bytes(range(32))
PUBLIC = base64.b64encode(bindings.crypto_scalarmult_base(PRIVATE)).decode()


class Server(LittleServer):
    """With batches, and replies that a test gives it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context)
        self.replies: list[Reply | None] = []
        """Said to the next publishes instead of what is right; None: nothing."""
        self.batches = 0

    def _answer(self, command: Command | Wrong, writer: asyncio.StreamWriter) -> list[Reply]:
        if isinstance(command, speech.PublishBatch):
            self.batches += 1
            if self.replies:
                reply = self.replies.pop(0)
                return [] if reply is None else [reply]
            key = command.routing_key
            found = [
                self._publish(command.exchange, key, text, writer)
                for text in onex.split(command.messages)
            ]
            return [reply for replies in found for reply in replies]
        if isinstance(command, speech.Publish) and self.replies:
            reply = self.replies.pop(0)
            return [] if reply is None else [reply]
        return super()._answer(command, writer)


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
    running.keys["receiver_1"] = PUBLIC
    yield running
    await running.stop()


class Run:
    """One program, and what it has said."""

    def __init__(
        self,
        deployment: ClassicDeployment,
        server: Server,
        directory: Path,
        generation: str = "1.5",
        *,
        count: int = 20,
        accept_new: bool = False,
        **pace: Any,
    ) -> None:
        values = deployment.values(generation, "sender")
        for name in ("certificate_path", "client_cert_path", "client_key_path"):
            path = deployment.directory / "1.5" / "sender" / values["tls"][name]
            values["tls"][name] = os.path.normpath(path)
        values["server_port"] = server.port
        if generation == "1.5":
            values["sender"] |= {"num_messages": count, "batch_delay_ms": 0} | pace
        path = directory / "config.json"
        path.write_text(json.dumps(values))
        file, _ = load_client_file(path, SenderFile)
        self.said: list[tuple[str, str]] = []
        keys = ReceiversKeys(directory, file.generation, accept_new=accept_new)
        dialect = dialect_of(file, None, v1_5=False)
        self.program = ClassicSender(file, Peer.of(file), keys, dialect, self._say, count=count)

    def _say(self, event: str, line: str, /, **facts: Any) -> None:
        self.said.append((event, line))

    @property
    def events(self) -> Counter[str]:
        return Counter(event for event, _ in self.said)


def texts(server: Server, version: str) -> list[str]:
    return [
        open_message(version, PRIVATE, json.loads(text)) for text in server.queues[QUEUE].values()
    ]


async def test_what_is_sent(deployment: ClassicDeployment, server: Server, tmp_path: Path) -> None:
    run = Run(deployment, server, tmp_path)
    await run.program.run()
    assert len(server.stored) == run.program.acknowledged == 20
    assert texts(server, "1.5")[0].startswith("Hello 1 from sender_1: ")
    assert run.events["encrypted"] == run.events["acknowledged"] == 20
    assert (tmp_path / "keys" / "receiver_1_public.key").read_text() == PUBLIC
    message_id = server.stored[0]
    assert message_id.startswith("sender_1-")
    assert message_id.endswith("-receiver_1")


@pytest.mark.parametrize(("generation", "version"), [("1.4.0", "1.4.0"), ("1.4", "1.4")])
async def test_older_ones(
    deployment: ClassicDeployment, server: Server, tmp_path: Path, generation: str, version: str
) -> None:
    run = Run(deployment, server, tmp_path, generation, count=12)
    await run.program.run()
    assert len(texts(server, version)) == 12
    assert server.batches == (2 if generation == "1.4.0" else 0)
    assert all(
        ("tag" in json.loads(text)) == (generation == "1.4.0")
        for text in server.queues[QUEUE].values()
    )


async def test_a_lost_ack_is_asked_for_again_with_the_same_bytes(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.silent_acks = 1
    run = Run(deployment, server, tmp_path)
    await run.program.run()
    assert len(server.stored) == run.program.acknowledged == 20
    assert run.events["lost"] == 1
    assert len(texts(server, "1.5")) == 20


@pytest.mark.parametrize("generation", ["1.4.0", "1.5"])
async def test_what_is_refused_is_tried_again(
    deployment: ClassicDeployment, server: Server, tmp_path: Path, generation: str
) -> None:
    server.replies = [InvalidBatch("no") if generation == "1.4.0" else Failed("full")]
    run = Run(deployment, server, tmp_path, generation, count=3)
    await run.program.run()
    assert run.program.acknowledged == 3
    assert run.events["retry"] == (3 if generation == "1.4.0" else 1)


async def test_it_gives_up_after_so_many_tries(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.refusal = "queue is full"
    run = Run(deployment, server, tmp_path, count=2, max_retries=2)
    with pytest.raises(Unfinished, match="2 of 2 messages were not acknowledged"):
        await run.program.run()
    assert (run.events["retry"], run.events["given_up"]) == (2, 2)


async def test_silence_counts_as_a_try(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    server.replies = [None, None]
    run = Run(deployment, server, tmp_path, count=1, max_retries=3, ack_timeout_secs=0.2)
    await run.program.run()
    assert run.program.acknowledged == 1
    assert run.events["retry"] == 2


async def test_a_server_that_restarts_costs_no_try(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path, count=300, max_retries=1, max_inflight=10)
    task = asyncio.create_task(run.program.run())
    for stored in (20, 100, 200):
        while len(server.stored) < stored:
            await asyncio.sleep(0)
        await server.stop()
        await server.start()
    await task
    # More than a window was stored over each connection, so there was an ACK on each.
    assert run.program.acknowledged == 300
    assert run.program.failed == []
    assert len(server.queues[QUEUE]) == 300


async def test_a_refusal_is_about_the_message_it_names(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path)
    program = run.program
    program._sealing = {"receiver_1": bytes.fromhex("09" * 32)}
    parcels = list(program._parcels())[:3]
    for number, parcel in enumerate(parcels):
        parcel.group = number
        program._out[parcel.message_id] = parcel
    program._take(Failed(f"no room for message {parcels[1].message_id}"))
    assert list(program._again) == [parcels[1]]
    program._take(Failed("no room"))
    assert list(program._again) == [parcels[1], parcels[0]]
    program._take(speech.Stored(parcels[2].message_id))
    assert program._out == {}
    program._take(speech.Stored(parcels[2].message_id))
    program._take(speech.Said.UNKNOWN_COMMAND)
    assert run.events["unexpected"] == 2


async def test_a_key_that_changes(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    await Run(deployment, server, tmp_path, count=1).program.run()
    server.keys["receiver_1"] = base64.b64encode(
        bindings.crypto_scalarmult_base(bytes(range(1, 33)))
    ).decode()
    with pytest.raises(PinnedKeyChanged, match="--accept-new-keys"):
        await Run(deployment, server, tmp_path, count=1).program.run()
    run = Run(deployment, server, tmp_path, count=1, accept_new=True)
    await run.program.run()
    assert any("NEW public key" in line for _, line in run.said)
    await Run(deployment, server, tmp_path, count=1).program.run()
    assert len(server.stored) == 3


async def test_no_key_at_all(deployment: ClassicDeployment, server: Server, tmp_path: Path) -> None:
    server.keys.clear()
    run = Run(deployment, server, tmp_path, max_retries=1)
    with pytest.raises(UnknownReceiver, match="receiver_1"):
        await run.program.run()


async def test_a_saved_key_serves_where_the_server_has_none(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    await Run(deployment, server, tmp_path, count=1).program.run()
    server.keys.clear()
    await Run(deployment, server, tmp_path, count=1, max_retries=1).program.run()
    assert len(texts(server, "1.5")) == 2


async def test_a_server_that_stays_away(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    run = Run(deployment, server, tmp_path, max_retries=1, tcp_connect_timeout_secs=0.5)
    await server.stop()
    with pytest.raises(ConnectFailed):
        await run.program.run()


async def test_what_is_declared(
    deployment: ClassicDeployment, server: Server, tmp_path: Path
) -> None:
    await Run(deployment, server, tmp_path, "1.4.0", count=1).program.run()
    assert server._bindings[EXCHANGE, KEY] == {QUEUE}


def test_pauses_grow_to_an_end() -> None:
    pauses = [_pause(tries) for tries in (1, 2, 3, 100_000)]
    assert pauses == [1.0, 2.0, 4.0, limits.RECONNECT_MOST]
