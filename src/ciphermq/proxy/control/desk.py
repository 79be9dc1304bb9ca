"""One control client, from its first byte to its last.

Whoever may open the socket may steer the proxy, so nobody here is an enemy; but many scripts come
at once, and some hang. So: one command a connection, a line of bounded length and time, answers
written piece by piece as the reader takes them, and a reader that stops is left behind. Commands
of different clients run side by side; the office puts their changes in one order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ciphermq import limits
from ciphermq.errors import CipherMQError, ProxyError
from ciphermq.proxy.control.commands import execute, failure
from ciphermq.proxy.control.words import STATUS, Line, parse
from ciphermq.proxy.office import Office
from ciphermq.telemetry import get_logger

_log = get_logger("proxy.control")

DONE, FAILED = b"\x000", b"\x003"
"""What follows the answer for a client that asked for ``--status``."""


class _Left(Exception):
    """The client has left, or stopped reading or writing: there is nobody to tell."""


class Desk:
    """Answers control clients for one `Office`.

    `serve` is for ``asyncio.start_unix_server(desk.serve, limit=limits.PROXY_CONTROL_LINE)``.
    """

    def __init__(self, office: Office, patience: float = limits.PROXY_CONTROL_TIMEOUT) -> None:
        self._office = office
        self._patience = patience
        self._places = asyncio.Semaphore(limits.PROXY_CONTROL_CLIENTS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one command, do it, answer, close."""
        with contextlib.suppress(_Left):
            async with self._places:
                line = await self._line(reader, writer)
                if line is not None:
                    await self._answer(line, writer)
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._patience):
                await writer.wait_closed()
        writer.transport.abort()

    async def _line(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Line | None:
        try:
            async with self._patiently():
                raw = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raw = error.partial  # `printf` without a line break: the stream's end says as much
            if not raw:
                return None
        except asyncio.LimitOverrunError:
            await self._refuse(reader, writer)
            return None
        return parse(raw)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a line that is too long."""
        most = limits.PROXY_CONTROL_LINE
        # The rest is read and thrown away: a client that still writes would not hear us.
        async with self._patiently():
            begun = piece = await reader.read(most)
            while piece and b"\n" not in piece:
                piece = await reader.read(most)
        status = FAILED if begun.startswith(STATUS.encode()) else b""
        await self._say(writer, f"A command has at most {most} bytes.\n".encode() + status)

    async def _answer(self, line: Line, writer: asyncio.StreamWriter) -> None:
        status = DONE
        async with contextlib.aclosing(execute(self._office, line.words, line.json)) as pieces:
            try:
                async for piece in pieces:
                    await self._say(writer, piece.encode(errors="surrogateescape"))
            except CipherMQError as error:
                status = FAILED
                await self._say(writer, failure(error, line.json).encode(errors="replace"))
            except _Left:
                raise
            except Exception as error:  # noqa: BLE001 — a fault in a command must not be silence
                status = FAILED
                _log.exception("A control command failed", command=" ".join(line.words[:2]))
                told = ProxyError(f"The proxy has a fault, which is in its log: {error!r}")
                await self._say(writer, failure(told, line.json).encode(errors="replace"))
        if line.status:
            await self._say(writer, status)

    async def _say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        async with self._patiently():
            writer.write(data)
            await writer.drain()

    @contextlib.asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                yield
        except (OSError, TimeoutError) as error:
            raise _Left from error
