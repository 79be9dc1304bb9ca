"""What the proxy benchmark measures against: each proxy started, configured, and its ports."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bench import machine
from bench.proxy_load import ECHO, SINK
from ciphermq.cli.processes import free_port

_HAPROXY = """\
global
    maxconn 8000
    ssl-default-bind-options ssl-min-ver TLSv1.2
    {threads}
defaults
    mode tcp
    timeout connect 5s
    timeout client 600s
    timeout server 600s
"""


_CONTROL = (sys.executable, "-c", "from ciphermq.proxy.ctl import main; main()")


@dataclass
class Setting:
    """One way to the broker: ports by kind of work, and the processes that are in between."""

    name: str
    ports: dict[str, int]
    processes: list[int] = field(default_factory=list)

    @classmethod
    def direct(cls, broker: dict[str, int]) -> Setting:
        """Nothing in between."""
        return cls("direct", {SINK: broker[SINK], ECHO: broker[ECHO], "tls_in": broker["tls"]})

    def port(self, way: str) -> int:
        """Where that work's clients connect to."""
        return self.ports[way]

    def cpu(self) -> float:
        """Seconds that its processes have used, to the nanosecond."""
        return sum(
            int(task.read_text().split()[0]) / 1e9
            for pid in self.processes
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )

    def memory(self) -> float:
        """kB of its processes, what they share counted once (PSS)."""
        total = 0
        for pid in self.processes:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return float(total)


def load(work: str, port: int, **more: Any) -> dict[str, Any]:
    """One piece of a client's work, in a process of its own; what it measured."""
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.proxy_load",
            "client",
            work,
            json.dumps({"port": port, **more}),
        ],
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if made.returncode:
        raise RuntimeError(f"{work} at port {port} failed: {made.stderr}")
    return dict(json.loads(made.stdout))


def certificate(directory: Path) -> Path:
    """A certificate of its own authority, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = directory / "proxy.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


@contextmanager
def haproxy(
    directory: Path, broker: dict[str, int], pem: Path, *, threads: int | None
) -> Iterator[Setting]:
    """HAProxy, with its default of a thread a core or with so many."""
    name = "haproxy" if threads is None else f"haproxy_{threads}_thread"
    ports = {way: free_port() for way in (SINK, ECHO, "tls_in", "tls_out")}
    lines = [_HAPROXY.format(threads="" if threads is None else f"nbthread {threads}")]
    for way, port in ports.items():
        bind = f"127.0.0.1:{port}" + (f" ssl crt {pem}" if way == "tls_in" else "")
        target = {"tls_in": broker[SINK], "tls_out": broker["tls"]}.get(way) or broker[way]
        more = " ssl verify none" if way == "tls_out" else ""
        lines.append(f"listen {way}\n    bind {bind}\n    server b 127.0.0.1:{target}{more}\n")
    path = directory / f"{name}.cfg"
    path.write_text("".join(lines))
    command = ["haproxy", "-db", "-q", "-f", str(path)]
    with _running(command, lambda: _connectable(ports[SINK])) as process:
        yield Setting(name, ports, [process.pid])


@contextmanager
def ciphermq_proxy(
    directory: Path, broker: dict[str, int], pem: Path, *, workers: int
) -> Iterator[Setting]:
    """Ours, with so many workers."""
    del directory  # a socket's path has 107 characters at most
    ports = {SINK: free_port(), "tls_in": free_port()}
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        control = Path(name) / "control"
        proxy = [sys.executable, "-m", "ciphermq.proxy.main", "--control", str(control)]
        started = [*proxy, "--workers", str(workers), "--verbosity", "1"]
        with _running(started, lambda: _answers(control)) as process:
            for command in (
                f"BACKEND ADD sink dc 127.0.0.1 {broker[SINK]}",
                f"BACKEND ADD echo dc 127.0.0.1 {broker[ECHO]}",
                f"BACKEND ADD tls dc 127.0.0.1 {broker['tls']} TLS",
                "MAP BACKEND sink sink",
                "MAP BACKEND echo echo",
                "MAP BACKEND tls_out tls",
                f"TLS INGRESS CERT_CHAIN_FILE {pem}",
                f"TLS INGRESS KEY_FILE {pem}",
                "TLS EGRESS VERIFY_MODE NONE",
                f"LISTEN START {ports[SINK]}",
                f"LISTEN START_SECURE {ports['tls_in']}",
            ):
                _say(control, command)
            pids = [process.pid, *_children(process.pid)]
            everything = {**ports, ECHO: ports[SINK], "tls_out": ports[SINK]}
            yield Setting(f"ciphermq_{workers}", everything, pids)


def _say(control: Path, command: str) -> None:
    subprocess.run(
        [*_CONTROL, str(control), *command.split()],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _answers(control: Path) -> bool:
    made = subprocess.run(
        [*_CONTROL, str(control), "BACKEND", "PRINT"],
        check=False,
        capture_output=True,
    )
    return made.returncode == 0


def _connectable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def _running(command: list[str], ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends."""
    process = subprocess.Popen(command, cwd=machine.ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
