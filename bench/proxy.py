"""The AMQP proxy beside HAProxy (Debian's, in TCP mode) and no proxy at all, in one run.

Every round does a piece of work with each in turn, so that what else the machine does falls on all
of them. Loads and broker are processes of their own; CPU is what the kernel counts for the
proxies' processes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.proxy_load import ECHO, SINK
from bench.proxy_setting import Setting, certificate, ciphermq_proxy, haproxy, load

CONNECTIONS: Final = 5000
AT_A_TIME: Final = 50
LARGE_MB: Final = 2000
SMALL_MB: Final = 1000
TLS_MB: Final = 600
ROUND_TRIPS: Final = 5000
HELD: Final = 1000


@dataclass
class Rows:
    """What was measured: work → who → figures of each round."""

    rounds: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)

    def add(self, work: str, who: str, figures: dict[str, float]) -> None:
        """One round's."""
        self.rounds.setdefault(work, {}).setdefault(who, []).append(figures)

    def middles(self) -> dict[str, dict[str, dict[str, float]]]:
        """The median of each figure."""
        return {
            work: {
                who: {
                    name: round(statistics.median(each[name] for each in all_rounds), 3)
                    for name in all_rounds[0]
                }
                for who, all_rounds in by.items()
            }
            for work, by in self.rounds.items()
        }


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it; `options.messages` (a million by default) scales the work."""
    cores = machine.two_cores()
    scale = min(1.0, options.messages / 1_000_000)
    rows = Rows()
    with ExitStack() as stack:
        pem = certificate(directory)
        broker = stack.enter_context(_broker(pem))
        settings = [Setting.direct(broker)]
        if shutil.which("haproxy"):
            settings += [
                stack.enter_context(haproxy(directory, broker, pem, threads=threads))
                for threads in (None, 1)
            ]
        settings += [
            stack.enter_context(ciphermq_proxy(directory, broker, pem, workers=workers))
            for workers in (1, 2)
        ]
        for _ in range(options.rounds):
            for work, do in _works(scale).items():
                for setting in settings:
                    if (figures := do(setting)) is not None:
                        rows.add(work, setting.name, figures)
        memory = {
            setting.name: _memory(setting, scale) for setting in settings if setting.processes
        }
    return {
        "measured": "medians of the rounds; the broker and the clients are processes of their own",
        "cores_used": cores,
        "rounds": options.rounds,
        "haproxy": _haproxy_version(),
        "results": rows.middles(),
        "memory": memory,
        "against_haproxy": _ratios(rows.middles()),
    }


def _works(scale: float) -> dict[str, Callable[[Setting], dict[str, float] | None]]:
    def poured(what: str, megabytes: int, **more: Any) -> dict[str, Any]:
        return {
            "what": what,
            "megabytes": max(10, int(megabytes * scale)),
            "connections": 10,
            **more,
        }

    return {
        "open_and_close": lambda setting: _connections(setting, max(50, int(CONNECTIONS * scale))),
        "large_messages": lambda setting: _pour(setting, SINK, poured("large", LARGE_MB)),
        "small_messages": lambda setting: _pour(setting, SINK, poured("small", SMALL_MB)),
        "mixed_messages": lambda setting: _pour(setting, SINK, poured("mixed", SMALL_MB)),
        "round_trips": lambda setting: load(
            "round_trips",
            setting.port(ECHO),
            vhost=ECHO,
            count=max(50, int(ROUND_TRIPS * scale)),
        ),
        "tls_in": lambda setting: _pour(setting, "tls_in", poured("large", TLS_MB, tls=True)),
        "tls_out": lambda setting: _pour(setting, "tls_out", poured("large", TLS_MB)),
    }


def _connections(setting: Setting, count: int) -> dict[str, float]:
    before = setting.cpu()
    done = load("connections", setting.port(SINK), vhost=SINK, count=count, at_a_time=AT_A_TIME)
    return {
        "per_second": count / done["seconds"],
        "cpu_us_each": (setting.cpu() - before) / count * 1e6,
    }


def _pour(setting: Setting, way: str, work: dict[str, Any]) -> dict[str, float] | None:
    if way not in setting.ports:
        return None
    before = setting.cpu()
    vhost = SINK if way == "tls_in" else way
    done = load("pour", setting.port(way), vhost=vhost, **work)
    return {
        "mb_per_second": done["bytes"] / done["seconds"] / 1e6,
        "million_messages_per_second": done["messages"] / done["seconds"] / 1e6,
        "cpu_seconds_per_gb": (setting.cpu() - before) / done["bytes"] * 1e9,
    }


def _memory(setting: Setting, scale: float) -> dict[str, float]:
    """In kB: what an idle session adds, and what is there after a burst of connections."""
    found: dict[str, float] = {"before_kb": setting.memory()}
    held, burst = max(20, int(HELD * scale)), max(50, int(CONNECTIONS * scale))
    with _holding(setting, SINK, burst):
        found["burst_kb"] = setting.memory()
    found["idle_plain_session_kb"] = round((found["burst_kb"] - found["before_kb"]) / burst, 2)
    time.sleep(1.0)  # to give back what it will
    found["after_burst_kb"] = before = setting.memory()
    with _holding(setting, "tls_in", held):
        found["idle_tls_session_kb"] = round((setting.memory() - before) / held, 2)
    return found


@contextmanager
def _holding(setting: Setting, way: str, count: int) -> Iterator[None]:
    work = {"port": setting.port(way), "vhost": SINK, "count": count, "tls": way == "tls_in"}
    with subprocess.Popen(
        [sys.executable, "-m", "bench.proxy_load", "client", "hold", json.dumps(work)],
        cwd=machine.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        if not client.stdout.readline():
            raise RuntimeError(f"{setting.name}: the client of {count} connections ended")
        yield
        client.stdin.write("\n")
        client.stdin.flush()
        client.stdout.read()


@contextmanager
def _broker(pem: Path) -> Iterator[dict[str, int]]:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.proxy_load", "broker", str(pem)],
        cwd=machine.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def _ratios(middles: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """What matters most of each work, as a multiple of HAProxy's: over 1 is faster."""
    found: dict[str, dict[str, float]] = {}
    for work, by in middles.items():
        if "haproxy" not in by:
            continue
        name = next(iter(by["haproxy"]))
        for who, figures in by.items():
            ratio = figures[name] / by["haproxy"][name]
            if name.endswith("_us"):
                ratio = 1 / ratio
            found.setdefault(work, {})[who] = round(ratio, 2)
    return found


def _haproxy_version() -> str | None:
    if not shutil.which("haproxy"):
        return None
    made = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True)
    return made.stdout.splitlines()[0]
