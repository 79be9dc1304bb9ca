"""``ciphermq sender`` and ``ciphermq receiver``, as processes, from every generation's files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interop.onex_clients import TLS_1_2, Binding, PipelinedSender, Place, Receiver, Sender
from support.classic import EXCHANGE, KEY, QUEUE, ClassicDeployment

pytestmark = pytest.mark.crash

MOMENT = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]"


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[ClassicDeployment]:
    made = ClassicDeployment(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("generation", ["1.4.0", "1.4", "1.5"])
def test_every_generations_files_run_unchanged(
    deployment: ClassicDeployment, generation: str
) -> None:
    deployment.server()
    receiver = deployment.receiver(generation)
    receiver.wait_for("Subscribed to queue")
    sender = deployment.sender(generation, "--count", "25")
    assert sender.wait() == 0, sender.output
    until(lambda: receiver.output.count("Server confirmed ACK") == 25)
    assert receiver.stop() == 0
    received = deployment.received(generation)
    assert len({each["message_id"] for each in received}) == 25
    for each in received:
        assert list(each) == ["message_id", "message", "timestamp"]
        assert isinstance(each["timestamp"], float)
        message_id = re.escape(each["message_id"])
        assert re.search(
            rf"(?m)^{MOMENT} \[SENDER\] Encrypted message {message_id} for receiver_1$",
            sender.output,
        )
        assert re.search(
            rf"(?m)^{MOMENT} \[SENDER\] Server ACK received for message {message_id}$",
            sender.output,
        )
        text = re.escape(each["message"])
        assert re.search(
            rf"(?m)^{MOMENT} \[RECEIVER\] Decrypted message {message_id}: {text}$", receiver.output
        )
        assert re.search(
            rf"(?m)^{MOMENT} \[RECEIVER\] Server confirmed ACK for message {message_id}$",
            receiver.output,
        )
    assert "warning" not in sender.output + receiver.output


@pytest.mark.parametrize("protocol", ["PROTOCOL_TLSv1_2", "PROTOCOL_TLS_CLIENT"])
def test_server_and_receiver_are_killed(deployment: ClassicDeployment, protocol: str) -> None:
    tls = deployment.values("1.5", "sender")["tls"] | {"protocol": protocol}
    server = deployment.server()
    receiver = deployment.receiver("1.5")
    receiver.wait_for("Subscribed to queue")
    sender = deployment.sender("1.5", "--count", "2000", tls=tls)
    for kills, name in enumerate(("server", "receiver", "server"), 1):
        until(lambda least=kills * 300: len(deployment.received("1.5")) > least)
        if name == "server":
            server.kill()
            server = deployment.server()
        else:
            receiver.kill()
            receiver = deployment.receiver("1.5")
    assert sender.wait(60) == 0, sender.output[-2000:]
    until(lambda: len(deployment.received("1.5")) >= 2000)
    assert receiver.stop() == 0
    ids = [each["message_id"] for each in deployment.received("1.5")]
    assert len(ids) == len(set(ids)) == 2000
    version = "TLSv1.2" if protocol == "PROTOCOL_TLSv1_2" else "TLSv1.3"
    assert version in sender.output
    assert "Connection lost" in sender.output + receiver.output


def test_bad_files_and_no_files(deployment: ClassicDeployment) -> None:
    sender = deployment.sender("1.4", server_port="five")
    assert sender.wait() == 2
    assert 'server_port = "five": ' in sender.output
    receiver = deployment.receiver("1.4", tls={"certificate_path": "none.crt"})
    assert receiver.wait() == 2
    assert "tls.client_cert_path is missing" in receiver.output
    tls = deployment.values("1.4", "receiver")["tls"] | {"certificate_path": "none.crt"}
    receiver = deployment.receiver("1.4", tls=tls, colour="blue")
    assert receiver.wait() == 2
    assert "there is nothing called 'colour'; it is ignored" in receiver.output
    assert "there is no such file; allowed: the authority's certificate" in receiver.output


def test_json_and_exit_statuses(deployment: ClassicDeployment) -> None:
    pace = deployment.values("1.5", "sender")["sender"] | {
        "max_retries": 1,
        "tcp_connect_timeout_secs": 0.1,
    }
    sender = deployment.sender("1.5", sender=pace)
    assert sender.wait() == 4, sender.output
    deployment.server()
    receiver = deployment.receiver("1.5", "--json", "--count", "3", "--wait", "30")
    receiver.wait_for('"subscribed"')
    sender = deployment.sender("1.5", "--json", "--count", "3")
    assert sender.wait() == 0
    assert receiver.wait() == 0
    events = [json.loads(line) for line in receiver.output.splitlines()]
    shown = [each["message"] for each in events if each["event"] == "decrypted"]
    assert [text.split(":")[0] for text in shown] == [f"Hello {n} from sender_1" for n in (1, 2, 3)]
    events = [json.loads(line) for line in sender.output.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["acknowledged"] == 3
    receiver = deployment.receiver("1.5", "--count", "3", "--wait", "0.2")
    assert receiver.wait() == 1
    assert "0 of 3 messages came" in receiver.output


@pytest.mark.parametrize("generation", ["1.4.0", "1.4", "1.5"])
async def test_with_programs_that_know_no_line_of_ours(
    deployment: ClassicDeployment, generation: str
) -> None:
    """Their receiver reads what our sender sends, our receiver what theirs does."""
    deployment.server()

    def place(name: str) -> Place:
        client = deployment.certificates / "clients" / name
        files = (deployment.certificates / "ca.crt", client / "client.crt", client / "client.key")
        return Place(deployment.port, *files, tls=TLS_1_2)

    binding = Binding(QUEUE, EXCHANGE, KEY)
    theirs = Receiver(
        place("receiver_1"), "receiver_1", binding, deployment.private_key, generation
    )
    task = asyncio.create_task(theirs.run())
    async with asyncio.timeout(60):
        while "Subscribed to queue" not in theirs.heard:
            await asyncio.sleep(0.01)
        ours = deployment.sender(generation, "--count", "12")
        while len(theirs.received) < 12:
            await asyncio.sleep(0.01)
        while len(acknowledged(theirs)) < 12:
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(ours.wait) == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    receiver = deployment.receiver(generation, "--count", "5")
    await asyncio.to_thread(receiver.wait_for, "Subscribed to queue")
    kind = PipelinedSender if generation == "1.5" else Sender
    sender = kind(place("sender_1"), "sender_1", "receiver_1", binding, generation)
    await sender.run([f"text {number} €" for number in range(5)])
    assert await asyncio.to_thread(receiver.wait) == 0
    found = {each["message_id"]: each["message"] for each in deployment.received(generation)}
    assert found == sender.sent


def acknowledged(receiver: Receiver) -> set[str]:
    return {line for line in receiver.heard if line.startswith("ACK_CONFIRMED ")}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_receiver_that_is_stopped(
    deployment: ClassicDeployment, number: signal.Signals, status: int
) -> None:
    receiver = deployment.receiver("1.4")
    receiver.wait_for("Connection lost: nothing listens")
    deployment.server()
    receiver.wait_for("Subscribed to queue")
    assert deployment.sender("1.4", "--count", "5").wait() == 0
    until(lambda: receiver.output.count("Server confirmed ACK") == 5)
    os.kill(receiver.pid, number)
    assert receiver.wait() == status
    assert receiver.output.splitlines()[-1].endswith("Received 5 messages")


def test_a_sender_that_is_stopped(deployment: ClassicDeployment) -> None:
    deployment.server()
    receiver = deployment.receiver("1.5")
    receiver.wait_for("Subscribed to queue")
    sender = deployment.sender("1.5", "--count", "1000000")
    sender.wait_for("Server ACK received")
    os.kill(sender.pid, signal.SIGINT)
    assert sender.wait() == 130
    assert "Traceback" not in sender.output


def test_logs(deployment: ClassicDeployment) -> None:
    deployment.server()
    receiver = deployment.receiver("1.5", "--count", "1")
    receiver.wait_for("Subscribed to queue")
    assert deployment.sender("1.5", "--count", "1").wait() == 0
    assert receiver.wait() == 0
    logged = (deployment.directory / "1.5" / "receiver" / "logs" / "info.log").read_text()
    lines = [json.loads(line) for line in logged.splitlines()]
    assert any(line["message"].startswith("Decrypted message") for line in lines)
    assert "Hello 1" in receiver.output
    assert "Hello" not in logged
