"""5,000 connections opened and held, 10,000 clients that go wrong beside them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from proxy_running import alive, children

from support import crowd, small_broker
from support.proxy import Proxy
from support.rabbitmq import wait_until

HELD, FAILING = 5000, 10_000
MEMORY_KB = 16
"""A session may cost, at its worst; it takes 3 to 4 when nothing waits to be sent."""

TESTS = Path(__file__).parent.parent


@contextmanager
def process(module: Any, *arguments: int) -> Iterator[subprocess.Popen[str]]:
    """A module of the tests' own in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", module.__name__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def line(started: subprocess.Popen[str]) -> Any:
    assert started.stdout is not None
    return json.loads(started.stdout.readline())


def order(started: subprocess.Popen[str], word: str) -> Any:
    assert started.stdin is not None
    started.stdin.write(f"{word}\n")
    started.stdin.flush()
    return line(started)


def resident_kb(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@pytest.mark.slow
def test_a_crowd_is_served_in_bounded_memory() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3 * HELD:
        pytest.fail(f"needs {3 * HELD} open files (ulimit -Hn)")
    with process(small_broker) as broker, Proxy(workers=2, verbosity=0) as proxy:
        proxy("BACKEND", "ADD", "b", "dc", "127.0.0.1", str(line(broker)))
        proxy("MAP", "BACKEND", "/", "b")
        port = proxy.listen()
        workers = children(proxy.process.pid)
        before = {pid: resident_kb(pid) for pid in workers}
        for failing in (FAILING, 0):
            with process(crowd, port, HELD, failing) as clients:
                assert line(clients) == {"held": HELD}
                assert line(clients) == {"failed": failing}
                assert len(proxy.json("CONN")) >= HELD
                assert order(clients, "echo") == {"echoed": HELD}
                order(clients, "drop")
                wait_until(lambda: proxy.json("CONN") == [])
        # A second crowd finds the first one's memory.
        for pid in workers:
            assert alive(pid)
            grown = resident_kb(pid) - before[pid]
            assert grown < MEMORY_KB * HELD / len(workers)
