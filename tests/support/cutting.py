"""A TCP connection in the middle that ends at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Cutter:
    """Passes bytes on, until a client says a certain thing: then the other side still hears it,
    and the client never hears the answer."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.word: bytes | None = None
        """What to cut at, once."""
        self.cuts = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(self._pass_on(to_server[0], writer))
        self._tasks.add(answers)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                cut = self.word is not None and self.word in data
                if cut:
                    answers.cancel()
                    await asyncio.gather(answers, return_exceptions=True)
                to_server[1].write(data)
                await to_server[1].drain()
                if cut:
                    self.word = None
                    self.cuts += 1
                    await to_server[0].read(65536)  # it has been done
                    break
        answers.cancel()
        writer.close()
        to_server[1].close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)


@asynccontextmanager
async def cutting(port: int) -> AsyncIterator[Cutter]:
    """A `Cutter` before the server on `port`."""
    cutter = Cutter(port)
    listener = await asyncio.start_server(cutter._accept, "127.0.0.1", 0)
    cutter.port = listener.sockets[0].getsockname()[1]
    try:
        yield cutter
    finally:
        listener.close()
        for task in cutter._tasks:
            task.cancel()
        await asyncio.gather(*cutter._tasks, return_exceptions=True)
