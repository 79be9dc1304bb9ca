"""Both ends of the proxy benchmark: a broker that only says what it must, and clients.

``python -m bench.proxy_load broker CERTIFICATE`` prints its ports as JSON and serves until its
standard input ends. ``python -m bench.proxy_load client WORK JSON`` does one piece of work against
one port and prints what it measured. Both are one epoll loop on raw sockets: they must not be
what is measured.
"""

from __future__ import annotations

import json
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from pamqp import base, body, commands, frame, header

from ciphermq.wire.amqp import closing

HEADER: Final = closing.PROTOCOL_HEADER
START_OK: Final = frame.marshal(
    commands.Connection.StartOk(
        {
            "product": "bench",
            "connection_name": "bench",
            "capabilities": dict.fromkeys(closing.CAPABILITIES, True),
        },
        "PLAIN",
        "\0guest\0guest",
        "en_US",
    ),
    0,
)
TUNE_OK: Final = frame.marshal(commands.Connection.TuneOk(2047, 131_072, 0), 0)
OPEN_OK: Final = frame.marshal(commands.Connection.OpenOk(), 0)
CLOSE: Final = closing.close(200, "Goodbye")
START: Final = closing.start("PLAIN")
FRAME_BODY: Final = 131_072 - 8
_OPEN: Final = b"\0\x0a\0\x28"
SINK, ECHO = "sink", "echo"
_BUFFER: Final = bytearray(1 << 20)
_VIEW: Final = memoryview(_BUFFER)
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def open_to(vhost: str) -> bytes:
    """Open for a vhost, as a client sends it behind its TuneOk."""
    method: base.Frame = commands.Connection.Open(vhost)
    return bytes(frame.marshal(method, 0))


def message(size: int, key: str = "bench") -> bytes:
    """One message as a publisher sends it."""
    parts = [
        frame.marshal(commands.Basic.Publish(0, "", key), 1),
        frame.marshal(header.ContentHeader(0, size, commands.Basic.Properties(delivery_mode=2)), 1),
    ]
    parts += [
        frame.marshal(body.ContentBody(bytes(min(FRAME_BODY, size - at))), 1)
        for at in range(0, size, FRAME_BODY)
    ]
    return b"".join(parts)


# --- the broker -----------------------------------------------------------------------------------


class _Served:
    """A connection at the broker: a handshake by rote, then whatever comes is dropped or said
    again."""

    __slots__ = ("drop", "echo", "sock", "step")

    def __init__(self, sock: socket.socket, echo: bool, drop: Callable[[_Served], None]) -> None:
        self.sock = sock
        self.echo = echo
        self.step = 0
        self.drop = drop

    def readable(self) -> None:
        sock = self.sock
        try:
            while True:
                size = sock.recv_into(_BUFFER)
                if not size:
                    self.drop(self)
                    return
                self._take(size)
                if not isinstance(sock, ssl.SSLSocket):
                    return
        except _WOULD_BLOCK:
            pass
        except OSError:
            self.drop(self)

    def _take(self, size: int) -> None:
        # Clients wait for each answer; a proxy may say all at once. Only Open is answered with
        # OpenOk, wherever it comes.
        if self.step < 3:
            opened = self.step and _OPEN in bytes(_VIEW[:size])
            answer = (START, closing.TUNE, b"")[self.step] + (OPEN_OK if opened else b"")
            if answer:
                self.sock.send(answer)
            self.step = 3 if opened else min(2, self.step + 1)
        elif bytes(_VIEW[max(0, size - len(CLOSE)) : size]) == CLOSE:
            self.sock.send(closing.CLOSE_OK)
        elif self.echo:
            self.sock.send(_VIEW[:size])


def broker(certificate: str) -> None:
    """Serve on a port each for dropping, for saying again, and for dropping under TLS."""
    poll = select.epoll()
    handlers: dict[int, Callable[[], None]] = {sys.stdin.fileno(): lambda: sys.exit(0)}
    poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def drop(served: _Served) -> None:
        handlers.pop(served.sock.fileno(), None)
        served.sock.close()

    def listen(echo: bool, tls: bool) -> int:
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listening.setblocking(False)

        def accept() -> None:
            for _ in range(64):
                try:
                    sock, _ = listening.accept()
                except BlockingIOError:
                    return
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls:
                    sock = context.wrap_socket(sock, server_side=True)
                sock.setblocking(False)
                handlers[sock.fileno()] = _Served(sock, echo, drop).readable
                poll.register(sock.fileno(), select.EPOLLIN)

        handlers[listening.fileno()] = accept
        poll.register(listening.fileno(), select.EPOLLIN)
        return int(listening.getsockname()[1])

    ports = {SINK: listen(False, False), ECHO: listen(True, False), "tls": listen(False, True)}
    print(json.dumps(ports), flush=True)
    while True:
        for number, _ in poll.poll():
            if (handler := handlers.get(number)) is not None:
                handler()


# --- clients --------------------------------------------------------------------------------------


