"""The real ``ciphermq-proxy``, in a process of its own, steered through its control socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from ciphermq.cli.processes import free_port
from ciphermq.proxy.control.words import JSON, STATUS
from ciphermq.proxy.control.words import quote as word
from support.rabbitmq import Node, wait_until

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the proxy; its workers end with it.
_LAUNCH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or sys.exit("its parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Proxy:
    """A proxy that runs until the block ends.

    ::

        with Proxy() as proxy:
            port = proxy.listen()
            proxy.farm("blue", blue)
            proxy("MAP", "FARM", "/", "blue")
    """

    def __init__(self, *flags: str, workers: int = 1, verbosity: int = 3) -> None:
        # Not pytest's directory: a socket's path has 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="ciphermq-proxy-"))
        self.socket = self.directory / "control"
        self._output = self.directory / "output"
        command = [sys.executable, "-m", "ciphermq.proxy.main", "--control", str(self.socket)]
        command += ["--workers", str(workers), "--verbosity", str(verbosity), *flags]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        wait_until(self._ready)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            print(self.output[-5000:])
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"The proxy ended: {self.output}")
        return " ready on " in self.output

    @property
    def output(self) -> str:
        """What it has printed and logged."""
        return self._output.read_text(errors="replace")

    def __call__(self, *words: str, flags: str = STATUS) -> str:
        """Say a command; its answer. What fails, fails the test."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket))
            connection.sendall(f"{flags} {' '.join(map(word, words))}\n".encode())
            with connection.makefile("rb") as stream:
                text, _, status = stream.read().decode().rpartition("\0")
        assert status == "0", f"{' '.join(words)}: {text}"
        return text

    def json(self, *words: str) -> Any:
        """A command's answer as JSON."""
        return json.loads(self(*words, flags=f"{JSON} {STATUS}"))

    def sessions(self, vhost: str, *states: str) -> list[dict[str, Any]]:
        """The vhost's sessions, or those of them in one of these states."""
        return [
            each
            for each in self.json("CONN")
            if each["vhost"] == vhost and (not states or each["state"] in states)
        ]

    # --- what tests want of it ------------------------------------------------------------------

    def listen(self) -> int:
        """A port it listens on."""
        port = free_port()
        self("LISTEN", "START", str(port))
        return port

    def listen_secure(self, node: Node) -> int:
        """A port it listens on for TLS, with that node's certificate."""
        self("TLS", "INGRESS", "CERT_CHAIN_FILE", node.certificate)
        self("TLS", "INGRESS", "KEY_FILE", node.key)
        port = free_port()
        self("LISTEN", "START_SECURE", str(port))
        return port

    def farm(self, name: str, *nodes: Node, tls: bool = False) -> None:
        """A farm of these nodes."""
        for node in nodes:
            port = node.tls_port if tls else node.port
            more = ["TLS"] if tls else []
            self("BACKEND", "ADD", f"{name}-{node.name}", "dc", "127.0.0.1", str(port), *more)
        self("FARM", "ADD", name, "round-robin", *(f"{name}-{node.name}" for node in nodes))


@contextmanager
def proxied(node: Node, vhost: str, *, tls: bool = False) -> Iterator[str]:
    """The address of a vhost of a node through a proxy of its own."""
    with Proxy() as proxy:
        proxy.farm("here", node, tls=tls)
        proxy("MAP", "FARM", vhost, "here")
        yield node.url(quote(vhost, safe=""), port=proxy.listen())
