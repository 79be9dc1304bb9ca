"""`ciphermq.zmq` for an event loop, as `zmq.asyncio` is `zmq` for one.

::

    tls = await asyncio.to_thread(client_context, identity="identities/alice")
    async with TlsReq(tls, server_name="service.example") as client:
        client.connect("tcp://service.example:5555")
        async with asyncio.timeout(10):
            await client.send_multipart([b"a", b"request"])
            answer = await client.recv_multipart()

The same names. What waits is awaited: `send`, `send_multipart`, `recv`, `recv_multipart`, which
take no `timeout`, since `asyncio.timeout` and cancelling do it, and `drain` in the place of
`flush`. Not awaited are `bind`, `connect`, `renew`, `end` and `close`. Contexts, `Peer`, `Times`
and `Bounds` are those of `ciphermq.zmq`. A socket is made in a running loop, and is for its thread
alone.
"""

from ciphermq.net.zmq.looped import TlsDealer, TlsReq, TlsRouter
from ciphermq.zmq import ALPN, Bounds, Peer, Times, client_context, server_context

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
