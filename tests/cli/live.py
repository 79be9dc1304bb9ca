"""Fixtures for tests of commands that talk to a broker: a running one, alice and bob."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from support.background import background_broker
from support.broker import Broker
from support.deployment import Deployment, make_deployment


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """alice and bob; commands are the administrator's, or alice's where that makes no sense."""
    made = make_deployment(tmp_path, ["alice", "bob"])
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CIPHERMQ_URL", "cmq://127.0.0.1:1")  # where nothing listens
    for name in ("CIPHERMQ_IDENTITY", "CIPHERMQ_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def broker(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A running one; bob has registered his key."""
    with background_broker(deployment) as broker:
        monkeypatch.setenv("CIPHERMQ_URL", broker.url)
        assert run(["keys", "renew", "--identity", "bob"]) == 0
        yield broker


def send(*words: object) -> int:
    """``ciphermq send`` as alice."""
    return run(["send", *map(str, words), "--identity", "alice"])


def receive(*words: object) -> int:
    """``ciphermq receive`` as bob, until nothing has come for a moment."""
    return run(["receive", *map(str, words), "--identity", "bob", "--wait", "0.3"])
