"""The server starts on a deployment of CipherMQ 1.x as it lies there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ciphermq.cli.processes import Process, free_port
from interop.onex_clients import Binding, Place, Receiver, Sender
from support.onex_certificates import make_certificates
from support.postgres import PASSWORD, USER, Postgres, required_binaries

pytestmark = pytest.mark.crash

AES_KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres(required_binaries()) as running:
        asyncio.run(running.execute("CREATE DATABASE ciphermq"))
        yield running


@pytest.fixture
def deployment(tmp_path: Path, postgres: Postgres) -> Path:
    """Nothing but what 1.x has: its configuration, and its certificates."""
    make_certificates(tmp_path / "certs", "sender_1")
    (tmp_path / "config.toml").write_text(f"""
[server]
address = "127.0.0.1:{free_port()}"
connection_type = "tls"

[tls]
cert_path = "certs/server.crt"
key_path = "certs/server.key"
ca_cert_path = "certs/ca.crt"

[logging]
level = "debug"
info_file_path = "logs/server_info.log"
debug_file_path = "logs/server_debug.log"
error_file_path = "logs/server_error.log"
rotation = "daily"
max_size_mb = 100

[database]
host = "127.0.0.1"
port = {postgres.port}
user = "{USER}"
password = "{PASSWORD}"
dbname = "ciphermq"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "{AES_KEY}"
""")
    return tmp_path


Start = Callable[..., Process]


@pytest.fixture
def start(deployment: Path) -> Iterator[Start]:
    started: list[Process] = []

    def process(**environment: str) -> Process:
        words = ["server", "--config", str(deployment / "config.toml")]
        log = deployment / f"output-{len(started)}"
        started.append(Process("server", words, log=log, environment=environment))
        return started[-1]

    yield process
    for each in started:
        each.kill()


def lines(path: Path) -> list[dict[str, str]]:
    """The whole ones: the last may be under way."""
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def test_it_starts_as_it_is_and_again(deployment: Path, start: Start) -> None:
    for _ in range(2):
        server = start()
        found = server.wait_for(r"ciphermq ready on 127\.0\.0\.1:(\d+)\n")
        socket.create_connection(("127.0.0.1", int(found[1]))).close()
        assert server.stop() == 0
    said = [line["message"] for line in lines(deployment / "logs" / "server_info.log")]
    assert said.count("ready") == said.count("stopped") == 2
    for warning in ("every client may do what", "ca.key lies in the server's own directory"):
        assert sum(warning in line for line in said) == 2  # once for each start
    assert lines(deployment / "logs" / "server_debug.log")
    assert (deployment / "logs" / "server_error.log").exists()
    for path in (deployment / "logs").iterdir():
        assert PASSWORD not in path.read_text()
        assert AES_KEY not in path.read_text()
    assert (deployment / "data" / "journal").is_dir()
    assert not (deployment / "data" / "catalog.db").exists()


def test_a_client_s_certificate_of_1x_is_believed(deployment: Path, start: Start) -> None:
    server = start()
    port = int(server.wait_for(r"ready on 127\.0\.0\.1:(\d+)\n")[1])
    certs = deployment / "certs"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certs / "ca.crt")
    client = certs / "clients" / "sender_1"
    context.load_cert_chain(client / "client.crt", client / "client.key")
    with (
        socket.create_connection(("127.0.0.1", port)) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        assert tls.version() == "TLSv1.3"
        # In TLS 1.3 a client's handshake is over before the server has looked at its certificate.
        tls.sendall(b"declare_queue receiver_1_queue\n")
        assert tls.recv(100) == b"Queue declared\n"


@pytest.mark.parametrize("tls", ["TLSv1_2", "TLSv1_3"])
def test_the_server_s_own_certificate_is_no_client_s(
    deployment: Path, start: Start, tls: str
) -> None:
    """It names no usage, as no certificate of 1.x does, and would be the client `localhost`."""
    server = start()
    port = int(server.wait_for(r"ready on 127\.0\.0\.1:(\d+)\n")[1])
    certs = deployment / "certs"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = ssl.TLSVersion[tls]
    context.load_verify_locations(certs / "ca.crt")
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    with (
        socket.create_connection(("127.0.0.1", port)) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(b"declare_queue q\n")
        assert connection.recv(100) == b""
    server.wait_for("is of the server's own key, which is no client's")


def test_the_events_of_1x_are_in_its_log_files(
    deployment: Path, start: Start, postgres: Postgres
) -> None:
    """Connections, registrations, what becomes of each message, and errors: by name and id."""
    server = start()
    port = int(server.wait_for(r"ready on 127\.0\.0\.1:(\d+)\n")[1])
    certs = deployment / "certs"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port)) as tcp:
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.check_hostname = False
        stranger.load_verify_locations(certs / "ca.crt")
        with stranger.wrap_socket(tcp, server_hostname="localhost") as tls:
            assert tls.recv(1)
    marker = "marker of a text that is nobody's business"
    binding = Binding("receiver_1_queue", "CipherMQ_exchange", "receiver_1_key")
    place = Place(port, certs / "ca.crt", *client_files(certs))
    private = bytes(range(32))

    async def send_and_receive() -> str:
        receiver = Receiver(place, "sender_1", binding, private)
        sender = Sender(place, "sender_1", "sender_1", binding)
        task = asyncio.create_task(receiver.run())
        async with asyncio.timeout(30):
            while "Subscribed to queue" not in receiver.heard:
                await asyncio.sleep(0.01)
            await sender.run([marker])
            while not any(line.startswith("ACK_CONFIRMED") for line in receiver.heard):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [text for _, text in receiver.received] == [marker]
        return receiver.received[0][0]

    message_id = asyncio.run(send_and_receive())
    assert server.stop() == 0
    info = lines(deployment / "logs" / "server_info.log")

    def found(message: str, **members: str) -> list[dict[str, str]]:
        rows = [line for line in info if message in (line["message"], line.get("event"))]
        return [row for row in rows if members.items() <= row.items()]

    assert found("connected", client="sender_1")
    assert found("1.x key registered", client="sender_1")
    where = {"exchange": "CipherMQ_exchange", "routing_key": "receiver_1_key"}
    assert len(found("message published", message_id=message_id, client="sender_1", **where)) == 1
    assert len(found("message delivered", message_id=message_id, queue="receiver_1_queue")) == 1
    assert len(found("message acknowledged", message_id=message_id, client="sender_1")) == 1
    for sentence in (  # as 1.x begins them
        f"Published message {message_id} via exchange 'CipherMQ_exchange'",
        f"Message {message_id} acknowledged by client, removed from its queue",
    ):
        assert len(found(sentence)) == 1
    assert found("disconnected", client="sender_1")
    (failed,) = lines(deployment / "logs" / "server_error.log")
    assert (failed["level"], failed["message"]) == ("ERROR", "TLS handshake failed")
    assert failed in info
    debug = lines(deployment / "logs" / "server_debug.log")
    assert [line for line in debug if line["level"] != "DEBUG"] == info
    for line in debug:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
        assert line["level"] in {"DEBUG", "INFO", "WARNING", "ERROR"}
    for path in (deployment / "logs").iterdir():
        text = path.read_text()
        secrets = (marker, PASSWORD, AES_KEY, base64.b64encode(private).decode(), private.hex())
        assert [secret for secret in secrets if secret in text] == []
    del postgres


def client_files(certs: Path) -> tuple[Path, Path]:
    client = certs / "clients" / "sender_1"
    return client / "client.crt", client / "client.key"


def test_an_unreachable_database_is_said_with_all_but_the_password(
    deployment: Path, start: Start, postgres: Postgres
) -> None:
    server = start(CIPHERMQ_DATABASE__PORT="1")
    assert server.wait() != 0
    assert f"PostgreSQL at 127.0.0.1:1 (user {USER!r}, database 'ciphermq')" in server.output
    assert "nothing listens there" in server.output
    assert PASSWORD not in server.output
    assert "ready" not in server.output
    del deployment, postgres
