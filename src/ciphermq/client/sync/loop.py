"""An event loop in a thread of its own, and how another thread has things done there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import uvloop

P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="ciphermq client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Ctrl-C cancels it."""
        return patiently(self.start(work))

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop's thread call `function`, soon."""
        self.loop.call_soon_threadsafe(function, *args)

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


def patiently(future: concurrent.futures.Future[T]) -> T:
    """The future's result; Ctrl-C cancels the work."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def result_of(awaitable: Awaitable[T]) -> T:
    """`awaitable`, as the coroutine that a loop wants."""
    return await awaitable


async def called(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A plain call, for what must be made in the loop."""
    return function(*args, **kwargs)
