"""What is counted, and how it is shown.

A worker adds up its sessions along four lines: all of them, by virtual host, by backend and by
source (the client's machine). A `Tally` holds totals that only rise, and two gauges; the
supervisor sums the workers' and takes the difference over a second, which is a `Snapshot`. Names,
order and spelling of the members are amqpprox's, so whatever reads its statistics reads these.

Received is what came from clients, sent is what came back from brokers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from ciphermq import limits

Ending = Literal["graceful", "broker", "client", "limited", "denied", "failed"]
"""How a session ended: in order (a Close, either side's or the proxy's own), by the loss of the
broker or of the client, or before it was open: over a limit, denied, or failed in another way."""

OTHERS: Final = "others"
"""Sources beyond `limits.PROXY_SOURCES` are counted together under this name."""


class Counts(msgspec.Struct, array_like=True):
    """One line of the statistics: two gauges, then totals."""

    paused: int = 0
    active: int = 0
    denied: int = 0
    limited: int = 0
    graceful: int = 0
    broker: int = 0
    client: int = 0
    failed: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    frames_received: int = 0
    frames_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    def add(self, other: Counts) -> None:
        """Add the other's numbers to these."""
        for name in FIELDS:
            value = getattr(other, name)
            if value:
                setattr(self, name, getattr(self, name) + value)

    def since(self, before: Counts) -> Counts:
        """The totals' growth since `before`; gauges stay as they are."""
        grown = [getattr(self, name) - getattr(before, name) for name in FIELDS[GAUGES:]]
        return Counts(self.paused, self.active, *grown)

    def members(self) -> dict[str, int]:
        """The numbers under amqpprox's names, in its order."""
        return {member: getattr(self, name) for member, name in MEMBERS.items()}


FIELDS: Final = Counts.__struct_fields__
GAUGES: Final = 2
"""How many of `FIELDS`, from the first on, are gauges."""

MEMBERS: Final[Mapping[str, str]] = {
    "pausedConnectionCount": "paused",
    "activeConnectionCount": "active",
    "authDeniedConnectionCount": "denied",
    "limitedConnectionCount": "limited",
    "removedConnectionGraceful": "graceful",
    "removedConnectionBrokerSnapped": "broker",
    "removedConnectionClientSnapped": "client",
    "packetsReceived": "packets_received",
    "packetsSent": "packets_sent",
    "framesReceived": "frames_received",
    "framesSent": "frames_sent",
    "bytesReceived": "bytes_received",
    "bytesSent": "bytes_sent",
}
_NOTHING: Final = Counts()


class Process(msgspec.Struct, array_like=True):
    """What a process has used: seconds of CPU since its start, memory and descriptors now."""

    user: float = 0.0
    system: float = 0.0
    rss_kb: int = 0
    descriptors: int = 0

    def add(self, other: Process) -> None:
        """Add the other's numbers to these."""
        self.user += other.user
        self.system += other.system
        self.rss_kb += other.rss_kb
        self.descriptors += other.descriptors


class Lines(NamedTuple):
    """The lines one session belongs to, besides all sessions'; an empty name is none."""

    vhost: str
    name: str
    """Of the backend, in the configuration."""
    backend: str
    """Its ``ADDRESS_PORT``."""
    source: str


