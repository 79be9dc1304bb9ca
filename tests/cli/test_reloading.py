"""A broker process whose certificates are renewed and whose clients are revoked: no restart."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cryptography import x509

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from ciphermq.client import Client, connect
from ciphermq.errors import TlsFailed
from ciphermq.net.dialler import dial
from ciphermq.wire.cmq2.frames import Hello
from interop.onex_clients import TLS_1_2, Place
from interop.onex_clients import connect as connect_1x
from support.deployment import Deployment, make_deployment

pytestmark = pytest.mark.crash

NAMES = ["alice", "bob", "carol", "dave"]
MESSAGES = 300
"""Of each sender who goes on."""
TAKEN = "new certificate files count from now on"
REFUSED = "the new certificate files were not taken over, the former ones still count"


class Running:
    """A broker process, and its deployment."""

    def __init__(self, deployment: Deployment, log: Path, **environment: str) -> None:
        self.deployment = deployment
        self.port, self.zmq_port = free_port(), free_port()
        settings = {
            "CIPHERMQ_SERVER__ADDRESS": f"127.0.0.1:{self.port}",
            "CIPHERMQ_SERVER__ZMQ_ADDRESS": f"127.0.0.1:{self.zmq_port}",
            "CIPHERMQ_ONE_X__ENABLED": "true",
            "CIPHERMQ_ONE_X__TLS_1_2": "true",
        }
        words = ["server", "--config", str(deployment.config)]
        self.process = Process("server", words, log=log, environment=settings | environment)
        self.process.wait_for("ciphermq ready")

    @property
    def url(self) -> str:
        return f"cmq://127.0.0.1:{self.port}"

    @property
    def zmq_url(self) -> str:
        return f"zmq+tls://127.0.0.1:{self.zmq_port}"

    def said(self, words: str) -> int:
        """How often it has said so."""
        return self.process.output.count(words)

    async def until(self, words: str, times: int) -> None:
        async with asyncio.timeout(60):
            while self.said(words) < times:
                await asyncio.sleep(0.02)

    async def served(self, url: str, name: str = "bob") -> int:
        """The serial of the certificate that the next client sees."""
        link = await dial(
            url,
            self.deployment.load(name).ssl_context(),
            hello=Hello(),
            on_frame=lambda _: None,
            on_lost=lambda _: None,
        )
        link.abort()
        return x509.load_der_x509_certificate(link.peer_certificate).serial_number


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    made = make_deployment(tmp_path, NAMES)
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CIPHERMQ_IDENTITY", "CIPHERMQ_PASSPHRASE", "CIPHERMQ_URL"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def start(deployment: Deployment, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts the broker with these settings; it ends with the test."""
    started: list[Running] = []

    def begin(**environment: str) -> Running:
        started.append(Running(deployment, tmp_path / "server.out", **environment))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()


async def test_a_renewed_certificate_on_sighup(
    start: Callable[..., Running], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start(CIPHERMQ_TLS__RELOAD_SECONDS="0")
    roads = (broker.url, broker.zmq_url)
    (first,) = {await broker.served(road) for road in roads}
    path = deployment.server_dir / "server.crt"
    good = path.read_bytes()
    path.write_bytes(good[:200])
    os.kill(broker.process.pid, signal.SIGHUP)
    await broker.until(REFUSED, 1)
    assert [await broker.served(road) for road in roads] == [first, first]
    path.write_bytes(good)
    async with connect(broker.url, identity=deployment.load("carol"), close_timeout=2) as carol:
        assert run(["ca", "server"]) == 0
        second = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        os.kill(broker.process.pid, signal.SIGHUP)
        await broker.until(TAKEN, 1)
        assert [await broker.served(road) for road in roads] == [second, second]
        assert first != second
        monkeypatch.setenv("CIPHERMQ_URL", broker.url)
        assert await asyncio.to_thread(run, ["status"]) == 0
        assert (carol.connected, carol.connections) == (True, 1)
    assert broker.process.stop() == 0


def test_sighup_while_it_starts(deployment: Deployment, tmp_path: Path) -> None:
    """Held in the reading of its configuration, which comes through a pipe."""
    text = deployment.config.read_text()
    deployment.config.unlink()
    os.mkfifo(deployment.config)
    settings = {"CIPHERMQ_SERVER__ADDRESS": f"127.0.0.1:{free_port()}"}
    words = ["server", "--config", str(deployment.config)]
    process = Process("server", words, log=tmp_path / "server.out", environment=settings)
    try:
        with deployment.config.open("w") as pipe:  # which waits until somebody reads
            os.kill(process.pid, signal.SIGHUP)
            pipe.write(text)
        process.wait_for("ciphermq ready")
        assert process.stop() == 0
    finally:
        process.kill()


def test_sighup_while_it_ends(start: Callable[..., Running]) -> None:
    process = start().process
    os.kill(process.pid, signal.SIGTERM)
    while process.running:
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.005)
    assert process.wait() == 0


