"""TLS with certificates over ZeroMQ, for programs that have nothing to do with the queue.

::

    tls = client_context(identity="identities/alice", passphrase="…")
    with TlsReq(tls, server_name="service.example") as client:
        client.connect("tcp://service.example:5555")
        client.send_multipart([b"a", b"request"])
        answer = client.recv_multipart(timeout=10)

    tls = server_context(certificate="server/server.crt", key="server/server.key",
                         authority="server/ca.crt", revocations="server/crl.pem")
    with TlsRouter(tls) as router:
        router.bind("tcp://*:5555")
        while True:
            peer, parts = router.recv_multipart()
            with contextlib.suppress(ConnectionLost):  # it may have left meanwhile
                router.send_multipart(peer, [b"hello", peer.client.encode()])

`ciphermq.zmq.asyncio` has the same for an event loop.
"""

from ciphermq.net.zmq.plain import TlsDealer, TlsReq, TlsRouter
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.parts import ALPN
from ciphermq.wire.tlszmq.router import Bounds, Peer
from ciphermq.zmq.contexts import client_context, server_context

__all__ = [
    "ALPN",
    "Bounds",
    "Peer",
    "Times",
    "TlsDealer",
    "TlsReq",
    "TlsRouter",
    "client_context",
    "server_context",
]
