"""`ciphermq.zmq` with real sockets and real TLS: topologies, parts, replacement, bad input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from ciphermq import limits
from ciphermq.cli.processes import free_port
from ciphermq.errors import (
    CipherMQError,
    ConnectionLost,
    TlsFailed,
    UsageError,
    WaitTimeout,
)
from ciphermq.wire.tlszmq.header import HEAD_SIZE, Head, Kind
from ciphermq.zmq import (
    Bounds,
    Peer,
    Times,
    TlsDealer,
    TlsReq,
    TlsRouter,
    client_context,
    server_context,
)
from ciphermq.zmq import asyncio as looped
from support import tlszmq_example as example
from support.certificates import Certificates
from support.devices import Device

SOON = 20.0


def files(certificates: Certificates, name: str) -> dict[str, Path]:
    return {
        "certificate": certificates.path(name, "crt"),
        "key": certificates.path(name, "key"),
        "authority": certificates.authority.path / "ca.crt",
        "revocations": certificates.authority.path / "crl.pem",
    }


def client(certificates: Certificates, name: str = "alice", **more: Any) -> ssl.SSLContext:
    if not certificates.path(name, "crt").exists():
        certificates.issue(name)
    return client_context(**files(certificates, name), **more)


def server(certificates: Certificates, **more: Any) -> ssl.SSLContext:
    return server_context(**files(certificates, "server"), **more)


def bind(sock: TlsDealer | TlsRouter, address: str) -> None:
    """Bind it, as soon as whoever had that port before has let go of it."""
    deadline = time.monotonic() + SOON
    while True:
        try:
            sock.bind(address)
            return
        except zmq.ZMQError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Echo:
    """A `TlsRouter` in a thread that sends everything back, with the client's id in front."""

    def __init__(self, tls: ssl.SSLContext, *, bind: bool = True, **options: Any) -> None:
        self.ends: list[tuple[Peer | None, CipherMQError | None]] = []
        self.router = TlsRouter(
            tls, on_end=lambda peer, error: self.ends.append((peer, error)), **options
        )
        self.address = ""
        if bind:
            port = self.router.socket.bind_to_random_port("tcp://127.0.0.1")
            self.address = f"tcp://127.0.0.1:{port}"
        self.heard: list[tuple[Peer, list[bytes]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(WaitTimeout, ConnectionLost):
                peer, parts = self.router.recv_multipart(timeout=0.05)
                self.heard.append((peer, parts))
                bare = peer.speaker is not None and peer.speaker.session.kind is Kind.BARE
                name = (peer.client or "nobody").encode()
                answer = [b"Got " + parts[0]] if bare else [name, *parts]
                self.router.send_multipart(peer, answer)

    def why(self, part: str) -> str:
        """The reason of a session's end that has `part` in it, once there is one."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            for _, error in list(self.ends):
                if error is not None and part in str(error):
                    return str(error)
            time.sleep(0.01)
        raise AssertionError(f"no session ended of {part!r}: {self.ends}")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.router.close()


@pytest.fixture
def echo(certificates: Certificates) -> Iterator[Callable[..., Echo]]:
    made: list[Echo] = []

    def make(tls: ssl.SSLContext | None = None, **options: Any) -> Echo:
        made.append(Echo(tls or server(certificates), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def dealer(certificates: Certificates) -> Iterator[Callable[..., TlsDealer]]:
    made: list[TlsDealer] = []

    def make(
        address: str, name: str = "alice", kind: type[TlsDealer] = TlsDealer, **options: Any
    ) -> TlsDealer:
        tls = options.pop("tls", None) or client(certificates, name)
        made.append(kind(tls, server_name="localhost", **options))
        made[-1].socket.linger = 0
        if address:
            made[-1].connect(address)
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- parts and sizes ----------------------------------------------------------------------------


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


# --- topologies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["inproc", "ipc", "tcp"])
@pytest.mark.parametrize("router_binds", [True, False])
@pytest.mark.parametrize("router_first", [True, False])
def test_either_side_first_and_either_side_binds(
    echo, dealer, tmp_path: Path, transport: str, router_binds: bool, router_first: bool
) -> None:
    if transport == "tcp":
        address = f"tcp://127.0.0.1:{free_port()}"
    elif transport == "ipc":
        address = f"ipc://{os.path.relpath(tmp_path)}/s"
    else:
        address = f"inproc://{os.urandom(8).hex()}"

    def of_router() -> None:
        end = echo(bind=False)
        bind(end.router, address) if router_binds else end.router.connect(address)

    def of_dealer() -> TlsDealer:
        alice = dealer("")
        alice.connect(address) if router_binds else bind(alice, address)
        alice.send(b"hello")
        return alice

    if router_first:
        of_router()
        alice = of_dealer()
    else:
        alice = of_dealer()
        of_router()
    assert alice.recv(timeout=SOON) == b"alicehello"


def test_hops_between_and_hops_before(echo, dealer, certificates: Certificates) -> None:
    end = echo()
    with Device(end.address) as inner, Device(inner.address) as outer:
        alice, bob = dealer(outer.address, "alice"), dealer(inner.address, "bob")
        # The plain envelope of a hop before TLS is just parts, and comes back as it was.
        alice.send_multipart([b"\0plain-client", b"", b"question"])
        bob.send(b"x")
        assert alice.recv_multipart(timeout=SOON)[1:] == [b"\0plain-client", b"", b"question"]
        assert bob.recv(timeout=SOON) == b"bobx"
        lengths = {peer.client: len(peer.envelope) for peer, _ in end.heard}
        assert lengths == {"alice": 3, "bob": 2}


def test_two_sessions_along_one_way(echo, dealer) -> None:
    """The same identity as far as ZeroMQ knows: the token keeps them apart."""
    end = echo()
    alice = dealer(end.address)
    alice.send(b"a")
    assert alice.recv(timeout=SOON) == b"alicea"
    alice._machine._forget(alice._machine._current)
    alice.send(b"b")
    assert alice.recv(timeout=SOON) == b"aliceb"
    first, second = (peer for peer, _ in end.heard)
    assert first is not second
    assert first.envelope == second.envelope
    assert end.router.sessions == 2


# --- REQ ----------------------------------------------------------------------------------------


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


# --- the published example ----------------------------------------------------------------------


def anonymous(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.authority.path / "ca.crt")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_examples_client_talks_to_our_server(echo, certificates, version) -> None:
    end = echo(server(certificates, anonymous=True, tls_1_2=True), bare=True)
    context = anonymous(certificates)
    context.minimum_version = context.maximum_version = version
    words = [b"hello world!", b"again", b"x" * 5000]
    answers = example.client(end.address, context, "localhost", words)
    assert answers == [b"Got " + word for word in words]
    assert end.heard[0][0].client is None
    assert end.heard[0][0].certificate == b""


def test_the_examples_client_through_two_devices(echo, certificates: Certificates) -> None:
    end = echo(server(certificates, anonymous=True), bare=True)
    with Device(end.address) as inner, Device(inner.address) as outer:
        found = example.client(outer.address, anonymous(certificates), "localhost", [b"hello"])
    assert found == [b"Got hello"]


@pytest.mark.parametrize("tls_1_2", [False, True])
def test_our_client_talks_to_the_examples_server(certificates, dealer, tls_1_2: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.path("server", "crt"), certificates.path("server", "key"))
    context.num_tickets = 0
    if tls_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    sock, stop = zmq.Context.instance().socket(zmq.ROUTER), threading.Event()
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    thread = threading.Thread(target=example.server, args=(sock, context, stop))
    thread.start()
    try:
        tls = client_context(authority=certificates.authority.path / "ca.crt", tls_1_2=tls_1_2)
        req = dealer(f"tcp://127.0.0.1:{port}", kind=TlsReq, tls=tls, bare=True)
        for word in (b"hello world!", b"x" * 3000):
            req.send(word)
            assert req.recv(timeout=SOON) == b"Got it!"
        assert req.tls_version == ("TLSv1.2" if tls_1_2 else "TLSv1.3")
        with pytest.raises(UsageError, match="one part"):
            req.send_multipart([b"two", b"parts"])
    finally:
        stop.set()
        thread.join()
        sock.close()


def test_a_bare_client_is_let_in_only_where_it_is_said(echo, certificates: Certificates) -> None:
    end = echo(server(certificates, anonymous=True))
    sock = zmq.Context.instance().socket(zmq.REQ)
    sock.linger, sock.rcvtimeo = 0, 300
    sock.connect(end.address)
    tls = example.TlsZmq(anonymous(certificates), server_name="localhost")
    tls.send(b"hello")
    sock.send(tls.get_data())
    with pytest.raises(zmq.Again):
        sock.recv()
    sock.close()
    assert end.router._machine.dropped == 1


def test_the_bare_protocol_is_for_req(dealer) -> None:
    with pytest.raises(UsageError, match="TlsReq"):
        dealer("", bare=True)


# --- ends, and beginning again ------------------------------------------------------------------


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


def test_a_server_begins_again(echo, dealer, certificates: Certificates) -> None:
    end = echo()
    alice = dealer(end.address)
    alice.send(b"one")
    alice.recv(timeout=SOON)
    end.close()
    again = echo(bind=False)
    bind(again.router, end.address)
    # The old session is reset as soon as the new server hears of it; then there is a new one.
    deadline = time.monotonic() + SOON
    while True:
        assert time.monotonic() < deadline
        try:
            alice.send(b"two")
            assert alice.recv(timeout=1) == b"alicetwo"
            break
        except (ConnectionLost, WaitTimeout) as error:
            said = str(error)
    assert "ended this session" in said or "dropped this session" in said or "nothing came" in said
    assert alice.sessions >= 2


def test_an_end_in_order_is_seen(certificates: Certificates, dealer) -> None:
    ends: list[Any] = []
    with TlsRouter(server(certificates), on_end=lambda *end: ends.append(end)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.socket.linger = 2000
        alice.send(b"last words")
        thread = threading.Thread(target=alice.close)  # which waits for the handshake's answer
        peer, parts = _handshake(router, alice)
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


def _handshake(router: TlsRouter, dealer: TlsDealer) -> tuple[Peer, list[bytes]]:
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        dealer.flush()
        with contextlib.suppress(WaitTimeout):
            return router.recv_multipart(timeout=0.05)
        with contextlib.suppress(WaitTimeout):
            dealer.recv(timeout=0.05)
    raise AssertionError("no handshake")


def test_sessions_that_say_nothing_expire(echo, dealer) -> None:
    end = echo(times=Times(idle=0.3))
    alice = dealer(end.address, times=Times(idle=0.3))
    alice.send(b"one")
    alice.recv(timeout=SOON)
    assert "nothing came for" in end.why("nothing came")
    assert end.router.sessions == 0
    alice.send(b"two")  # the dealer knows that it has been silent for too long
    assert alice.recv(timeout=SOON) == b"alicetwo"
    assert alice.sessions == 2


# --- bad input: the one session ends and says why, the server goes on -----------------------------


def raw(end: Echo, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
    sock = zmq.Context.instance().socket(kind)
    sock.linger, sock.rcvtimeo = 0, int(SOON * 1000)
    sock.connect(end.address)
    return sock


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


@pytest.mark.parametrize("fault", ["lose", "reorder"])
def test_a_record_lost_or_late_ends_that_session_alone(echo, dealer, fault: str) -> None:
    end = echo()
    bob = dealer(end.address, "bob")
    with Device(end.address, fault=fault, seed=3, each=25) as device:
        alice = dealer(device.address, "alice", times=Times(handshake=0.5))
        seen: list[int] = []
        errors: list[str] = []
        for number in range(150):
            bob.send(b"%d" % number)
            assert bob.recv(timeout=SOON) == b"bob%d" % number
            try:
                alice.send(b"%d" % number)
                seen.append(int(alice.recv_multipart(timeout=0.2)[1]))
            except (ConnectionLost, WaitTimeout) as error:
                errors.append(str(error))
    assert any("lost or reordered" in error for error in errors) or end.why("lost or reordered")
    assert len(seen) > 20
    assert sorted(set(seen)) == seen  # nothing twice, nothing out of order
    assert bob.sessions == 1


def test_a_message_repeated_on_the_way_is_taken_once(echo, dealer) -> None:
    end = echo()
    with Device(end.address, fault="repeat", seed=1, each=3) as device:
        alice = dealer(device.address)
        for number in range(100):
            alice.send(b"%d" % number)
            assert alice.recv(timeout=SOON) == b"alice%d" % number
        assert alice.sessions == 1
    assert [int(parts[0]) for _, parts in end.heard] == list(range(100))


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


def test_a_peer_that_takes_nothing_holds_up_only_itself(certificates, dealer) -> None:
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        lazy, alice = dealer(address, "lazy"), dealer(address, "alice")
        lazy.send(b"x")
        peer, _ = _handshake(router, lazy)
        size = 1024 * 1024
        with pytest.raises(WaitTimeout, match="did not take what was sent"):
            for _ in range(40):
                router.send(peer, bytes(size), timeout=0.2)
        assert peer.speaker is not None
        waits = peer.speaker.waiting.size
        assert waits <= limits.MAX_ZMQ_WAITING + 2 * size
        alice.send(b"x")
        _handshake(router, alice)
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
        to_alice, _ = _handshake(router, alice)
        lazy.send(b"x")
        to_lazy, _ = _handshake(router, lazy)
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
        peer, _ = _handshake(router, alice)

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
    end = echo(bind=False)
    bind(end.router, f"tcp://127.0.0.1:{port}")
    alice.send(b"third", timeout=SOON)
    assert [alice.recv(timeout=SOON)[:10] for _ in range(2)] == [b"alicefirst", b"alicethird"]
    assert len(end.heard) == 2


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


# --- on event loops -------------------------------------------------------------------------------


async def test_a_send_that_is_cancelled_sends_nothing(certificates, echo, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_ZMQ_WAITING", 50_000)
    port = free_port()
    async with (
        asyncio.timeout(SOON),
        looped.TlsDealer(client(certificates), server_name="localhost") as alice,
    ):
        alice.connect(f"tcp://127.0.0.1:{port}")
        await alice.send(b"first" + bytes(70_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.send(b"second"), 0.02)
        end = echo(bind=False)
        bind(end.router, f"tcp://127.0.0.1:{port}")
        await alice.send(b"third")
        assert [(await alice.recv())[:10] for _ in range(2)] == [b"alicefirst", b"alicethird"]
        assert len(end.heard) == 2


@pytest.mark.parametrize("context", [None, "asyncio"])
async def test_the_same_on_an_event_loop(certificates, context: str | None) -> None:
    given = zmq.asyncio.Context() if context else None
    async with asyncio.timeout(2 * SOON):
        async with looped.TlsRouter(server(certificates), context=given) as router:
            port = router.socket.bind_to_random_port("tcp://127.0.0.1")

            async def serve() -> None:
                while True:
                    peer, parts = await router.recv_multipart()
                    await router.send_multipart(peer, [(peer.client or "").encode(), *parts])

            serving = asyncio.create_task(serve())
            async with (
                looped.TlsDealer(
                    client(certificates), server_name="localhost", context=given
                ) as alice,
                looped.TlsReq(
                    client(certificates, "bob"), server_name="localhost", context=given
                ) as bob,
            ):
                alice.connect(f"tcp://127.0.0.1:{port}")
                bob.connect(f"tcp://127.0.0.1:{port}")
                sent = [[b"%d" % n, bytes(20_000 * (n % 7))] for n in range(400)]
                sending = asyncio.create_task(_send_all(alice, sent))
                assert [(await alice.recv_multipart())[1:] for _ in sent] == sent
                await sending
                for number in range(3):
                    await bob.send(b"%d" % number)
                    assert await bob.recv() == b"bob%d" % number
                big = [b"x" * 12_000_000]
                await alice.send_multipart(big)
                assert (await alice.recv_multipart())[1:] == big
                with pytest.raises(UsageError):
                    await alice.send_multipart([])
            serving.cancel()
            with pytest.raises(UsageError, match="closed"):
                await alice.recv()
    if given is not None:
        given.term()


async def _send_all(dealer: looped.TlsDealer, sent: list[list[bytes]]) -> None:
    for parts in sent:
        await dealer.send_multipart(parts)


def test_a_context_for_the_other_end(certificates: Certificates) -> None:
    with pytest.raises(UsageError, match="give it a client_context"):
        TlsDealer(server(certificates), server_name="localhost")
    with pytest.raises(UsageError, match="and a server_name"):
        TlsDealer(client(certificates), server_name="")
    with pytest.raises(UsageError, match="give it a server_context"):
        TlsRouter(client(certificates))


def test_a_server_that_was_away_hears_what_came_meanwhile(
    certificates: Certificates, dealer, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # its thread is kept from looking, too
    with TlsRouter(server(certificates), times=Times(idle=0.6)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}", times=Times(idle=1000.0))
        alice.send(b"before")
        assert router.recv(timeout=SOON)[1] == b"before"
        alice.flush()
        time.sleep(1.0)  # the application is at something else for longer than a session may idle
        alice.send(b"meanwhile")
        alice.flush()
        assert router.socket.poll(int(SOON * 1000))
        monkeypatch.setattr(limits, "ZMQ_TICK", 0.25)
        assert router.recv(timeout=SOON)[1] == b"meanwhile"
        assert alice.sessions == router.sessions == 1


@pytest.mark.parametrize("who", ["router", "dealer"])
def test_what_came_is_not_waited_for(certificates: Certificates, dealer, monkeypatch, who) -> None:
    """A look at the clocks takes in what has come. With the window closed nothing comes after it,
    and to wait for more held both sides up, several times a second when they were busy."""
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.send(b"hello")
        peer, _ = router.recv(timeout=SOON)
        sock: TlsDealer | TlsRouter = router if who == "router" else alice
        if who == "router":
            alice.send(b"come")
            alice.flush()
        else:
            router.send(peer, b"come")
            router.flush()
        assert sock.socket.poll(int(SOON * 1000))
        monkeypatch.setattr(limits, "ZMQ_TICK", 0.0)  # the clocks are due

        def wait() -> None:
            pytest.fail("it waits for more")

        monkeypatch.setattr(sock._end, "take_one", wait)
        found = sock.recv(timeout=SOON)
        assert found == b"come" or found == (peer, b"come")


def test_what_is_here_is_received_without_waiting(certificates, dealer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # the clocks are not due
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.send(b"hello")
        peer, _ = router.recv(timeout=SOON)
        router.send(peer, b"hello")
        router.flush()
        assert alice.recv(timeout=SOON) == b"hello"
        alice.send(b"there")
        alice.flush()
        assert router.socket.poll(int(SOON * 1000))
        assert router.recv(timeout=0)[1] == b"there"
        router.send(peer, b"and back")
        router.flush()
        assert alice.socket.poll(int(SOON * 1000))
        assert alice.recv(timeout=0) == b"and back"
        for sock in (alice, router):
            with pytest.raises(WaitTimeout):
                sock.recv(timeout=0)


def test_who_was_away_gets_what_came_meanwhile(
    certificates: Certificates, dealer, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "ZMQ_TICK", 2 * SOON)  # her thread is kept from looking, too
    with TlsRouter(server(certificates)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}", times=Times(idle=0.4))
        alice.send(b"hello")
        peer, _ = router.recv(timeout=SOON)
        router.send(peer, b"hello")
        router.flush()
        assert alice.recv(timeout=SOON) == b"hello"
        router.send(peer, b"meanwhile")
        router.flush()
        assert alice.socket.poll(int(SOON * 1000))
        time.sleep(0.5)  # for so long that her session counts as given up
        alice.send(b"back")
        assert alice.recv(timeout=SOON) == b"meanwhile"


# --- certificates that are renewed and revoked ----------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Certificates:
    """One whose revocation list a test may change."""
    return Certificates(tmp_path)


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
            peer, _ = _handshake(router, each)
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


async def test_the_same_for_an_event_loop(authority: Certificates) -> None:
    async with asyncio.timeout(SOON), looped.TlsRouter(server(authority)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        async with looped.TlsDealer(client(authority), server_name="localhost") as alice:
            alice.connect(f"tcp://127.0.0.1:{port}")
            await alice.send(b"x")
            peer, _ = await router.recv()
            assert router.peers == [peer]
            authority.revoke_last()
            router.renew(server(authority))
            alice.renew(client(authority))
            router.end(peer, "it was revoked")
            assert str(peer.error) == "it was revoked"
            with pytest.raises(ConnectionLost, match="ended this session"):
                await alice.recv()
            waiting = asyncio.create_task(router.recv())
            await alice.send(b"y")
            with pytest.raises(TlsFailed, match="revoked"):
                await alice.recv()
            assert not waiting.done()
            waiting.cancel()


def test_an_on_end_that_raises_harms_nobody_else(certificates, dealer, caplog) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("by mistake")

    with TlsRouter(server(certificates), on_end=raises) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        alice = dealer(f"tcp://127.0.0.1:{port}")
        alice.send(b"hello")
        peer, _ = _handshake(router, alice)
        router.end(peer)
        assert not peer.alive
        assert "by mistake" in caplog.text


async def test_errors_reach_who_waits(certificates: Certificates, tmp_path: Path) -> None:
    others = Certificates(tmp_path)
    async with asyncio.timeout(SOON):
        async with looped.TlsRouter(server(certificates)) as router:
            port = router.socket.bind_to_random_port("tcp://127.0.0.1")
            waiting = asyncio.create_task(router.recv())
            tls = client(others, "mallory")
            async with looped.TlsDealer(tls, server_name="localhost") as mallory:
                mallory.connect(f"tcp://127.0.0.1:{port}")
                await mallory.send(b"x")
                with pytest.raises(TlsFailed, match="not issued by the authority"):
                    await mallory.recv()
            waiting.cancel()
