"""TLS on either side, client certificates, PROXY headers and IPv6, with scripted peers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.errors import ConfigError, TlsFailed
from ciphermq.proxy.end import End, Kept
from ciphermq.proxy.model import Backend, Certificate, Configuration, Listener, TlsSettings
from ciphermq.proxy.proxyheader import SIGNATURE, Source, write
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.proxy.tls import Contexts
from ciphermq.wire.amqp import closing, properties
from support.certificates import Certificates
from support.sessions import (
    HEADER,
    OPEN,
    START_OK,
    TUNE_OK,
    Peer,
    Rig,
    frame,
    start_ok,
)

ALL = HEADER + START_OK + TUNE_OK + OPEN
SOON = 0.2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.issue("app")
    made.issue("other-server", server=True)
    return made


def settings(made: Certificates, **more: object) -> TlsSettings:
    return TlsSettings(
        chain_file=str(made.path("server", "crt")),
        key_file=str(made.path("server", "key")),
        ca_file=str(made.authority.path / "ca.crt"),
        **more,  # type: ignore[arg-type]
    )


def client_context(certificates: Certificates, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.authority.path / "ca.crt"))
    if name is not None:
        context.load_cert_chain(certificates.path(name, "crt"), certificates.path(name, "key"))
    return context


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.path("server", "crt"), certificates.path("server", "key"))
    return context


async def swallow(peer: Peer, size: int) -> str:
    digest = hashlib.sha256()
    async with asyncio.timeout(60):
        while size:
            data = await peer.reader.read(min(size, 1 << 20))
            assert data
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


async def client_opened(rig: Rig, client: Peer, broker: Peer) -> None:
    for number in (10, 30, 41):
        await client.method(number)


async def test_tls_on_both_sides_carries_everything(certificates: Certificates) -> None:
    """Several records a read, a full buffer, and a stalled reader on each side."""
    async with Rig(
        ingress=settings(certificates),
        egress=TlsSettings(ca_file=str(certificates.authority.path / "ca.crt"), verify=("peer",)),
    ) as rig:
        broker = await rig.broker(context=server_context(certificates))
        client = await rig.client(client_context(certificates))
        client.send(ALL)
        peer = await broker.accept()
        got = await peer.open()
        name = properties.text_field(
            properties.read_start_ok(got.payload).fields, b"amqpprox_client"
        )
        assert name.endswith(" TLS")
        await client_opened(rig, client, peer)
        (session,) = rig.sessions.values()
        assert session.describe()["tls"]
        large = frame(3, 1, os.urandom(131_064)) * 60
        digest = hashlib.sha256(large).hexdigest()
        client.send(large)
        peer.send(large)
        assert await asyncio.gather(swallow(peer, len(large)), swallow(client, len(large))) == [
            digest,
            digest,
        ]
        client.send(closing.close(200, "bye"))
        await peer.method(50)
        peer.send(closing.CLOSE_OK)
        await client.method(51)
        client.close()
        await rig.over()
        assert rig.gate.endings == ["graceful"]


@pytest.mark.parametrize("slow", ["client", "broker"])
async def test_a_slow_reader_under_tls_costs_one_buffer(
    certificates: Certificates, slow: str
) -> None:
    """OpenSSL wants what it would not take given again just as it was."""
    async with Rig(ingress=settings(certificates)) as rig:
        broker = await rig.broker(context=server_context(certificates))
        client = await rig.client(client_context(certificates))
        client.send(ALL)
        peer: Peer = await broker.accept()
        await peer.open()  # type: ignore[attr-defined]
        await client_opened(rig, client, peer)
        reads, writes = (client, peer) if slow == "client" else (peer, client)
        reads.writer.transport.pause_reading()
        flood = frame(3, 1, os.urandom(100_000)) * 300
        writes.send(flood)
        (session,) = rig.sessions.values()
        await rig.until(lambda: session.spilled > 0)
        assert session.spilled <= limits.PROXY_BUFFER
        reads.writer.transport.resume_reading()
        assert await swallow(reads, len(flood)) == hashlib.sha256(flood).hexdigest()
        assert session.spilled == Kept.total == 0


async def test_a_clients_certificate_is_passed_on_by_name(certificates: Certificates) -> None:
    async with Rig(ingress=settings(certificates, verify=("peer",))) as rig:
        broker = await rig.broker()
        client = await rig.client(client_context(certificates, "app"))
        client.send(ALL)
        peer = await broker.accept()
        got = await peer.open()
        table = properties.read_start_ok(got.payload).fields
        assert properties.text_field(table, b"amqpprox_certificate") == "app"
        assert rig.gate.openings[0].certificate_name == "app"
        start = await client.method(10)
        assert start.raw == closing.start("PLAIN", "EXTERNAL")
        (session,) = rig.sessions.values()
        assert session.describe()["certificateName"] == "app"


async def test_external_is_offered_only_where_certificates_are_verified(
    certificates: Certificates,
) -> None:
    async with Rig(ingress=settings(certificates)) as rig:
        client = await rig.client(client_context(certificates, "app"))
        client.send(HEADER)
        assert (await client.method(10)).raw == closing.start("PLAIN")


async def test_a_client_without_a_certificate_may_be_let_in_or_not(
    certificates: Certificates,
) -> None:
    async with Rig(ingress=settings(certificates, verify=("peer",))) as rig:
        broker = await rig.broker()
        client = await rig.client(client_context(certificates))
        client.send(ALL)
        await (await broker.accept()).open()
        assert rig.gate.openings[0].certificate_name is None
    strict = settings(certificates, verify=("peer", "fail_if_no_peer_cert"))
    async with Rig(ingress=strict) as rig:
        broker = await rig.broker()
        client = await rig.client(client_context(certificates))
        client.send(ALL)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await client.reader.read()
        client.close()
        await rig.until(lambda: bool(rig.gate.endings))
        assert rig.gate.endings == ["failed"]
        assert broker.connections.empty()


async def test_a_certificate_of_strangers_is_refused_with_the_alert(
    certificates: Certificates, tmp_path: Path
) -> None:
    strangers = Certificates(tmp_path)
    strangers.issue("app")
    async with Rig(ingress=settings(certificates, verify=("peer",))) as rig:
        context = client_context(certificates)
        context.load_cert_chain(strangers.path("app", "crt"), strangers.path("app", "key"))
        client = await rig.client(context)
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            await client.reader.read()
        client.close()
        await rig.until(lambda: bool(rig.gate.endings))
        assert rig.gate.endings == ["failed"]


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02", HEADER])
async def test_a_tls_handshake_that_is_none_ends_soon(
    certificates: Certificates, said: bytes
) -> None:
    brief = Timeouts(ingress_tls=SOON, close_ok=SOON)
    async with Rig(ingress=settings(certificates), timeouts=brief) as rig:
        client = await rig.client()
        client.send(said)
        await rig.until(lambda: rig.gate.endings == ["failed"])
        assert HEADER not in await client.end()


async def test_a_client_that_was_reset_before_its_tls_handshake_ends(
    certificates: Certificates,
) -> None:
    async with Rig(ingress=settings(certificates), timeouts=Timeouts(ingress_tls=900)) as rig:
        client = socket.create_connection((rig.host, rig.port))
        client.sendall(b"not looked at any more")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await rig.until(lambda: rig.gate.endings)
        assert not rig.sessions


async def test_a_connection_closed_within_its_tls_handshake_leaves_its_number_to_the_next(
    certificates: Certificates,
) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    other, another = socket.socketpair()
    near.setblocking(False)
    end = End(near, loop)
    with far, other, another:
        shaking = loop.create_task(end.start_tls(server_context(certificates)))
        await asyncio.sleep(0)  # it waits for the client's first byte
        shaking.cancel()
        end.close()
        os.dup2(other.fileno(), end.fd)  # as the next accept would do, before the task goes on
        loop.add_reader(end.fd, lambda: None)
        await asyncio.gather(shaking, return_exceptions=True)
        assert loop.remove_reader(end.fd)
        os.close(end.fd)


async def test_tls_that_is_not_set_up_is_said_in_the_log_and_ends_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig(ingress=TlsSettings()) as rig:
        client = await rig.client()
        assert await client.end() == b""
        client.close()
        await rig.until(lambda: rig.gate.endings == ["failed"])
    assert "set TLS INGRESS CERT_CHAIN_FILE" in caplog.text


async def test_the_certificate_is_chosen_by_the_name_asked_for(certificates: Certificates) -> None:
    chosen = Certificate(
        server_name="*.example.org",
        chain_file=str(certificates.path("other-server", "crt")),
        key_file=str(certificates.path("other-server", "key")),
    )
    async with Rig(ingress=settings(certificates, certificates=(chosen,))) as rig:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        shown = {}
        for name in ("mq.example.org", "MQ.EXAMPLE.ORG", "localhost", "a.b.example.org"):
            reader, writer = await asyncio.open_connection(
                rig.host, rig.port, ssl=context, server_hostname=name
            )
            shown[name] = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.transport.abort()
            del reader
        other = ssl.PEM_cert_to_DER_cert(certificates.path("other-server", "crt").read_text())
        default = ssl.PEM_cert_to_DER_cert(certificates.path("server", "crt").read_text())
        assert shown == {
            "mq.example.org": other,
            "MQ.EXAMPLE.ORG": other,
            "localhost": default,
            "a.b.example.org": default,
        }


async def test_a_backend_whose_certificate_is_wrong_is_passed_over(
    certificates: Certificates, tmp_path: Path
) -> None:
    strangers = Certificates(tmp_path)
    egress = TlsSettings(ca_file=str(certificates.authority.path / "ca.crt"), verify=("peer",))
    async with Rig(egress=egress) as rig:
        await rig.broker(name="stranger", context=server_context(strangers))
        good = await rig.broker(name="good", context=server_context(certificates))
        client = await rig.client()
        client.send(ALL)
        await (await good.accept()).open()
        await client_opened(rig, client, client)
        ((name, error),) = rig.gate.failures
        assert name == "stranger"
        assert isinstance(error, TlsFailed)
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)


async def test_a_backend_that_never_answers_our_tls_is_passed_over(
    certificates: Certificates,
) -> None:
    async with Rig(timeouts=Timeouts(egress_tls=SOON)) as rig:
        await rig.broker(name="plain")
        rig.gate.backends = [
            Backend(name="plain", datacenter="", host="127.0.0.1", port=one.port, tls=True)
            for one in rig.gate.backends
        ]
        good = await rig.broker(name="good")
        client = await rig.client()
        client.send(ALL)
        await (await good.accept()).open()
        assert [name for name, _ in rig.gate.failures] == ["plain"]
        assert "TLS handshake within 0.2 s" in str(rig.gate.failures[0][1])


# --- contexts -----------------------------------------------------------------------------------


def test_missing_files_are_named() -> None:
    listener = Listener(port=1, secure=True)
    with pytest.raises(ConfigError, match="set TLS INGRESS CERT_CHAIN_FILE"):
        Contexts(Configuration()).ingress(listener)
    gone = TlsSettings(chain_file="/nowhere/server.crt", key_file="/nowhere/server.key")
    with pytest.raises(ConfigError, match=r"can't use /nowhere/server\.crt with /nowhere"):
        Contexts(Configuration(ingress=gone)).ingress(listener)
    backend = Backend(name="b", datacenter="", host="h", port=1, tls=True)
    nowhere = TlsSettings(verify=("peer",), ca_file="/nowhere/ca.pem")
    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem: No such file"):
        Contexts(Configuration(egress=nowhere)).egress(backend)
    with pytest.raises(ConfigError, match="cipher list nonsense"):
        Contexts(Configuration(egress=TlsSettings(ciphers="nonsense"))).egress(backend)


def test_an_encrypted_key_is_no_question_on_the_terminal(
    certificates: Certificates, tmp_path: Path
) -> None:
    key = certificates.encrypted("server", b"secret", tmp_path / "locked.key")
    locked = TlsSettings(chain_file=str(certificates.path("server", "crt")), key_file=str(key))
    with pytest.raises(ConfigError, match=r"locked\.key is encrypted"):
        Contexts(Configuration(ingress=locked)).ingress(Listener(port=1, secure=True))


def test_ciphers_are_set(certificates: Certificates) -> None:
    only = settings(certificates, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    context = Contexts(Configuration(ingress=only)).ingress(Listener(port=1, secure=True))
    names = {one["name"] for one in context.get_ciphers()}
    assert "ECDHE-ECDSA-AES256-GCM-SHA384" in names
    assert not any("CHACHA20" in name and not name.startswith("TLS_") for name in names)


# --- PROXY headers and IPv6 ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
async def test_a_proxy_header_says_who_the_client_is(version: int) -> None:
    source = Source("192.0.2.7", 50_000, "198.51.100.1", 5672)
    async with Rig(proxy_header=True) as rig:
        broker = await rig.broker(proxy_protocol=version)
        client = await rig.client()
        client.send(write(version, source), ALL)
        peer = await broker.accept()
        own = client.writer.get_extra_info("peername")
        told = write(version, Source("192.0.2.7", 50_000, own[0], own[1]))
        assert await peer.exactly(len(told)) == told
        table = properties.read_start_ok((await peer.open()).payload).fields
        assert properties.text_field(table, b"amqpprox_client") == "192.0.2.7:50000"
        (opening,) = rig.gate.openings
        assert (opening.client, opening.client_port) == ("192.0.2.7", 50_000)


async def test_a_proxy_header_in_pieces_and_then_tls(certificates: Certificates) -> None:
    """Nothing behind the header is read before TLS is: it would be lost to it."""
    async with Rig(proxy_header=True, ingress=settings(certificates)) as rig:
        broker = await rig.broker()
        reader, writer = await asyncio.open_connection(rig.host, rig.port)
        header = write(2, Source("2001:db8::7", 1234, "2001:db8::1", 5671))
        for at in range(0, len(header), 7):
            writer.write(header[at : at + 7])
            await writer.drain()
            await asyncio.sleep(0.002)
        await writer.start_tls(client_context(certificates), server_hostname="localhost")
        client = Peer(reader, writer)
        client.send(ALL)
        table = properties.read_start_ok((await (await broker.accept()).open()).payload).fields
        assert properties.text_field(table, b"amqpprox_client") == "2001:db8::7:1234 TLS"
        await client_opened(rig, client, client)
        writer.transport.abort()


@pytest.mark.parametrize("said", [ALL, b"PROXY TCP4 nonsense\r\n", SIGNATURE + b"\xff\xff\0\0"])
async def test_a_client_without_its_proxy_header_is_not_let_in(said: bytes) -> None:
    async with Rig(proxy_header=True) as rig:
        client = await rig.client()
        client.send(said)
        await client.end()
        client.close()
        await rig.until(lambda: rig.gate.endings == ["failed"])
        assert rig.gate.openings == []


async def test_a_proxy_header_that_never_comes_is_not_waited_for() -> None:
    async with Rig(proxy_header=True, timeouts=Timeouts(ingress_tls=SOON, close_ok=SOON)) as rig:
        client = await rig.client()
        client.send(b"PROXY TCP4 192.0.2.7 ")
        await client.end()
        await rig.until(lambda: rig.gate.endings == ["failed"])


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("version", [0, 1, 2])
async def test_ipv6_on_both_sides(version: int) -> None:
    async with Rig(host="::1") as rig:
        broker = await rig.broker(host="::1", proxy_protocol=version)
        client = await rig.client()
        client.send(HEADER, start_ok(), TUNE_OK, OPEN)
        peer = await broker.accept()
        if version:
            own, its = (client.writer.get_extra_info(name) for name in ("sockname", "peername"))
            told = write(version, Source(own[0], own[1], its[0], its[1]))
            assert await peer.exactly(len(told)) == told
        await peer.open()
        await client_opened(rig, client, peer)
        (session,) = rig.sessions.values()
        assert str(session.describe()["ingressRemote"]).startswith("[::1]:")
        assert session.describe()["egressRemote"] == f"[::1]:{broker.port}"
