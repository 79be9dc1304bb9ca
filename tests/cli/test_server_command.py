"""``ciphermq server`` as a process: ready, drained, and every reason not to start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from ciphermq.errors import WaitTimeout
from cli.stored import Writer, damage
from support.deployment import Deployment, make_deployment, now_ms

pytestmark = pytest.mark.crash

DAY_MS = 86_400_000


class Servers:
    """Server processes that end with the test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Process] = []

    def start(self, config: Path, *words: str, **environment: str) -> Process:
        name = f"server-{len(self._started)}"
        log = self._directory / f"{name}.out"
        words = ("server", "--config", str(config), *words)
        process = Process(name, words, log=log, environment=environment)
        self._started.append(process)
        return process

    def refused(self, config: Path, **environment: str) -> tuple[int, str]:
        """Exit status and last line of one that does not start."""
        process = self.start(config, **environment)
        status = process.wait()
        assert "ready" not in process.output
        return status, process.output.splitlines()[-1]

    def end(self) -> None:
        for process in self._started:
            process.kill()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    running = Servers(tmp_path)
    yield running
    running.end()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path, ["alice", "bob"], port=free_port())


def set_value(deployment: Deployment, key: str, value: str) -> None:
    lines = deployment.config.read_text().splitlines()
    lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
    deployment.config.write_text("\n".join(lines) + "\n")


# --- ready and drained ----------------------------------------------------------------------------


def test_it_says_when_it_is_ready_and_ends_on_sigterm(
    deployment: Deployment, servers: Servers
) -> None:
    server = servers.start(deployment.config)
    found = server.wait_for(r"ciphermq ready on 127\.0\.0\.1:(\d+)\n")
    socket.create_connection(("127.0.0.1", int(found[1]))).close()
    assert server.stop() == 0
    lines = (deployment.server_dir / "logs" / "info.log").read_text().splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert messages[-1] == "stopped"
    assert "ready" in messages
    assert (deployment.server_dir / "data" / "journal").is_dir()


def test_ready_as_json_on_any_port_and_ctrl_c(deployment: Deployment, servers: Servers) -> None:
    address = {"CIPHERMQ_SERVER__ADDRESS": "127.0.0.1:0", "CIPHERMQ_LOGGING__CONSOLE": "false"}
    server = servers.start(deployment.config, "--json", **address)
    ready = json.loads(server.wait_for(r'\{.*"ready".*\}')[0])
    assert ready["ready"] is True
    assert ready["pid"] == server.pid
    assert ready["address"] == f"127.0.0.1:{ready['port']}"
    os.kill(server.pid, signal.SIGINT)
    assert server.wait() == 0


def test_it_says_where_it_listens_over_zeromq(deployment: Deployment, servers: Servers) -> None:
    zmq = {"CIPHERMQ_SERVER__ZMQ_ADDRESS": "127.0.0.1:0", "CIPHERMQ_LOGGING__CONSOLE": "false"}
    server = servers.start(deployment.config, **zmq)
    server.wait_for(r"ciphermq ready on 127\.0\.0\.1:\d+ and zmq\+tls://127\.0\.0\.1:[1-9]\d*\n")
    assert server.stop() == 0
    server = servers.start(deployment.config, "--json", **zmq)
    ready = json.loads(server.wait_for(r'\{.*"ready".*\}')[0])
    assert re.fullmatch(r"zmq\+tls://127\.0\.0\.1:[1-9]\d*", ready["zmq_address"])
    assert server.stop() == 0


def test_it_finds_its_configuration_in_the_deployment(
    deployment: Deployment, tmp_path: Path
) -> None:
    log = tmp_path / "out"
    home = {"CIPHERMQ_HOME": str(deployment.home)}
    server = Process("server", ["server"], log=log, environment=home)
    server.wait_for("ready")
    assert server.stop() == 0


