"""The whole path: messages/s through sender, broker and receiver, and the time of one alone.

Three processes on two cores, as in production: the sender seals and signs, the broker syncs before
it confirms, the receiver verifies, opens and acks. The clock runs from the first call of
`send_many` to the moment when the broker has confirmed the last ack.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Coroutine, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

import ciphermq
from bench import machine
from ciphermq.cli.processes import Stage, free_port

PAYLOAD = 1024
ALONE = 1000
INBOXES: dict[str, Callable[[Path], ciphermq.Inbox | None]] = {
    "none": lambda _: None,
    "ids": ciphermq.Inbox,
    "payloads": lambda path: ciphermq.Inbox(path, store_payloads=True),
}
"""Without an Inbox; one that remembers ids; one that stores payloads before it shows them."""

End = Callable[[Connection, Path, Path, str, int], Coroutine[Any, Any, dict[str, Any]]]


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The path with each kind of Inbox, then one message at a time."""
    cores = machine.two_cores()
    disk = {
        "fdatasync_of_4096_bytes": machine.percentiles(machine.sync_times(directory)),
        "synced_mb_per_second": machine.sync_speed(directory),
    }
    results = [_rounds(directory, kind, options) for kind in INBOXES]
    return {
        "measured": "messages sealed, signed, sent over mTLS, synced, confirmed, delivered, "
        "verified, opened, acked; sender, broker and receiver are a process each",
        "payload_bytes": PAYLOAD,
        "cores_used": cores,
        "messages_per_second": results[0]["messages_per_second"],
        "broker_cpu_seconds_per_million": results[0]["broker_cpu_seconds_per_million"],
        "results": results,
        "alone": _alone(directory / "alone"),
        "disk": disk,
    }


def _rounds(directory: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The middle one of several rounds, and how fast each was: a disk has its moods."""
    rounds = [
        throughput(directory / f"inbox-{kind}-{number}", kind, options.messages)
        for number in range(options.rounds)
    ]
    rounds.sort(key=lambda each: each["messages_per_second"])
    rates = [each["messages_per_second"] for each in rounds]
    return {**rounds[len(rounds) // 2], "rounds_messages_per_second": rates}


def throughput(
    directory: Path,
    kind: str,
    messages: int,
    *,
    settings: Mapping[str, str] | None = None,
    after: Callable[[Stage], dict[str, Any]] = lambda _: {},
) -> dict[str, Any]:
    """One run, with this kind of Inbox and `settings` in the broker's environment; `after` it,
    with the broker still there, more may be found out."""
    with Stage(directory, ["alice", "bob"], port=free_port()) as stage:
        broker = stage.broker(settings)
        receiver = _Side(_receive, stage, "bob", kind, messages)
        receiver.ready()
        sender = _Side(_send, stage, "alice", kind, messages)
        sender.ready()
        before = machine.cpu_seconds(broker.pid)
        receiver.go()
        sender.go()
        sent, received = sender.result(), receiver.result()
        cpu = machine.cpu_seconds(broker.pid) - before
        more = after(stage)
    took = received["ended"] - sent["began"]
    return {
        "inbox": kind,
        "messages": messages,
        "seconds": round(took, 2),
        "messages_per_second": round(messages / took),
        "confirmed_per_second": round(messages / (sent["ended"] - sent["began"])),
        "broker_cpu_seconds_per_million": round(cpu / messages * 1e6, 2),
        "sender_cpu_seconds_per_million": round(sent["cpu"] / messages * 1e6, 2),
        "receiver_cpu_seconds_per_million": round(received["cpu"] / messages * 1e6, 2),
        **more,
    }


def _alone(directory: Path) -> dict[str, Any]:
    """`send` to confirm, one after the other, with nobody else about."""
    with Stage(directory, ["alice", "bob"], port=free_port()) as stage:
        stage.broker()
        receiver = _Side(_receive, stage, "bob", "none", 0)
        receiver.ready()
        receiver.go()
        receiver.result()
        sender = _Side(_send_alone, stage, "alice", "none", ALONE)
        sender.ready()
        sender.go()
        return {"messages": ALONE, **machine.percentiles(sender.result()["times"])}


# --- the two ends, each a process of its own ------------------------------------------------------


class _Side:
    """One end in a process of its own: says when it is ready, starts when told to, reports."""

    def __init__(self, end: End, stage: Stage, name: str, kind: str, messages: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        arguments = (end, theirs, stage.deployment.identity(name), stage.directory, kind, messages)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        self._ours.recv()

    def go(self) -> None:
        self._ours.send("go")

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ours.recv()
        self._process.join()
        return found


def _run(
    end: End, pipe: Connection, identity: Path, directory: Path, kind: str, messages: int
) -> None:
    pipe.send(uvloop.run(end(pipe, identity, directory, kind, messages)))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _send(
    pipe: Connection, identity: Path, _directory: Path, _kind: str, messages: int
) -> dict[str, Any]:
    pool = [os.urandom(PAYLOAD) for _ in range(4096)]
    async with ciphermq.connect(identity=identity) as client:
        sender = client.sender("bob")
        await sender.send(b"the first one fetches and checks the key")
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        began, cpu = time.monotonic(), _cpu()
        await sender.send_many(itertools.islice(itertools.cycle(pool), messages))
        return {"began": began, "ended": time.monotonic(), "cpu": _cpu() - cpu}


async def _send_alone(
    pipe: Connection, identity: Path, _directory: Path, _kind: str, messages: int
) -> dict[str, Any]:
    payload = os.urandom(PAYLOAD)
    times = []
    async with ciphermq.connect(identity=identity) as client:
        sender = client.sender("bob")
        await sender.send(payload)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        for _ in range(messages):
            began = time.perf_counter()
            await sender.send(payload)
            times.append(time.perf_counter() - began)
    return {"times": times}


async def _receive(
    pipe: Connection, identity: Path, directory: Path, kind: str, messages: int
) -> dict[str, Any]:
    inbox = INBOXES[kind](directory / "inbox.sqlite")
    async with ciphermq.connect(identity=identity) as client:
        await client.register_key()
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        cpu = _cpu()
        if messages:
            expected = messages + 1  # the sender's first
            async with client.receiver(inbox=inbox, limit=expected) as receiver:
                received = size = 0
                async for batch in receiver.batches():
                    payloads = batch.payloads
                    received += len(payloads)
                    size += sum(map(len, payloads))
            if received != expected:
                raise AssertionError(f"{received} messages came, not {expected}")
        return {"ended": time.monotonic(), "cpu": _cpu() - cpu}
