"""The whole control language, spoken by programs to a real proxy, answer by answer.

What amqpprox's own control program would be answered is compared byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from proxy_running import command, route, said, until

from ciphermq.cli.processes import free_port
from ciphermq.proxy.control.commands import RULES, help_text
from support.amqp import Broker, Closed, connect
from support.certificates import Certificates
from support.proxy import Proxy

OLD, NEW = "amqpprox_ctl", "ciphermq-proxy-ctl"


async def _ctl(program: str, proxy: Proxy, *words: str) -> tuple[int | None, str]:
    """A control program's exit status and output."""
    start = f"import sys; sys.argv[0] = {program!r}; from ciphermq.proxy.ctl import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", start, str(proxy.socket), *words, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    # Statistics ten times a second: their tests wait for several.
    with Proxy("--cleanup-interval", "100", workers=2) as proxy:
        yield proxy


async def test_a_script_of_every_command_is_answered_as_by_amqpprox(
    proxy: Proxy, certificates: Certificates
) -> None:
    """Set-up as people have it in scripts: nothing is said but what PRINT shows."""
    plain, secure = free_port(), free_port()
    chain, key = certificates.directory / "server.crt", certificates.directory / "server.key"
    authority = certificates.directory / "ca" / "ca.crt"
    script = f"""
        DATACENTER SET dc1
        DATACENTER PRINT
        > dc1
        BACKEND ADD rmq1 dc1 localhost 5672
        BACKEND ADD down1 dc2 127.0.0.1 5673 SEND-PROXY TLS
        backend add_dns named dc1 rmq.example.org 5672 tls
        BACKEND PRINT
        > down1 (dc2): 127.0.0.1 127.0.0.1:5673 PROXY PROTOCOL V1 ENABLED TLS
        > named (dc1): rmq.example.org :5672 TLS
        > rmq1 (dc1): localhost LOCALHOST:5672
        FARM ADD farmA round-robin rmq1 down1
        FARM ADD bad round-robin rmq1 x
        > Backend 'x' not found
        > Farm not inserted due to at least one missing Backend
        FARM ADD_MANUAL farmB round-robin named
        FARM PARTITION farmA datacenter-affinity
        FARM PRINT
        > farmA: rmq1 down1_
        > farmB: named_
        FARM DELETE farmB
        BACKEND DELETE named
        FARM PRINT
        > farmA: rmq1 down1_
        MAP FARM / farmA
        MAP BACKEND vb rmq1
        MAP FARM early later
        MAP UNMAP early
        MAP PRINT
        > "/" => Farm:farmA
        > "vb" => Backend:rmq1
        MAP DEFAULT farmA
        MAP REMOVE_DEFAULT
        TLS INGRESS KEY_FILE {key}
        TLS INGRESS RSA_KEY_FILE {key}
        TLS INGRESS CERT_CHAIN_FILE {chain}
        TLS INGRESS CA_CERT_FILE {authority}
        TLS INGRESS VERIFY_MODE NONE
        TLS INGRESS CIPHERS SET ECDHE-ECDSA-AES128-GCM-SHA256
        TLS EGRESS CA_CERT_FILE {authority}
        TLS EGRESS VERIFY_MODE PEER FAIL_IF_NO_PEER_CERT CLIENT_ONCE
        LISTEN START {plain}
        LISTEN START_SECURE {secure}
        LISTEN STOP {secure}
        VHOST PAUSE v
        VHOST PAUSE u
        VHOST UNPAUSE u
        VHOST BACKEND_DISCONNECT u
        VHOST FORCE_DISCONNECT u
        VHOST PRINT
        > u = UNPAUSED
        > v = PAUSED
        SESSION 77 PAUSE
        > Session 77 not found
        CONN
        LIMIT CONN_RATE DEFAULT 100
        LIMIT CONN_RATE VHOST / 50
        LIMIT CONN_RATE_ALARM DEFAULT 10
        LIMIT CONN_RATE_ALARM VHOST / 5
        LIMIT DATA_RATE DEFAULT 1000000
        LIMIT DATA_RATE VHOST / 500000
        LIMIT DATA_RATE_ALARM DEFAULT 100000
        LIMIT DATA_RATE_ALARM VHOST / 50000
        LIMIT DISABLE CONN_RATE VHOST /
        LIMIT DISABLE CONN_RATE DEFAULT
        LIMIT PRINT /
        > CONN_RATE_ALARM: 5 connections a second, beyond which it is logged
        > DATA_RATE: 500000 bytes a second from each client
        > DATA_RATE_ALARM: 50000 bytes a second from each client, beyond which it is logged
        AUTH SERVICE 127.0.0.1 8080 /auth
        AUTH PRINT
        > SERVICE 127.0.0.1 8080 /auth
        AUTH ALWAYS_ALLOW
        STAT SEND 127.0.0.1 {free_port()}
        STAT ENABLE per-source
        STAT DISABLE per-source
        STAT STOP SEND
        LOG CONSOLE 3
        LOG FILE 5
        MAPHOSTNAME DNS
        LISTEN STOP
    """
    # Which of localhost's addresses comes first is the machine's own.
    home = str(socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)[0][4][0])
    home = f"[{home}]" if ":" in home else home
    spoken: list[str] = []
    expected: dict[int, str] = {}
    for line in script.splitlines():
        text = line.removeprefix("        ")
        if text.startswith("> "):
            # A farm's line ends with a space, which an editor would take away.
            shown = re.sub("_$", " ", text[2:].replace("LOCALHOST", home))
            expected[len(spoken) - 1] = expected.get(len(spoken) - 1, "") + f"{shown}\n"
        elif text.strip():
            spoken.append(text)
    for number, text in enumerate(spoken):
        assert await said(proxy.socket, text) == expected.get(number, ""), text
    shown = await said(proxy.socket, "TLS INGRESS CIPHERS PRINT")
    assert [suite for suite in shown.splitlines() if not suite.startswith("TLS_")] == [
        "Ciphers:",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    ]
    assert await said(proxy.socket, "HELP") == help_text()
    assert await said(proxy.socket, "FROBNICATE") == help_text()