def test_it_waits_for_what_receivers_hold_unless_asked_twice(
    deployment: Deployment, servers: Servers, tmp_path: Path
) -> None:
    server = servers.start(deployment.config, CIPHERMQ_SERVER__DRAIN_SECONDS="60")
    server.wait_for("ciphermq ready")
    bob, alice = deployment.identity("bob"), deployment.identity("alice")
    assert run(["keys", "renew", "--identity", str(bob)]) == 0
    (tmp_path / "in").write_text("line\n")
    assert run(["send", "bob", str(tmp_path / "in"), "--identity", str(alice)]) == 0
    log = tmp_path / "receiver.out"
    command = "echo working; exec sleep 8"
    words = ["receive", "--identity", str(bob), "--exec", command]
    receiver = Process("receiver", words, log=log, environment={})
    try:
        receiver.wait_for("working")
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(WaitTimeout):
            server.wait(0.5)
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 1
        assert "ended at once" in server.output
    finally:
        receiver.kill()


# --- reasons not to start -------------------------------------------------------------------------


def test_port_taken(deployment: Deployment, servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        status, said = servers.refused(deployment.config, CIPHERMQ_SERVER__ADDRESS=where)
    assert status == 2
    assert said.startswith("ciphermq: ")
    assert where in said


def test_two_brokers_on_one_directory(deployment: Deployment, servers: Servers) -> None:
    servers.start(deployment.config).wait_for("ready")
    status, said = servers.refused(deployment.config, CIPHERMQ_SERVER__ADDRESS="127.0.0.1:0")
    assert status == 6
    assert str(deployment.server_dir / "data" / "journal") in said


def test_a_damaged_journal(deployment: Deployment, servers: Servers) -> None:
    journal = deployment.server_dir / "data" / "journal"
    writer = Writer(journal)
    writer.write(40)
    writer.journal.close()
    segment = damage(journal, at=4096)
    status, said = servers.refused(deployment.config)
    assert status == 6
    assert str(segment) in said
    assert "4096" in said
    assert "ciphermq journal repair" in said


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("address", '"nonsense:port"', "line 6: server.address"),
        ("directory", "5", "line"),
        ("level", '"loud"', "logging.level"),
        ("cert_path", '"missing.crt"', "line 14: tls.cert_path"),
        ("key_path", '"ca.crt"', "ca.crt"),
        ("crl_path", '"server.crt"', "server.crt"),
        (
            "at_rest_key_path",
            '"missing.key"',
            'missing.key": there is no such file; allowed: the key',
        ),
    ],
)
def test_a_bad_configuration(
    deployment: Deployment, servers: Servers, key: str, value: str, why: str
) -> None:
    set_value(deployment, key, value)
    status, said = servers.refused(deployment.config)
    assert status in (2, 5, 6)
    assert why in said


def test_no_configuration(tmp_path: Path, servers: Servers) -> None:
    status, said = servers.refused(tmp_path / "config.toml")
    assert status == 2
    assert "ciphermq init" in said


def test_the_authority_s_key_in_the_server_s_directory(
    deployment: Deployment, servers: Servers
) -> None:
    shutil.copytree(deployment.ca_dir, deployment.server_dir / "backup" / "ca")
    status, said = servers.refused(deployment.config)
    assert status == 2
    assert str(deployment.server_dir / "backup" / "ca" / "ca.key") in said


@pytest.mark.parametrize(
    ("made", "status", "why"),
    [(10, 5, "set the clock"), (-400, 5, "expired on"), (-40, 5, "revocation list 1 expired")],
)
def test_a_wrong_clock_or_outlived_files(
    tmp_path: Path, servers: Servers, made: int, status: int, why: str
) -> None:
    """The deployment was made so many days from now, by this machine's clock."""
    deployment = make_deployment(tmp_path, at_ms=now_ms() + made * DAY_MS)
    found, said = servers.refused(deployment.config)
    assert found == status
    assert why in said


def test_a_catalog_of_another_at_rest_key(deployment: Deployment, servers: Servers) -> None:
    server = servers.start(deployment.config)
    server.wait_for("ready")
    assert server.stop() == 0
    (deployment.server_dir / "at-rest.key").write_text("00" * 32)
    status, said = servers.refused(deployment.config)
    assert status == 6
    assert "at-rest key" in said
