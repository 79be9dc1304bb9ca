"""Bytes a second: a bucket that fills with time. Pure: `now` is an argument."""

from __future__ import annotations

from typing import Final

_SLICES: Final = 20
"""A paced client is read this many times a second, so that it flows and does not hop."""
_LEAST: Final = 512


class Pace:
    """At most `rate` bytes a second, averaged over a second. A burst may be one second's worth."""

    __slots__ = ("_credit", "_since", "most", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = max(1, rate)
        self.most = max(_LEAST, self.rate // _SLICES)
        """No more than this is to be read at once."""
        self._credit = float(self.rate)
        self._since = now

    def took(self, size: int, now: float) -> float:
        """So much has come; how many seconds to wait before more may."""
        filled = self._credit + (now - self._since) * self.rate
        self._credit = min(filled, float(self.rate)) - size
        self._since = now
        return -self._credit / self.rate if self._credit < 0 else 0.0


class Meter:
    """Tells when more than `rate` bytes came within a second, once for each such second."""

    __slots__ = ("_count", "_since", "_told", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._count = 0
        self._since = now
        self._told = False

    def took(self, size: int, now: float) -> bool:
        """So much has come; whether that is the byte too many of this second."""
        if now - self._since >= 1.0:
            self._count, self._since, self._told = 0, now, False
        self._count += size
        if self._count > self.rate and not self._told:
            self._told = True
            return True
        return False
