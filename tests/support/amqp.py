"""The smallest AMQP 0.9.1 client and broker: a handshake, frames as they are, an end in order.

For what real ones can't be made to do: thousands at a time, silence, a death in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from pamqp import commands, frame, header, heartbeat

HEADER = b"AMQP\x00\x00\x09\x01"
Connection = commands.Connection


class Closed(Exception):
    """The other side said Close."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(f"{reply} {text}")
        self.reply = reply
        self.text = text


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """One frame, whole."""
    head = await reader.readexactly(7)
    (size,) = struct.unpack(">I", head[3:])
    return head + await reader.readexactly(size + 1)


async def read_method(reader: asyncio.StreamReader) -> Any:
    """The next method on channel 0."""
    while True:
        method = frame.unmarshal(await read_frame(reader))[2]
        if not isinstance(method, heartbeat.Heartbeat | header.ProtocolHeader):
            return method


def write(writer: asyncio.StreamWriter, method: Any, channel: int = 0) -> None:
    """Send a method."""
    writer.write(frame.marshal(method, channel))


class Client:
    """A client whose connection is open; made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def close(self) -> None:
        """Close in order."""
        write(self.writer, Connection.Close(200, "bye", 0, 0))
        while not isinstance(await read_method(self.reader), Connection.CloseOk):
            pass
        self.drop()

    async def echoed(self, value: bytes = b"x" * 32) -> bool:
        """Whether a body frame comes back as it went (from a `Broker`)."""
        sent = body(value)
        self.writer.write(sent)
        return await read_frame(self.reader) == sent

    async def closed(self) -> Closed:
        """The Close that comes, answered."""
        while True:
            method = await read_method(self.reader)
            if isinstance(method, Connection.Close):
                write(self.writer, Connection.CloseOk())
                await self.writer.drain()
                self.drop()
                return Closed(method.reply_code, method.reply_text)

    def drop(self) -> None:
        """End without a word."""
        self.writer.close()


def body(value: bytes, channel: int = 1) -> bytes:
    """A body frame."""
    return struct.pack(">BHI", 3, channel, len(value)) + value + b"\xce"


async def connect(
    port: int,
    vhost: str = "/",
    *,
    host: str = "127.0.0.1",
    name: str = "",
    mechanism: str = "PLAIN",
    response: str = "\0guest\0guest",
    ssl: Any = None,
    local: str | None = None,
) -> Client:
    """Open a connection; `Closed` when it is refused with a Close."""
    where: dict[str, Any] = {"local_addr": (local, 0)} if local is not None else {}
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl, **where)
    writer.write(HEADER)
    await read_method(reader)
    capabilities = {"authentication_failure_close": True, "connection.blocked": True}
    properties: dict[str, Any] = {"capabilities": capabilities}
    if name:
        properties["connection_name"] = name
    write(writer, Connection.StartOk(properties, mechanism, response, "en_US"))
    while True:
        method = await read_method(reader)
        if isinstance(method, Connection.Tune):
            tuned = Connection.TuneOk(method.channel_max, method.frame_max, method.heartbeat)
            write(writer, tuned)
            write(writer, Connection.Open(vhost))
        elif isinstance(method, Connection.OpenOk):
            return Client(reader, writer)
        elif isinstance(method, Connection.Close):
            write(writer, Connection.CloseOk())
            await writer.drain()
            writer.close()
            raise Closed(method.reply_code, method.reply_text)


class Broker:
    """A broker that lets everybody in, sends body frames back, and closes in order."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.opened: list[tuple[str, dict[str, Any], str, str]] = []
        """Vhost, client-properties, mechanism and response of every connection."""
        self.refuse: Callable[[str], tuple[int, str] | None] = lambda vhost: None
        self.writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_all()
        await asyncio.sleep(0)

    def drop_all(self) -> None:
        """Lose every connection, without a word."""
        for writer in list(self.writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._talk(reader, writer)
        self.writers.discard(writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        write(writer, Connection.Start(server_properties={"product": "small"}))
        start_ok = await read_method(reader)
        write(writer, Connection.Tune(2047, 131072, 0))
        vhost = ""
        while True:
            raw = await read_frame(reader)
            if raw[0] == 3:
                writer.write(raw)
                await writer.drain()
                continue
            method = frame.unmarshal(raw)[2]
            if isinstance(method, Connection.Open):
                vhost = method.virtual_host
                no = self.refuse(vhost)
                if no is not None:
                    write(writer, Connection.Close(no[0], no[1], 0, 0))
                    continue
                self.opened.append(
                    (vhost, start_ok.client_properties, start_ok.mechanism, start_ok.response)
                )
                write(writer, Connection.OpenOk())
            elif isinstance(method, Connection.Close):
                write(writer, Connection.CloseOk())
                await writer.drain()
                return
            elif isinstance(method, Connection.CloseOk):
                return
