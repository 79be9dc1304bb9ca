"""What a CipherMQ 1.x deployment gets: messages/s through the text protocol, by kind of catalog.

The broker runs on a configuration as 1.x writes it. A sender and a receiver are a process each, as
plain as 1.x's own: blocking sockets, one line a message, an ack for each. PostgreSQL syncs its
disk, is started here and ended here, and shares the two cores with all others.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import multiprocessing
import os
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ciphermq
from bench import machine
from bench.postgres import PASSWORD, USER, Postgres, binaries
from ciphermq.cli.deployment import ADMINISTRATOR
from ciphermq.cli.processes import Process, Stage, free_port
from ciphermq.custody.onex import OnexKey
from ciphermq.model.onex import Dialect, SessionSeal
from ciphermq.sealing.onex import seal_message

TEXT = 169
"""Bytes: makes a message of 537, as those that 1.x was measured with."""
EXCHANGE = "bench"
DATABASE = "ciphermq"
CATALOGS = ("postgresql", "sqlite")


class Way(NamedTuple):
    """One way in which a sender publishes."""

    name: str
    messages: int
    in_flight: int
    """Messages without an answer before it waits for one."""
    batch: int = 0
    """Messages in a ``publish_batch``; 0: it says ``publish``."""


WAYS = (
    Way("one at a time", 3_000, 1),
    Way("pipelined", 30_000, 100),
    Way("batches", 50_000, 1_000, 1_000),
)


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Each way of publishing, with each catalog."""
    cores = machine.two_cores()
    results = [
        result for kind in CATALOGS for result in _with_catalog(directory, kind, options.messages)
    ]
    return {
        "measured": "messages published, synced, answered by ACK, pushed to a receiver, acked and "
        "confirmed, all in the 1.x protocol over mTLS; metadata of each in the catalog",
        "message_bytes": len(_Messages().publish(_Messages.MARK)),
        "cores_used": cores,
        "fdatasync_of_4096_bytes": machine.percentiles(machine.sync_times(directory)),
        "results": results,
    }


