"""What logs cost: the same path with a line in the files for each message, and without any log.

Rounds of both kinds take turns in one run, since a disk and a machine have their moods; what counts
is the middle of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import machine, onex, queue
from ciphermq.cli.processes import Stage, free_port

_FILES = ("info", "debug", "error")
LOGGED = {"CIPHERMQ_LOGGING__CONSOLE": "false", "CIPHERMQ_LOGGING__LEVEL": "info"}
SILENT = {
    **LOGGED,
    "CIPHERMQ_LOGGING__DIRECTORY": "",
    **{f"CIPHERMQ_LOGGING__{name.upper()}_FILE_PATH": "" for name in _FILES},
}
_WAYS = {"one-x pipelined": onex.WAYS[1], "one-x batches": onex.WAYS[2]}

Run = Callable[[Path, dict[str, str]], dict[str, Any]]


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """cmq/2, and 1.x in two ways."""
    cores = machine.two_cores()
    runs: dict[str, Run] = {
        "cmq/2": lambda place, settings: queue.throughput(
            place, "none", options.messages, settings=settings, after=_logged
        )
    }
    for name, way in _WAYS.items():
        runs[name] = lambda place, settings, way=way: _one_x(  # type: ignore[misc]
            place, way, options.messages, settings
        )
    return {
        "measured": "messages/s with INFO to files (a line for each message of 1.x, or each batch, "
        "that is published, delivered, acknowledged) beside messages/s without any log; rounds of "
        "both take turns",
        "cores_used": cores,
        "fdatasync_of_4096_bytes": machine.percentiles(machine.sync_times(directory)),
        "results": [
            {"path": name, **_compare(directory / f"path-{number}", run, options.rounds)}
            for number, (name, run) in enumerate(runs.items())
        ],
    }


def _compare(directory: Path, run: Run, rounds: int) -> dict[str, Any]:
    logged, silent, lines = [], [], 0
    for number in range(rounds):
        kinds = [(logged, LOGGED), (silent, SILENT)]
        for rates, settings in kinds if number % 2 else reversed(kinds):
            found = run(
                directory.with_name(
                    f"{directory.name}-{number}-{len(rates)}-"
                    f"{'logged' if settings is LOGGED else 'silent'}"
                ),
                settings,
            )
            rates.append(found["messages_per_second"])
            if settings is LOGGED:
                lines = found["log_lines"]
            elif found["log_lines"]:
                raise AssertionError("there were lines where there should be none")
    ratios = [with_logs / without for with_logs, without in zip(logged, silent, strict=True)]
    return {
        "logged_messages_per_second": round(statistics.median(logged)),
        "silent_messages_per_second": round(statistics.median(silent)),
        "ratio": round(statistics.median(ratios), 3),
        "rounds_logged": logged,
        "rounds_silent": silent,
        "log_lines": lines,
    }


def _one_x(directory: Path, way: onex.Way, most: int, settings: dict[str, str]) -> dict[str, Any]:
    with Stage(directory, ["sender_1", "receiver_1"], port=free_port()) as stage:
        stage.deployment.config.write_text(onex.configuration(stage.port))
        broker = stage.broker(settings)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as processes:
            found = asyncio.run(onex.pass_all(stage, broker, processes, way, most))
        return {**found, **_logged(stage)}


def _logged(stage: Stage) -> dict[str, Any]:
    """How many lines are in the files that say what becomes of messages."""
    files = stage.deployment.server.rglob("*info.log*")
    return {"log_lines": sum(path.read_bytes().count(b"\n") for path in files)}
