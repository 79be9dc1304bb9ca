"""One connection to a server that speaks the text protocol of CipherMQ 1.x."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import Final, Self

from ciphermq.errors import ConnectionLost, TlsFailed, WaitTimeout
from ciphermq.net.address import HostPort, spell
from ciphermq.net.dialler import connect_tcp
from ciphermq.wire import tls_errors
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.lines.machine import ClientLines
from ciphermq.wire.lines.speech import Command, Reply

_READ: Final = 65_536
_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""Kinds of `ssl.SSLError` that say no more than that the peer has gone."""


class OnexLine:
    """Commands go out in order, replies and messages come in."""

    def __init__(
        self, where: HostPort, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._where = where
        self._reader = reader
        self._writer = writer
        self._lines = ClientLines()
        self._heard: deque[Reply] = deque()

    @classmethod
    async def open(
        cls, where: HostPort, context: ssl.SSLContext, *, server_name: str, limit: float
    ) -> Self:
        """A connection to the server at `where`, made within `limit` seconds.

        Raises `ConnectFailed`, `HostUnknown`, `TlsFailed`, `ConnectionLost` or `WaitTimeout`.
        """
        try:
            async with asyncio.timeout(limit):
                sock = await connect_tcp(where, limit)
                try:
                    reader, writer = await asyncio.open_connection(
                        sock=sock, ssl=context, server_hostname=server_name
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise WaitTimeout(
                f"no connection to the server at {spell(where)} within {limit:g} s"
            ) from None
        except OSError as error:
            raise _explained(error, where) from error
        return cls(where, reader, writer)

    @property
    def cipher(self) -> str:
        """What TLS has agreed on, for the log."""
        name, version, bits = self._writer.get_extra_info("cipher")
        return f"{name}, {version}, {bits} bits"

    def say(self, *commands: Command) -> None:
        """Send commands; `LocalProtocolError` for what no line can say, `ConnectionLost` at the
        end."""
        if self._writer.is_closing():
            raise ConnectionLost(f"the connection to the server at {spell(self._where)} was lost")
        # Each in a TLS record of its own: servers of 1.4 take what one read gives for one command.
        for line in [self._lines.send(command) for command in commands]:
            self._writer.write(line)

    async def drain(self) -> None:
        """Wait until the connection takes more; `ConnectionLost` when it is no more."""
        try:
            # Python 3.11's TLS does not say that it is closing: the loop must have a turn first.
            await asyncio.sleep(0)
            await self._writer.drain()
        except OSError as error:
            raise _explained(error, self._where) from error

    async def ask(self, command: Command, limit: float) -> Reply:
        """The reply to a command, where nothing else can come. `WaitTimeout` after `limit`
        seconds, else as `hear`."""
        self.say(command)
        try:
            async with asyncio.timeout(limit):
                return await self._next()
        except TimeoutError:
            raise WaitTimeout(
                f"the server at {spell(self._where)} gave no answer within {limit:g} s"
            ) from None

    async def hear(self) -> list[Reply]:
        """What has come since, at least one thing. `ConnectionLost` at the end, `TlsFailed`, or
        the `RemoteProtocolError` that the server has made. May be cancelled without a loss."""
        while not self._heard:
            await self._read()
        heard = list(self._heard)
        self._heard.clear()
        return heard

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection, what was said is sent before."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE):
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()
        self._writer.transport.abort()

    async def _next(self) -> Reply:
        while not self._heard:
            await self._read()
        return self._heard.popleft()

    async def _read(self) -> None:
        try:
            data = await self._reader.read(_READ)
        except OSError as error:
            raise _explained(error, self._where) from error
        if not data:
            raise ConnectionLost(
                f"the server at {spell(self._where)} ended the connection: does it speak to "
                "clients of 1.x ([one_x])?"
            )
        self._lines.receive_data(data)
        self._heard.extend(self._lines.events())
        if self._lines.fault is not None and not self._heard:
            raise self._lines.fault


_CLOSE: Final = 2.0
"""Seconds that a connection may take to end."""


def _explained(error: OSError, where: HostPort) -> ConnectionLost | TlsFailed:
    if isinstance(error, ssl.SSLError) and not isinstance(error, _ENDED):
        return tls_errors.explain(error, Role.SERVER, spell(where))
    return ConnectionLost(f"the connection to the server at {spell(where)} was lost: {error}")
