"""How sessions end when the proxy does: in order, and not all at once unless it must be.

A client that gets Close 320 (CONNECTION_FORCED) connects again, which is what all clients of AMQP
are built for; an end of the stream without it looks like a fault to many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ciphermq import limits

CONNECTION_FORCED = 320


class Leaving(Protocol):
    """What is needed of a session to end it."""

    def disconnect_graceful(self, reply: int = ..., text: str = ...) -> None:
        """Send Close between two frames, and go when it was answered."""

    def force_disconnect(self) -> None:
        """Go now."""


async def drain(
    sessions: Callable[[], Iterable[Leaving]],
    emptied: asyncio.Event,
    *,
    patience: float,
    spread: float,
    close_seconds: float,
    reason: str,
) -> int:
    """End all of `sessions`, which is what there is when called; how many had to be cut off.

    `emptied` is set whenever there is none. They may go on for `patience` seconds; then each gets
    its Close, one after another over `spread` seconds; what hasn't gone `close_seconds` after the
    last one is cut off.
    """
    if await _within(emptied, patience):
        return 0
    text = f"CONNECTION_FORCED - {reason}"
    for batch, pause in _spread(list(sessions()), spread):
        for session in batch:
            session.disconnect_graceful(CONNECTION_FORCED, text)
        if await _within(emptied, pause):
            return 0
    if await _within(emptied, close_seconds):
        return 0
    left = list(sessions())
    for session in left:
        session.force_disconnect()
    return len(left)


def _spread(
    sessions: Sequence[Leaving], seconds: float
) -> Iterable[tuple[Sequence[Leaving], float]]:
    """Batches of sessions, and the pause after each."""
    steps = max(1, round(seconds / limits.PROXY_DRAIN_STEP))
    size = -(-len(sessions) // steps) or 1
    for at in range(0, len(sessions), size):
        yield sessions[at : at + size], seconds / steps


async def _within(emptied: asyncio.Event, seconds: float) -> bool:
    """Whether there is no session any more, within this time."""
    if emptied.is_set() or seconds <= 0:
        return emptied.is_set()
    try:
        async with asyncio.timeout(seconds):
            await emptied.wait()
    except TimeoutError:
        return False
    return True
