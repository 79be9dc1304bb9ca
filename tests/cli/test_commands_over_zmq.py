"""Every command that talks to a broker, over ZeroMQ: the tests of the commands, on another road."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ciphermq.cli.main import run
from cli.live import deployment
from cli.test_administration_commands import *  # noqa: F403 - its tests, with the broker below
from cli.test_keys_command import *  # noqa: F403
from cli.test_send_receive import *  # noqa: F403
from support.background import background_broker
from support.broker import Broker
from support.deployment import Deployment

__all__ = ["deployment"]


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
