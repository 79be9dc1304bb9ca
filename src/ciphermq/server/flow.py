"""Backpressure from the disk: when too much waits to become durable, publishers aren't read."""

from __future__ import annotations

from collections.abc import Callable

from ciphermq import limits
from ciphermq.engines.face import Engine


class Brake:
    """Stops a connection's reading for as long as there is any reason to."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._reasons: set[str] = set()

    def hold(self, reason: str) -> None:
        """Stop, or stay stopped, for `reason`."""
        if not self._reasons:
            self._pause()
        self._reasons.add(reason)

    def release(self, reason: str) -> None:
        """That reason is gone; without another, read on."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                self._resume()


class Flow:
    """Holds those who published while the engine has too much in hand."""

    _REASON = "the disk"

    def __init__(self, engine: Engine, most: int = limits.MAX_PENDING_BYTES) -> None:
        self._engine = engine
        self._most = most
        self._held: set[Brake] = set()
        self.stops = 0
        """How often a publisher was stopped."""

    def check(self, brake: Brake) -> None:
        """Called after a publish: hold this publisher if the engine has too much in hand."""
        if self._engine.pending_bytes <= self._most or brake in self._held:
            return
        if not self._held:
            self._engine.on_relief(self._relieve)
        self._held.add(brake)
        self.stops += 1
        brake.hold(self._REASON)

    def forget(self, brake: Brake) -> None:
        """The connection is gone."""
        self._held.discard(brake)

    def _relieve(self) -> None:
        held, self._held = self._held, set()
        for brake in held:
            brake.release(self._REASON)