class Tally(msgspec.Struct):
    """The four lines: overall, and by name. `named` is by a backend's name in the configuration,
    `backends` by its ``ADDRESS_PORT`` (a colon is statsd's own sign)."""

    overall: Counts = msgspec.field(default_factory=Counts)
    vhosts: dict[str, Counts] = {}
    backends: dict[str, Counts] = {}
    named: dict[str, Counts] = {}
    sources: dict[str, Counts] = {}

    def count(self, counts: Counts, lines: Lines) -> None:
        """Add counts to every line they belong to.

        Sources are names that strangers bring along, and so are virtual hosts where there is a
        default farm: there are only so many of either.
        """
        self.overall.add(counts)
        source, vhost = lines.source, lines.vhost
        if source not in self.sources and len(self.sources) >= limits.PROXY_SOURCES:
            source = OTHERS
        if vhost not in self.vhosts and len(self.vhosts) >= limits.PROXY_VHOSTS:
            vhost = ""
        for line, key in (
            (self.vhosts, vhost),
            (self.named, lines.name),
            (self.backends, lines.backend),
            (self.sources, source),
        ):
            if key:
                _add(line, key, counts)

    def add(self, other: Tally) -> None:
        """Add the other's lines to these."""
        self.overall.add(other.overall)
        for own, others in (
            (self.vhosts, other.vhosts),
            (self.backends, other.backends),
            (self.named, other.named),
            (self.sources, other.sources),
        ):
            for key, counts in others.items():
                _add(own, key, counts)

    def since(self, before: Tally) -> Tally:
        """Every line's growth since `before`."""
        return Tally(
            self.overall.since(before.overall),
            _since(self.vhosts, before.vhosts),
            _since(self.backends, before.backends),
            _since(self.named, before.named),
            _since(self.sources, before.sources),
        )

    def without_gauges(self) -> Tally:
        """The totals alone: what a worker that is gone leaves behind."""
        left = self.since(Tally())
        left.overall.paused = left.overall.active = 0
        for lines in (left.vhosts, left.backends, left.named, left.sources):
            for line in lines.values():
                line.paused = line.active = 0
        return left


def _add(lines: dict[str, Counts], key: str, counts: Counts) -> None:
    line = lines.get(key)
    if line is None:
        line = lines[key] = Counts()
    line.add(counts)


def _since(now: Mapping[str, Counts], before: Mapping[str, Counts]) -> dict[str, Counts]:
    return {key: counts.since(before.get(key, _NOTHING)) for key, counts in now.items()}


class Snapshot(msgspec.Struct):
    """One second of the proxy."""

    tally: Tally
    cpu_user: float
    """Share of one core, 1.0 for all of it; more than that when several processes are busy."""
    cpu_system: float
    rss_kb: int
    spilled: int
    """Sessions that hold back bytes now, because a side doesn't take them."""
    pools: Mapping[int, tuple[int, int]]
    """Size of a buffer: how many there are now, and were at most."""


Show = Callable[[Snapshot], str]


def show(shape: str, what: str) -> Show | None:
    """How a snapshot is written for ``STAT LISTEN shape what``; None when there is no such thing.

    `what` is ``all``, ``all-except-per-source``, ``overall``, ``process``, ``bufferpool`` or
    ``vhost=``, ``backend=`` or ``source=`` and a name (a backend's address and port, joined by an
    underscore, or its name). One of which nothing is known is shown as zeros.
    """
    styles: Mapping[str, type[_Json | _Human]] = {"json": _Json, "human": _Human}
    style = styles.get(shape.lower())
    if style is None:
        return None
    kind, equals, name = what.partition("=")
    kind = kind.lower()
    if not equals:
        return {
            "all": lambda it: style.everything(it, sources=True),
            "all-except-per-source": lambda it: style.everything(it, sources=False),
            "overall": lambda it: style.counts(it.tally.overall) + "\n",
            "process": lambda it: style.process(it) + "\n",
            "bufferpool": lambda it: style.pool(it) + "\n",
        }.get(kind)
    find: Mapping[str, Callable[[Tally], Counts | None]] = {
        "vhost": lambda tally: tally.vhosts.get(name),
        "backend": lambda tally: tally.backends.get(name) or tally.named.get(name),
        "source": lambda tally: tally.sources.get(name),
    }
    line = find.get(kind)
    if line is None or not name:
        return None
    return lambda it: style.counts(line(it.tally) or _NOTHING) + "\n"


def _percents(snapshot: Snapshot) -> tuple[int, int, int]:
    user, system = snapshot.cpu_user * 100, snapshot.cpu_system * 100
    return round(user + system), round(user), round(system)


