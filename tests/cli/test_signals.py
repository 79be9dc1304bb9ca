"""Signals, standard input and output: commands as they are run by hand and by supervisors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from cli.live import broker, deployment, send
from cli.stored import run_json
from support.broker import Broker
from support.deployment import Deployment
from support.terminal import Terminal

__all__ = ["broker", "deployment"]

pytestmark = pytest.mark.crash

Capture = pytest.CaptureFixture[str]


class Command:
    """A command whose standard input, output and errors are pipes."""

    def __init__(self, *words: str, identity: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "ciphermq", *words, "--identity", identity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self) -> bytes:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def end(self, number: signal.Signals | None = None) -> tuple[int, bytes, bytes]:
        """Exit status, and what else was printed, after this signal or else the input's end."""
        if number is not None:
            self.popen.send_signal(number)
            assert self.popen.stdin is not None
            status = self.popen.wait(30)  # with its input still open
        out, err = self.popen.communicate(timeout=30)
        return self.popen.returncode if number is None else status, out, err


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.popen.kill()
        command.popen.communicate()


def ready(capsys: Capture) -> int:
    """Messages that wait for bob."""
    (row,) = run_json(capsys, "queues", "list", "bob")[1]
    return int(row["messages_ready"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.usefixtures("broker")
def test_a_receiver_that_is_stopped_has_acknowledged_what_it_showed(
    commands: list[Command],
    tmp_path: Path,
    capsys: Capture,
    number: signal.Signals,
    status: int,
) -> None:
    (tmp_path / "in").write_text("hello\n")
    assert send("bob", tmp_path / "in") == 0
    receiver = Command("receive", identity="bob")
    commands.append(receiver)
    assert receiver.line() == b"hello\n"
    assert receiver.end(number) == (status, b"", b"")
    assert ready(capsys) == 0


@pytest.mark.usefixtures("broker")
def test_standard_input_is_sent(commands: list[Command], capsys: Capture) -> None:
    for words, lines in (["send", "bob", "-"], b"one\ntwo"), (["send", "bob"], b"three\n"):
        sender = Command(*words, "--json", identity="alice")
        commands.append(sender)
        out, _ = sender.popen.communicate(lines, timeout=30)
        assert json.loads(out)["confirmed"] == len(lines.splitlines())
    assert ready(capsys) == 3


@pytest.mark.usefixtures("broker")
def test_ctrl_c_ends_a_sender_that_waits_for_input(
    commands: list[Command], capsys: Capture
) -> None:
    sender = Command("send", "bob", identity="alice")
    commands.append(sender)
    assert sender.popen.stdin is not None
    sender.popen.stdin.write(b"one\n")
    sender.popen.stdin.flush()
    while ready(capsys) == 0:
        pass
    assert sender.end(signal.SIGINT) == (130, b"", b"ciphermq: 1 message confirmed\n")


def test_commands_that_start_before_the_broker_wait_for_it(
    commands: list[Command],
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("CIPHERMQ_URL", f"cmq://{where}")
    address = {"CIPHERMQ_SERVER__ADDRESS": where}
    words = ["server", "--config", str(deployment.config)]
    server = Process("server", words, log=tmp_path / "log", environment=address)
    try:
        server.wait_for("ciphermq ready")
        assert run(["keys", "renew", "--identity", "bob"]) == 0
        server.kill()

        receiver = Command("receive", "-n", "1", identity="bob")
        sender = Command("send", "bob", "--json", identity="alice")
        for command, most in (receiver, b""), (sender, b", 60 s at most"):
            commands.append(command)
            assert command.popen.stderr is not None
            why = b"nothing listens at %s: is the server running?" % where.encode()
            said = b"ciphermq: waiting for the broker%s: %s\n" % (most, why)
            assert command.popen.stderr.readline() == said
        server = Process("server", words, log=tmp_path / "log", environment=address)
        out, err = sender.popen.communicate(b"hello\n", timeout=30)
        reached = b"ciphermq: the broker is reached\n"
        assert (json.loads(out)["confirmed"], err) == (1, reached)
        assert receiver.line() == b"hello\n"
        assert receiver.end() == (0, b"", reached)
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.usefixtures("deployment")
def test_a_receiver_that_waits_for_the_broker_can_be_stopped(
    commands: list[Command], number: signal.Signals, status: int
) -> None:
    receiver = Command("receive", identity="bob")
    commands.append(receiver)
    assert receiver.popen.stderr is not None
    assert receiver.popen.stderr.readline().startswith(b"ciphermq: waiting for the broker: ")
    assert receiver.end(number) == (status, b"", b"")


@pytest.mark.usefixtures("broker")
def test_a_reader_that_leaves_ends_the_receiver(
    commands: list[Command], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").write_bytes(b"".join(b"%d\n" % number for number in range(100_000)))
    assert send("bob", tmp_path / "in") == 0
    receiver = Command("receive", identity="bob")
    commands.append(receiver)
    assert receiver.line() == b"0\n"
    assert receiver.popen.stdout is not None
    receiver.popen.stdout.close()
    assert receiver.popen.wait(30) == 1
    assert receiver.popen.stderr is not None
    assert receiver.popen.stderr.read() == b""
    assert 0 < ready(capsys) < 100_000


def test_at_a_terminal_it_shows_progress_and_what_is_promised(
    deployment: Deployment, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("line \x1b[2J\n")
    environment = {"CIPHERMQ_URL": broker.url, "TERM": "xterm"}
    as_alice = ["--identity", deployment.identity("alice")]
    with Terminal("send", "bob", "in", *as_alice, cwd=tmp_path, env=environment) as terminal:
        assert terminal.wait() == 0
        assert "sending" in terminal.output
        terminal.expect("1 message confirmed")
    as_bob = ["--identity", deployment.identity("bob")]
    words = ["receive", "--count", "1", *as_bob]
    with Terminal(*words, cwd=tmp_path, env=environment) as terminal:
        assert terminal.wait() == 0
        assert terminal.output.splitlines() == [
            "at least once: --inbox remembers what was shown",
            "line \\x1b[2J",
        ]
    with Terminal("purge", "bob", cwd=tmp_path, env=environment) as terminal:
        terminal.expect("for good? [y/N]:")
        terminal.type("n")
        assert terminal.wait() == 130
    with Terminal("purge", "bob", cwd=tmp_path, env=environment) as terminal:
        terminal.expect("for good? [y/N]:")
        terminal.type("y")
        assert terminal.wait() == 0


def test_a_broker_that_is_backed_up_while_it_runs_comes_back(
    deployment: Deployment,
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = b"".join(b"%d\n" % number for number in range(5_000))
    (tmp_path / "in").write_bytes(content)
    assert send("bob", tmp_path / "in") == 0
    assert run(["backup", str(deployment.server_dir), str(tmp_path / "backup")]) == 0
    assert send("bob", tmp_path / "in") == 0  # not in the backup
    restored = tmp_path / "restored"
    assert run(["restore", str(tmp_path / "backup"), str(restored)]) == 0
    address = {"CIPHERMQ_SERVER__ADDRESS": f"127.0.0.1:{free_port()}"}
    words = ["server", "--config", str(restored / "config.toml")]
    server = Process("server", words, log=tmp_path / "log", environment=address)
    try:
        server.wait_for("ciphermq ready")
        monkeypatch.setenv("CIPHERMQ_URL", f"cmq://{address['CIPHERMQ_SERVER__ADDRESS']}")
        out = tmp_path / "out"
        words = ["--raw", "--to", str(out), "--wait", "1", "--identity", "bob"]
        assert run(["receive", *words]) == 0
        assert out.read_bytes() == content
        assert server.stop() == 0
    finally:
        server.kill()


def completed(line: str) -> list[str]:
    """What bash is offered at the end of this line."""
    environment = {
        **os.environ,
        "_CIPHERMQ_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "ciphermq"], capture_output=True, text=True, env=environment
    )
    assert ended.stderr == ""
    return ended.stdout.split()


def test_completion_knows_the_commands() -> None:
    assert completed("ciphermq re") == ["receive", "receiver", "restore"]


def test_completion_knows_the_identities(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everybody = ["admin", "alice", "bob"]
    assert completed("ciphermq receive -i ") == everybody
    assert completed("ciphermq queues list --identity a") == ["admin", "alice"]
    assert (
        completed("ciphermq identity show ") == completed("ciphermq identity renew ") == everybody
    )
    monkeypatch.setenv("CIPHERMQ_HOME", str(tmp_path / "nowhere"))
    assert completed("ciphermq receive -i ") == []
    assert completed(f"ciphermq receive --home {deployment.home} -i b") == ["bob"]
