"""What a client is told, and a server logs, when TLS is refused. All with real TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ciphermq.errors import (
    AccessRefused,
    CertificateError,
    ConnectFailed,
    HostUnknown,
    IdentityError,
    PassphraseError,
    ProtocolNotOffered,
    TlsFailed,
    UsageError,
)
from ciphermq.net import tls
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.codec import encode
from ciphermq.wire.cmq2.frames import Hello
from support.certificates import DAY_MS, Certificates

Refusals = Callable[[], list[str]]


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another authority, and its clients."""
    return Certificates(tmp_path_factory.mktemp("strangers"))


SAID = ("connection refused", "TLS handshake failed")


@pytest.mark.parametrize("hide", [b"", b"\x01"], ids=["in the open", "hidden from our own reader"])
def test_a_certificate_in_the_revocation_list_makes_no_authority(
    certificates: Certificates, strangers: Certificates, tmp_path: Path, hide: bytes
) -> None:
    """With its own list beside it, hidden in a way that OpenSSL overlooks, it would."""
    begin = b"-----BEGIN X509 CRL-----"
    theirs = strangers.authority.path
    lists = tmp_path / "crl.pem"
    text = (theirs / "ca.crt").read_bytes() + (theirs / "crl.pem").read_bytes()
    ours = (certificates.authority.path / "crl.pem").read_bytes()
    lists.write_bytes(ours + text.replace(begin, begin + hide))
    with pytest.raises(IdentityError, match=r"crl\.pem holds a certificate.*only lists belong"):
        certificates.server(revocations=lists)
    with pytest.raises(IdentityError, match=r"crl\.pem holds a certificate"):
        certificates.client("alice", revocations=lists)


async def said_to_client(server, context: ssl.SSLContext, **changes) -> str:
    with pytest.raises(TlsFailed) as caught:
        await server.dial(context=context, **changes)
    text = str(caught.value)
    assert f"127.0.0.1:{server.port}" in text or "localhost" in text
    return text


async def logged(refusals: Refusals, *words: str) -> str:
    """The one line that has all these words, and the peer's address."""
    async with asyncio.timeout(10):
        while True:
            for line in refusals():
                if line.startswith(SAID) and all(word in line for word in ("127.0.0.1:", *words)):
                    return line
            await asyncio.sleep(0.01)


async def test_a_client_of_another_authority(server, certificates, strangers, refusals) -> None:
    context = strangers.client(
        "mallory",
        authority=certificates.authority.path / "ca.crt",
        revocations=certificates.authority.path / "crl.pem",
    )
    assert "doesn't trust the authority" in await said_to_client(server, context)
    await logged(refusals, "client's certificate was not issued by the authority")


async def test_a_server_of_another_authority(server, strangers, refusals) -> None:
    text = await said_to_client(server, strangers.client("mallory"))
    assert "server's certificate was not issued by the authority this side trusts" in text
    await logged(refusals, "the client doesn't trust the authority")


async def test_an_expired_client_certificate(server, certificates, refusals) -> None:
    context = certificates.client("old", days=(-300, -2))
    assert "this side's certificate has expired" in await said_to_client(server, context)
    await logged(refusals, "client's certificate has expired")


async def test_a_client_certificate_that_is_not_valid_yet(server, certificates, refusals) -> None:
    context = certificates.client("young", days=(2, 300))
    said = await said_to_client(server, context)
    assert "not valid yet" in said
    assert "another name" not in said  # which a server doesn't check
    await logged(refusals, "client's certificate is not valid yet", "clock")


async def test_a_revoked_client_certificate(start, certificates, refusals) -> None:
    context = certificates.client("lost")
    certificates.revoke_last()
    server = start()
    assert "revoked" in await said_to_client(server, context)
    await logged(refusals, "client's certificate has been revoked")


async def test_a_revocation_list_that_has_expired(start, tmp_path, refusals) -> None:
    certificates = Certificates(tmp_path)
    client = certificates.client("alice")
    certificates.renew_crl(at_ms=int(time.time() * 1000) - 60 * DAY_MS)
    server = start(context=certificates.server())
    text = await said_to_client(server, client)
    assert "its own revocation list has" in text
    await logged(refusals, "can't be checked: the revocation list has expired")