def _with_catalog(directory: Path, kind: str, most: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        stage = stack.enter_context(
            Stage(directory / kind, ["sender_1", "receiver_1"], port=free_port())
        )
        config = configuration(stage.port)
        on: dict[str, str] = {"filesystem": machine.filesystem(directory)}
        if kind == "postgresql":
            postgres = stack.enter_context(database())
            on = {"filesystem": machine.filesystem(postgres.directory), "version": postgres.version}
            config += _DATABASE.format(port=postgres.port)
        stage.deployment.config.write_text(config)
        broker = stage.broker()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as processes:
            results = [asyncio.run(pass_all(stage, broker, processes, way, most)) for way in WAYS]
        if kind == "postgresql":
            _check_all_noted(postgres, sum(each["messages"] for each in results))
        return [{"catalog": kind, "catalog_on": on, **each} for each in results]


def _check_all_noted(postgres: Postgres, messages: int) -> None:
    """A catalog that leaves rows out is no measure of one that keeps them."""
    query = "SELECT count(delivered_time), count(acknowledged_time) FROM message_metadata"
    ((delivered, acknowledged),) = asyncio.run(postgres.rows(query, DATABASE))
    if (delivered, acknowledged) != (messages, messages):
        raise AssertionError(
            f"of {messages} messages the database knows {delivered} as delivered and "
            f"{acknowledged} as acknowledged"
        )


def configuration(port: int) -> str:
    """As 1.x writes it, without a database."""
    return _CONFIG.format(port=port, key=base64.b64encode(os.urandom(32)).decode())


_CONFIG = """\
[server]
address = "127.0.0.1:{port}"
connection_type = "tls"

[tls]
cert_path = "server.crt"
key_path = "server.key"
ca_cert_path = "ca.crt"

[logging]
level = "info"
info_file_path = "logs/server_info.log"
debug_file_path = "logs/server_debug.log"
error_file_path = "logs/server_error.log"
rotation = "daily"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "{key}"
"""
_DATABASE = f"""
[database]
host = "127.0.0.1"
port = {{port}}
user = "{USER}"
password = "{PASSWORD}"
dbname = "{DATABASE}"
"""


@contextmanager
def database() -> Iterator[Postgres]:
    """A PostgreSQL that keeps what it commits, unlike the one that tests have."""
    found = binaries()
    if found is None:
        raise SystemExit("PostgreSQL is not installed (on Debian: apt install postgresql)")
    postgres = Postgres(found)
    postgres.configure(fsync="on", shared_buffers="128MB")
    with postgres:
        asyncio.run(postgres.execute(f"CREATE DATABASE {DATABASE}"))
        yield postgres


async def pass_all(
    stage: Stage, broker: Process, processes: ProcessPoolExecutor, way: Way, most: int
) -> dict[str, Any]:
    """Publish, receive and ack so many, from and to a process each of `processes`."""
    messages = min(way.messages, most)
    queue = way.name.replace(" ", "-")
    run = partial(asyncio.get_running_loop().run_in_executor, processes)
    admin = stage.deployment.identity(ADMINISTRATOR)
    async with ciphermq.connect(stage.url, identity=admin, passphrase="") as watcher:
        receiving = run(_receive, _Place.of(stage, "receiver_1"), queue, messages)
        try:
            await asyncio.to_thread(stage.wait_for_consumers, 1)
            cpu = machine.cpu_seconds(broker.pid)
            began, answered = await run(_send, _Place.of(stage, "sender_1"), queue, way, messages)
            ended = await receiving
        except BaseException:
            broker.kill()  # lest the receiver wait for ever
            raise
        behind = waiting = await _waiting(watcher)
        while waiting:
            await asyncio.sleep(0.01)
            waiting = await _waiting(watcher)
        written = time.monotonic()
        cpu = machine.cpu_seconds(broker.pid) - cpu
    await asyncio.to_thread(stage.wait_for_consumers, 0)
    return {
        "published": way.name,
        "messages": messages,
        "published_per_second": round(messages / (answered - began)),
        "messages_per_second": round(messages / (ended - began)),
        "metadata_rows_behind": behind,
        "metadata_seconds_behind": round(written - ended, 3),
        "broker_cpu_seconds_per_million": round(cpu / messages * 1e6, 1),
    }


async def _waiting(watcher: ciphermq.Client) -> int:
    """How much of the metadata is still to be written."""
    return int((await watcher.status())["catalog"]["metadata_rows_waiting"])


# --- the two ends, each a process of its own ------------------------------------------------------


class _Place(NamedTuple):
    """Where a client connects, and as whom."""

    port: int
    identity: Path

    @classmethod
    def of(cls, stage: Stage, name: str) -> _Place:
        return cls(stage.port, stage.deployment.identity(name))


class _Lines:
    """A 1.x client's connection."""

    def __init__(self, place: _Place) -> None:
        context = ssl.create_default_context(cafile=str(place.identity / "ca.crt"))
        context.load_cert_chain(place.identity / "cert.pem", place.identity / "key.pem")
        raw = socket.create_connection(("127.0.0.1", place.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(raw, server_hostname="localhost")
        self._rest = b""

    def say(self, *lines: bytes) -> None:
        self._socket.sendall(b"\n".join((*lines, b"")))

    def hear(self) -> list[bytes]:
        """The next lines, at least one."""
        while True:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the broker ended the connection")
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                return lines

    def ask(self, line: str, expected: bytes) -> None:
        self.say(line.encode())
        if (heard := self.hear()) != [expected]:
            raise AssertionError(f"{line!r} was answered {heard!r}")

    def close(self) -> None:
        self._socket.close()


class _Messages:
    """Messages of a 1.x client. Only their ids differ: the broker opens none, so can't tell."""

    MARK = "0123456789abcdef"

    def __init__(self) -> None:
        sealed = seal_message(
            os.urandom(TEXT),
            message_id=self.MARK,
            receiver="receiver_1",
            public_key=OnexKey(secrets.token_bytes(32)).public_key,
            dialect=Dialect(SessionSeal.V1_4),
            sent_time="2026-01-01T00:00:00.000Z",
        )
        self._before, self._after = sealed.split(self.MARK.encode())

    def publish(self, message_id: str) -> bytes:
        """The JSON of one."""
        return self._before + message_id.encode() + self._after


def _send(place: _Place, queue: str, way: Way, count: int) -> tuple[float, float]:
    """Publish so many; when it began, and when the last was answered."""
    lines = _Lines(place)
    lines.ask(f"declare_queue {queue}", b"Queue declared")
    lines.ask(f"declare_exchange {EXCHANGE}", b"Exchange declared")
    lines.ask(f"bind {queue} {EXCHANGE} {queue}", b"Queue bound")
    made = _Messages()
    bodies = [made.publish(f"{queue}-{number:08}") for number in range(count)]
    where = f"{EXCHANGE} {queue}".encode()
    began = time.monotonic()
    said = answered = 0
    while answered < count:
        room = min(way.in_flight - (said - answered), count - said)
        if way.batch:
            if said == answered:
                batch = b",".join(bodies[said : said + way.batch])
                lines.say(b"publish_batch " + where + b" [" + batch + b"]")
                said = min(said + way.batch, count)
        elif room:
            lines.say(*(b"publish " + where + b" " + body for body in bodies[said : said + room]))
            said += room
        for reply in lines.hear():
            if not reply.startswith(b"ACK "):
                raise AssertionError(f"a publish was answered {reply!r}")
            answered += 1
    ended = time.monotonic()
    lines.close()
    return began, ended


def _receive(place: _Place, queue: str, count: int) -> float:
    """Take and ack so many; when the last ack was confirmed."""
    lines = _Lines(place)
    lines.ask(f"consume {queue}", b"Subscribed to queue")
    confirmed = 0
    seen: set[bytes] = set()
    while confirmed < count:
        acks = []
        for line in lines.hear():
            if line.startswith(b"Message: "):
                message_id = line.split(b" ", 2)[1]
                seen.add(message_id)
                acks.append(b"ack " + message_id)
            elif line.startswith(b"ACK_CONFIRMED "):
                confirmed += 1
            else:
                raise AssertionError(f"the broker said {line!r}")
        if acks:
            lines.say(*acks)
    ended = time.monotonic()
    if len(seen) != count:
        raise AssertionError(f"{len(seen)} messages came, not {count}")
    lines.close()
    return ended
