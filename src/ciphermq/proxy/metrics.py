"""The metrics page: what Prometheus asks for, and a health check for load balancers.

``GET /metrics`` is answered in Prometheus' text format, ``GET /health`` with 200 while every worker
takes new connections and 503 otherwise. Every metric is listed in `FAMILIES`, and in
``docs/reference/proxy-metrics.md``, which is made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ciphermq import limits
from ciphermq.errors import CipherMQError, ListenFailed
from ciphermq.proxy.model import Destination
from ciphermq.proxy.sampling import Sample
from ciphermq.proxy.statistics import Counts
from ciphermq.telemetry import get_logger
from ciphermq.version import __version__

_log = get_logger("proxy.metrics")

PREFIX: Final = "ciphermq_proxy_"


class Family(NamedTuple):
    """One metric: `labels` are its own, `help` says what it is and its unit."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Final[tuple[Family, ...]] = (
    Family("info", "gauge", "1, labelled with the version that runs", ("version",)),
    Family("sessions", "gauge", "Sessions now, of any state", ("vhost",)),
    Family("sessions_paused", "gauge", "Sessions that are held back now", ("vhost",)),
    Family(
        "sessions_ended",
        "counter",
        "Sessions that have ended: in order (graceful), by the broker's or client's loss, over a "
        "limit, denied, or failed before they were open",
        ("vhost", "how"),
    ),
    Family("bytes", "counter", "Bytes received from clients and sent back", ("vhost", "direction")),
    Family("frames", "counter", "AMQP frames, likewise", ("vhost", "direction")),
    Family("packets", "counter", "Reads that brought something", ("vhost", "direction")),
    Family("backend_sessions", "gauge", "Sessions now", ("backend",)),
    Family("backend_sessions_ended", "counter", "Sessions that have ended", ("backend", "how")),
    Family("backend_bytes", "counter", "Bytes, by where they came from", ("backend", "direction")),
    Family("backend_frames", "counter", "AMQP frames, likewise", ("backend", "direction")),
    Family(
        "backend_up",
        "gauge",
        "1 when every worker takes the backend for healthy, 0 when one lets it rest",
        ("backend",),
    ),
    Family("spilled_sessions", "gauge", "Sessions with bytes that a side doesn't take yet"),
    Family("workers", "gauge", "Worker processes that answer"),
    Family("workers_accepting", "gauge", "Workers that take new connections"),
    Family("worker_restarts", "counter", "Workers that died and were started anew"),
    Family("cpu_seconds", "counter", "CPU time of all processes", ("mode",)),
    Family("resident_bytes", "gauge", "Memory of all processes"),
    Family("open_descriptors", "gauge", "Descriptors of all processes"),
    Family("log_lines_dropped", "counter", "Log lines the disk or terminal was too slow for"),
    Family("statsd_lost", "counter", "Statistics that could not be sent to statsd"),
)

_ENDINGS: Final = ("graceful", "broker", "client", "limited", "denied", "failed")
_WAYS: Final = ("received", "sent")


class Facts(NamedTuple):
    """What a page is made of."""

    sample: Sample
    backends_up: Mapping[str, bool]
    worker_restarts: int
    log_lines_dropped: int
    statsd_lost: int


def page(facts: Facts) -> bytes:
    """The whole page, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Page(facts))
    return generate_latest(registry)


class _Page(Collector):
    """Gives the library one moment's numbers."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        values = dict(_values(self._facts))
        for family in FAMILIES:
            maker = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = maker(PREFIX + family.name, family.help, labels=family.labels)
            for labels, value in values.get(family.name, ()):
                metric.add_metric(labels, value)
            yield metric


_Values = list[tuple[tuple[str, ...], float]]


