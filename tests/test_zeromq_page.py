"""The programs of the how-to page on ZeroMQ run as they stand, with its certificates."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciphermq.cli.processes import free_port
from ciphermq.errors import ConnectionLost
from ciphermq.zmq import TlsDealer, TlsReq, TlsRouter, client_context, server_context

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "zeromq.md"
SOON = 60.0


def blocks(language: str, heading: str) -> list[str]:
    """The page's code in `language` between `heading` and the next one."""
    section = re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)
    (text,) = [each for each in section if each.startswith(heading + "\n")]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Machine:
    """A directory in which the page's commands and programs run. Ports are free ones."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {port: str(free_port()) for port in ("5555", "5556", "7444")}
        self._environment = {
            **os.environ,
            "CIPHERMQ_PASSPHRASE": "correct horse",
            "CIPHERMQ_IDENTITY_PASSPHRASE": "correct horse",
        }

    def commands(self, heading: str) -> None:
        """Run them, one after the other."""
        (block,) = blocks("console", heading)
        for line in block.splitlines():
            name, *words = shlex.split(line.removeprefix("$ "))
            assert name == "ciphermq"
            self._wait(self.begin(["-m", name, *words]))

    def run(self, program: str) -> str:
        """What it prints."""
        return self._wait(self.begin(["-c", self.here(program)]))

    def here(self, program: str) -> str:
        """A program with this machine's ports."""
        program = program.replace("tcp://*:7444", f"tcp://127.0.0.1:{self.ports['7444']}")
        program = program.replace("queue.example.org:7444", "127.0.0.1:5555")
        return re.sub(r":(5555|5556)\b", lambda found: f":{self.ports[found[1]]}", program)

    def begin(self, arguments: list[str]) -> subprocess.Popen[str]:
        """A process of Python's."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _listens(self, port: str) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", int(self.ports[port])), timeout=SOON).close()
            return True
        return False

    def _wait(self, process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=SOON)
        assert (process.returncode, err) == (0, "")
        return out

    @contextmanager
    def running(self, program: str, port: str = "5555") -> Iterator[None]:
        """It listens on `port` of the page, and runs until the block ends, and no shorter."""
        process = self.begin(["-c", self.here(program)])
        try:
            deadline = time.monotonic() + SOON
            while not self._listens(port) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
            assert process.poll() is None, process.communicate()[1]
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("page"))
    made.commands("Certificates, from A to Z")
    return made


def misbehave(machine: Machine) -> None:
    """What no client may end the service by."""
    tls = client_context(
        identity=machine.directory / "bank" / "identities" / "bob", passphrase="correct horse"
    )
    address = f"tcp://127.0.0.1:{machine.ports['5555']}"
    for _ in range(3):  # it asks, and is gone
        with TlsDealer(tls, server_name="localhost") as dealer:
            dealer.connect(address)
            for _ in range(200):
                dealer.send(b"balance")
    req = TlsReq(tls, server_name="localhost")  # two requests in one, which get two answers
    req.connect(address)
    req.send(b"balance")
    req._machine.waiting.put([b"balance"])
    with contextlib.suppress(ConnectionLost):
        req.recv(timeout=SOON)
    req.close(0)


def test_the_service_and_its_client(machine: Machine) -> None:
    (service,), (client,) = blocks("python", "A service"), blocks("python", "A client")
    with machine.running(service):
        assert machine.run(client).endswith("1204.50 EUR\n")
        misbehave(machine)
        assert machine.run(client).endswith("1204.50 EUR\n")


def test_both_on_an_event_loop(machine: Machine) -> None:
    service, client = blocks("python", "On an event loop")
    with machine.running(service):
        assert machine.run(client).endswith("1204.50 EUR\n")
        misbehave(machine)
        (blocking,) = blocks("python", "A client")
        assert machine.run(blocking).endswith("1204.50 EUR\n")


def test_hops_between(machine: Machine) -> None:
    """The page's two devices, one behind the other."""
    (service,), (client,) = blocks("python", "A service"), blocks("python", "A client")
    (first,), (second,) = blocks("python", "A device"), blocks("python", "Hops between")
    second = second.replace("tcp://127.0.0.1:5555", f"tcp://127.0.0.1:{machine.ports['7444']}")
    with machine.running(service), machine.running(first, "7444"), machine.running(second, "5556"):
        through = client.replace('bank.connect("tcp://127.0.0.1:5555")', _connect_in(PAGE))
        assert through != client
        assert machine.run(through).endswith("1204.50 EUR\n")


def _connect_in(page: Path) -> str:
    (found,) = re.findall(r"connects to the device, `(.*?)`", page.read_text())
    return str(found)


def test_renewing_and_revoking(machine: Machine, tmp_path: Path) -> None:
    """Bob is in, his certificate is taken back, the service renews and ends his session."""
    own = Machine(tmp_path)  # the others want Bob
    shutil.copytree(machine.directory, tmp_path, dirs_exist_ok=True)
    home = tmp_path / "bank"
    files = {name: home / "server" / file for name, file in _FILES.items()}
    bob = client_context(identity=home / "identities" / "bob", passphrase="correct horse")
    with TlsRouter(server_context(**files)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        dealer = TlsDealer(bob, server_name="localhost")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"balance")
        peer, _ = router.recv(timeout=SOON)
        own.commands("Renew and revoke without a restart")
        router.renew(server_context(**files))
        (ending,) = blocks("python", "Renew and revoke without a restart")
        exec(compile(ending, str(PAGE), "exec"), {"router": router})
        assert not peer.alive
        with pytest.raises(ConnectionLost):
            dealer.recv(timeout=SOON)
        dealer.close(0)


_FILES = {
    "certificate": "server.crt",
    "key": "server.key",
    "authority": "ca.crt",
    "revocations": "crl.pem",
}


def test_programs_import_what_they_use() -> None:
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for program in found:
        tree = ast.parse(program)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {alias.name for node in imports for alias in node.names}
        assert imported <= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
