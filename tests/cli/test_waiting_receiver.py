"""A receiver that runs says what it waits for, why, and that it is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from support.deployment import Deployment, make_deployment

pytestmark = pytest.mark.crash

BACK = "ciphermq: the broker is reached again\n"
AWAY = "ciphermq: waiting for the broker: nothing listens at 127.0.0.1:"


class Running:
    """A broker process, and bob, who receives from it."""

    def __init__(self, deployment: Deployment, directory: Path) -> None:
        self.deployment = deployment
        self.settings = {
            "CIPHERMQ_HOME": str(deployment.home),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "CIPHERMQ_TLS__RELOAD_SECONDS": "0.1",
        }
        self.address = f"127.0.0.1:{free_port()}"
        self._directory = directory
        self.broker = self.start_broker()
        words = ["receive", "-i", "bob", "--raw", "--url", f"cmq://{self.address}"]
        self.bob = Process("bob", words, log=directory / "bob.out", environment=self.settings)

    def start_broker(self) -> Process:
        """It is ready."""
        self.broker = Process(
            "server",
            ["server", "--config", str(self.deployment.config)],
            log=self._directory / "server.out",
            environment=self.settings | {"CIPHERMQ_SERVER__ADDRESS": self.address},
        )
        self.broker.wait_for("ciphermq ready on")
        return self.broker

    def send(self, text: str) -> None:
        """As alice, and bob has shown it."""
        (self._directory / "in").write_text(f"{text}\n")
        words = ["send", "bob", str(self._directory / "in"), "-i", "alice"]
        deadline = time.monotonic() + 60
        while run([*words, "--url", f"cmq://{self.address}"]) != 0:  # until bob has his key there
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.bob.wait_for(text)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    deployment = make_deployment(tmp_path, ["alice", "bob"])
    monkeypatch.setenv("CIPHERMQ_HOME", str(deployment.home))
    for name in ("CIPHERMQ_IDENTITY", "CIPHERMQ_PASSPHRASE", "CIPHERMQ_URL"):
        monkeypatch.delenv(name, raising=False)
    running = Running(deployment, tmp_path)
    yield running
    running.bob.kill()
    running.broker.kill()


def test_for_a_broker_that_was_stopped(running: Running) -> None:
    running.send("first")
    running.broker.stop()
    running.bob.wait_for(AWAY)
    running.start_broker()
    running.bob.wait_for(BACK)
    running.send("second")
    assert running.bob.output.count(AWAY) == running.bob.output.count(BACK) == 1
    assert running.bob.stop() == 0


def test_for_another_key_in_place_of_the_one_that_was_revoked(running: Running) -> None:
    running.send("first")
    assert run(["ca", "revoke", "bob"]) == 0
    found = running.bob.wait_for(r"ciphermq: no connection, trying on: .* revoked: .*\n")
    assert "`ciphermq identity renew bob --new-key`" in found[0]
    # Refused again for the same reason, which is told once.
    deadline = time.monotonic() + 60
    while running.broker.output.count("the client's certificate has been revoked") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running.bob.output.count("revoked") == 1
    assert run(["identity", "renew", "bob", "--new-key"]) == 0
    running.bob.wait_for(BACK)
    assert running.bob.stop() == 0
