"""cmq/2 at its full rate with metadata in SQLite and in PostgreSQL, and what is left to write.

The catalog writes behind the queue. One that can't keep up shows in the rows that wait when the
last ack is confirmed, and in how long they take. PostgreSQL syncs its disk, and shares the cores
with sender, broker and receiver. What 1.x clients get, with a row for each message: `one-x`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ciphermq
from bench import machine, onex, queue
from bench.postgres import PASSWORD, USER
from ciphermq.cli.deployment import ADMINISTRATOR
from ciphermq.cli.processes import Stage

KINDS = ("sqlite", "postgresql")


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both kinds, in turn."""
    cores = machine.two_cores()
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        postgres = stack.enter_context(onex.database())
        settings = {
            "CIPHERMQ_DATABASE__HOST": "127.0.0.1",
            "CIPHERMQ_DATABASE__PORT": str(postgres.port),
            "CIPHERMQ_DATABASE__USER": USER,
            "CIPHERMQ_DATABASE__PASSWORD": PASSWORD,
        }
        for number in range(options.rounds):
            name = f"round_{number}"
            asyncio.run(postgres.execute(f"CREATE DATABASE {name}"))
            for kind in KINDS:
                mine = {**settings, "CIPHERMQ_DATABASE__DBNAME": name} if kind != "sqlite" else {}
                place = directory / f"{kind}-{number}"
                rounds[kind].append(
                    queue.throughput(place, "none", options.messages, settings=mine, after=_behind)
                )
            _check_all_noted(asyncio.run(postgres.rows(_COUNTS, name))[0], options.messages)
        on = {"filesystem": machine.filesystem(postgres.directory), "version": postgres.version}
    return {
        "measured": "what `queue` measures, and how far the catalog is behind at its end",
        "payload_bytes": queue.PAYLOAD,
        "cores_used": cores,
        "fdatasync_of_4096_bytes": machine.percentiles(machine.sync_times(directory)),
        "postgresql_on": on,
        "results": [{"catalog": kind, **_middle(found)} for kind, found in rounds.items()],
    }


_COUNTS = "SELECT sum(messages), sum(delivered), sum(acked) FROM ciphermq_batches"


def _check_all_noted(found: tuple[Any, ...], messages: int) -> None:
    """A catalog that leaves rows out is no measure of one that keeps them."""
    if {int(each or 0) for each in found} != {messages + 1}:  # the sender's first
        raise AssertionError(f"of {messages + 1} messages the database knows {found}")


def _middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    rounds.sort(key=lambda each: each["messages_per_second"])
    rates = [each["messages_per_second"] for each in rounds]
    return {**rounds[len(rounds) // 2], "rounds_messages_per_second": rates}


def _behind(stage: Stage) -> dict[str, Any]:
    return asyncio.run(_watch(stage))


async def _watch(stage: Stage) -> dict[str, Any]:
    """Rows that wait, and how long until none does."""
    began = time.monotonic()
    admin = stage.deployment.identity(ADMINISTRATOR)
    async with ciphermq.connect(stage.url, identity=admin, passphrase="") as watcher:
        catalog = (await watcher.status())["catalog"]
        behind = waiting = int(catalog["metadata_rows_waiting"])
        while waiting:
            await asyncio.sleep(0.01)
            catalog = (await watcher.status())["catalog"]
            waiting = int(catalog["metadata_rows_waiting"])
    return {
        "metadata_rows_behind": behind,
        "metadata_seconds_behind": round(time.monotonic() - began, 3),
        "metadata_rows_dropped": int(catalog["metadata_rows_dropped"]),
    }
