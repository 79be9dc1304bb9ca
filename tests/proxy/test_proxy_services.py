"""What surrounds the running proxy: who is asked, what is counted, measured and logged."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from proxy_running import command, connected_to_both, route, said, until

from ciphermq.cli.processes import free_port
from ciphermq.proxy.auth import decode_request, encode_answer
from ciphermq.proxy.statistics import MEMBERS
from support.amqp import Broker, Closed, body, connect
from support.certificates import Certificates
from support.proxy import Proxy

# --- the authentication service ------------------------------------------------------------------

Answering = Callable[[dict[str, bytes]], bytes]


@asynccontextmanager
async def service(answer: Answering, status: str = "200 OK") -> AsyncIterator[int]:
    """An authentication service's port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /route HTTP/1.1\r\n")
        assert b"content-type: application/octet-stream" in head.lower()
        size = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        body = answer(decode_request(await reader.readexactly(size)))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_the_service_allows_and_its_reason_goes_on() -> None:
    asked = []

    def allow(request: dict[str, bytes]) -> bytes:
        asked.append(request)
        return encode_answer(True, "because")

    async with Broker() as broker, service(allow) as at:
        with Proxy() as proxy:
            port = route(proxy, broker, vhost="v")
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(at), "/route")
            await connect(port, "v", name="app")
    assert asked == [
        {
            "vhost": b"v",
            "mechanism": b"PLAIN",
            "credentials": b"\0guest\0guest",
            "client": b"127.0.0.1",
            "connection_name": b"app",
        }
    ]
    _, properties, mechanism, response = broker.opened[0]
    assert properties["amqpprox_auth"] == "because"
    assert (mechanism, response) == ("PLAIN", "\0guest\0guest")


async def test_the_service_replaces_credentials() -> None:
    answer = encode_answer(True, "", ("AMQPLAIN", b"other"))
    async with Broker() as broker, service(lambda _: answer) as at:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(at), "route")
            await connect(port)
    assert broker.opened[0][2:] == ("AMQPLAIN", "other")
    assert "amqpprox_auth" not in broker.opened[0][1]


async def test_the_service_denies() -> None:
    async with Broker() as broker, service(lambda _: encode_answer(False, "go away")) as at:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(at), "/route")
            with pytest.raises(Closed, match="403 ACCESS_REFUSED - go away"):
                await connect(port)
            await command(proxy, "AUTH", "ALWAYS_ALLOW")
            assert await (await connect(port)).echoed()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", "500 Internal Server Error", "answered with status 500"),
        (b"\x12\xff", "200 OK", "gave an answer that can't be read"),
        (b"x" * 70_000, "200 OK", "is too long"),
    ],
)
async def test_a_service_that_errs_denies(body: bytes, status: str, sentence: str) -> None:
    async with Broker() as broker, service(lambda _: body, status) as at:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(at), "/route")
            with pytest.raises(Closed, match=rf"403 .*{sentence}"):
                await connect(port)


async def test_a_service_that_is_not_there_denies() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(free_port()), "/route")
            with pytest.raises(Closed, match=r"403 .*can't be reached"):
                await connect(port)


# --- EXTERNAL ------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path)
    made.issue("app")
    made.issue("nobody")
    return made


def secure(proxy: Proxy, certificates: Certificates) -> int:
    """A port on which clients must show a certificate."""
    folder = certificates.directory
    proxy("TLS", "INGRESS", "CERT_CHAIN_FILE", str(folder / "server.crt"))
    proxy("TLS", "INGRESS", "KEY_FILE", str(folder / "server.key"))
    proxy("TLS", "INGRESS", "CA_CERT_FILE", str(folder / "ca" / "ca.crt"))
    proxy("TLS", "INGRESS", "VERIFY_MODE", "PEER")
    port = free_port()
    proxy("LISTEN", "START_SECURE", str(port))
    return port


def client_context(certificates: Certificates, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.directory / "ca" / "ca.crt")
    context.check_hostname = False
    folder = certificates.directory
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