async def test_a_client_without_a_certificate(server, certificates, refusals) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([tls.ALPN])
    context.load_verify_locations(certificates.authority.path / "ca.crt")
    assert "demands a certificate, and none was sent" in await said_to_client(server, context)
    await logged(refusals, "the client sent no certificate, which is required")


async def test_a_servers_certificate_does_not_authenticate_a_client(
    server, certificates, refusals
) -> None:
    context = certificates.client("server")
    assert "refuses this side's certificate" in await said_to_client(server, context)
    await logged(refusals, "not made for this side of a connection")


async def test_a_server_certificate_for_another_name(server, certificates, refusals) -> None:
    text = await said_to_client(server, certificates.client("alice"), server_name="broker.example")
    assert "another name" in text
    assert "broker.example" in text
    await logged(refusals, "refuses", "for another name than it connected to")


async def test_an_expired_server_certificate(start, certificates) -> None:
    certificates.issue("stale", server=True, days=(-300, -2))
    server = start(context=certificates.server("stale"))
    text = await said_to_client(server, certificates.client("alice"))
    assert "server's certificate has expired" in text


async def test_a_revoked_server_certificate(start, certificates, refusals) -> None:
    certificates.issue("stolen", server=True)
    certificates.revoke_last()
    server = start(context=certificates.server("stolen"))
    text = await said_to_client(server, certificates.client("alice"))
    assert "server's certificate has been revoked" in text


async def test_a_client_does_not_pass_for_the_server(start, certificates, refusals) -> None:
    certificates.client("mallory")
    server = start(context=certificates.server("mallory"))
    text = await said_to_client(server, certificates.client("alice"))
    assert "not made for this side of a connection" in text


async def test_a_server_that_only_speaks_tls_1_2(start, certificates, refusals) -> None:
    context = certificates.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    text = await said_to_client(start(context=context), certificates.client("alice"))
    assert "doesn't speak TLS 1.3" in text


async def test_no_session_is_resumed(server, certificates) -> None:
    """It would skip the certificates, and so a revocation since."""
    context = certificates.client("alice")

    def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
        ):
            secure.sendall(b"".join(encode(Hello())))
            assert secure.recv(4096)  # tickets come before the first answer
            return secure.session, secure.session_reused

    session, reused = await asyncio.to_thread(connect, None)
    assert session is not None
    assert (session.has_ticket, reused) == (False, False)
    _, reused = await asyncio.to_thread(connect, session)
    assert not reused


async def test_a_client_that_only_speaks_tls_1_2(server, certificates, refusals) -> None:
    context = certificates.client("alice")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "TLS 1.3" in await said_to_client(server, context)
    await logged(refusals, "TLS 1.3")


@pytest.mark.parametrize("protocols", [[], ["http/1.1", "h2"]])
async def test_a_client_without_our_protocol(server, certificates, refusals, protocols) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority.path / "ca.crt")
    certificates.client("alice")
    context.load_cert_chain(certificates.path("alice", "crt"), certificates.path("alice", "key"))
    if protocols:
        context.set_alpn_protocols(protocols)
    with pytest.raises(ProtocolNotOffered, match="doesn't speak cmq/2"):
        await server.dial(context=context)
    await logged(refusals, "alice", "offered none of: cmq/2")


async def test_a_server_without_our_protocol(start, certificates) -> None:
    context = certificates.server()
    context.set_alpn_protocols(["http/1.1"])
    server = start(context=context)
    with pytest.raises(ProtocolNotOffered, match="is it a CipherMQ 2 server"):
        await server.dial()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"hello, is it you?"])