async def test_a_session_is_shown_counted_and_ended_by_its_number(proxy: Proxy) -> None:
    async with Broker() as broker:
        port = await asyncio.to_thread(route, proxy, broker)
        client = await connect(port)
        shown = await said(proxy.socket, "CONN")
        assert re.fullmatch(
            r"id=[12] vhost=/ disconnected=N paused=N authDenied=N "
            r"ingressRemote=127\.0\.0\.1:\d+ ingressLocal=\S+ "
            r"egressLocal=127\.0\.0\.1:\d+ egressRemote=127\.0\.0\.1:\d+ "
            r"inBytes=\d+ inFrames=\d+ inPackets=\d+ outBytes=\d+ outFrames=\d+ outPackets=\d+"
            r"( \S+=\S*)*\n",
            shown,
        ), shown
        number = shown.partition(" ")[0].removeprefix("id=")
        assert await said(proxy.socket, f"session {number} pause") == ""
        assert " paused=Y " in await said(proxy.socket, "CONN")
        assert await said(proxy.socket, f"SESSION {number} UNPAUSE") == ""
        assert await client.echoed()
        assert await said(proxy.socket, f"SESSION {number} DISCONNECT_GRACEFUL") == ""
        closed = await client.closed()
        assert (closed.reply, closed.text) == (200, "OK")
        client = await connect(port)
        assert await said(proxy.socket, "VHOST FORCE_DISCONNECT /") == ""
        await until(lambda: proxy.json("CONN") == [])
        client.drop()


async def test_a_drained_broker_gets_nobody_new_and_a_dead_one_is_known(proxy: Proxy) -> None:
    async with Broker() as one, Broker() as other:
        port = await asyncio.to_thread(route, proxy, one, other)
        client = await connect(port)
        assert await said(proxy.socket, f"BACKEND DRAIN broker-{one.port}") == ""
        opened = len(one.opened)
        for _ in range(6):
            await (await connect(port)).close()
        assert len(one.opened) == opened
        assert await client.echoed()
        assert await said(proxy.socket, f"BACKEND UNDRAIN broker-{one.port}") == ""
        await client.close()
    # Both are gone: whoever comes is told, and it is seen why.
    with pytest.raises(Closed):
        await connect(port)
    health = await said(proxy.socket, "BACKEND HEALTH")
    assert len(re.findall(r"^broker-\d+: (resting for \d+ s|due): .*refused", health, re.M)) == 2


_LAST_FIRST = """
class LastFirst:
    def __init__(self, start):
        pass

    def order(self, backends, asking):
        return backends[::-1]
"""


