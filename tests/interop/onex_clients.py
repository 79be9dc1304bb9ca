"""Client programs of CipherMQ 1.x, written from what is known of them and from nothing of ours.

They import no line of the program under test: only `ssl` and `asyncio` for the road, PyNaCl and
`cryptography` for the sealing. What looks careless in them is meant: it is what the real ones do,
and they must work unchanged. They declare everything twice, trust any host name, take one exact
line for success and everything else for failure, send acks into the void, and never ack again
what they have seen.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl import bindings
from nacl.public import PrivateKey, PublicKey, SealedBox

TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3


@dataclass(frozen=True)
class Place:
    """Where a client connects, and as whom."""

    port: int
    authority: Path
    certificate: Path
    key: Path
    tls: ssl.TLSVersion = TLS_1_3
    host: str = "127.0.0.1"

    def context(self) -> ssl.SSLContext:
        """As 1.x makes it: a certificate on both sides, and no look at the name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        context.minimum_version = context.maximum_version = self.tls
        return context


class Lines:
    """A connection, line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def tls(self) -> str:
        """The version that was agreed on."""
        return str(self._writer.get_extra_info("ssl_object").version())

    def write(self, *lines: str) -> None:
        """All in one write, wherever they go."""
        self._writer.write(b"".join(line.encode() + b"\n" for line in lines))

    async def say(self, *lines: str) -> None:
        """All in one write; `ConnectionError` once the end is known."""
        self.write(*lines)
        # A write that failed is told of later; whoever went on writing would never hear of it.
        await asyncio.sleep(0)
        await self._writer.drain()

    async def hear(self) -> str:
        """The next line; `ConnectionError` at the end."""
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the server is gone")
        return line.decode().strip()

    async def ask(self, line: str) -> str:
        await self.say(line)
        return await self.hear()

    async def close(self) -> None:
        """Without a word."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def connect(place: Place) -> Lines:
    """A connection."""
    reader, writer = await asyncio.open_connection(
        place.host,
        place.port,
        ssl=place.context(),
        server_hostname="localhost",
        limit=4 * 1024 * 1024,
    )
    return Lines(reader, writer)


# --- sealing ------------------------------------------------------------------------------------


def seal_1_4(public_key: bytes, session_key: bytes) -> bytes:
    return bytes(SealedBox(PublicKey(public_key)).encrypt(session_key))


def open_1_4(private_key: bytes, sealed: bytes) -> bytes:
    return bytes(SealedBox(PrivateKey(private_key)).decrypt(sealed))


def nonce_1_5(ephemeral: bytes, receiver: bytes) -> bytes:
    return hashlib.blake2b(ephemeral + receiver).digest()[:24]


def seal_1_5(public_key: bytes, session_key: bytes) -> bytes:
    ephemeral, secret = bindings.crypto_box_keypair()
    shared = bindings.crypto_scalarmult(secret, public_key)
    nonce = nonce_1_5(ephemeral, public_key)
    return ephemeral + bindings.crypto_secretbox(session_key, nonce, shared)


def open_1_5(private_key: bytes, sealed: bytes) -> bytes:
    ephemeral, box = sealed[:32], sealed[32:]
    nonce = nonce_1_5(ephemeral, bindings.crypto_scalarmult_base(private_key))
    shared = bindings.crypto_scalarmult(private_key, ephemeral)
    return bindings.crypto_secretbox_open(box, nonce, shared)


SEALS = {"1.4.0": seal_1_4, "1.4": seal_1_4, "1.5": seal_1_5}
OPENERS = {"1.4.0": open_1_4, "1.4": open_1_4, "1.5": open_1_5}


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_message(version: str, sender: str, receiver: str, key: bytes, text: str) -> dict[str, str]:
    """A message as this version's sender publishes it."""
    session_key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    sealed = ChaCha20Poly1305(session_key).encrypt(nonce, text.encode(), None)
    message = {
        "message_id": f"{sender}-{secrets.token_hex(8)}-{receiver}",
        "receiver_client_id": receiver,
        "enc_session_key": encode(SEALS[version](key, session_key)),
        "nonce": encode(nonce),
        "ciphertext": encode(sealed),
        "sent_time": "2025-09-08T07:03:00.000000Z",
    }
    if version == "1.4.0":
        message |= {"ciphertext": encode(sealed[:-16]), "tag": encode(sealed[-16:])}
    return message


def open_message(version: str, private_key: bytes, message: dict[str, Any]) -> str:
    """Its text; raises whatever it raises when it does not open."""
    session_key = OPENERS[version](private_key, base64.b64decode(message["enc_session_key"]))
    sealed = base64.b64decode(message["ciphertext"]) + base64.b64decode(message.get("tag", ""))
    nonce = base64.b64decode(message["nonce"])
    return ChaCha20Poly1305(session_key).decrypt(nonce, sealed, None).decode()


# --- programs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binding:
    """What both sides declare."""

    queue: str
    exchange: str
    key: str

    async def declare(self, lines: Lines) -> None:
        await lines.ask(f"declare_queue {self.queue}")
        await lines.ask(f"declare_exchange {self.exchange}")
        await lines.ask(f"bind {self.queue} {self.exchange} {self.key}")


