"""A broker in a thread of its own, for tests of commands, which bring their own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from support.broker import Broker, running_broker
from support.deployment import Deployment


@contextmanager
def background_broker(
    deployment: Deployment, *, zmq: bool = False, **sections: Mapping[str, Any]
) -> Iterator[Broker]:
    """The broker of `deployment`, running until the block ends. `sections`: settings over its
    own; `zmq`: it listens over ZeroMQ too."""
    started = threading.Event()
    found: list[Broker] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def live() -> None:
        try:
            async with running_broker(deployment, zmq=zmq, **sections) as broker:
                found.append(broker)
                started.set()
                await stop.wait()
        finally:
            started.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    try:
        started.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
