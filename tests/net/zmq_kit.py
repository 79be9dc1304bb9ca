"""For tests of ZeroMQ sockets: a server that answers, a clock that stands still, a raw socket."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from ciphermq.errors import CipherMQError, ConnectionLost, WaitTimeout
from ciphermq.wire.tlszmq.header import Kind
from ciphermq.zmq import Peer, TlsDealer, TlsRouter, client_context, server_context
from support.certificates import Certificates

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


def has_come(sock: TlsDealer | TlsRouter) -> None:
    """Wait until something has come that `sock` has not looked at; its thread must not meanwhile,
    for ZeroMQ's sockets are for one at a time."""
    with sock._lock:
        assert sock.socket.poll(int(SOON * 1000))


def here(sock: TlsDealer | TlsRouter) -> Any:
    """The next message, without waiting in `recv`; what a session says of itself may come first."""
    while True:
        has_come(sock)
        with contextlib.suppress(WaitTimeout):
            return sock.recv(timeout=0)


def met(router: TlsRouter, dealer: TlsDealer) -> Peer:
    """Who `dealer` is to `router`, once both have heard of each other and have nothing to read."""
    dealer.send(b"hello")
    peer, _ = router.recv(timeout=SOON)
    router.send(peer, b"hello")
    router.flush()
    assert dealer.recv(timeout=SOON) == b"hello"
    return peer


def quiet(router: TlsRouter, dealer: TlsDealer) -> None:
    """Wait until both have said what they took: then neither says anything more by itself."""

    def untaken() -> int:
        speakers = [dealer._machine._current, *(peer.speaker for peer in router.peers)]
        return sum(speaker.session.untaken for speaker in speakers if speaker is not None)

    while untaken():
        time.sleep(0.01)


class Clock:
    """What the sockets take for the time: it stands still until it is put forward."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


class Echo:
    """A `TlsRouter` in a thread that sends everything back, with the client's id in front."""

    def __init__(
        self, tls: ssl.SSLContext, *, at: str = "", connects: bool = False, **options: Any
    ) -> None:
        """It binds `at` that address, or any, or connects to it."""
        self.ends: list[tuple[Peer | None, CipherMQError | None]] = []
        self.router = TlsRouter(
            tls, on_end=lambda peer, error: self.ends.append((peer, error)), **options
        )
        self.address = at
        if connects:
            self.router.connect(at)
        elif at:
            bind(self.router, at)
        else:
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

    def die(self) -> None:
        """End without a word to anybody."""
        self._stop.set()
        self._thread.join()
        self.router.socket.close(linger=0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.router.close()


def anonymous(certificates: Certificates) -> ssl.SSLContext:
    """For a client of the published example: it has no certificate."""
    context = ssl.create_default_context(cafile=certificates.authority.path / "ca.crt")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def handshake(router: TlsRouter, dealer: TlsDealer) -> tuple[Peer, list[bytes]]:
    """Have a dealer's first message come, where neither has a thread of its own: whose, and it."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        dealer.flush()
        with contextlib.suppress(WaitTimeout):
            return router.recv_multipart(timeout=0.05)
        with contextlib.suppress(WaitTimeout):
            dealer.recv(timeout=0.05)
    raise AssertionError("no handshake")


def raw(end: Echo, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
    """A socket without TLS that is connected to `end`."""
    sock = zmq.Context.instance().socket(kind)
    sock.linger, sock.rcvtimeo = 0, int(SOON * 1000)
    sock.connect(end.address)
    return sock
