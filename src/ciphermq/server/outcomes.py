"""What the engine's answers come to, without a task for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ciphermq.errors import Unavailable

T = TypeVar("T")


def follow(outcome: Awaitable[T], then: Callable[[asyncio.Future[T]], None]) -> None:
    """Call `then` with the outcome once it is there; at once if it is there already.

    At once matters for a refusal: it must count before the next frame is looked at.
    """
    future = asyncio.ensure_future(outcome)
    if future.done():
        then(future)
    else:
        future.add_done_callback(then)


def failure(future: asyncio.Future[Any]) -> BaseException | None:
    """What went wrong in a future that is done, or None."""
    return Unavailable("the broker is stopping") if future.cancelled() else future.exception()
