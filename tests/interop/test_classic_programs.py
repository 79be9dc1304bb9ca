"""``ciphermq sender`` and ``ciphermq receiver``, as processes, from every generation's files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.classic import ClassicDeployment

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
