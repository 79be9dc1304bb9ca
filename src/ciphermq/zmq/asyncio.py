"""`ciphermq.zmq` for an event loop, as `zmq.asyncio` is `zmq` for one.

::

    async with TlsDealer(client_context(...), server_name="broker.example") as dealer:
        dealer.connect("tcp://broker.example:5555")
        await dealer.send_multipart([b"a", b"message"])
        answer = await dealer.recv_multipart()
"""

from ciphermq.net.zmq.looped import TlsDealer, TlsReq, TlsRouter

__all__ = ["TlsDealer", "TlsReq", "TlsRouter"]
