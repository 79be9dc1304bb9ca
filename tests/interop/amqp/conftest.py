"""The node that real clients are tried against, straight and through the proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.proxy import Proxy
from support.rabbitmq import Node, RabbitMQ, blue, green, rabbitmq, rabbitmq_alone, rabbitmq_shared
from support.roads import Junction, Roads

__all__ = ["blue", "green", "rabbitmq", "rabbitmq_alone", "rabbitmq_shared"]


@pytest.fixture(scope="session")
def junction(rabbitmq: RabbitMQ) -> Iterator[Junction]:
    """One proxy for all clients: they come one after another, and together."""
    with Proxy(workers=2) as proxy:
        yield Junction(proxy, rabbitmq.start("blue"))


@pytest.fixture(params=["plain", "tls"])
def roads(request: pytest.FixtureRequest, junction: Junction, blue: Node) -> Iterator[Roads]:
    """Both roads to a vhost of the test's own, by TCP and by TLS."""
    with blue.vhost() as vhost:
        yield junction.roads(request.param, vhost.name)
