"""A TCP road between clients and a broker that loses things.

::

    async with Chopper(broker.port) as road:
        client = await connect(road.url, ...)
        road.cut()                     every connection breaks now
        road.answers = False           what the broker says is lost from now on
"""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Self


class Chopper:
    """Passes bytes on, until it is told not to."""

    def __init__(self, port: int) -> None:
        """`port`: where the broker listens, on the loopback."""
        self.broker_port = port
        self.answers = True
        """False: what comes from the broker is thrown away."""
        self.open = True
        """False: new connections are refused."""
        self.connections = 0
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """For clients."""
        return f"cmq://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, wherever in a frame it is."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def chop(self, seed: int, *, shortest: float = 0.02, longest: float = 0.2) -> None:
        """Cut again and again, sometimes after losing the broker's last words; until cancelled."""
        chance = random.Random(seed)
        while True:
            await asyncio.sleep(chance.uniform(shortest, longest))
            if chance.random() < 0.5:
                self.answers = False
                await asyncio.sleep(chance.uniform(0, 0.05))
            self.cut()
            self.answers = True

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            broker = await asyncio.open_connection("127.0.0.1", self.broker_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, broker[1]}
        for work in (
            self._pass(reader, broker[1], from_broker=False),
            self._pass(broker[0], writer, from_broker=True),
        ):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_broker: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if self.answers or not from_broker:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
