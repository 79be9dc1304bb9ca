"""Every command that talks to a broker, over ZeroMQ: the tests of the commands, on another road."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from cli import test_administration_commands as administration
from cli.live import deployment, receive, send
from support.background import background_broker
from support.broker import Broker
from support.deployment import Deployment

__all__ = ["deployment"]

# Its tests and fixtures, with the broker below.
globals().update({name: it for name, it in vars(administration).items() if name[:2] != "__"})


class OverZmq(Broker):
    """A broker whose clients are told its ZeroMQ address."""

    @property
    def url(self) -> str:
        return self.zmq_url


@pytest.fixture
def broker(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A running one; bob has registered his key."""
    with background_broker(deployment, zmq=True) as broker:
        broker.__class__ = OverZmq
        monkeypatch.setenv("CIPHERMQ_URL", broker.url)
        assert run(["keys", "renew", "--identity", "bob"]) == 0
        yield broker
        counters = broker.server.reception.counters
        assert counters["accepted"] > 0


def test_sending_and_receiving(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f"line {number}\n" for number in range(3000)))
    assert send("bob", lines) == 0
    capsys.readouterr()
    assert receive("--inbox", tmp_path / "inbox") == 0
    assert capsys.readouterr().out == lines.read_text()


def test_keys_are_fetched_renewed_and_compared(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["show", "bob"], ["fingerprint", "bob"], ["renew"]):
        assert run(["keys", *words, "--identity", "alice"]) == 0
    assert "bob" in capsys.readouterr().out