async def test_a_certificate_stands_for_a_user(certificates: Certificates) -> None:
    password = certificates.directory / "password"
    password.write_text("s3cret\n")
    async with Broker() as broker:
        with Proxy() as proxy:
            route(proxy, broker)
            port = secure(proxy, certificates)
            await command(proxy, "AUTH", "EXTERNAL", "ADD", "app", "service", str(password))
            app = client_context(certificates, "app")
            client = await connect(port, mechanism="EXTERNAL", response="", ssl=app, name="n")
            assert await client.echoed()
            _, properties, mechanism, response = broker.opened[0]
            assert (mechanism, response) == ("PLAIN", "\0service\0s3cret")
            assert properties["amqpprox_certificate"] == "app"
            assert properties["amqpprox_client"].endswith(" TLS")
            nobody = client_context(certificates, "nobody")
            with pytest.raises(Closed, match=r"403 .*'nobody' stands for no user"):
                await connect(port, mechanism="EXTERNAL", response="", ssl=nobody)
            password.unlink()
            with pytest.raises(Closed, match=r"403 .*password of user 'service'"):
                await connect(port, mechanism="EXTERNAL", response="", ssl=app)
            await until(lambda: 'connectionName="n" tlsEnabled=secure' in proxy.output)
            assert "s3cret" not in proxy.output


async def test_the_service_says_whom_a_certificate_stands_for(certificates: Certificates) -> None:
    def answer(request: dict[str, bytes]) -> bytes:
        assert (request["mechanism"], request["credentials"]) == (b"EXTERNAL", b"app")
        return encode_answer(True, "", ("PLAIN", b"\0mapped\0word"))

    async with Broker() as broker, service(answer) as at:
        with Proxy() as proxy:
            route(proxy, broker)
            port = secure(proxy, certificates)
            await command(proxy, "AUTH", "SERVICE", "127.0.0.1", str(at), "/route")
            app = client_context(certificates, "app")
            await connect(port, mechanism="EXTERNAL", response="", ssl=app)
    assert broker.opened[0][2:] == ("PLAIN", "\0mapped\0word")


async def test_external_needs_a_certificate() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            with pytest.raises(Closed, match=r"403 .*EXTERNAL needs a client certificate"):
                await connect(port, mechanism="EXTERNAL", response="")


# --- limits that hold for all workers together ---------------------------------------------------


async def test_a_cap_is_counted_over_all_workers() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            clients = await connected_to_both(proxy, port)
            most = len(clients) + 2
            # The limit is younger than the sessions, which count nevertheless.
            await command(proxy, "LIMIT", "CONNECTIONS", "VHOST", "/", str(most))
            clients += [await connect(port) for _ in range(2)]
            for _ in range(4):
                with pytest.raises(Closed, match=rf"506 .*limit of {most} connections"):
                    await connect(port)
            await clients.pop().close()
            clients.append(await until_admitted(port))
            await command(proxy, "LIMIT", "DISABLE", "CONNECTIONS", "VHOST", "/")
            assert await (await connect(port)).echoed()


async def until_admitted(port: int) -> object:
    """A place is free as soon as the worker has seen its session end."""
    while True:
        try:
            return await connect(port)
        except Closed:
            await asyncio.sleep(0.02)


async def test_a_rate_is_counted_over_all_workers() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            await command(proxy, "LIMIT", "CONN_RATE", "DEFAULT", "0")
            for _ in range(6):
                with pytest.raises(Closed, match=r"506 .*limit of 0 connections a second"):
                    await connect(port)
            await command(proxy, "LIMIT", "DISABLE", "CONN_RATE", "DEFAULT")
            await command(proxy, "LIMIT", "CONN_RATE_ALARM", "DEFAULT", "0")
            await connect(port)
            await until(lambda: "AMQPPROX_CONNECTION_LIMIT" in proxy.output)


async def test_a_data_rate_holds_for_sessions_that_are_open_already() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            sent = body(b"z" * 5000)
            await command(proxy, "LIMIT", "DATA_RATE", "VHOST", "/", "1")
            client.writer.write(sent)
            (session,) = proxy.json("CONN")
            assert session["inBytes"] < 5000  # all of it would take an hour
            await command(proxy, "LIMIT", "DISABLE", "DATA_RATE", "VHOST", "/")
            assert await client.reader.readexactly(len(sent)) == sent


# --- statistics ----------------------------------------------------------------------------------


