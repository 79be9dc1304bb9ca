"""What is said when a broker answers no more, after everything has been moved."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from ciphermq.errors import MoveError
from ciphermq.proxy.move import draining


class Hanging:
    """A broker whose management interface took the question and says nothing."""

    async def counts(self, vhost: str, names: list[str]) -> dict[str, int]:
        await asyncio.Event().wait()
        raise AssertionError

    def __str__(self) -> str:
        return "green:15671"


async def test_a_target_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "_LATE", 0.01)
    broker = Hanging()
    work = draining._Work("orders", broker, broker, deque())  # type: ignore[arg-type]
    with pytest.raises(MoveError, match="green:15671 did not say within"):
        await draining._verify(work)
