"""A vhost to move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.moving import Site
from support.proxy import Proxy
from support.rabbitmq import Node, RabbitMQ


@pytest.fixture(scope="session")
def crossing(rabbitmq: RabbitMQ) -> Iterator[tuple[Proxy, int]]:
    """One proxy for all moves, which knows both farms; and the port it listens on."""
    with Proxy() as proxy:
        for name in ("blue", "green"):
            proxy.farm(name, rabbitmq.start(name))
        yield proxy, proxy.listen()


@pytest.fixture
def site(crossing: tuple[Proxy, int], blue: Node, green: Node, tmp_path: Path) -> Iterator[Site]:
    """A vhost at blue."""
    with blue.vhost() as vhost:
        made = Site(*crossing, vhost, green, tmp_path / "state")
        try:
            yield made
        finally:
            made.close()
