"""How sessions over ZeroMQ end, are replaced and begin again, as certificates do."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from zmq_kit import SOON, Clock, client, handshake, has_come, met, quiet, server

from ciphermq import limits
from ciphermq.errors import CipherMQError, ConnectionLost, UsageError, WaitTimeout
from ciphermq.zmq import Peer, Times, TlsDealer, TlsRouter
from support.certificates import Certificates

# --- ends, and beginning again -------------------------------------------------------------------


def test_a_session_is_replaced_before_its_keys_are_used_up(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address, times=Times(tls_records=40))
    got: list[bytes] = []
    for number in range(400):
        alice.send(b"%d" % number)
        got.append(alice.recv_multipart(timeout=SOON)[1])
    assert got == [b"%d" % number for number in range(400)]
    assert alice.sessions >= 5
    assert len({id(peer) for peer, _ in end.heard}) == 1  # for the application nothing has changed
    assert end.ends == []


def test_a_busy_session_is_replaced_and_nothing_is_lost(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address, times=Times(tls_records=60))
    sent = [[b"%d" % number, bytes(50_000)] for number in range(300)]
    rounds = 0
    while alice.sessions <= 2:  # on a fast machine much goes before the next session is there
        for parts in sent:
            alice.send_multipart(parts)
        assert [alice.recv_multipart(timeout=SOON)[1:] for _ in sent] == sent
        rounds += 1
        assert rounds < 20


def test_a_server_begins_again(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address)
    alice.send(b"one")
    assert alice.recv(timeout=SOON) == b"aliceone"
    end.die()
    again = echo(at=end.address)
    deadline = time.monotonic() + SOON
    # What was given to a connection that had broken is lost: only the next brings the answer.
    with pytest.raises(ConnectionLost, match="has dropped this session: unknown here, or ended"):
        while time.monotonic() < deadline:
            alice.send(b"lost")
            with contextlib.suppress(WaitTimeout):
                alice.recv(timeout=0.2)
    assert again.heard == []
    alice.send(b"two")
    assert alice.recv(timeout=SOON) == b"alicetwo"
    assert alice.sessions == 2


def test_an_end_in_order_is_seen(certificates: Certificates, dealer) -> None:
    ends: list[Any] = []
    with TlsRouter(server(certificates), on_end=lambda *end: ends.append(end)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.socket.linger = 2000
        alice.send(b"last words")
        thread = threading.Thread(target=alice.close)  # which waits for the handshake's answer
        peer, parts = handshake(router, alice)
        thread.start()
        assert parts == [b"last words"]
        deadline = time.monotonic() + SOON
        while not ends and time.monotonic() < deadline:
            with contextlib.suppress(WaitTimeout):
                router.recv(timeout=0.05)
        thread.join()
        assert ends == [(peer, None)]
        assert not peer.alive
        with pytest.raises(ConnectionLost, match="has left"):
            router.send(peer, b"too late")


def test_an_on_end_that_raises_harms_nobody_else(certificates, dealer, caplog) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("by mistake")

    with TlsRouter(server(certificates), on_end=raises) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.send(b"hello")
        peer, _ = handshake(router, alice)
        router.end(peer)
        assert not peer.alive
        assert "by mistake" in caplog.text


# --- silence -------------------------------------------------------------------------------------


def test_sessions_that_say_nothing_expire(echo, dealer, clock: Clock) -> None:
    end = echo()
    never_asks = Times(keepalive=10 * limits.ZMQ_IDLE)
    alice, bob = dealer(end.address, times=never_asks), dealer(end.address, "bob")
    alice.send(b"one")
    assert alice.recv(timeout=SOON) == b"aliceone"
    quiet(end.router, alice)
    clock.now += limits.ZMQ_IDLE
    bob.send(b"one")
    assert bob.recv(timeout=SOON) == b"bobone"
    clock.now += 1
    assert end.why("nothing came") == f"nothing came for {limits.ZMQ_IDLE + 1:.0f} s"
    assert [peer.client for peer, _ in end.ends] == ["alice"]
    for each, name in ((alice, b"alice"), (bob, b"bob")):
        each.send(b"two")  # alice knows that she has been silent for too long
        assert each.recv(timeout=SOON) == name + b"two"
    assert (alice.sessions, bob.sessions) == (2, 1)


def test_a_server_that_was_away_hears_what_came_meanwhile(
    certificates: Certificates, dealer, clock: Clock, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # nobody looks by himself
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}", times=Times(idle=10 * limits.ZMQ_IDLE))
        alice.send(b"before")
        assert router.recv(timeout=SOON)[1] == b"before"
        clock.now += limits.ZMQ_IDLE + 1  # the application is at something else
        alice.send(b"meanwhile")
        alice.flush()
        has_come(router)
        monkeypatch.setattr(limits, "ZMQ_TICK", 0.0)  # the clocks are due
        assert router.recv(timeout=SOON)[1] == b"meanwhile"
        assert alice.sessions == router.sessions == 1


def test_who_was_away_gets_what_came_meanwhile(
    certificates: Certificates, dealer, clock: Clock, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # nobody looks by himself
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        peer = met(router, alice)
        router.send(peer, b"meanwhile")
        router.flush()
        has_come(alice)
        clock.now += limits.ZMQ_IDLE  # for so long that her session counts as given up
        alice.send(b"back")
        assert alice.recv(timeout=SOON) == b"meanwhile"
        assert router.recv(timeout=SOON) == (peer, b"back")


# --- certificates that are renewed and revoked ---------------------------------------------------


def test_a_revoked_client_is_shut_out_of_a_running_router(authority: Certificates, dealer) -> None:
    ends: list[tuple[Peer | None, CipherMQError | None]] = []
    with TlsRouter(server(authority), on_end=lambda *end: ends.append(end)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        bob = dealer(address, tls=client(authority, "bob"))
        mallory = dealer(address, tls=client(authority, "mallory"))
        peers = {}
        for each in (bob, mallory):
            each.send(b"hello")
            each.flush()
            peer, _ = handshake(router, each)
            peers[peer.client] = peer
        assert {peer.client for peer in router.peers} == {"bob", "mallory"}
        authority.revoke_last()
        router.renew(server(authority))
        for peer in router.peers:
            if peer.client == "mallory":
                router.end(peer, "it was revoked")
        assert [(who and who.client, str(why)) for who, why in ends] == [
            ("mallory", "it was revoked")
        ]
        with pytest.raises(ConnectionLost, match="ended this session"):
            mallory.recv(timeout=SOON)
        mallory.send(b"again")
        assert _refusal(router, mallory) == "TlsFailed"
        assert router.peers == [peers["bob"]]
        router.send(peers["bob"], b"still here")
        router.flush()
        assert bob.recv(timeout=SOON) == b"still here"
        with pytest.raises(UsageError, match="give it a server_context"):
            router.renew(client(authority, "bob"))


def _refusal(router: TlsRouter, refused: TlsDealer) -> str:
    """The kind of the error that `refused` is told, while the router works."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        with contextlib.suppress(WaitTimeout):
            router.recv(timeout=0.01)
        try:
            refused.recv(timeout=0.01)
        except WaitTimeout:
            continue
        except CipherMQError as error:
            return type(error).__name__
    return "none"


def test_a_dealer_takes_a_renewed_certificate(echo, dealer, authority: Certificates) -> None:
    end = echo(server(authority))
    alice = dealer(end.address, tls=client(authority))
    alice.send(b"x")
    assert alice.recv(timeout=SOON) == b"alicex"
    authority.revoke_last()  # the router has not heard of it
    authority.issue("alice")
    alice.renew(client(authority))
    end.router.end(end.router.peers[0], "the certificate was renewed")
    with pytest.raises(ConnectionLost):
        alice.recv(timeout=SOON)
    alice.send(b"y")
    assert alice.recv(timeout=SOON) == b"alicey"
    first, second = (peer.certificate for peer, _ in end.heard)
    assert first != second
    with pytest.raises(UsageError, match="give it a client_context"):
        alice.renew(server(authority))
