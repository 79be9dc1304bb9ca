"""Which backends answer, learnt from the sessions that tried them (passive health).

A backend that fails rests: 1 s, then twice as long after each further failure, up to a minute.
While it rests it is tried only when nothing else is left. When its rest is over, one session may
try it (half open); the others go elsewhere until that one has told how it went, or has been
silent for `limits.PROXY_PROBE` seconds. One success makes it as good as any.

::

    healthy ──failed──► resting ──time──► due ──trial──► on trial ──connected──► healthy
                          ▲                                  │
                          └──────────── failed, rest doubled ┘

Failures while it rests are those of sessions that were under way: they change nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ciphermq import limits

State = Literal["healthy", "resting", "due", "on trial"]


class _Record(msgspec.Struct):
    failures: int
    until: float
    on_trial: float
    """Until when a session is trusted to tell how its try went; 0 for no trial."""
    error: str


class Standing(msgspec.Struct, frozen=True):
    """What is known of a backend."""

    state: State
    failures: int = 0
    """In a row."""
    rest: float = 0.0
    """Seconds until it may be tried again."""
    error: str = ""
    """What the last failure was."""


_HEALTHY = Standing("healthy")


class Health:
    """The health of all backends, by name. `now` is any clock that does not go back, in seconds."""

    def __init__(
        self,
        first: float = limits.PROXY_REST_FIRST,
        longest: float = limits.PROXY_REST_LONGEST,
        trial: float = limits.PROXY_PROBE,
    ) -> None:
        self._first = first
        self._longest = longest
        self._trial = trial
        self._records: dict[str, _Record] = {}

    def state(self, name: str, now: float) -> State:
        """Whether it may be used."""
        record = self._records.get(name)
        if record is None:
            return "healthy"
        if now < record.until:
            return "resting"
        return "on trial" if now < record.on_trial else "due"

    def standing(self, name: str, now: float) -> Standing:
        """All that is known of it."""
        record = self._records.get(name)
        if record is None:
            return _HEALTHY
        rest = max(0.0, record.until - now)
        return Standing(self.state(name, now), record.failures, rest, record.error)

    def wakes(self, name: str) -> float:
        """When its rest ends; 0 when it has none."""
        record = self._records.get(name)
        return 0.0 if record is None else record.until

    def trial(self, name: str, now: float) -> None:
        """A session is about to try a backend that is due: the others keep away meanwhile."""
        record = self._records.get(name)
        if record is not None and now >= record.until:
            record.on_trial = now + self._trial

    def connected(self, name: str) -> None:
        """It answered."""
        self._records.pop(name, None)

    def failed(self, name: str, now: float, error: str = "") -> None:
        """It could not be reached, or did not answer as a broker does."""
        record = self._records.get(name)
        if record is None:
            self._records[name] = _Record(1, now + self._first, 0.0, error)
        elif now >= record.until:
            record.failures += 1
            # 2**30 s is beyond any longest rest: the exponent needs no more room.
            rest = self._first * 2.0 ** min(record.failures - 1, 30)
            record.until = now + min(self._longest, rest)
            record.on_trial = 0.0
            record.error = error

    def forget(self, name: str) -> None:
        """It is another backend now, or none."""
        self._records.pop(name, None)

    def names(self) -> list[str]:
        """Those that are not healthy."""
        return list(self._records)
