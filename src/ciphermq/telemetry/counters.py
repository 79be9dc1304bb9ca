"""Counters: names to numbers that only rise, for the status and the logs."""

from __future__ import annotations


class Counters:
    """A few named totals of one owner thread; reading them from another is harmless."""

    def __init__(self, *names: str) -> None:
        self._totals = dict.fromkeys(names, 0)

    def add(self, name: str, amount: int = 1) -> None:
        """Raise `name`; one that was not named before starts at 0."""
        self._totals[name] = self._totals.get(name, 0) + amount

    def __getitem__(self, name: str) -> int:
        return self._totals.get(name, 0)

    def snapshot(self) -> dict[str, int]:
        """All of them, as they are now."""
        return dict(self._totals)
