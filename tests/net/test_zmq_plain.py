"""Blocking ZeroMQ sockets while their application is busy, only sends, or closes them."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq_kit import SOON, client, server

from ciphermq import limits
from ciphermq.errors import ConnectionLost, TlsFailed, UsageError, WaitTimeout
from ciphermq.zmq import Times, TlsDealer, TlsReq, TlsRouter, client_context
from support.certificates import Certificates

NOBODY = "tcp://127.0.0.1:1"


def until(done: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + SOON
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def bound(router: TlsRouter) -> str:
    return f"tcp://127.0.0.1:{router.socket.bind_to_random_port('tcp://127.0.0.1')}"


@pytest.fixture
def router(certificates: Certificates) -> Iterator[TlsRouter]:
    with TlsRouter(server(certificates)) as made:
        yield made


@pytest.fixture
def dealer(certificates: Certificates) -> Iterator[Callable[..., TlsDealer]]:
    made: list[TlsDealer] = []

    def make(
        address: str, name: str = "alice", kind: type[TlsDealer] = TlsDealer, **options: Any
    ) -> TlsDealer:
        made.append(kind(client(certificates, name), server_name="localhost", **options))
        made[-1].socket.linger = 0
        made[-1].connect(address)
        return made[-1]

    yield make
    for each in made:
        each.close(timeout=0)


class Caller:
    """Calls something in a thread; what it returned or raised."""

    def __init__(self, call: Callable[..., Any], *given: Any, **options: Any) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._call = lambda: call(*given, **options)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:  # noqa: BLE001 - its test looks at it
            self.error = error

    @property
    def busy(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(SOON)
        assert not self.busy, "it still waits"


# --- who only sends -------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 20])
def test_what_waited_when_a_session_ended_goes_in_the_next(router, dealer, more: int) -> None:
    """With what follows it, and also when nothing does."""
    alice = dealer(bound(router))
    alice.send(b"hello")
    peer, _ = router.recv(timeout=SOON)
    while alice._machine.waiting.size < limits.MIB:  # until the window is closed
        alice.send(bytes(limits.MIB // 2))
    waited = len(alice._machine.waiting.messages)
    router.end(peer)

    def heard() -> bool:
        alice.flush()
        return alice._machine.error is not None

    until(heard, "nothing is heard of the end")
    time.sleep(0.2)  # her thread has seen it too, and that nothing can be sent
    with pytest.raises(ConnectionLost, match="ended this session"):
        alice.send(b"not sent")
    sent = [b"%d" % number for number in range(more)]
    for message in sent:
        alice.send(message)
        time.sleep(0.005)
    found: list[bytes] = []
    while len(found) < waited + more:
        whose, message = router.recv(timeout=SOON)
        if whose is not peer:
            found.append(message)
    assert found[waited:] == sent


def test_who_only_sends_hears_that_its_session_has_gone(router, dealer) -> None:
    alice = dealer(bound(router))
    alice.send(b"hello")
    router.end(router.recv(timeout=SOON)[0])
    deadline = time.monotonic() + SOON
    with pytest.raises(ConnectionLost, match="ended this session"):
        while time.monotonic() < deadline:
            alice.send(b"again")  # far fewer than a window
            time.sleep(0.1)


@pytest.mark.parametrize("size", [1, limits.MIB])
def test_who_only_sends_tries_a_lost_handshake_again(
    certificates: Certificates, dealer, size: int
) -> None:
    with zmq.Context.instance().socket(zmq.ROUTER) as silent:
        silent.linger, silent.rcvtimeo = 0, int(SOON * 1000)
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}", times=Times(handshake=0.3))
        alice.send(bytes(size))
        silent.recv_multipart()
    with TlsRouter(server(certificates)) as router:

        def binds() -> bool:
            with contextlib.suppress(zmq.ZMQError):
                router.bind(f"tcp://127.0.0.1:{port}")
                return True
            return False

        until(binds, "the port is taken")
        assert router.recv(timeout=SOON)[1] == bytes(size)


def test_a_req_that_has_nothing_to_ask_begins_no_session(dealer) -> None:
    """It would fail like the one before, and be told to whoever asks next."""
    req = dealer(NOBODY, kind=TlsReq, times=Times(handshake=0.2))
    req.send(b"question")
    with pytest.raises(WaitTimeout, match="did not finish the handshake"):
        req.recv(timeout=SOON)
    begun = req.sessions
    time.sleep(2 * limits.RECONNECT_FIRST + 4 * limits.ZMQ_TICK)
    assert req.sessions == begun


# --- servers at work ------------------------------------------------------------------------------


@pytest.mark.parametrize("unread", [0, 1000])
def test_a_server_at_work_lets_others_in(router, dealer, unread: int) -> None:
    address = bound(router)
    alice = dealer(address)
    alice.send(b"job")
    assert router.recv(timeout=SOON)[1] == b"job"
    for number in range(unread):
        alice.send(b"%d" % number)
    alice.flush()
    bob = dealer(address, "bob", TlsReq)
    bob.send(b"hello")
    until(lambda: "bob" in [peer.client for peer in router.peers], "nobody lets bob in")
    # What came meanwhile is received as it came.
    found = [router.recv(timeout=SOON) for _ in range(unread + 1)]
    assert [message for peer, message in found if peer.client == "alice"] == [
        b"%d" % number for number in range(unread)
    ]
    assert [message for peer, message in found if peer.client == "bob"] == [b"hello"]


def test_a_server_at_work_answers_who_asks_whether_it_is_there(router, dealer) -> None:
    alice = dealer(bound(router), times=Times(keepalive=0.6))
    alice.send(b"job")
    peer, _ = router.recv(timeout=SOON)
    with pytest.raises(WaitTimeout):  # and not that the server has been silent
        alice.recv(timeout=4.0)
    router.send(peer, b"done")
    assert alice.recv(timeout=SOON) == b"done"
    assert alice.sessions == 1


def test_a_server_that_never_catches_up_hears_all(router, dealer, monkeypatch) -> None:
    """Who fills his window is not forgotten while others always have something here."""
    monkeypatch.setattr(limits, "ZMQ_TICK", 0.01)
    address = bound(router)
    alice, bob = dealer(address), dealer(address, "bob")
    bob.send(b"x")
    router.recv(timeout=SOON)
    count = 3 * limits.ZMQ_WINDOW // limits.MIB
    sending = Caller(lambda: [alice.send(bytes(limits.MIB)) for _ in range(count)])
    left = count
    while left:
        bob.send(b"x")
        bob.flush()
        until(lambda: router._machine.inbox, "nothing is taken in")
        while True:  # all that was here, and no more
            peer, _ = router.recv(timeout=SOON)
            left -= peer.client == "alice"
            if not router._inbox:
                break
    sending.join()
    assert sending.error is None


def test_what_an_absent_server_takes_in_is_bounded(router, dealer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "ZMQ_INBOX", 10)
    alice = dealer(bound(router), times=Times(keepalive=0.2))
    alice.send(b"job")
    router.recv(timeout=SOON)
    for number in range(40):
        alice.send(b"%d" % number)
        alice.flush()
    until(lambda: len(router._machine.inbox) == 10, "nothing is taken in")
    assert [router.recv(timeout=SOON)[1] for _ in range(40)] == [b"%d" % n for n in range(40)]


# --- closing --------------------------------------------------------------------------------------


def test_the_end_of_a_with_raises_what_no_call_has_told(
    certificates: Certificates, router, tmp_path: Path
) -> None:
    other = Certificates(tmp_path)
    tls = client_context(authority=other.authority.path / "ca.crt")
    serving = Caller(lambda: router.recv(timeout=SOON))
    with (
        pytest.raises(TlsFailed, match="was not issued by the authority"),
        TlsDealer(tls, server_name="localhost") as alice,
    ):
        alice.connect(bound(router))
        alice.send(b"important")
        until(lambda: alice._machine.error, "the handshake does not fail")
    router.close()
    serving.join()


def test_the_end_of_a_with_hides_no_other_error(certificates: Certificates, router) -> None:
    address = bound(router)
    with (
        pytest.raises(ZeroDivisionError),
        TlsDealer(client(certificates), server_name="x") as alice,
    ):
        alice.connect(address)
        alice.send(b"important")
        serving = Caller(lambda: router.recv(timeout=SOON))
        until(lambda: alice._machine.error, "the handshake does not fail")
        raise ZeroDivisionError
    router.close()
    serving.join()


def test_a_close_logs_what_was_not_sent(dealer, caplog) -> None:
    alice = dealer(NOBODY)
    for _ in range(3):
        alice.send(b"x")
    alice.close(timeout=0)
    assert "closed before all was sent messages=3" in caplog.text


def test_a_close_in_order_logs_nothing(router, dealer, caplog) -> None:
    alice = dealer(bound(router))
    alice.send(b"x")
    peer, _ = router.recv(timeout=SOON)
    router.send(peer, b"y")
    router.flush()
    alice.close()
    router.close()
    assert "closed before all was sent" not in caplog.text


@pytest.mark.parametrize("of", [TlsRouter, TlsDealer, TlsReq])
def test_a_close_ends_the_wait_of_another_thread(certificates: Certificates, dealer, of) -> None:
    sock: TlsRouter | TlsDealer
    if of is TlsRouter:
        sock = TlsRouter(server(certificates))
        bound(sock)
    else:
        sock = dealer(NOBODY, kind=of)
    waiting = Caller(sock.recv)
    until(lambda: sock._lock.locked(), "it does not wait")
    Caller(sock.close).join()
    waiting.join()
    assert isinstance(waiting.error, UsageError)
    assert "this socket is closed" in str(waiting.error)


def test_a_close_ends_a_send_that_waits(dealer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_ZMQ_WAITING", 50_000)
    alice = dealer(NOBODY)
    alice.send(bytes(100_000))
    waiting = Caller(alice.send, b"x")
    until(lambda: alice._lock.locked(), "it does not wait")
    Caller(alice.close, timeout=0.0).join()
    waiting.join()
    assert isinstance(waiting.error, UsageError)


def test_a_send_does_not_wait_until_another_thread_has_received(router, dealer) -> None:
    alice = dealer(bound(router))
    alice.send(b"hello")
    peer, _ = router.recv(timeout=SOON)
    waiting = Caller(alice.recv, timeout=2 * SOON)
    until(lambda: alice._lock.locked(), "it does not wait")
    alice.send(b"meanwhile")
    assert router.recv(timeout=SOON)[1] == b"meanwhile"
    assert waiting.busy
    router.send(peer, b"answer")
    router.flush()
    waiting.join()
    assert waiting.result == b"answer"


def test_each_call_says_that_the_socket_is_closed(router, dealer) -> None:
    alice = dealer(bound(router))
    alice.send(b"hello")
    peer, _ = router.recv(timeout=SOON)
    for _ in range(2):
        router.send(peer, b"unread")
    router.flush()
    assert alice.recv(timeout=SOON) == b"unread"
    alice.send(b"waits")
    alice.close(timeout=0)
    router.close(timeout=0)
    calls: list[Callable[[], Any]] = [
        lambda: alice.send(b"x"),
        lambda: router.send(peer, b"x"),
        lambda: router.end(peer),
    ]
    for sock in (alice, router):
        calls += [
            lambda sock=sock: sock.recv(timeout=SOON),
            sock.flush,
            lambda sock=sock: sock.bind("tcp://127.0.0.1:*"),
            lambda sock=sock: sock.connect(NOBODY),
        ]
    for call in calls:
        with pytest.raises(UsageError, match="this socket is closed"):
            call()


@pytest.mark.parametrize("used", [False, True])
def test_a_socket_nobody_closed_is_collected_with_a_warning(
    certificates: Certificates, used: bool
) -> None:
    alice = TlsDealer(client(certificates), server_name="localhost")
    alice.socket.linger = 0
    alice.connect(NOBODY)
    if used:
        alice.send(b"what waits for ever")
        assert alice._thread is not None
    thread, sock = alice._thread, alice.socket
    here = [alice]
    del alice

    def collected() -> bool:
        here.clear()
        gc.collect()
        return bool(sock.closed)

    with pytest.warns(ResourceWarning, match="unclosed .*TlsDealer"):
        until(collected, "it is still here")
    if thread is not None:
        thread.join(SOON)
        assert not thread.is_alive()


def test_a_req_whose_answer_was_lost_asks_again(certificates: Certificates) -> None:
    with (
        TlsRouter(server(certificates)) as router,
        TlsReq(client(certificates), server_name="localhost") as alice,
    ):
        alice.connect(f"tcp://127.0.0.1:{router.socket.bind_to_random_port('tcp://127.0.0.1')}")
        asked: list[bytes] = []

        def serve() -> None:
            while not asked or asked[-1] != b"three":
                peer, question = router.recv(timeout=SOON)
                asked.append(question)
                if question != b"two":
                    router.send(peer, b"answer to " + question)
            router.flush()

        serving = threading.Thread(target=serve)
        serving.start()
        alice.send(b"one")
        assert alice.recv(timeout=SOON) == b"answer to one"
        alice.send(b"two")
        with pytest.raises(UsageError, match="receive its answer before"):
            alice.send(b"three")
        with pytest.raises(WaitTimeout):
            alice.recv(timeout=0.05)
        alice.send(b"three")
        assert alice.recv(timeout=SOON) == b"answer to three"
        serving.join()


def test_who_waits_in_vain_hears_whether_there_ever_was_a_session(
    certificates: Certificates,
) -> None:
    with TlsDealer(client(certificates), server_name="localhost") as alice:
        alice.connect(NOBODY)
        with pytest.raises(WaitTimeout, match="in time, nor a TLS handshake: is a TlsRouter there"):
            alice.recv(timeout=0.05)


def test_a_server_that_leaves_in_order_spoils_no_end(certificates: Certificates) -> None:
    with TlsDealer(client(certificates), server_name="localhost") as alice:
        with TlsRouter(server(certificates)) as router:
            port = router.socket.bind_to_random_port("tcp://127.0.0.1")
            alice.connect(f"tcp://127.0.0.1:{port}")
            alice.send(b"question")
            peer, _ = router.recv(timeout=SOON)
            router.send(peer, b"answer")
            router.flush()
            assert alice.recv(timeout=SOON) == b"answer"
        until(lambda: alice._machine.error, "the end of the session")