async def test_a_peer_that_speaks_plain_tcp(server, refusals, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    await logged(refusals, "doesn't speak TLS", "plain TCP")


async def test_a_server_that_speaks_plain_tcp(server, certificates) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    plain = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    with pytest.raises(TlsFailed, match="doesn't speak TLS there: plain TCP"):
        await server.dial(url=f"cmq://127.0.0.1:{port}")
    plain.close()
    await plain.wait_closed()


async def test_a_peer_that_leaves_before_it_has_said_who_it_is(server, refusals) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.close()
    await writer.wait_closed()
    # Whose log would that be? The server's operator has none of a client's.
    assert "log" not in (await logged(refusals, "ended the connection")).partition("ended")[2]


async def test_a_server_that_leaves_in_the_middle_of_the_handshake(server) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    leaving = await asyncio.start_server(leave, "127.0.0.1", 0)
    port = leaving.sockets[0].getsockname()[1]
    with pytest.raises(TlsFailed, match="the server ended the connection; its log says why"):
        await server.dial(url=f"cmq://127.0.0.1:{port}")
    leaving.close()
    await leaving.wait_closed()


async def test_a_peer_that_says_nothing(start, refusals) -> None:
    server = start(options=LinkOptions(handshake_timeout=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await logged(refusals, "did not finish the handshake within 0.1 s")
    assert server.listener.connections == 0


async def test_a_server_that_says_nothing(server, certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TlsFailed, match=r"finish the handshake within 0\.1 s"):
            await server.dial(
                url=f"cmq://127.0.0.1:{port}", options=LinkOptions(handshake_timeout=0.1)
            )


async def test_nothing_listens_there(server, free_port: int) -> None:
    with pytest.raises(ConnectFailed, match=f"nothing listens at 127.0.0.1:{free_port}"):
        await server.dial(url=f"cmq://127.0.0.1:{free_port}")


async def test_a_name_without_an_address(server) -> None:
    with pytest.raises(ConnectFailed, match=r"no address is known for 'nowhere.invalid'"):
        await server.dial(url="cmq://nowhere.invalid:7443")
    # Longer than a name can be: no name server is asked, so none can be silent.
    with pytest.raises(HostUnknown, match="no address is known"):
        await server.dial(url=f"cmq://{'.'.join(['nowhere' * 8] * 6)}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host", "must begin with cmq://"),
        ("host:7443", "must begin with cmq://"),
        ("cmq://", "the host is missing"),
        ("cmq://host:port", "port"),
        ("cmq://two..dots", "label"),
        ("cmq://host:99999", "Port"),
        ("cmq://user@host", "only cmq://host:port"),
        ("cmq://host/queue", "only cmq://host:port"),
    ],
)
async def test_a_url_that_is_none(server, url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        await server.dial(url=url)
    assert repr(url) in str(caught.value)


async def test_a_certificate_that_names_no_client(server, certificates, refusals) -> None:
    certificates.issue_nameless("odd")
    with pytest.raises(AccessRefused, match="CN"):
        await server.dial("odd")
    await logged(refusals, "CN")


# --- files --------------------------------------------------------------------------------------


def test_a_missing_file_is_named(certificates: Certificates, tmp_path: Path) -> None:
    certificates.client("alice")
    for what in ("certificate", "key", "authority", "revocations"):
        with pytest.raises(IdentityError, match=str(tmp_path / "gone")):
            certificates.client("alice", **{what: tmp_path / "gone"})


def test_a_file_that_is_none_is_named(certificates: Certificates, tmp_path: Path) -> None:
    certificates.client("alice")
    (tmp_path / "junk").write_text("junk")
    for what in ("certificate", "key", "authority", "revocations"):
        with pytest.raises(IdentityError, match=str(tmp_path / "junk")):
            certificates.client("alice", **{what: tmp_path / "junk"})


def test_a_key_of_another_certificate(certificates: Certificates) -> None:
    certificates.client("alice")
    certificates.client("bob")
    with pytest.raises(CertificateError, match=r"bob\.key is not that of .*alice\.crt"):
        certificates.client("alice", key=certificates.path("bob", "key"))


def test_an_encrypted_key(certificates: Certificates, tmp_path: Path) -> None:
    certificates.client("alice")
    key = certificates.encrypted("alice", b"right", tmp_path / "alice.key")
    with pytest.raises(PassphraseError, match="no passphrase was given"):
        certificates.client("alice", key=key)
    with pytest.raises(PassphraseError, match="doesn't open"):
        certificates.client("alice", key=key, passphrase="wrong")
    certificates.client("alice", key=key, passphrase="right")