async def test_statistics_flow_until_the_reader_leaves() -> None:
    async with Broker() as broker:
        with Proxy("--cleanupIntervalMs", "100", workers=2) as proxy:
            port = route(proxy, broker)
            clients = await connected_to_both(proxy, port)
            reader, writer = await asyncio.open_unix_connection(str(proxy.socket))
            writer.write(b"STAT LISTEN json all\n")
            first = json.loads(await reader.readline())
            assert list(first["overall"]) == list(MEMBERS)
            assert first["overall"]["activeConnectionCount"] == len(clients)
            assert first["vhosts"]["/"] == first["overall"]
            assert first["backends"][f"127.0.0.1_{broker.port}"] == first["overall"]
            assert first["sources"]["127.0.0.1"] == first["overall"]
            assert list(first["process"]) == [
                "cpu_percent_overall",
                "cpu_percent_user",
                "cpu_percent_system",
                "mem_rss_kb",
            ]
            assert list(first["bufferpool"]) == ["spill_to_heap_count", "pools"]
            for client in clients:
                assert await client.echoed(b"y" * 92)
            received = 0
            while received < 100 * len(clients):
                line = json.loads(await reader.readline())["overall"]
                received += line["bytesReceived"]
                assert line["bytesReceived"] == 100 * line["framesReceived"]
            assert received == 100 * len(clients)
            writer.close()
            assert "Active: " in (await first_line(proxy, "STAT LISTEN human overall"))


async def first_line(proxy: Proxy, line: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(proxy.socket))
    writer.write(line.encode() + b"\n")
    got = await reader.readline()
    writer.close()
    return got.decode()


async def test_statsd_gets_a_metric_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind(("127.0.0.1", 0))
        inbox.setblocking(False)
        loop = asyncio.get_running_loop()
        async with Broker() as broker:
            with Proxy("--cleanupIntervalMs", "100", workers=2) as proxy:
                port = route(proxy, broker, vhost="a,b")
                client = await connect(port, "a,b")
                await command(proxy, "STAT", "SEND", "127.0.0.1", str(inbox.getsockname()[1]))
                active, host = "amqpprox.activeConnectionCount", "rmqEndpointHostname="
                wanted = {
                    "amqpprox.activeConnectionCount,rmqEndpointType=overall:1|g",
                    "amqpprox.pausedConnectionCount,rmqEndpointType=overall:0|g",
                    "amqpprox.packetsSent,rmqEndpointType=vhost,rmqVhostName=a_b:0|c",
                    f"{active},rmqEndpointType=backends,{host}127.0.0.1_{broker.port}:1|g",
                }
                seen: set[str] = set()
                while not wanted <= seen:
                    seen.add((await loop.sock_recv(inbox, 2000)).decode())
                assert not any("sources" in line for line in seen)
                await command(proxy, "STAT", "ENABLE", "per-source")
                wanted = {f"{active},rmqEndpointType=sources,{host}127.0.0.1:1|g"}
                while not wanted <= seen:
                    seen.add((await loop.sock_recv(inbox, 2000)).decode())
                client.drop()


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_metrics_and_health_are_served() -> None:
    at = free_port()
    async with Broker() as broker:
        with Proxy("--metrics", str(at), workers=2) as proxy:
            port = route(proxy, broker)
            clients = await connected_to_both(proxy, port)
            page = await get(at, "/metrics")
            assert page.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
            assert f'ciphermq_proxy_sessions{{vhost="/"}} {float(len(clients))}' in page
            assert f'backend_sessions{{backend="broker-{broker.port}"}} {len(clients)}.0' in page
            assert f'backend_up{{backend="broker-{broker.port}"}} 1.0' in page
            assert "ciphermq_proxy_workers_accepting 2.0" in page
            assert (await get(at, "/health")).endswith("\r\n\r\nok\n")
            assert (await get(at, "/")).startswith("HTTP/1.1 404")
            busy = await said(proxy.socket, f"METRICS START {port}")
            assert f"can't be served at 127.0.0.1:{port}" in busy
            assert f'vhost="/"}} {float(len(clients))}' in await get(at, "/metrics")
            await command(proxy, "METRICS", "STOP")
            with pytest.raises(ConnectionRefusedError):
                await get(at, "/metrics")


# --- names and logs ------------------------------------------------------------------------------


async def test_clients_are_named_by_reverse_dns() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await connect(port)
            await command(proxy, "MAPHOSTNAME", "DNS")
            await connect(port)
            before, after = (one[1]["amqpprox_client"] for one in broker.opened)
            assert re.fullmatch(r"127\.0\.0\.1:\d+", before)
            name = socket.getnameinfo(("127.0.0.1", 0), 0)[0]
            assert re.fullmatch(rf"{re.escape(name)}:\d+", after)


