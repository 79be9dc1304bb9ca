"""Real RabbitMQ nodes for tests: Debian's package, in folders and on ports of their own.

::

    async def test_something(blue, green):          # two nodes, `support.rabbitmq`'s fixtures
        with blue.vhost() as vhost:
            connection = await aiormq.connect(blue.url(vhost.name))

A node is started when a test first asks for it, once for a whole run, however many workers there
are; `support.rabbitmq_keeper` has it. Each test works in virtual hosts of its own. A test that
does something to a node that others would notice (kill it, raise its alarms) takes the nodes for
itself: `rabbitmq_alone`.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from support import rabbitmq_keeper

__all__ = [
    "Node",
    "RabbitMQ",
    "Vhost",
    "blue",
    "green",
    "rabbitmq",
    "rabbitmq_alone",
    "rabbitmq_shared",
    "wait_until",
]

_ANSWER_TIMEOUT = 400.0
_names = itertools.count(1)


@dataclass(frozen=True)
class Node:
    """A node that runs, or did: where it is, and how to be let in."""

    name: str
    port: int
    tls_port: int
    management: int
    """The port of its management API."""
    distribution: int
    cookie: str
    user: str
    password: str
    authority: str
    """The file with the certificate that signed the node's."""
    certificate: str
    key: str
    directory: str

    @property
    def management_url(self) -> str:
        """Of the API, without its path."""
        return f"http://127.0.0.1:{self.management}"

    def url(self, vhost: str = "/", *, port: int | None = None) -> str:
        """An ``amqp://`` address of it, or of whatever passes on to it on `port`."""
        login = f"{self.user}:{quote(self.password, safe='')}"
        return f"amqp://{login}@127.0.0.1:{port or self.port}/{quote(vhost, safe='')}"

    def api(self, method: str, path: str, body: object = None) -> Any:
        """What the management API answers to `method` on ``/api/…``; not found is None."""
        answer = httpx.request(
            method,
            f"{self.management_url}/api/{path}",
            auth=(self.user, self.password),
            json=body,
            timeout=60,
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextmanager
    def vhost(self, name: str | None = None) -> Iterator[Vhost]:
        """A virtual host for one test; deleted afterwards, with all that is in it."""
        name = name or f"test-{os.getpid()}-{next(_names)}"
        vhost = Vhost(self, name)
        self.api("PUT", f"vhosts/{vhost.quoted}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"permissions/{vhost.quoted}/{self.user}", everything)
        try:
            yield vhost
        finally:
            self.api("DELETE", f"vhosts/{vhost.quoted}")

    def evaluate(self, expression: str) -> str:
        """What an Erlang expression is in the node, as Erlang writes it."""
        node = ["-address", f"127.0.0.1:{self.distribution}", "-c", self.cookie]
        # A node of its own name each: of two callers of one name the second is turned away.
        node += ["-h", f"call-{os.getpid()}-{next(_names)}"]
        made = subprocess.run(
            ["/usr/lib/erlang/bin/erl_call", *node, "-e"],
            input=f"{expression}.\n",
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        ended, _, value = made.stdout.strip()[1:-1].partition(", ")
        assert ended == "ok", f"{expression}: {made.stdout}{made.stderr}"
        return value

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """The node has no memory left, as far as it knows: it blocks whoever publishes. For a
        test that has the nodes for itself."""
        before = self.evaluate("vm_memory_monitor:get_vm_memory_high_watermark()")
        self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)")
        try:
            wait_until(self.alarmed)
            yield
        finally:
            self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({before})")
            wait_until(lambda: not self.alarmed())

    def alarmed(self) -> bool:
        """Whether it blocks publishers now."""
        return self.evaluate("rabbit_alarm:get_alarms()") != "[]"


@dataclass(frozen=True)
class Vhost:
    """A virtual host of a node."""

    node: Node
    name: str

    @property
    def quoted(self) -> str:
        """Its name in the path of an address."""
        return quote(self.name, safe="")

    def counts(self) -> dict[str, int]:
        """Messages a queue that are ready: exact, unlike the API's statistics. What a consumer had
        comes back to its queue a moment after the consumer's end."""
        text = self.node.evaluate(
            "lists:flatten([begin {resource, _, _, Name} = amqqueue:get_name(Q),"
            " {ok, Count, _} = rabbit_amqqueue:stat(Q),"
            ' io_lib:format("~s/~p ", [base64:encode(Name), Count]) end'
            f' || Q <- rabbit_amqqueue:list(<<"{self.name}">>)])'
        )
        pairs = (word.rsplit("/", 1) for word in text.strip('[]"').split())
        return {base64.b64decode(name).decode(): int(count) for name, count in pairs}


def wait_until(holds: Any, *, seconds: float = 60.0) -> None:
    """Return as soon as `holds()` is true; what never is, fails."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {seconds} s")
        time.sleep(0.02)


class RabbitMQ:
    """All nodes of this run, and who may do what to them now."""

    def __init__(self, shared: Path, run: int) -> None:
        self._shared = shared
        with self._locked("rabbitmq.start", fcntl.LOCK_EX):
            card = shared / "rabbitmq.card"
            if not card.exists():
                card.write_text(str(_start_keeper(run)))
            self._keeper = Path(card.read_text()) / "keeper"

    def start(self, name: str) -> Node:
        """The node of this name, which serves now."""
        return self._ask("start", name)

    def kill(self, name: str) -> None:
        """SIGKILL to the node."""
        self._ask("kill", name)

    def _ask(self, do: str, name: str) -> Node:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_TIMEOUT)
            connection.connect(str(self._keeper))
            connection.sendall(json.dumps({"do": do, "name": name}).encode() + b"\n")
            with connection.makefile() as stream:
                answer = json.loads(stream.read())
        if "error" in answer:
            pytest.fail(answer["error"])
        return Node(**answer)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        with (self._shared / name).open("a") as file:
            fcntl.flock(file, how)
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Work beside other tests. Who waits to be alone goes first: no test starves."""
        with (self._shared / "rabbitmq.use").open("a") as file:
            with self._locked("rabbitmq.turn", fcntl.LOCK_EX):
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work when no other test does."""
        with (
            self._locked("rabbitmq.turn", fcntl.LOCK_EX),
            self._locked("rabbitmq.use", fcntl.LOCK_EX),
        ):
            yield


def _start_keeper(run: int) -> Path:
    """A keeper's directory, once it listens there."""
    directory = Path(tempfile.mkdtemp(prefix="ciphermq-rabbitmq-"))
    output = directory / "keeper.log"
    with output.open("wb") as stream:
        keeper = subprocess.Popen(
            [sys.executable, "-m", rabbitmq_keeper.__name__, str(directory), str(run)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )

    def listens() -> bool:
        if keeper.poll() is not None:
            pytest.fail(f"The keeper of the nodes ended: {output.read_text()}")
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(directory / "keeper"))
                probe.sendall(b'{"do": "kill", "name": "nobody"}\n')
                return bool(probe.recv(1))
        except OSError:
            return False

    wait_until(listens)
    keeper.returncode = 0  # its life is the run's, and not this object's to complain about
    return directory


# --- fixtures -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> RabbitMQ:
    """The nodes of this run; without RabbitMQ the test is skipped, or fails where none may be."""
    if not rabbitmq_keeper.SERVER.exists() or shutil.which("epmd") is None:
        why = "RabbitMQ is not installed (on Debian: apt install rabbitmq-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return RabbitMQ(folder.parent, os.getppid())
    return RabbitMQ(folder, os.getpid())


@pytest.fixture
def rabbitmq_alone(rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """The nodes, for this test only. It asks for them itself: ``rabbitmq_alone.start("blue")``."""
    with rabbitmq.alone():
        yield rabbitmq


@pytest.fixture
def rabbitmq_shared(rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """The nodes, beside other tests."""
    with rabbitmq.shared():
        yield rabbitmq


@pytest.fixture
def blue(rabbitmq_shared: RabbitMQ) -> Node:
    """A node."""
    return rabbitmq_shared.start("blue")


@pytest.fixture
def green(rabbitmq_shared: RabbitMQ) -> Node:
    """Another node, which knows nothing of the first."""
    return rabbitmq_shared.start("green")