async def test_a_selector_of_an_installed_package_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "users_own-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: users-own\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[ciphermq.proxy.selectors]\nlast-first = last_first:LastFirst\n"
    )
    (tmp_path / "last_first.py").write_text(_LAST_FIRST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    async with Broker() as one, Broker() as other:
        with Proxy(workers=2) as proxy:
            port = await asyncio.to_thread(route, proxy, one, other)
            names = f"broker-{one.port} broker-{other.port}"
            assert await said(proxy.socket, f"FARM ADD farm last-first {names}") == ""
            for _ in range(6):
                await (await connect(port)).close()
            assert (len(one.opened), len(other.opened)) == (0, 6)


async def _shown_certificate(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(shown)


async def test_a_renewed_certificate_is_shown_once_it_is_said_again(
    proxy: Proxy, certificates: Certificates, tmp_path: Path
) -> None:
    chain, key, port = tmp_path / "chain.pem", tmp_path / "key.pem", free_port()
    shown = []
    for renewal, words in (
        ("first", [f"TLS INGRESS CERT_CHAIN_FILE {chain}", f"TLS INGRESS KEY_FILE {key}"]),
        ("second", [f"TLS INGRESS CERT_CHAIN_FILE {chain}"]),
        ("third", ["CONFIG RELOAD"]),
    ):
        certificates.issue(renewal, server=True)
        for file, made in ((chain, "crt"), (key, "key")):
            file.write_bytes((certificates.directory / f"{renewal}.{made}").read_bytes())
        for line in (*words, f"LISTEN START_SECURE {port}", "CONFIG SAVE"):
            assert await said(proxy.socket, line) == ""
        pem = chain.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
        shown.append(await _shown_certificate(port))
        assert shown[-1] == ssl.PEM_cert_to_DER_cert(pem)
    assert len(set(shown)) == 3


async def _statistics(proxy: Proxy, what: str) -> AsyncIterator[dict[str, int]]:
    reader, writer = await asyncio.open_unix_connection(proxy.socket)
    writer.write(f"STAT LISTEN json {what}\n".encode())
    with contextlib.closing(writer):
        while line := await reader.readline():
            yield json.loads(line)


async def test_statistics_are_streamed_and_sent(proxy: Proxy) -> None:
    members = [
        "pausedConnectionCount",
        "activeConnectionCount",
        "authDeniedConnectionCount",
        "limitedConnectionCount",
        "removedConnectionGraceful",
        "removedConnectionBrokerSnapped",
        "removedConnectionClientSnapped",
        "packetsReceived",
        "packetsSent",
        "framesReceived",
        "framesSent",
        "bytesReceived",
        "bytesSent",
    ]
    async with Broker() as broker:
        port = await asyncio.to_thread(route, proxy, broker)
        client = await connect(port)
        for what in ("overall", "vhost=/", f"backend=127.0.0.1_{broker.port}", "source=127.0.0.1"):
            async with asyncio.timeout(60):
                async for line in _statistics(proxy, what):
                    assert list(line) == members
                    if line["activeConnectionCount"] == 1:
                        break
        async for line in _statistics(proxy, "process"):
            assert list(line) == [
                "cpu_percent_overall",
                "cpu_percent_user",
                "cpu_percent_system",
                "mem_rss_kb",
            ]
            break
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
            statsd.bind(("127.0.0.1", 0))
            statsd.settimeout(60)
            await command(proxy, "STAT", "SEND", "127.0.0.1", str(statsd.getsockname()[1]))
            seen: set[str] = set()
            while "amqpprox.activeConnectionCount,rmqEndpointType=overall:1|g" not in seen:
                seen.add((await asyncio.to_thread(statsd.recv, 65536)).decode())
            assert "amqpprox.pausedConnectionCount,rmqEndpointType=overall:0|g" in seen
        await client.close()


async def test_fifty_programs_at_once_in_any_order(proxy: Proxy) -> None:
    """Each is done, whoever comes first, and both workers know all of it."""
    async with Broker() as broker:
        port = await asyncio.to_thread(proxy.listen)
        calls = [("MAP", "FARM", f"v{number}", f"f{number}") for number in range(16)]
        calls += [
            ("BACKEND", "ADD", f"b{number}", "dc", "127.0.0.1", str(broker.port))
            for number in range(17)
        ]
        calls += [("VHOST", "PAUSE", f"p{number}") for number in range(17)]
        answers = await asyncio.gather(
            *(_ctl(OLD if number % 2 else NEW, proxy, *words) for number, words in enumerate(calls))
        )
        assert Counter(answers) == {(0, ""): 50}
        assert len(proxy("MAP", "PRINT").splitlines()) == 16
        assert len(proxy("BACKEND", "PRINT").splitlines()) == 17
        assert len(proxy("VHOST", "PRINT").splitlines()) == 17
        # A map may be there before its farm: its clients are told, until it is.
        with pytest.raises(Closed) as closed:
            await connect(port, vhost="v7")
        assert closed.value.reply == 320
        assert "farm 'f7', which does not exist" in str(closed.value)
        assert await _ctl(NEW, proxy, "FARM", "ADD", "f7", "round-robin", "b7") == (0, "")
        for _ in range(8):
            await (await connect(port, vhost="v7")).close()


async def test_what_fails_is_said_once_and_by_the_exit_status(proxy: Proxy) -> None:
    assert await _ctl(NEW, proxy, "BACKEND", "DELETE", "x") == (3, "Backend 'x' not found\n")
    assert await _ctl(OLD, proxy, "BACKEND", "DELETE", "x") == (0, "Backend 'x' not found\n")
    with socket.create_server(("", 0)) as busy:
        status, shown = await _ctl(NEW, proxy, "LISTEN", "START", str(busy.getsockname()[1]))
    assert status == 3
    assert len(shown.splitlines()) == 1
    assert await _ctl(NEW, proxy, "STAT", "SEND", "no-such-host.invalid", "1") == (
        3,
        (await said(proxy.socket, "STAT SEND no-such-host.invalid 1")),
    )
    assert await _ctl(NEW, proxy, "DATACENTER", "PRINT") == (0, "\n")


async def test_a_saved_configuration_is_there_after_a_restart(tmp_path: Path) -> None:
    """All of it, and the file is beside the control socket unless told otherwise."""
    file = tmp_path / "proxy.toml"
    prints = [
        one.usage.text.replace("INGRESS|EGRESS", "EGRESS").replace(" [vhost]", "")
        for one in RULES
        if " PRINT" in one.usage.text
    ]
    async with Broker() as broker:
        with Proxy("--config", str(file)) as proxy:
            port = await asyncio.to_thread(route, proxy, broker)
            for line in (
                "DATACENTER SET dc1",
                "FARM PARTITION farm datacenter-affinity",
                f"BACKEND DRAIN broker-{broker.port}",
                f"BACKEND UNDRAIN broker-{broker.port}",
                "MAP DEFAULT farm",
                "VHOST PAUSE v",
                "LIMIT CONNECTIONS DEFAULT 5",
                "TIMEOUT SET header 2",
                "TLS EGRESS VERIFY_MODE PEER",
                "STAT ENABLE PER-SOURCE",
                "LOG FILE 4",
            ):
                assert await said(proxy.socket, line) == ""
            assert (await said(proxy.socket, "CONFIG DIFF")).count("\n") > 10
            assert await said(proxy.socket, "CONFIG SAVE") == ""
            assert await said(proxy.socket, "CONFIG DIFF") == ""
            before = [await said(proxy.socket, line) for line in prints]
        with Proxy("--config", str(file)) as proxy:
            assert [await said(proxy.socket, line) for line in prints] == before
            assert await said(proxy.socket, "CONFIG DIFF") == ""
            await (await connect(port)).close()
            # And back to what the file says, while sessions go on.
            client = await connect(port)
            assert await said(proxy.socket, "MAP UNMAP /") == ""
            assert await said(proxy.socket, "CONFIG RELOAD") == ""
            assert await said(proxy.socket, "CONFIG DIFF") == ""
            assert await client.echoed()
            await client.close()


async def test_the_file_is_beside_the_control_socket(proxy: Proxy) -> None:
    assert await said(proxy.socket, "MAP FARM / f") == ""
    assert await said(proxy.socket, "CONFIG SAVE") == ""
    assert '"/" = { farm = "f" }\n' in proxy.socket.with_name("control.toml").read_text()


async def test_a_restart_keeps_what_was_never_saved(proxy: Proxy) -> None:
    async with Broker() as broker:
        port = await asyncio.to_thread(route, proxy, broker)
        client = await connect(port)
        before = await said(proxy.socket, "CONFIG PRINT")
        assert await _ctl(NEW, proxy, "RESTART") == (0, "")
        assert await said(proxy.socket, "CONFIG PRINT") == before
        assert await client.echoed()
        await client.close()
        await until(lambda: proxy.process.poll() is not None)
        assert await _ctl(NEW, proxy, "EXIT", "WITHIN", "5") == (0, "")
        await until(lambda: not proxy.socket.exists())


async def test_exit_is_answered_and_then_done(proxy: Proxy) -> None:
    assert await _ctl(NEW, proxy, "EXIT") == (0, "")
    await until(lambda: proxy.process.poll() is not None)
    assert proxy.process.returncode == 0
    assert (await _ctl(NEW, proxy, "CONN"))[0] == 2
