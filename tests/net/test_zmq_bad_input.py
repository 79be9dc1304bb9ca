"""Bad input over ZeroMQ: the one session ends and says why, the server goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from zmq_kit import SOON, client, files, raw

from ciphermq.errors import ConnectionLost, TlsFailed, UsageError
from ciphermq.wire.tlszmq.header import HEAD_SIZE, Head, Kind
from ciphermq.zmq import Bounds, Times, client_context
from support import tlszmq_example as example
from support.certificates import Certificates


def test_garbage_instead_of_tls(echo, dealer) -> None:
    end = echo()
    sock = raw(end)
    sock.send_multipart([b"", Head(Kind.DATA, b"t" * 16).encode(), b"GET / HTTP/1.1\r\n\r\n"])
    assert "doesn't speak TLS" in end.why("doesn't speak TLS")
    behind = [[b"junk"], [b"a", b"b"], [b"\xc3" * 34]]
    for junk in ([b"x"], [b"\1"] * 40, [b""], *([b"", *each] for each in behind)):
        sock.send_multipart(junk)
    deadline = time.monotonic() + SOON
    while end.router._machine.dropped < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert end.router._machine.dropped == 6
    sock.close()
    alice = dealer(end.address)
    alice.send(b"x")
    assert alice.recv(timeout=SOON) == b"alicex"


def test_a_handshake_that_never_ends(echo, certificates: Certificates) -> None:
    end = echo(times=Times(handshake=0.3))
    sock = raw(end)
    hello = example.TlsZmq(client(certificates), server_name="localhost")
    hello.update()
    sock.send_multipart([b"", Head(Kind.DATA, b"t" * 16).encode(), hello.get_data()[:100]])
    assert "within 0.3 s" in end.why("did not finish the handshake")
    assert end.router.sessions == 0
    sock.close()


def test_a_flood_of_identities_takes_no_memory(echo, dealer, certificates: Certificates) -> None:
    end = echo(bounds=Bounds(handshakes=50))
    sock = raw(end)
    hello = example.TlsZmq(client(certificates), server_name="localhost")
    hello.update()
    first = hello.get_data()
    for number in range(2000):
        head = Head(Kind.DATA, number.to_bytes(16, "big")).encode()
        sock.send_multipart([b"%d" % number, b"", head, first[: 50 + number % 50]])
    deadline = time.monotonic() + SOON
    while end.router._machine.refused < 1950 and time.monotonic() < deadline:
        assert end.router.sessions <= 50
        time.sleep(0.01)
    assert end.router._machine.refused == 1950
    alice = dealer(end.address)
    alice.send(b"x")
    assert alice.recv(timeout=SOON) == b"alicex"
    sock.close()


def test_the_number_of_sessions_is_bounded(echo, dealer) -> None:
    end = echo(bounds=Bounds(sessions=2, per_client=1))
    first, second = dealer(end.address, "alice"), dealer(end.address, "alice")
    first.send(b"x")
    assert first.recv(timeout=SOON) == b"alicex"
    second.send(b"x")
    with pytest.raises(ConnectionLost, match="alice has 1 sessions already"):
        second.recv(timeout=SOON)
    bob, carol = dealer(end.address, "bob"), dealer(end.address, "carol")
    bob.send(b"x")
    assert bob.recv(timeout=SOON) == b"bobx"
    carol.send(b"x")
    with pytest.raises(ConnectionLost, match="all 2 sessions are taken"):
        carol.recv(timeout=SOON)


def test_a_client_whose_certificate_has_expired(echo, dealer, certificates: Certificates) -> None:
    end = echo()
    certificates.issue("late", days=(-300, -2))
    late = dealer(end.address, "late")
    late.send(b"x")
    with pytest.raises(TlsFailed, match="this side's certificate has expired"):
        late.recv(timeout=SOON)
    assert "client's certificate has expired" in end.why("expired")


def test_a_client_of_another_authority(echo, dealer, certificates, tmp_path: Path) -> None:
    end = echo()
    others = Certificates(tmp_path)
    others.issue("mallory")
    theirs = files(others, "mallory") | {
        "authority": certificates.authority.path / "ca.crt",
        "revocations": certificates.authority.path / "crl.pem",
    }
    mallory = dealer(end.address, tls=client_context(**theirs))
    mallory.send(b"x")
    with pytest.raises(TlsFailed, match="doesn't trust the authority"):
        mallory.recv(timeout=SOON)
    assert "not issued by the authority" in end.why("not issued")
    stranger = dealer(end.address, tls=client(others, "mallory"))
    stranger.send(b"x")
    with pytest.raises(TlsFailed, match="was not issued by the authority this side trusts"):
        stranger.recv(timeout=SOON)


def test_a_client_without_a_certificate(echo, dealer, certificates: Certificates) -> None:
    end = echo()
    authority = files(certificates, "nobody")["authority"]
    nobody = dealer(end.address, tls=client_context(authority=authority))
    nobody.send(b"x")
    with pytest.raises(TlsFailed, match="demands a certificate"):
        nobody.recv(timeout=SOON)
    with pytest.raises(UsageError, match="come together"):
        client_context(authority="ca.crt", key="alice.key")


def test_a_certificate_that_names_no_client(echo, dealer, certificates: Certificates) -> None:
    end = echo()
    certificates.issue_nameless("nameless")
    nameless = dealer(end.address, tls=client_context(**files(certificates, "nameless")))
    nameless.send(b"x")
    with pytest.raises(ConnectionLost, match="dropped this session: "):
        nameless.recv(timeout=SOON)


def test_a_forged_reset_needs_the_token(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address)
    alice.send(b"x")
    alice.recv(timeout=SOON)
    forged = Head(Kind.RESET, b"t" * 16).encode()
    assert len(forged) == HEAD_SIZE
    alice._machine.receive([b"", forged, b"go away"], time.monotonic())
    assert alice._machine.dropped == 1
    alice.send(b"y")
    assert alice.recv(timeout=SOON) == b"alicey"