def _values(facts: Facts) -> Iterator[tuple[str, _Values]]:
    sample = facts.sample
    vhosts = sample.tally.vhosts
    # Clients that never came as far as naming a vhost that leads anywhere are counted too.
    nameless = Counts()
    nameless.add(sample.tally.overall)
    lines: dict[str, Counts] = {**vhosts, "": _less(nameless, vhosts.values())}
    yield "info", [((__version__,), 1)]
    yield "sessions", [((name,), counts.active) for name, counts in lines.items()]
    yield "sessions_paused", [((name,), counts.paused) for name, counts in lines.items()]
    yield "sessions_ended", _endings(lines)
    for what in ("bytes", "frames", "packets"):
        yield what, _traffic(lines, what)
    named = sample.tally.named
    yield "backend_sessions", [((name,), counts.active) for name, counts in named.items()]
    yield "backend_sessions_ended", _endings(named)
    for what in ("bytes", "frames"):
        yield f"backend_{what}", _traffic(named, what)
    yield "backend_up", [((name,), float(up)) for name, up in facts.backends_up.items()]
    alive = [report for report in sample.reports if report is not None]
    process = sample.process
    yield "cpu_seconds", [(("user",), process.user), (("system",), process.system)]
    for name, value in (
        ("spilled_sessions", sample.spilled),
        ("workers", len(alive)),
        ("workers_accepting", sum(report.accepting for report in alive)),
        ("worker_restarts", facts.worker_restarts),
        ("resident_bytes", process.rss_kb * limits.KIB),
        ("open_descriptors", process.descriptors),
        ("log_lines_dropped", facts.log_lines_dropped),
        ("statsd_lost", facts.statsd_lost),
    ):
        yield name, [((), value)]


def _less(total: Counts, parts: Iterable[Counts]) -> Counts:
    rest = total
    for part in parts:
        rest = Counts(rest.paused - part.paused, rest.active - part.active, *_numbers(rest, part))
    return rest


def _numbers(counts: Counts, less: Counts) -> list[int]:
    difference = counts.since(less)
    return [getattr(difference, name) for name in Counts.__struct_fields__[2:]]


def _endings(lines: Mapping[str, Counts]) -> _Values:
    return [
        ((name, how), getattr(counts, how)) for name, counts in lines.items() for how in _ENDINGS
    ]


def _traffic(lines: Mapping[str, Counts], what: str) -> _Values:
    return [
        ((name, way), getattr(counts, f"{what}_{way}"))
        for name, counts in lines.items()
        for way in _WAYS
    ]


class MetricsPage:
    """Serves the page at one address. It knows as much HTTP as a scraper speaks."""

    def __init__(self, destination: Destination, facts: Callable[[], Awaitable[Facts]]) -> None:
        self.destination = destination
        self._facts = facts
        self._server: asyncio.Server | None = None
        self._places = asyncio.Semaphore(limits.PROXY_CONTROL_CLIENTS)

    async def start(self) -> None:
        """Listen. `ListenFailed` when that can't be."""
        host, port = self.destination.host, self.destination.port
        try:
            self._server = await asyncio.start_server(
                self._serve, host or None, port, limit=limits.PROXY_METRICS_REQUEST
            )
        except (OSError, socket.gaierror) as error:
            raise ListenFailed(
                f"The metrics page can't be served at {host}:{port}: {error.strerror or error}"
            ) from error

    @property
    def port(self) -> int:
        """Where it listens: the destination's port, or the one the system chose for port 0."""
        sockets = self._server.sockets if self._server is not None else ()
        return int(sockets[0].getsockname()[1]) if sockets else self.destination.port

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._places, asyncio.timeout(limits.PROXY_CONTROL_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = await self._answer(head)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                )
                if not head.startswith(b"HEAD "):
                    writer.write(body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it left, stalled, or said too much: nobody to tell
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(limits.PROXY_CONTROL_TIMEOUT):
                    await writer.wait_closed()
            # Who has stopped reading in the middle of the page would keep it, and this, for ever.
            writer.transport.abort()

    async def _answer(self, head: bytes) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", plain, b"GET /metrics or GET /health\n"
        path = words[1].partition(b"?")[0]
        if path not in (b"/metrics", b"/health"):
            return "404 Not Found", plain, b"GET /metrics or GET /health\n"
        try:
            facts = await self._facts()
        except CipherMQError as error:
            _log.error("no metrics", reason=str(error))
            return "503 Service Unavailable", plain, f"{error}\n".encode()
        if path == b"/metrics":
            return "200 OK", CONTENT_TYPE_PLAIN_0_0_4, page(facts)
        reports = facts.sample.reports
        if all(report is not None and report.accepting for report in reports):
            return "200 OK", plain, b"ok\n"
        return "503 Service Unavailable", plain, b"not all workers take new connections\n"
