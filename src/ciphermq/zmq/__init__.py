"""TLS with certificates over ZeroMQ, for programs that have nothing to do with the queue.

::

    tls = client_context(certificate="alice.crt", key="alice.key", authority="ca.crt",
                         revocations="crl.pem")
    with TlsDealer(tls, server_name="broker.example") as dealer:
        dealer.connect("tcp://broker.example:5555")
        dealer.send_multipart([b"a", b"message"])
        answer = dealer.recv_multipart()

    with TlsRouter(server_context(...)) as router:
        router.bind("tcp://*:5555")
        peer, parts = router.recv_multipart()
        router.send_multipart(peer, [b"hello", peer.client.encode()])

`ciphermq.zmq.asyncio` has the same for an event loop.
"""

from ciphermq.net.zmq.contexts import client_context, server_context
from ciphermq.net.zmq.plain import TlsDealer, TlsReq, TlsRouter
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.parts import ALPN
from ciphermq.wire.tlszmq.router import Bounds, Peer

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