async def test_a_client_is_revoked_while_others_send(
    start: Callable[..., Running], deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, as an operator would; the others lose nothing and repeat nothing."""
    broker = start(CIPHERMQ_TLS__RELOAD_SECONDS="0.2")
    async with AsyncExitStack() as stack:

        async def join(name: str, url: str) -> Client:
            identity = deployment.load(name)
            return await stack.enter_async_context(
                connect(url, identity=identity, close_timeout=2.0, send_timeout=30.0)
            )

        bob = await join("bob", broker.url)
        await bob.register_key()
        alice, again = await join("alice", broker.url), await join("alice", broker.zmq_url)
        others = [await join("carol", broker.url), await join("dave", broker.zmq_url)]
        home = deployment.identity("alice")
        files = (home / "ca.crt", home / "cert.pem", home / "key.pem")
        place = Place(broker.port, *files, tls=TLS_1_2)
        onex = await connect_1x(place)
        assert (await onex.ask("declare_queue hers")) == "Queue declared"

        going = asyncio.Event()
        got: Counter[str] = Counter()

        async def send(client: Client) -> None:
            async with client.sender("bob") as sender:
                for number in range(MESSAGES):
                    await sender.send(f"{client.name} {number}")
                    if number == MESSAGES // 3:
                        await going.wait()

        async def receive() -> None:
            async with bob.receiver() as receiver:
                async for message in receiver:
                    got[message.payload.decode()] += 1
                    if got.keys() >= expected:
                        return

        expected = {f"{each.name} {number}" for each in others for number in range(MESSAGES)}
        tasks = [asyncio.create_task(send(each)) for each in others]
        tasks.append(asyncio.create_task(receive()))
        assert await asyncio.to_thread(run, ["ca", "revoke", "alice"]) == 0
        await broker.until("client shut out", 3)
        going.set()
        async with asyncio.timeout(100):
            await asyncio.gather(*tasks)
        assert got == dict.fromkeys(expected, 1)
        assert [each.connections for each in (bob, *others)] == [1, 1, 1]
        for client in (alice, again):
            async with asyncio.timeout(60):
                while client.connected or "revoked" not in client._core.line.describe():
                    await asyncio.sleep(0.02)
        assert (await onex.hear()).startswith("Error: 'alice' is let in no more: the certificate")
        await onex.close()
        with pytest.raises(OSError, match=r"(?i)certificate.revoked"):
            await connect_1x(place)
    for url in (broker.url, broker.zmq_url):
        with pytest.raises(TlsFailed, match="this side's certificate has been revoked"):
            await broker.served(url, "alice")
    capsys.readouterr()
    words = ["send", "bob", str(deployment.config), "--identity", "alice", "--url", broker.url]
    assert await asyncio.to_thread(run, words) == 5
    assert "is revoked: it needs a new key" in capsys.readouterr().err
