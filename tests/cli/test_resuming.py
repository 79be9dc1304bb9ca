"""A sender and a receiver that are killed go on where they were: nothing lost, nothing twice.

The whole way, broker and all, is under ``tests/crash``; here it is each command by itself, killed
at a place that is chosen: just begun, in the middle, nearly done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process
from cli.live import broker, deployment
from cli.stored import run_json
from support.broker import Broker
from support.deployment import Deployment

__all__ = ["broker", "deployment"]

pytestmark = pytest.mark.crash

LINES = b"".join(b"%d %s\r\n" % (number, b"x" * (number * 7 % 300)) for number in range(40_000))


def killed_when(process: Process, condition: Callable[[], bool]) -> bool:
    """Kill it as soon as `condition` holds; False when it had ended before."""
    deadline = time.monotonic() + 60
    while not condition():
        if not process.running:
            return False
        assert time.monotonic() < deadline, process.output
        time.sleep(0.001)
    process.kill()
    return True


def waiting(broker: Broker) -> int:
    """Messages in bob's inbox."""
    info = broker.engine.queue("bob")
    return info.messages_ready + info.messages_unacked if info is not None else 0


def test_a_killed_sender_goes_on(
    deployment: Deployment, broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.write_bytes(LINES)
    words = ["send", "bob", str(source), "--outbox", str(tmp_path / "outbox")]
    environment = {
        "CIPHERMQ_URL": broker.url,
        "CIPHERMQ_IDENTITY": str(deployment.identity("alice")),
    }
    kills = 0
    for most in (1, 8_000, 20_000, 36_000):
        process = Process("sender", words, log=tmp_path / "log", environment=environment)
        kills += killed_when(process, lambda most=most: waiting(broker) >= most)
    assert kills
    status, said = run_json(capsys, *words, "--identity", "alice")
    assert (status, said["messages"]) == (0, 40_000)
    assert waiting(broker) == 40_000
    received = tmp_path / "out"
    to = ["--raw", "--to", str(received), "--count", "40000"]
    assert run(["receive", *to, "--identity", "bob"]) == 0
    assert received.read_bytes() == LINES


def test_a_killed_receiver_goes_on(deployment: Deployment, broker: Broker, tmp_path: Path) -> None:
    source, received = tmp_path / "in", tmp_path / "out"
    source.write_bytes(LINES)
    assert run(["send", "bob", str(source), "--identity", "alice"]) == 0
    words = ["receive", "--raw", "--to", str(received), "--inbox", str(tmp_path / "inbox")]
    environment = {
        "CIPHERMQ_URL": broker.url,
        "CIPHERMQ_IDENTITY": str(deployment.identity("bob")),
    }
    kills = 0
    for share in (0.0001, 0.3, 0.6, 0.95):
        size = int(len(LINES) * share)
        process = Process("receiver", words, log=tmp_path / "log", environment=environment)
        kills += killed_when(process, lambda size=size: grown(received, size))
    assert kills == 4
    process = Process("receiver", words, log=tmp_path / "log", environment=environment)
    deadline = time.monotonic() + 60
    while waiting(broker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.stop() == 0
    assert received.read_bytes() == LINES


def grown(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size > size
