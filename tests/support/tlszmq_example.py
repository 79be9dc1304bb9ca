"""The published example of TLS over ZeroMQ, in Python and with today's TLS: a client and a server.

Everything else is as it was: a REQ, a ROUTER, an empty delimiter, TLS bytes alone in one frame, no
client certificate, 1,024 bytes at a time, one TLS object an identity, and an answer only where TLS
has bytes to send.
"""

from __future__ import annotations

import ssl
import threading

import zmq

STEP = 1024


class TlsZmq:
    """The example's class: four buffers and an `update`."""

    def __init__(self, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        self.rbio, self.wbio = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(
            self.rbio, self.wbio, server_side=server_name is None, server_hostname=server_name
        )
        self.app_to_ssl = self.ssl_to_app = self.zmq_to_ssl = self.ssl_to_zmq = b""

    def update(self) -> None:
        if self.zmq_to_ssl:
            self.rbio.write(self.zmq_to_ssl)
            self.zmq_to_ssl = b""
        if self.app_to_ssl:
            try:
                self.ssl.write(self.app_to_ssl)
                self.app_to_ssl = b""
            except ssl.SSLWantReadError:
                pass  # the handshake is not over: the next round tries again
        self.net_read()
        self.net_write()

    def net_read(self) -> None:
        while True:
            try:
                read = self.ssl.read(STEP)
            except ssl.SSLWantReadError:
                break
            self.ssl_to_app += read
            if len(read) != STEP:
                break

    def net_write(self) -> None:
        while True:
            read = self.wbio.read(STEP)
            self.ssl_to_zmq += read
            if len(read) != STEP:
                break

    def put_data(self, data: bytes) -> None:
        self.zmq_to_ssl = data
        self.update()

    def send(self, data: bytes) -> None:
        self.app_to_ssl = data
        self.update()

    def recv(self) -> bytes:
        found, self.ssl_to_app = self.ssl_to_app, b""
        return found

    def get_data(self) -> bytes:
        found, self.ssl_to_zmq = self.ssl_to_zmq, b""
        return found


def client(
    address: str, context: ssl.SSLContext, server_name: str, words: list[bytes]
) -> list[bytes]:
    """What the server answers to each of `words`."""
    sock = zmq.Context.instance().socket(zmq.REQ)
    sock.linger, sock.rcvtimeo = 0, 20_000
    sock.connect(address)
    tls, answers = TlsZmq(context, server_name=server_name), []
    try:
        for word in words:
            tls.send(word)
            while True:
                if data := tls.get_data():
                    sock.send(data)
                tls.put_data(sock.recv())
                tls.update()
                if answer := tls.recv():
                    answers.append(answer)
                    break
    finally:
        sock.close()
    return answers


def server(sock: zmq.Socket[bytes], context: ssl.SSLContext, stop: threading.Event) -> None:
    """Answers whatever comes with ``Got it!``, until `stop` is set."""
    connections: dict[bytes, TlsZmq] = {}
    while not stop.is_set():
        if not sock.poll(50):
            continue
        *envelope, data = sock.recv_multipart()
        identity = envelope[-2]  # the furthest back before the delimiter
        tls = connections.setdefault(identity, TlsZmq(context))
        tls.put_data(data)
        if tls.recv():
            tls.send(b"Got it!")
        if out := tls.get_data():
            sock.send_multipart([*envelope, out])
