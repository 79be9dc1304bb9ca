"""A real broker inside the test's own event loop: journal, catalog, TLS and all.

::

    async with running_broker(deployment) as broker:
        async with connect(broker.url, identity=deployment.load("alice")) as client: ...

`stop` ends it in order, `crash` as a SIGKILL would as far as its clients can see; `start` brings it
back on the same port with what is on its disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ciphermq import limits
from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.cli.processes import free_port
from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions, StoreOptions
from ciphermq.errors import ConnectionLost
from ciphermq.net import address
from ciphermq.net.options import LinkOptions
from ciphermq.server.server import Server
from ciphermq.settings import load_server_settings
from support.deployment import Deployment


class Broker:
    """A broker that can be stopped, crashed and started again."""

    def __init__(
        self,
        deployment: Deployment,
        options: LinkOptions | None = None,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        zmq: bool = False,
    ) -> None:
        """`sections`: settings over those of the deployment, by section; `zmq`: it listens over
        ZeroMQ too."""
        self.clock_ahead_ms = 0
        """How wrong its clock is; counts from the next `start`."""
        settings = load_server_settings(deployment.config)
        server = settings.server.model_copy(
            update={
                "address": ("127.0.0.1", free_port()),
                "zmq_address": ("127.0.0.1", free_port()) if zmq else None,
                "drain_seconds": 0.2,
            }
        )
        changed = {
            name: getattr(settings, name).model_copy(update=dict(values))
            for name, values in (sections or {}).items()
        }
        self.settings = settings.model_copy(update={"server": server, **changed})
        self.options = options
        self.server: Server
        self.engine: EmbeddedEngine
        self.catalog: SqliteCatalog

    @property
    def url(self) -> str:
        """For clients."""
        return f"cmq://{address.spell(self.settings.server.address)}"

    @property
    def zmq_url(self) -> str:
        """For clients that come over ZeroMQ."""
        return f"zmq+tls://{address.spell(self.settings.server.zmq_address)}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.settings.server.address[1]

    async def start(self) -> None:
        """Serve, with what is on the disk."""
        storage = self.settings.storage
        storage.directory.mkdir(parents=True, exist_ok=True)
        key = AtRestKey.load(storage.at_rest_key_path)
        store = StoreOptions(reserve=int(storage.reserve_mb * limits.MIB))
        options = EmbeddedOptions(store=store)
        self.engine = EmbeddedEngine(storage.journal_directory, options=options)
        self.catalog = SqliteCatalog(storage.catalog_path, key)
        self.server = Server(
            self.settings,
            self.engine,
            self.catalog,
            options=self.options,
            now_ms=lambda: time.time_ns() // 1_000_000 + self.clock_ahead_ms,
        )
        await self.server.start()

    async def stop(self) -> None:
        """End in order. Idempotent."""
        await self.server.stop()

    async def crash(self) -> None:
        """End without a word to anybody."""
        self.cut()
        await self.server.stop()

    def counter(self, name: str) -> int:
        """One of the counters of what clients did since its start."""
        return self.server.services.counters[name]

    async def restart(self) -> None:
        """`stop` and `start`."""
        await self.stop()
        await self.start()

    def queue(self, name: str) -> tuple[int, int]:
        """Messages that are ready in a queue, and that are in somebody's hands."""
        info = self.engine.queue(name)
        return (info.messages_ready, info.messages_unacked) if info is not None else (-1, -1)

    @property
    def consumers(self) -> int:
        """How many there are, of all queues."""
        return int(self.engine.stats()["consumers"])

    async def until(self, condition: Callable[[Broker], bool], seconds: float = 10.0) -> None:
        """Wait until `condition` holds of it; fails the test when it doesn't in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition(self):
            assert asyncio.get_running_loop().time() < deadline, "it never came to that"
            await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Break every connection at this moment; the broker goes on."""
        for channel in self.server.reception.channels:
            channel.abort(ConnectionLost("the test cut it"))


@asynccontextmanager
async def running_broker(
    deployment: Deployment,
    options: LinkOptions | None = None,
    *,
    zmq: bool = False,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Broker]:
    """A broker that is ready, stopped at the end of the block."""
    broker = Broker(deployment, options, sections, zmq=zmq)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()
