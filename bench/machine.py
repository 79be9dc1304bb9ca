"""On what something was measured: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import ssl
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def describe(directory: Path) -> dict[str, Any]:
    """Processor, kernel, interpreter, libraries, and the disk under `directory`."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "versions": {name: version(name) for name in ("cryptography", "uvloop", "msgspec")},
        "ciphermq": version("ciphermq"),
        "revision": _revision(),
        "filesystem": filesystem(directory),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str | None:
    made = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,  # a source archive has no history
    )
    return made.stdout.strip() or None


def filesystem(directory: Path) -> str:
    """The type of the longest mount point that `directory` is beneath."""
    directory = directory.resolve()
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return max(
        ((point, kind) for _, point, kind, *_ in mounts if directory.is_relative_to(point)),
        key=lambda mount: len(mount[0]),
    )[1]


def two_cores() -> list[int]:
    """Keep this process and its children on two cores, as the goals are stated for; which."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    return cores


def sync_times(directory: Path, *, size: int = 4096, rounds: int = 300) -> list[float]:
    """Seconds that a write of `size` bytes and its fdatasync take, in a preallocated file."""
    path = directory / "sync-probe"
    block = os.urandom(size)
    times = []
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size * rounds)
        os.fsync(file.fileno())
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    path.unlink()
    return times


def sync_speed(directory: Path, *, size: int = 4 << 20, rounds: int = 64) -> float:
    """MB/s of a growing file that is synced after every `size` bytes: no journal can be faster."""
    path = directory / "speed-probe"
    block = os.urandom(size)
    with path.open("wb", buffering=0) as file:
        start = time.perf_counter()
        for _ in range(rounds):
            file.write(block)
            os.fdatasync(file.fileno())
        took = time.perf_counter() - start
    path.unlink()
    return round(size * rounds / took / 1e6)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds at p50, p99 and most."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 3),
        "most_ms": round(ordered[-1] * 1000, 3),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process now and at its most, in MB."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "rss_mb": round(int(status["VmRSS"].split()[0]) * 1024 / 1e6, 1),
        "rss_most_mb": round(int(status["VmHWM"].split()[0]) * 1024 / 1e6, 1),
    }
