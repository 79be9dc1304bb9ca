"""Received batches, as many together as have come: one write and one sync for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ciphermq.errors import CipherMQError

if TYPE_CHECKING:
    from ciphermq.client import Batch, Receiver

_MOST: Final = 64
"""Batches; the receiver's prefetch bounds their messages and bytes."""


async def groups(
    receiver: Receiver, stop: asyncio.Event, *, idle: float | None, linger: float
) -> AsyncIterator[list[Batch]]:
    """Batches for the caller to settle, until `stop` is set, the receiver's limit is reached, or
    none has come for `idle` seconds.

    A group is complete when no further batch comes within `linger` seconds; 0: at once. Raises
    what `Receiver.next_batch` raises, after the batches that came before.
    """
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            asking = asyncio.create_task(receiver.next_batch())
            try:
                await asyncio.wait(
                    (asking, stopped), timeout=idle, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                asking.cancel()  # no harm when it is done; otherwise nothing has come
            if not asking.done() or stopped.done():
                return
            first = asking.result()
            if first is None:
                return
            group = [first]
            # Nobody may be asking while the group is written: acknowledgements would wait with it.
            # What it fails of stays where it is, and is raised when asked for again.
            with suppress(TimeoutError, CipherMQError):
                while linger and len(group) < _MOST:
                    async with asyncio.timeout(linger):
                        batch = await receiver.next_batch()
                    if batch is None:
                        break
                    group.append(batch)
            yield group
    finally:
        stopped.cancel()