class _Json:
    """One JSON object a line."""

    @staticmethod
    def counts(counts: Counts) -> str:
        return json.dumps(counts.members())

    @staticmethod
    def process(snapshot: Snapshot) -> str:
        overall, user, system = _percents(snapshot)
        return json.dumps(
            {
                "cpu_percent_overall": overall,
                "cpu_percent_user": user,
                "cpu_percent_system": system,
                "mem_rss_kb": snapshot.rss_kb,
            }
        )

    @staticmethod
    def pool(snapshot: Snapshot) -> str:
        pools = ", ".join(
            f'"{size}": {{ "current": {now}, "highest": {most}}}'
            for size, (now, most) in sorted(snapshot.pools.items())
        )
        return f'{{"spill_to_heap_count": {snapshot.spilled}, "pools": {{{pools}}}}}'

    @classmethod
    def lines(cls, lines: Mapping[str, Counts]) -> str:
        members = (f"{json.dumps(key)}: {cls.counts(lines[key])}" for key in sorted(lines))
        return "{" + ", ".join(members) + "}"

    @classmethod
    def everything(cls, snapshot: Snapshot, *, sources: bool) -> str:
        tally = snapshot.tally
        parts = [
            f'"overall": {cls.counts(tally.overall)}',
            f'"process": {cls.process(snapshot)}',
            f'"bufferpool": {cls.pool(snapshot)}',
            f'"vhosts": {cls.lines(tally.vhosts)}',
            *([f'"sources": {cls.lines(tally.sources)}'] if sources else []),
            f'"backends": {cls.lines(tally.backends)}',
        ]
        return "{" + ", ".join(parts) + "}\n"


class _Human:
    """For a person at a terminal."""

    @staticmethod
    def counts(counts: Counts) -> str:
        return (
            f"Paused: {counts.paused} Active: {counts.active} Auth denied: {counts.denied} "
            f"Limited connections: {counts.limited} Removed(Clean): {counts.graceful} "
            f"Removed(Broker): {counts.broker} Removed(Client): {counts.client} "
            f"IN: {_bytes(counts.bytes_received)}/s {counts.packets_received} pkt/s "
            f"{counts.frames_received} frames/s "
            f"OUT: {_bytes(counts.bytes_sent)}/s {counts.packets_sent} pkt/s "
            f"{counts.frames_sent} frames/s"
        )

    @staticmethod
    def process(snapshot: Snapshot) -> str:
        overall, user, system = _percents(snapshot)
        memory = _bytes(snapshot.rss_kb * limits.KIB)
        return f"CPU%: {overall} USR%: {user} SYS%: {system} RSS: {memory}"

    @staticmethod
    def pool(snapshot: Snapshot) -> str:
        pools = ", ".join(
            f"{size}={now}/{most}" for size, (now, most) in sorted(snapshot.pools.items())
        )
        return f"Spilt to heap: {snapshot.spilled}, Pools (Current/Peak): {pools}"

    @classmethod
    def lines(cls, lines: Mapping[str, Counts]) -> Iterable[str]:
        return (f"{key}: {cls.counts(lines[key])}" for key in sorted(lines))

    @classmethod
    def everything(cls, snapshot: Snapshot, *, sources: bool) -> str:
        tally = snapshot.tally
        parts = [
            "Overall:",
            cls.counts(tally.overall),
            "Process:",
            cls.process(snapshot),
            "BufferPool:",
            cls.pool(snapshot),
            "Vhosts:",
            *cls.lines(tally.vhosts),
            *(["Sources:", *cls.lines(tally.sources)] if sources else []),
            "Backends:",
            *cls.lines(tally.backends),
        ]
        # A blank line parts one second from the next.
        return "\n".join(parts) + "\n\n"


def _bytes(count: int) -> str:
    """A number of bytes in the largest unit that fits, with six digits at most."""
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < limits.KIB:
            return f"{size:g} {unit}"
        size /= limits.KIB
    return f"{size:g} GB"
