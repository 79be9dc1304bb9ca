"""The least server that the client programs of 1.x can be tried on, with faults at will.

It keeps everything in memory and does one thing at a time. What it speaks with is the program's own
`ciphermq.wire.lines`, so that is tried over real sockets and real TLS too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict

from ciphermq.errors import BatchError
from ciphermq.model import onex
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.machine import ServerLines
from ciphermq.wire.lines.speech import Command, Failed, Message, Reply, Said, Wrong


class LittleServer:
    """Outlives its connections and its own restarts, as a server with a disk does."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._consumers: defaultdict[str, set[asyncio.StreamWriter]] = defaultdict(set)
        self._bindings: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.port = 0
        self.keys: dict[str, str] = {}
        self.queues: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self.stored: list[str] = []
        self.commands: list[str] = []
        """The kinds of command, in the order of their coming."""
        self.silent_acks = 0
        """So many messages are stored without a word, the connection cut instead."""
        self.deaf_acks = 0
        """So many acks are lost, with their connections."""
        self.refusal: str | None = None
        """What every publish is answered."""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._context
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection, and take no more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._connections):
            writer.transport.abort()
        while self._connections:
            await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = ServerLines()
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    lines.receive_data(data)
                    for command in lines.events():
                        for reply in self._answer(command, writer):
                            _write(writer, lines.send(reply))
                    await writer.drain()
        finally:
            for consumers in self._consumers.values():
                consumers.discard(writer)
            self._connections.discard(writer)
            writer.close()

    def _answer(self, command: Command | Wrong, writer: asyncio.StreamWriter) -> list[Reply]:
        self.commands.append(type(command).__name__)
        match command:
            case Wrong(reply):
                return [reply]
            case speech.DeclareQueue(queue):
                self.queues[queue]
                return [Said.QUEUE_DECLARED]
            case speech.DeclareExchange():
                return [Said.EXCHANGE_DECLARED]
            case speech.Bind(queue, exchange, key):
                self._bindings[exchange, key].add(queue)
                return [Said.QUEUE_BOUND]
            case speech.RegisterKey(public_key, _):
                self.keys["receiver_1"] = public_key
                return [Said.KEY_REGISTERED]
            case speech.GetKey(client) if client in self.keys:
                return [speech.PublicKey(self.keys[client])]
            case speech.GetKey():
                return [Said.KEY_NOT_FOUND]
            case speech.Publish(exchange, key, text):
                return self._publish(exchange, key, text, writer)
            case speech.Consume(queue):
                self._consumers[queue].add(writer)
                backlog = [Message(each, text) for each, text in self.queues[queue].items()]
                return [Said.SUBSCRIBED, *backlog]
            case speech.Ack(message_id):
                return self._ack(message_id, writer)
            case _:
                return [Failed("not here")]

    def _publish(
        self, exchange: str, key: str, text: bytes, writer: asyncio.StreamWriter
    ) -> list[Reply]:
        try:
            message_id = onex.parse(text).message_id
        except BatchError as error:
            return [speech.InvalidMessage(str(error))]
        if self.refusal:
            return [Failed(self.refusal)]
        if message_id not in self.stored:
            self.stored.append(message_id)
            for queue in self._bindings[exchange, key]:
                self.queues[queue][message_id] = text
                for consumer in self._consumers[queue]:
                    _write(consumer, ServerLines().send(Message(message_id, text)))
        if self.silent_acks:
            self.silent_acks -= 1
            writer.transport.abort()
        return [speech.Stored(message_id)]

    def _ack(self, message_id: str, writer: asyncio.StreamWriter) -> list[Reply]:
        if self.deaf_acks:
            self.deaf_acks -= 1
            writer.transport.abort()
            return []
        for queue in self.queues.values():
            queue.pop(message_id, None)
        return [speech.Acknowledged(message_id)]


def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    """Unless it was cut."""
    if not writer.is_closing():
        writer.write(line)
