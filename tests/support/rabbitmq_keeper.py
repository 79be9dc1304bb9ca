"""The process that starts RabbitMQ nodes for a whole test run, and ends them with everything of it.

One keeper serves all the workers of a run, so that a node is started once (four seconds of one
core), not once a worker::

    python -m support.rabbitmq_keeper DIRECTORY PID

It listens on ``DIRECTORY/keeper``, one JSON object a line and connection: ``{"do": "start",
"name": "blue"}`` is answered with the node's addresses, ``{"do": "kill", "name": "blue"}`` with
nothing more than that it is done, whatever fails with ``{"error": …}``. A node that was killed
starts again where it was: same ports, same data.

Nothing outlives the process PID, however that ends: a pidfd says so, even after SIGKILL. And
nothing outlives the keeper: nodes and their port mappers have asked the kernel for a SIGKILL when
their parent goes, and what they started themselves (Erlang's helpers for ports and for names) is
the keeper's to reap, being its descendant.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from ciphermq.cli.processes import free_port
from support.certificates import Certificates

SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
USER: Final = "keeper"

_START_TIMEOUT = 100.0
_TRIES = 3

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the command.
_LAUNCH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or sys.exit("its parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_PR_SET_CHILD_SUBREAPER = 36

# One scheduler of each kind, bound to no core: two nodes and the tests share two cores.
_VM = "+S 1:1 +SDcpu 1:1 +SDio 2 -kernel inet_dist_use_interface {127,0,0,1}"


class Stopped(Exception):
    """The run that the keeper works for is over."""


class Watch:
    """Whether the run is still there."""

    def __init__(self, pid: int) -> None:
        self.descriptor = os.pidfd_open(pid)

    def wait(self, seconds: float) -> None:
        """Sleep, unless there is nobody left to work for."""
        if select.select([self.descriptor], [], [], seconds)[0]:
            raise Stopped


class Node:
    """One RabbitMQ node in a directory of its own."""

    def __init__(self, name: str, directory: Path, certificates: Certificates) -> None:
        self.name = name
        self.directory = directory
        self._certificates = certificates
        self._password = secrets.token_urlsafe(12)
        self._cookie = secrets.token_hex(16)
        self._mapper: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._choose_ports()

    def _choose_ports(self) -> None:
        self.port, self.tls_port, self.management, self.distribution, self.epmd = (
            free_port() for _ in range(5)
        )

    def address(self) -> dict[str, Any]:
        """What a test needs to know of it."""
        return {
            "name": self.name,
            "port": self.port,
            "tls_port": self.tls_port,
            "management": self.management,
            "distribution": self.distribution,
            "cookie": self._cookie,
            "user": USER,
            "password": self._password,
            "authority": str(self._certificates.authority.path / "ca.crt"),
            "certificate": str(self._certificates.path("server", "crt")),
            "key": str(self._certificates.path("server", "key")),
            "directory": str(self.directory),
        }

    # --- files ----------------------------------------------------------------------------------

    def _write(self) -> None:
        for folder in ("home", "data", "log"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        cookie = self.directory / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
        certificates = self._certificates
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
            "ssl_options.cacertfile": certificates.authority.path / "ca.crt",
            "ssl_options.certfile": certificates.path("server", "crt"),
            "ssl_options.keyfile": certificates.path("server", "key"),
            "ssl_options.verify": "verify_none",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": self.management,
            "default_user": USER,
            "default_pass": self._password,
            # A bound that no test comes near by itself, on any machine.
            "vm_memory_high_watermark.absolute": "2GB",
            "disk_free_limit.absolute": "1MB",
            "log.file.level": "info",
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.directory / "rabbitmq.conf").write_text(text)

    def _environment(self) -> dict[str, str]:
        here = self.directory
        return {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "HOME": str(here / "home"),
            "ERL_EPMD_PORT": str(self.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution),
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _VM,
            # Its script then becomes the server, in place of watching over it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _launch(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
            )

    # --- life -----------------------------------------------------------------------------------

    def start(self, watch: Watch) -> None:
        """Run, and return when it serves. A node that has never run may have to choose anew,
        when somebody took one of its ports meanwhile."""
        if self._server is not None and self._server.poll() is None:
            return
        fresh = self._server is None
        for tries_left in reversed(range(_TRIES)):
            try:
                self._start(watch)
                break
            except RuntimeError:
                self.kill()
                if not (fresh and tries_left):
                    raise
                shutil.rmtree(self.directory)
                self._choose_ports()

    def _start(self, watch: Watch) -> None:
        self._write()
        if self._mapper is None:
            self._mapper = self._launch("epmd", "-port", str(self.epmd), "-address", "127.0.0.1")
        self._server = self._launch(str(SERVER))
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._serves():
            if self._server.poll() is not None or time.monotonic() > deadline:
                ended = self._server.returncode
                raise RuntimeError(
                    f"RabbitMQ does not serve (exit code {ended}):\n{self._last_words()}"
                )
            watch.wait(0.1)

    def _serves(self) -> bool:
        """Whether both its ports for AMQP are open, as it says itself."""
        login = base64.b64encode(f"{USER}:{self._password}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.management, timeout=20)
        try:
            for port in (self.port, self.tls_port):
                path = f"/api/health/checks/port-listener/{port}"
                connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != http.HTTPStatus.OK:
                    return False
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _last_words(self) -> str:
        logs = [self.directory / "output", *(self.directory / "log").glob("*.log")]
        return "\n".join(
            f"{log.name}: …{log.read_text(errors='replace')[-2000:]}"
            for log in logs
            if log.exists()
        )

    def kill(self) -> None:
        """SIGKILL, for the server and the processes it has started. Its data stay."""
        if self._server is not None:
            helpers = _descendants(self._server.pid)
            self._server.kill()
            self._server.wait()
            for pid in helpers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it and its port mapper for good."""
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()


def _descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


class Keeper:
    """The nodes of a run, by name."""

    def __init__(self, directory: Path, watch: Watch) -> None:
        self._directory = directory
        self._watch = watch
        self._certificates = Certificates(directory)
        self._nodes: dict[str, Node] = {}

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        """Do what a test asks for."""
        name = request["name"]
        if name not in self._nodes:
            self._nodes[name] = Node(name, self._directory / name, self._certificates)
        node = self._nodes[name]
        try:
            {"start": lambda: node.start(self._watch), "kill": node.kill}[request["do"]]()
        except RuntimeError as error:
            return {"error": str(error)}
        return node.address()

    def serve(self) -> None:
        """Answer until nobody is left."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._directory / "keeper"))
            listener.listen(16)
            while True:
                ready, _, _ = select.select([listener, self._watch.descriptor], [], [])
                if self._watch.descriptor in ready:
                    return
                connection, _ = listener.accept()
                with connection, connection.makefile("rw") as stream:
                    json.dump(self.answer(json.loads(stream.readline())), stream)

    def stop(self) -> None:
        """End all nodes, and wait for whatever they leave behind."""
        for node in self._nodes.values():
            node.stop()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def main(directory: Path, pid: int) -> None:
    """Keep nodes in `directory` until the process `pid` ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        watch = Watch(pid)
        keeper = Keeper(directory, watch)
        try:
            with contextlib.suppress(Stopped):
                keeper.serve()
        finally:
            keeper.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
