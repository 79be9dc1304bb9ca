"""Statistics sent to a statsd server over UDP, under amqpprox's names, one a datagram.

A bad host, a name that can't be looked up, a full socket: all of that costs datagrams, which are
counted, and is said in the log once. Nothing waits for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Final

from ciphermq import limits
from ciphermq.proxy.model import Destination
from ciphermq.proxy.statistics import Counts, Snapshot
from ciphermq.telemetry import get_logger

_GAUGES: Final = frozenset(
    {
        "pausedConnectionCount",
        "activeConnectionCount",
        "authDeniedConnectionCount",
        "limitedConnectionCount",
    }
)
_RESERVED: Final = str.maketrans(dict.fromkeys(":|@,=#\n\r", "_"))
"""What would end a tag or a line early: names of vhosts may hold it."""

_log = get_logger("proxy.statsd")


def datagrams(snapshot: Snapshot, *, per_source: bool) -> Iterator[bytes]:
    """A snapshot as statsd's lines, such as
    ``amqpprox.pausedConnectionCount,rmqEndpointType=overall:0|g``."""
    tally = snapshot.tally
    yield from _lines(tally.overall, "rmqEndpointType=overall")
    percents = {
        "cpu_percent_overall": round((snapshot.cpu_user + snapshot.cpu_system) * 100),
        "cpu_percent_user": round(snapshot.cpu_user * 100),
        "cpu_percent_system": round(snapshot.cpu_system * 100),
        "mem_rss_kb": snapshot.rss_kb,
        "spill_to_heap_count": snapshot.spilled,
    }
    for name, value in percents.items():
        yield f"amqpprox.{name}:{value}|c".encode()
    for size, (now, most) in sorted(snapshot.pools.items()):
        yield f"amqpprox.pools_{size}_current:{now}|c".encode()
        yield f"amqpprox.pools_{size}_highest:{most}|c".encode()
    for vhost, counts in sorted(tally.vhosts.items()):
        yield from _lines(counts, f"rmqEndpointType=vhost,rmqVhostName={_tag(vhost)}")
    by_host: list[tuple[str, Mapping[str, Counts]]] = [("backends", tally.backends)]
    if per_source:
        by_host.insert(0, ("sources", tally.sources))
    for kind, lines in by_host:
        for name, counts in sorted(lines.items()):
            yield from _lines(counts, f"rmqEndpointType={kind},rmqEndpointHostname={_tag(name)}")


def _lines(counts: Counts, tags: str) -> Iterator[bytes]:
    for member, value in counts.members().items():
        kind = "g" if member in _GAUGES else "c"
        yield f"amqpprox.{member},{tags}:{value}|{kind}".encode()


def _tag(name: str) -> str:
    return name.translate(_RESERVED)


class StatsdSender:
    """Sends snapshots to one destination until it is closed."""

    def __init__(
        self,
        destination: Destination,
        snapshots: Callable[[], AsyncGenerator[Snapshot, None]],
        per_source: Callable[[], bool],
    ) -> None:
        self.destination = destination
        self._snapshots = snapshots
        self._per_source = per_source
        self._trouble = ""
        self._lookup: asyncio.Future[list[Any]] | None = None
        self._found: tuple[float, int, Any] | None = None
        self.lost = 0
        """Datagrams that could not be sent."""
        self._task = asyncio.get_running_loop().create_task(self._send_all())

    async def close(self) -> None:
        """Send no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        snapshots = self._snapshots()
        try:
            async for snapshot in snapshots:
                await self._send(snapshot)
        finally:
            await snapshots.aclose()

    async def _send(self, snapshot: Snapshot) -> None:
        lines = list(datagrams(snapshot, per_source=self._per_source()))
        place = f"{self.destination.host}:{self.destination.port}"
        try:
            family, address = await self._find()
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                for line in lines:
                    self._send_one(sock, line, address)
        except TimeoutError:
            self.lost += len(lines)
            self._say("its name is not found in time", place)
        except (OSError, UnicodeError) as error:
            # A name that no DNS could have is one of the latter.
            self.lost += len(lines)
            self._say(getattr(error, "strerror", None) or str(error), place)
        else:
            self._say("", place)

    async def _find(self) -> tuple[int, Any]:
        """Where it is now. A name is looked up again now and then: it may move.

        A question that DNS leaves unanswered holds a thread, so there is only one at a time.
        """
        loop = asyncio.get_running_loop()
        if self._found is None or loop.time() > self._found[0]:
            if self._lookup is None or self._lookup.done():
                asking = loop.getaddrinfo(
                    self.destination.host, self.destination.port, type=socket.SOCK_DGRAM
                )
                self._lookup = asyncio.ensure_future(asking)
            async with asyncio.timeout(limits.PROXY_NAME_TIMEOUT):
                found = await asyncio.shield(self._lookup)
            self._found = loop.time() + limits.PROXY_NAME_LIFETIME, found[0][0], found[0][4]
        return self._found[1:]

    def _send_one(self, sock: socket.socket, line: bytes, address: Any) -> None:
        try:
            sock.sendto(line, address)
        except (BlockingIOError, ConnectionRefusedError):
            self.lost += 1

    def _say(self, trouble: str, place: str) -> None:
        """Log trouble when it begins and when it ends, not each second."""
        if trouble and not self._trouble:
            _log.warning("statistics can't be sent", to=place, reason=trouble)
        elif self._trouble and not trouble:
            _log.info("statistics are sent again", to=place)
        self._trouble = trouble
