"""A TCP proxy that keeps every byte it passes on: what somebody on the wire would have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Recorder:
    """Stands between clients and a broker; `seen` grows with what went either way."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        """Where to connect instead of to the broker."""
        self.to_broker = bytearray()
        self.to_client = bytearray()
        self._target_port = target_port
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def seen(self) -> bytes:
        return bytes(self.to_broker + self.to_client)

    async def _accept(
        self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter
    ) -> None:
        broker_in, broker_out = await asyncio.open_connection("127.0.0.1", self._target_port)
        for source, sink, tape in (
            (client_in, broker_out, self.to_broker),
            (broker_in, client_out, self.to_client),
        ):
            task = asyncio.create_task(self._pass_on(source, sink, tape))
            self._tasks.add(task)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, tape: bytearray
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                tape += data
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass  # one side was killed: the other is told by the close below
        finally:
            sink.close()

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[Recorder]:
        """Listen on a free port until the block ends."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
