"""Who binds and who connects, devices on the way, and the published example at the other end."""

from __future__ import annotations

import os
import ssl
import threading
import time
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from zmq_kit import SOON, anonymous, bind, raw, server

from ciphermq.cli.processes import free_port
from ciphermq.errors import CipherMQError, ConnectionLost, UsageError, WaitTimeout
from ciphermq.wire.tlszmq.header import Head, Kind, parse
from ciphermq.zmq import Times, TlsDealer, TlsReq, client_context
from support import tlszmq_example as example
from support.certificates import Certificates
from support.devices import Device

# --- topologies ----------------------------------------------------------------------------------


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
        echo(at=address, connects=not router_binds)

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


# --- devices that lose, reorder and repeat -------------------------------------------------------


@pytest.mark.parametrize("fault", ["lose", "reorder"])
def test_a_record_lost_or_late_ends_that_session_alone(echo, dealer, fault: str) -> None:
    end = echo()
    bob = dealer(end.address, "bob")
    with Device(end.address, fault=fault, seed=3, each=25) as device:
        alice = dealer(device.address, "alice", times=Times(handshake=2.0))
        seen: list[int] = []
        errors: list[CipherMQError] = []

        def said() -> str:
            return "\n".join(map(str, [*errors, *(error for _, error in end.ends)]))

        deadline = time.monotonic() + 2 * SOON
        while len(seen) <= 60 or "lost or reordered" not in said():
            assert time.monotonic() < deadline, said()
            number = b"%d" % len(end.heard)
            bob.send(number)
            assert bob.recv(timeout=SOON) == b"bob" + number
            try:
                alice.send(number)
                seen.append(int(alice.recv_multipart(timeout=0.2)[1]))
            except (ConnectionLost, WaitTimeout) as error:
                errors.append(error)
        assert device.faults
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
        assert device.faults
    assert [int(parts[0]) for _, parts in end.heard] == list(range(100))


# --- the published example -----------------------------------------------------------------------


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
    sock = raw(end)
    tls = example.TlsZmq(anonymous(certificates), server_name="localhost")
    tls.send(b"hello")
    sock.send_multipart([b"", tls.get_data()])  # as a REQ's looks to the other end
    # What comes first is the answer to what was sent next: there was none to the bare client.
    sock.send_multipart([b"", Head(Kind.ASK, b"t" * 16).encode()])
    assert parse(sock.recv_multipart()).head == Head(Kind.RESET, b"t" * 16)
    sock.close()
    assert end.router._machine.dropped == 1
    assert end.router.sessions == 0


def test_the_bare_protocol_is_for_req(dealer) -> None:
    with pytest.raises(UsageError, match="TlsReq"):
        dealer("", bare=True)
