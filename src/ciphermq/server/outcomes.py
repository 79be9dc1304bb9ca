"""What the engine's answers come to, without a task for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ciphermq.errors import CatalogError, InternalError, JournalFailed, Refused, Unavailable
from ciphermq.telemetry import get_logger

T = TypeVar("T")

_log = get_logger("server")


def follow(outcome: Awaitable[T], then: Callable[[asyncio.Future[T]], None]) -> None:
    """Call `then` with the outcome once it is there; at once if it is there already.

    At once matters for a refusal: it must count before the next frame is looked at.
    """
    future = asyncio.ensure_future(outcome)
    if future.done():
        then(future)
    else:
        future.add_done_callback(then)


def as_refusal(error: BaseException, client: str) -> Refused:
    """What the client is told; what it can do nothing about goes to the log in full."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, JournalFailed):
        return Unavailable(f"the broker's journal has failed: {error}")
    if isinstance(error, CatalogError):
        # Where the database is, and as whom one comes there, is not for clients.
        _log.error("a request failed", client=client, reason=str(error))
        return Unavailable("the broker can't use its catalog for this; its log says why")
    _log.error("a request failed", client=client, exc_info=error)
    return InternalError("the broker failed in a way it did not foresee; its log says more")


def disregard(future: asyncio.Future[Any]) -> None:
    """For `follow`, where a later outcome tells all."""
    failure(future)


def failure(future: asyncio.Future[Any]) -> BaseException | None:
    """What went wrong in a future that is done, or None."""
    return Unavailable("the broker is stopping") if future.cancelled() else future.exception()
