"""What a million waiting messages cost the broker: memory, and the start after a SIGKILL.

The broker never opens a batch, so it can't tell that these share one body and one signature:
only their ids differ. Sealing a million batches of one would take minutes and change nothing of
what is measured here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

import uvloop

from bench import machine
from ciphermq.cli.processes import Process, Stage, free_port
from ciphermq.client.identity import Identity
from ciphermq.errors import CipherMQError, Unfinished
from ciphermq.model import ids
from ciphermq.model.body import Body
from ciphermq.net.dialler import dial
from ciphermq.sealing.seal import ReceiverKey, seal
from ciphermq.wire.cmq2.frames import (
    ConfirmFrame,
    Declare,
    Error,
    Frame,
    Hello,
    Ok,
    PublishFrame,
    Return,
)

PAYLOAD = 1024
BATCHES_OF = (256, 1)
QUEUE = "waiting"


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fill, look, kill, start again; once a size of batch."""
    return {
        "measured": f"a broker with {options.messages} messages of {PAYLOAD} bytes waiting",
        "messages": options.messages,
        "results": [
            _measure(directory / f"of-{count}", options.messages, count) for count in BATCHES_OF
        ],
    }


def _measure(directory: Path, messages: int, count: int) -> dict[str, Any]:
    batches = -(-messages // count)
    with Stage(directory, ["alice"], port=free_port()) as stage:
        broker = stage.broker()
        empty = machine.memory_mb(broker.pid)
        started = time.monotonic()
        uvloop.run(_fill(stage, batches, count))
        filling = time.monotonic() - started
        full = machine.memory_mb(broker.pid)
        broker.kill()
        started = time.monotonic()
        broker = stage.broker()
        restart = time.monotonic() - started
        restarted = machine.memory_mb(broker.pid)
        return {
            "messages_in_a_batch": count,
            "batches": batches,
            "broker_empty": empty,
            "broker_full": full,
            "broker_restarted": restarted,
            "bytes_a_batch_in_memory": round(
                (restarted["rss_mb"] - empty["rss_mb"]) * 1e6 / batches
            ),
            "restart_seconds": round(restart, 2),
            "of_which_journal_seconds": _journal_seconds(broker),
            "disk_mb": round(_size(stage.deployment.server / "data") / 1e6),
            "filled_batches_per_second": round(batches / filling),
        }


def _journal_seconds(broker: Process) -> float | None:
    """How long the broker says it took to read its journal."""
    found = re.search(r"read in ([\d.]+) s", broker.output)
    return float(found[1]) if found else None


def _size(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


async def _fill(stage: Stage, batches: int, count: int) -> None:
    """Publish so many batches, all but alike, and wait until all are confirmed."""
    identity = Identity.load(stage.deployment.identity("alice"))
    now_ms = time.time_ns() // 1_000_000
    batch_id = ids.new_batch_id(now_ms)
    key = identity.current_key
    sealed = seal(
        Body.of_payloads([os.urandom(PAYLOAD) for _ in range(count)], now_ms),
        sender="alice",
        signer=identity.signer,
        receivers=[ReceiverKey("alice", key.key_id, key.suite, key.public_key)],
        exchange="",
        routing_key=QUEUE,
        batch_id=batch_id,
        created_ms=now_ms,
        expires_ms=0,
    )
    before, after = sealed.split(batch_id)
    publisher = _Publisher()
    link = await dial(
        identity.url,
        identity.ssl_context(),
        hello=Hello(software="bench"),
        on_frame=publisher.take,
        on_lost=publisher.lost,
    )
    link.send(Declare(request=1, queue={"name": QUEUE}))
    await publisher.until(lambda: publisher.declared)
    window = link.hello.max_publish_window if link.hello else 1
    for number in range(1, batches + 1):
        fresh = ids.new_batch_id(now_ms)
        link.send(PublishFrame(number, restart=False, sealed=before + fresh + after))
        if number % 16 == 0:
            await publisher.until(lambda number=number: publisher.confirmed > number - window + 16)
    await publisher.until(lambda: publisher.confirmed == batches)
    link.close()
    await link.wait_closed()


class _Publisher:
    """What the broker has said so far."""

    def __init__(self) -> None:
        self.declared = False
        self.confirmed = 0
        self._failure: CipherMQError | None = None
        self._news = asyncio.Event()

    def take(self, frame: Frame) -> None:
        if isinstance(frame, ConfirmFrame):
            self.confirmed = frame.number
        elif isinstance(frame, Ok):
            self.declared = True
        elif isinstance(frame, Error | Return):
            self._failure = Unfinished(f"the broker refused: {frame.message}")
        self._news.set()

    def lost(self, error: CipherMQError | None) -> None:
        self._failure = error or Unfinished("the broker closed the connection")
        self._news.set()

    async def until(self, condition: Any) -> None:
        """Wait for the broker to have said enough."""
        while not condition():
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
