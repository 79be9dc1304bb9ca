"""What a vhost may use: connections a second, connections at a time, bytes a second.

A `Bucket` is the one way rates are kept: it fills at the rate, up to one second's worth, so a
limit of 100 lets 100 through at once and 100 a second from then on. `ConnectionLimits` stands in
the supervisor, because its limits are the whole proxy's, however many workers there are. `now`
is any clock that does not go back, in seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from ciphermq import limits
from ciphermq.proxy.model import Configuration, LimitKind

RATES: tuple[LimitKind, ...] = ("conn_rate_alarm", "conn_rate")
CAPS: tuple[LimitKind, ...] = ("connections_alarm", "connections")


class Bucket:
    """A rate, as what is left of one second's worth of it."""

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._left = rate
        self._at = now

    def _fill(self, now: float) -> float:
        self._left = min(self.rate, self._left + self.rate * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._left

    def take(self, now: float, amount: float = 1) -> bool:
        """Take this much if it is there."""
        if self._fill(now) < amount:
            return False
        self._left -= amount
        return True

    def full(self, now: float) -> bool:
        """Whether nothing was taken for long enough that a new one would be the same."""
        return self._fill(now) >= self.rate


class Verdict(NamedTuple):
    """What the limits say to one new connection."""

    refusal: str = ""
    """A sentence for the client; empty: it may come in, and holds a place."""
    alarms: tuple[str, ...] = ()
    """Sentences for the log."""


class ConnectionLimits:
    """Rates and caps of all vhosts, counted over all workers.

    A holder is a worker; what it holds is forgotten with it.
    """

    def __init__(self) -> None:
        self._rates: dict[LimitKind, dict[str, Bucket]] = {kind: {} for kind in RATES}
        self._sweep: dict[LimitKind, int] = dict.fromkeys(RATES, limits.PROXY_RATES)
        self._held: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)

    def admit(
        self, configuration: Configuration, vhost: str, holder: Hashable, now: float
    ) -> Verdict:
        """Judge a new connection. One that is let in holds a place until `release`."""
        alarms: list[str] = []
        for kind in (*CAPS, *RATES):
            limit = configuration.limit(kind, vhost)
            if limit is None or self._fits(kind, vhost, limit, now):
                continue
            sentence = _sentence(kind, vhost, limit)
            if not kind.endswith("_alarm"):
                return Verdict(sentence, tuple(alarms))
            alarms.append(f"AMQPPROX_CONNECTION_LIMIT {sentence}")
        self._held[holder][vhost] += 1
        return Verdict(alarms=tuple(alarms))

    def _fits(self, kind: LimitKind, vhost: str, limit: int, now: float) -> bool:
        if kind in CAPS:
            return self.held(vhost) < limit
        buckets = self._rates[kind]
        bucket = buckets.get(vhost)
        if bucket is None or bucket.rate != limit:
            if len(buckets) >= self._sweep[kind]:
                for name in [name for name, one in buckets.items() if one.full(now)]:
                    del buckets[name]
                # Names are strangers' words: looking through them must not cost each its number.
                self._sweep[kind] = max(limits.PROXY_RATES, 2 * len(buckets))
            bucket = buckets[vhost] = Bucket(limit, now)
        return bucket.take(now)

    def held(self, vhost: str) -> int:
        """How many connections of a vhost there are now."""
        return sum(places[vhost] for places in self._held.values())

    def release(self, vhost: str, holder: Hashable) -> None:
        """A connection that was let in is gone."""
        places = self._held[holder]
        places[vhost] -= 1
        if places[vhost] <= 0:
            del places[vhost]

    def recount(self, holder: Hashable, held: Mapping[str, int]) -> None:
        """What a worker holds, by its own count: a limit may be younger than its connections."""
        self._held[holder] = Counter({vhost: number for vhost, number in held.items() if number})

    def forget(self, holder: Hashable) -> None:
        """A worker is gone, and its connections with it."""
        self._held.pop(holder, None)


def _sentence(kind: LimitKind, vhost: str, limit: int) -> str:
    if kind in CAPS:
        return f"Vhost '{vhost}' has reached its limit of {limit} connections."
    return f"Vhost '{vhost}' has reached its limit of {limit} connections a second."