def connect(port: int, vhost: str, tls: bool) -> socket.socket:
    """An open connection, blocking."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    for said in (HEADER, START_OK, TUNE_OK + open_to(vhost)):
        sock.sendall(said)
        if not sock.recv(4096):
            raise ConnectionError("closed within the handshake")
    return sock


def open_and_close(port: int, vhost: str, *, count: int, at_a_time: int) -> dict[str, Any]:
    """Whole connections: from connect to CloseOk and the end of the stream."""
    poll = select.epoll()
    said = (HEADER, START_OK, TUNE_OK + open_to(vhost), CLOSE)
    live: dict[int, list[Any]] = {}
    begun = done = 0

    def begin() -> None:
        nonlocal begun
        begun += 1
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(("127.0.0.1", port))
        live[sock.fileno()] = [sock, 0]
        poll.register(sock.fileno(), select.EPOLLOUT)

    start = time.perf_counter()
    for _ in range(min(at_a_time, count)):
        begin()
    while done < count:
        for number, _ in poll.poll():
            entry = live[number]
            sock, step = entry
            if step == 0:
                poll.modify(number, select.EPOLLIN)
            else:
                data = sock.recv(4096)
                if not data:
                    raise ConnectionError(f"closed after {step} steps")
            if step < len(said):
                sock.send(said[step])
                entry[1] = step + 1
                continue
            if not data.endswith(closing.CLOSE_OK):
                raise ConnectionError(f"{data!r} instead of CloseOk")
            del live[number]
            sock.close()
            done += 1
            if begun < count:
                begin()
    return {"seconds": time.perf_counter() - start, "count": count}


def pour(
    port: int, vhost: str, *, what: str, megabytes: int, connections: int, tls: bool = False
) -> dict[str, Any]:
    """Messages as fast as they are taken: ``large`` (10 MB), ``small`` (100 B), or ``mixed``."""
    writes, messages = _writes(what)
    size = sum(map(len, writes))
    rounds = max(1, megabytes * 1_000_000 // connections // size)
    poll = select.epoll()
    live: dict[int, list[Any]] = {}
    for _ in range(connections):
        sock = connect(port, vhost, tls)
        sock.setblocking(False)
        live[sock.fileno()] = [sock, 0, 0, rounds * len(writes)]
        poll.register(sock.fileno(), select.EPOLLOUT)
    start = time.perf_counter()
    while live:
        for number, _ in poll.poll():
            entry = live[number]
            sock, which, at, left = entry
            part = memoryview(writes[which % len(writes)])
            try:
                at += sock.send(part[at:])
            except _WOULD_BLOCK:
                continue
            if at == len(part):
                which, at, left = which + 1, 0, left - 1
            entry[1:] = which, at, left
            if not left:
                del live[number]
                poll.unregister(number)
                sock.setblocking(True)
                sock.sendall(CLOSE)  # its answer comes when all before it was taken
                live_wait(sock)
    seconds = time.perf_counter() - start
    total = rounds * size * connections
    return {"seconds": seconds, "bytes": total, "messages": rounds * messages * connections}


def live_wait(sock: socket.socket) -> None:
    """Until CloseOk."""
    if not sock.recv(4096):
        raise ConnectionError("closed instead of CloseOk")
    sock.close()


def _writes(what: str) -> tuple[list[bytes], int]:
    if what == "large":
        whole = message(10_000_000)
        return [whole[at : at + (1 << 20)] for at in range(0, len(whole), 1 << 20)], 1
    draw = random.Random(1)
    writes, count = [], 0
    for _ in range(8):
        made = bytearray()
        while len(made) < 65_536 - 250:
            made += message(100 if what == "small" else draw.randrange(50, 151))
            count += 1
        writes.append(bytes(made))
    return writes, count


def round_trips(port: int, vhost: str, *, count: int) -> dict[str, Any]:
    """A message of 100 bytes there and back, one after another."""
    sock = connect(port, vhost, False)
    said = message(100)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        sock.send(said)
        got = 0
        while got < len(said):
            got += sock.recv_into(_BUFFER)
        times.append(time.perf_counter() - start)
    times.sort()
    return {
        "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[int(len(times) * 0.99)] * 1e6,
    }


def hold(port: int, vhost: str, *, count: int, tls: bool = False) -> dict[str, Any]:
    """Open so many, say so, and close them when a line comes."""
    held = [connect(port, vhost, tls) for _ in range(count)]
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.readline()
    for sock in held:
        sock.sendall(CLOSE)
        live_wait(sock)
    return {"count": count}


WORK: Final = {
    "connections": open_and_close,
    "pour": pour,
    "round_trips": round_trips,
    "hold": hold,
}


def main() -> None:
    """See the module."""
    if sys.argv[1] == "broker":
        broker(sys.argv[2])
    else:
        print(json.dumps(WORK[sys.argv[2]](**json.loads(sys.argv[3]))), flush=True)


if __name__ == "__main__":
    main()
