"""How long to wait before trying again: twice as long each time, with chance in it."""

from __future__ import annotations

import random

from ciphermq import limits


class Backoff:
    """Delays between attempts, in seconds. Takes no clock: the caller does the waiting."""

    def __init__(
        self,
        first: float = limits.RECONNECT_FIRST,
        most: float = limits.RECONNECT_MOST,
        rng: random.Random | None = None,
    ) -> None:
        self._first = first
        self._most = most
        self._random = rng or random.Random()  # noqa: S311 - spreads load, guards no secret
        self.attempts = 0
        """Delays given since the last `reset`."""

    def next(self) -> float:
        """The next delay: between half and all of a ceiling that doubles up to the most.

        The chance in it keeps a thousand clients of a broker that restarts from coming back in
        the same moment, again and again.
        """
        # Beyond 2**32 times the first delay the ceiling has long been reached.
        ceiling = min(self._most, self._first * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return ceiling * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: begin again with the first delay."""
        self.attempts = 0
