"""One direction of a session, on real sockets."""

from __future__ import annotations

import asyncio
import socket

from ciphermq.proxy.end import End
from ciphermq.proxy.pace import Pace
from ciphermq.proxy.pump import Pump
from ciphermq.wire.amqp import closing

FRAME = closing.HEARTBEAT_FRAME


class Unhurried(Pace):
    """Lets whatever came wait for a time of the test's own."""

    def __init__(self, seconds: float) -> None:
        super().__init__(1_000_000, 0.0)
        self._seconds = seconds

    def took(self, size: int, now: float) -> float:
        return self._seconds


class Silent:
    """A watcher to whom nothing is to be told."""

    def ended(self, pump: Pump) -> None:
        raise AssertionError

    faulty = closing = alarmed = ended  # type: ignore[assignment]


async def test_a_new_pace_is_not_cut_short_by_the_former_one() -> None:
    loop = asyncio.get_running_loop()
    client, near = socket.socketpair()
    far, broker = socket.socketpair()
    for sock in (client, near, far, broker):
        sock.setblocking(False)
    source, sink = End(near, loop), End(far, loop)
    pump = Pump(source, sink, Silent(), loop)
    try:
        pump.set_pace(Unhurried(0.2))
        pump.start()
        client.send(FRAME)
        assert await loop.sock_recv(broker, 100) == FRAME
        pump.set_pace(Unhurried(3600))
        client.send(FRAME)
        assert await loop.sock_recv(broker, 100) == FRAME
        client.send(FRAME)
        more = asyncio.ensure_future(loop.sock_recv(broker, 100))
        done, _ = await asyncio.wait([more], timeout=0.6)
        assert not done
        # No pace is one, too: at once.
        pump.set_pace(None)
        assert await more == FRAME
    finally:
        source.close()
        sink.close()
        client.close()
        broker.close()