async def test_lines_go_to_the_file_and_levels_change(tmp_path: Path) -> None:
    async with Broker() as broker:
        with Proxy("--log-directory", str(tmp_path), workers=2, verbosity=1) as proxy:
            port = route(proxy, broker)
            await connect(port, name='an "app"\n')
            started = 'INFO [/] %s: Starting connection for: connectionName="an "app"\\n"'

            def logged() -> str:
                return "".join(path.read_text() for path in tmp_path.glob("*.log"))

            await until(lambda: any(started % number in logged() for number in (1, 2)))
            (line,) = [one for one in logged().splitlines() if "Starting" in one]
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \d+ INFO \[/\] ", line)
            assert line.endswith(" tlsEnabled=insecure")
            assert "Starting" not in proxy.output
            await command(proxy, "LOG", "CONSOLE", "3")
            await command(proxy, "LOG", "FILE", "0")
            await connect(port, name="second")
            await until(lambda: "second" in proxy.output)
            assert "second" not in logged()


async def test_log_files_may_be_json(tmp_path: Path) -> None:
    async with Broker() as broker:
        with Proxy("--log-directory", str(tmp_path), "--log-json") as proxy:
            await connect(route(proxy, broker), name="app")
            (path,) = tmp_path.glob("ciphermq-proxy_*_00000.log")
            await until(lambda: "Starting" in path.read_text())
            (text,) = [each for each in path.read_text().splitlines() if "Starting" in each]
            line = json.loads(text)
            assert line["vhost"] == "/"
            assert line["level"] == "INFO"


# --- the command lines ---------------------------------------------------------------------------


async def run(*arguments: str, program: str = "main") -> tuple[int, str, str]:
    code = f"from ciphermq.proxy.main import {program} as program; program()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_amqpprox_is_started_as_its_scripts_do() -> None:
    port = free_port()
    async with Broker() as broker:
        with tempfile.TemporaryDirectory(prefix="ciphermq-proxy-") as folder:
            control, logs = f"{folder}/control", f"{folder}/logs"
            ending = asyncio.ensure_future(
                run(
                    "--logDirectory",
                    logs,
                    "--controlSocket",
                    control,
                    "--cleanupIntervalMs",
                    "500",
                    "--listenPort",
                    str(port),
                    "--destinationDNS",
                    "localhost",
                    "--destinationPort",
                    str(broker.port),
                    "-v",
                    "3",
                    program="amqpprox",
                )
            )
            await until(Path(control).exists)
            for vhost in ("/", "any"):
                assert await (await connect(port, vhost, name="app")).echoed()
            assert await said(Path(control), "FARM PRINT") == "default: default-backend \n"
            assert await said(Path(control), "exit") == ""
            code, output, errors = await ending
            assert code == 0
            assert output.splitlines() == [
                f"Starting amqpprox, logging to: '{logs}' control using: '{control}'",
                f"Stopping amqpprox, instance: '{control}'",
            ]
            assert 'Starting connection for: connectionName="app" tlsEnabled=insecure' in errors
            assert [path.name[:9] for path in Path(logs).iterdir()] == ["amqpprox_"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 1, "--destinationDNS"),
        (["--nonsense"], 1, "unrecognized arguments: --nonsense"),
        (["--listenPort", "5672"], 2, "must all be set"),
        (["-v", "6"], 3, "Console log verbosity must be between 0 and 5"),
    ],
)
async def test_amqpprox_answers_nonsense_as_it_did(
    arguments: list[str], code: int, text: str
) -> None:
    got, output, _ = await run(*arguments, program="amqpprox")
    assert got == code
    assert text in output


async def test_a_configuration_that_is_wrong_is_said(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text("datacentre = 'x'")
    code, _, errors = await run("--config", str(config), "--control", str(tmp_path / "control"))
    assert code == 1
    assert "datacentre" in errors
    assert not (tmp_path / "control").exists()


async def test_a_busy_port_at_the_start_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = tmp_path / "proxy.toml"
        config.write_text(f"[[listeners]]\nport = {port}\n")
        control = tmp_path / "control"
        code, output, errors = await run("--config", str(config), "--control", str(control))
    assert (code, output) == (1, "")
    assert f"port {port}: another program listens there" in errors
    assert not control.exists()
