"""`ciphermq.zmq` with real sockets and real TLS: parts, turns, and what waits."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from zmq_kit import SOON, client, handshake, has_come, here, met, server

from ciphermq import limits
from ciphermq.cli.processes import free_port
from ciphermq.errors import CipherMQError, UsageError, WaitTimeout
from ciphermq.zmq import TlsDealer, TlsReq, TlsRouter
from support.certificates import Certificates

# --- parts and sizes -----------------------------------------------------------------------------


def test_parts_are_kept_and_the_client_is_known(echo, dealer) -> None:
    end = echo()
    alice, bob = dealer(end.address, "alice"), dealer(end.address, "bob")
    parts = [b"", b"two", b"", bytes(40_000), b"x" * 3_000_000]
    alice.send_multipart(parts)
    bob.send(b"one")
    assert alice.recv_multipart(timeout=SOON) == [b"alice", *parts]
    assert bob.recv(timeout=SOON) == b"bobone"
    assert alice.tls_version == "TLSv1.3"
    assert alice.peer_certificate
    assert end.heard[0][0].certificate


def test_order_is_kept_and_small_messages_share_records(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address)
    sizes = [0, 1, 100, 70_000, 20, 300_000, 5]
    sent = [[b"%d" % n, bytes(sizes[n % len(sizes)])] for n in range(200)]
    for parts in sent:
        alice.send_multipart(parts)
    alice.flush()
    assert [alice.recv_multipart(timeout=SOON)[1:] for _ in sent] == sent
    small = 0
    for _ in range(3000):
        alice.send(b"x")
        small += 1
    for _ in range(small):
        alice.recv(timeout=SOON)
    assert alice._machine._current is not None
    assert alice._machine._current.session.records < 3000


def test_a_message_goes_out_though_nothing_else_is_called(echo, dealer) -> None:
    end = echo()
    alice = dealer(end.address)
    for number in range(5):
        alice.send(b"%d" % number)
    deadline = time.monotonic() + SOON
    while len(end.heard) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [parts for _, parts in end.heard] == [[b"%d" % number] for number in range(5)]


def test_what_was_sent_goes_before_the_socket_closes(echo, certificates: Certificates) -> None:
    end = echo()
    with TlsDealer(client(certificates), server_name="localhost") as alice:
        alice.connect(end.address)
        for number in range(3):
            alice.send(b"%d" % number)
    assert alice.sessions == 1
    deadline = time.monotonic() + SOON
    while len(end.heard) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [parts for _, parts in end.heard] == [[b"0"], [b"1"], [b"2"]]


@pytest.mark.parametrize("parts", [[], ["text"], [7], [b"x"] * 5000])
def test_what_is_no_message(echo, dealer, parts: list[Any]) -> None:
    alice = dealer(echo().address)
    with pytest.raises(UsageError):
        alice.send_multipart(parts)
    alice.send(b"good")
    assert alice.recv(timeout=SOON) == b"alicegood"


def test_what_was_sent_is_sent_as_it_was(echo, dealer) -> None:
    alice = dealer(echo().address)
    data, parts = bytearray(b"before"), [b"before"]
    alice.send_multipart([data])
    alice.send_multipart(parts)
    data[:], parts[0] = b"behind", b"behind"
    assert alice.recv_multipart(timeout=SOON)[1] == b"before"
    assert alice.recv_multipart(timeout=SOON)[1] == b"before"


# --- REQ -----------------------------------------------------------------------------------------


def test_a_req_takes_turns(echo, dealer) -> None:
    end = echo()
    req = dealer(end.address, kind=TlsReq)
    for number in range(4):
        parts = [b"%d" % number, bytes(200_000 * number)]
        req.send_multipart(parts)
        with pytest.raises(UsageError, match="receive its answer"):
            req.send(b"too soon")
        assert req.recv_multipart(timeout=SOON)[1:] == parts
    assert req.sessions == 1


def test_requests_and_answers_larger_than_a_frame_may_be(echo, dealer) -> None:
    req = dealer(echo().address, kind=TlsReq)
    data = os.urandom(3 * limits.MAX_ZMQ_FRAME)
    req.send(data)
    assert req.recv_multipart(timeout=SOON) == [b"alice", data]


def test_a_router_answers_a_req_once(certificates: Certificates, dealer) -> None:
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        req = dealer(f"tcp://127.0.0.1:{port}", kind=TlsReq)
        req.send(b"question")
        answers: list[bytes] = []
        thread = threading.Thread(target=lambda: answers.append(req.recv(timeout=SOON)))
        thread.start()
        peer, _ = router.recv(timeout=SOON)
        router.send(peer, b"answer")
        with pytest.raises(UsageError, match="one message for each"):
            router.send(peer, b"another")
        router.flush()
        thread.join()
        assert answers == [b"answer"]


# --- what waits, and who waits -------------------------------------------------------------------


def test_a_peer_that_takes_nothing_holds_up_only_itself(certificates, dealer) -> None:
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        lazy, alice = dealer(address, "lazy"), dealer(address, "alice")
        lazy.send(b"x")
        peer, _ = handshake(router, lazy)
        size = 1024 * 1024
        with pytest.raises(WaitTimeout, match="did not take what was sent"):
            for _ in range(40):
                router.send(peer, bytes(size), timeout=0.2)
        assert peer.speaker is not None
        waits = peer.speaker.waiting.size
        assert waits <= limits.MAX_ZMQ_WAITING + 2 * size
        alice.send(b"x")
        handshake(router, alice)
        assert peer.alive


class SoundSleep(threading.Event):
    """Once it is `sound`, no time-out ends a wait for it but the shortest."""

    sound = False
    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        if not self.sound or timeout == limits.ZMQ_TAIL_DELAY:
            return super().wait(timeout)
        self.waits += 1
        return super().wait()


def test_a_tail_wakes_a_thread_that_dozes_because_of_another_peer(certificates, dealer) -> None:
    with TlsRouter(server(certificates)) as router:
        router._roused = sleep = SoundSleep()
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        lazy, alice = dealer(address, "lazy"), dealer(address, "alice")
        alice.send(b"x")
        to_alice, _ = handshake(router, alice)
        lazy.send(b"x")
        to_lazy, _ = handshake(router, lazy)
        while not to_lazy.full:
            router.send(to_lazy, bytes(limits.MIB))
        while not router._dozes:
            time.sleep(0.001)
        sleep.sound = True
        while not sleep.waits:
            time.sleep(0.001)
        for number in range(10):
            router.send(to_alice, b"%d" % number)
        assert [alice.recv(timeout=SOON) for _ in range(10)] == [b"%d" % n for n in range(10)]


def test_who_waits_for_an_answer_sends_on_when_zeromq_has_room_again(
    certificates, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)
    with (
        TlsRouter(server(certificates)) as router,
        TlsDealer(client(certificates, "alice"), server_name="localhost") as alice,
    ):
        for sock in (router.socket, alice.socket):
            sock.sndhwm = sock.rcvhwm = 1
            sock.sndbuf = sock.rcvbuf = 16 * limits.KIB
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice.connect(f"tcp://127.0.0.1:{port}")
        alice.send(b"x")
        peer, _ = handshake(router, alice)

        def serve() -> None:
            for _ in range(3):
                router.recv(timeout=SOON)
            router.send(peer, b"all")

        for _ in range(3):  # less than a window's half, which would be acknowledged
            alice.send(bytes(limits.MIB))
        assert alice._end.stuck()
        serving = threading.Thread(target=serve)
        serving.start()
        assert alice.recv(timeout=SOON) == b"all"
        serving.join()


def test_what_was_not_taken_in_time_is_not_sent(certificates, echo, dealer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_ZMQ_WAITING", 50_000)
    port = free_port()
    alice = dealer(f"tcp://127.0.0.1:{port}")  # where nobody is yet
    alice.send(b"first" + bytes(70_000))
    for _ in range(3):
        with pytest.raises(WaitTimeout, match="did not take what was sent"):
            alice.send(b"second", timeout=0.02)
    end = echo(at=f"tcp://127.0.0.1:{port}")
    alice.send(b"third", timeout=SOON)
    assert [alice.recv(timeout=SOON)[:10] for _ in range(2)] == [b"alicefirst", b"alicethird"]
    assert len(end.heard) == 2


@pytest.mark.parametrize("who", ["router", "dealer"])
def test_what_came_is_not_waited_for(certificates: Certificates, dealer, monkeypatch, who) -> None:
    """A look at the clocks takes in what has come. With the window closed nothing comes after it,
    and to wait for more held both sides up, several times a second when they were busy."""
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # nobody looks by himself
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        peer = met(router, alice)
        sock: TlsDealer | TlsRouter = router if who == "router" else alice
        if who == "router":
            alice.send(b"come")
            alice.flush()
        else:
            router.send(peer, b"come")
            router.flush()
        has_come(sock)
        monkeypatch.setattr(limits, "ZMQ_TICK", 0.0)  # the clocks are due

        def wait() -> None:
            pytest.fail("it waits for more")

        monkeypatch.setattr(sock._end, "take_one", wait)
        found = sock.recv(timeout=SOON)
        assert found == b"come" or found == (peer, b"come")


def test_what_is_here_is_received_without_waiting(certificates, dealer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # nobody looks by himself
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        peer = met(router, alice)
        alice.send(b"there")
        alice.flush()
        assert here(router)[1] == b"there"
        router.send(peer, b"and back")
        router.flush()
        assert here(alice) == b"and back"
        for sock in (alice, router):
            with pytest.raises(WaitTimeout):
                sock.recv(timeout=0)


# --- made wrongly, and closed --------------------------------------------------------------------


def test_a_context_for_the_other_end(certificates: Certificates) -> None:
    with pytest.raises(UsageError, match="give it a client_context"):
        TlsDealer(server(certificates), server_name="localhost")
    with pytest.raises(UsageError, match="and a server_name"):
        TlsDealer(client(certificates), server_name="")
    with pytest.raises(UsageError, match="give it a server_context"):
        TlsRouter(client(certificates))


@pytest.mark.parametrize(
    ("address", "set_before", "expected"),
    [
        ("tcp://127.0.0.1:9", -1, limits.ZMQ_LOCAL_BUFFER),
        ("tcp://localhost:9", -1, limits.ZMQ_LOCAL_BUFFER),
        ("tcp://192.0.2.1:9", -1, -1),
        ("tcp://127.0.0.1:9", 100_000, 100_000),
        ("inproc://here", -1, -1),
    ],
)
def test_buffers_are_small_on_the_loopback_alone(
    certificates, address: str, set_before: int, expected: int
) -> None:
    with TlsDealer(client(certificates), server_name="localhost") as alice:
        alice.socket.sndbuf = set_before
        alice.connect(address)
        assert alice.socket.sndbuf == expected


def test_a_closed_socket_says_so(certificates, dealer) -> None:
    router = TlsRouter(server(certificates))
    alice = dealer("tcp://127.0.0.1:1")
    for sock in (router, alice):
        sock.close(timeout=0)
        with pytest.raises(UsageError, match="this socket is closed"):
            sock.recv(timeout=SOON)
    with pytest.raises(UsageError, match="this socket is closed"):
        alice.send(b"x")


def test_a_router_closed_while_messages_wait_says_so(certificates, dealer) -> None:
    router = TlsRouter(server(certificates))
    router.socket.linger = 0
    port = router.socket.bind_to_random_port("tcp://127.0.0.1")
    lazy = dealer(f"tcp://127.0.0.1:{port}", "lazy")
    lazy.send(b"x")
    peer, _ = handshake(router, lazy)
    while not peer.full:
        router.send(peer, bytes(limits.MIB))
    router.close(timeout=0)
    assert not peer.alive
    assert router.peers == []
    with pytest.raises(UsageError, match="this socket is closed"):
        router.recv(timeout=SOON)
    with pytest.raises(CipherMQError, match=r"it has left|is closed"):
        router.send(peer, b"x")