@dataclass
class Sender:
    """Sends texts to one receiver, one at a time, as 1.4 does."""

    place: Place
    name: str
    receiver: str
    binding: Binding
    version: str = "1.4"
    tries: int = 3
    pause: float = 10.0
    """Between tries."""
    patience: float = 10.0
    """How long it waits for a reply."""
    ask_for_key: str = "get_public_key"
    sent: dict[str, str] = field(default_factory=dict)
    """Message id to text, of all that were acknowledged."""
    given_up: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    """Those that were no ACK."""
    _lines: Lines | None = None

    async def run(self, texts: Iterable[str]) -> None:
        """Send them all, or give up on those that can't be sent. Each is asked for in its turn."""
        key = await self.receivers_key()
        try:
            await self._send_all(
                (make_message(self.version, self.name, self.receiver, key, text), text)
                for text in texts
            )
        finally:
            await self._hang_up()

    async def receivers_key(self) -> bytes:
        """On a connection that does nothing else."""
        lines = await connect(self.place)
        await self.binding.declare(lines)
        reply = await lines.ask(f"{self.ask_for_key} {self.receiver}")
        await lines.close()
        if not reply.startswith("Public key: "):
            raise LookupError(reply)
        return base64.b64decode(reply.removeprefix("Public key: "))

    async def _send_all(self, messages: Iterable[tuple[dict[str, str], str]]) -> None:
        for message, text in messages:
            for attempt in range(self.tries):
                if attempt:
                    await asyncio.sleep(self.pause)
                if await self._publish([message]):
                    self.sent[message["message_id"]] = text
                    break
            else:
                self.given_up.append(text)

    async def _publish(self, messages: Sequence[dict[str, str]]) -> list[str]:
        """Publish them all before the first reply is read; the ids of those that have their ACK."""
        try:
            if self._lines is None:
                self._lines = await connect(self.place)
                await self.binding.declare(self._lines)
            start = f"publish {self.binding.exchange} {self.binding.key}"
            await self._lines.say(*(f"{start} {json.dumps(message)}" for message in messages))
            return await self._replies(self._lines, messages)
        except OSError:  # ssl's errors and time-outs are of its kind
            await self._hang_up()
            return []

    async def _replies(self, lines: Lines, messages: Sequence[dict[str, str]]) -> list[str]:
        acknowledged = []
        try:
            for message in messages:
                async with asyncio.timeout(self.patience):
                    reply = await lines.hear()
                if reply == f"ACK {message['message_id']}":
                    acknowledged.append(message["message_id"])
                else:
                    self.replies.append(reply)
        except OSError:
            await self._hang_up()
        return acknowledged

    async def _hang_up(self) -> None:
        lines, self._lines = self._lines, None
        if lines is not None:
            await lines.close()


@dataclass
class PipelinedSender(Sender):
    """Sends up to so many before it reads the first reply, as 1.5 does."""

    version: str = "1.5"
    max_inflight: int = 100

    async def _send_all(self, messages: Iterable[tuple[dict[str, str], str]]) -> None:
        source = iter(messages)
        while window := list(islice(source, self.max_inflight)):
            waiting = {message["message_id"]: (message, text) for message, text in window}
            for attempt in range(self.tries):
                if attempt:
                    await asyncio.sleep(self.pause)
                for message_id in await self._publish([each[0] for each in waiting.values()]):
                    self.sent[message_id] = waiting.pop(message_id)[1]
                if not waiting:
                    break
            self.given_up += [text for _, text in waiting.values()]


@dataclass
class Receiver:
    """Receives for ever."""

    place: Place
    name: str
    binding: Binding
    private_key: bytes
    version: str = "1.4"
    pause: float = 1.0
    """Before it connects again."""
    register: str = "register_public_key"
    received: list[tuple[str, str]] = field(default_factory=list)
    """Message id and text, in the order of their coming, as shown to the user."""
    repeated: list[str] = field(default_factory=list)
    """Ids that came again."""
    heard: list[str] = field(default_factory=list)
    """Every line that was no message."""
    connections: int = 0
    _seen: set[str] = field(default_factory=set)
    _lines: Lines | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            with contextlib.suppress(OSError):
                await self._receive()
            await asyncio.sleep(self.pause)

    async def _receive(self) -> None:
        lines = await connect(self.place)
        self.connections += 1
        try:
            public = encode(bindings.crypto_scalarmult_base(self.private_key))
            if await lines.ask(f"{self.register} {public}") != "Public key registered":
                raise ConnectionError("the key was not registered")
            await self.binding.declare(lines)
            await lines.say(f"consume {self.binding.queue}")
            self._lines = lines
            while True:
                await self._take(lines, await lines.hear())
        finally:
            self._lines = None
            await lines.close()

    async def say(self, line: str) -> None:
        """A line in between, whose reply comes after those to all acks before; the real ones have
        nothing like it."""
        assert self._lines is not None, "it is not connected"
        await self._lines.say(line)

    async def _take(self, lines: Lines, line: str) -> None:
        if not line.startswith("Message: "):
            self.heard.append(line)
            return
        _, message_id, text = line.split(" ", 2)
        if message_id in self._seen:
            self.repeated.append(message_id)
            return
        self._seen.add(message_id)
        shown = open_message(self.version, self.private_key, json.loads(text))
        self.received.append((message_id, shown))
        await lines.say(f"ack {message_id}")
