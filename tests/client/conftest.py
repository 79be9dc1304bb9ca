"""A deployment with two clients, a broker that runs, and connections to it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ciphermq.cli import deployment as real
from ciphermq.client import Client, connect
from support.broker import Broker, running_broker
from support.deployment import Deployment, make_deployment

Join = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """What `deployment` is a copy of."""
    return make_deployment(tmp_path_factory.mktemp("template"), ["alice", "bob"])


@pytest.fixture
def deployment(template: Deployment, tmp_path: Path) -> Deployment:
    """Clients alice and bob, and the administrator. Making it costs more than copying it."""
    made = real.Deployment(tmp_path / "deployment")
    shutil.copytree(template.home, made.home)
    return Deployment(made, made.open_authority(None), template.suite)


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[Broker]:
    """It runs."""
    async with running_broker(deployment) as broker:
        yield broker


@pytest.fixture
async def join(deployment: Deployment, broker: Broker) -> AsyncIterator[Join]:
    """``await join("alice")``: a client that is connected, until the end of the test."""
    async with AsyncExitStack() as stack:

        async def join(name: str, url: str | None = None, **options: Any) -> Client:
            options = {"close_timeout": 5.0, **options}
            return await stack.enter_async_context(
                connect(url or broker.url, identity=deployment.load(name), **options)
            )

        yield join


@pytest.fixture
async def alice(join: Join) -> Client:
    """Who mostly sends."""
    return await join("alice")


@pytest.fixture
async def bob(join: Join) -> Client:
    """Who mostly receives; his inbox is there."""
    client = await join("bob")
    await client.register_key()
    return client
