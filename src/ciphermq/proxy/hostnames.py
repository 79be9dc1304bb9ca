"""Names of client machines by reverse DNS, for those who read statistics (``MAPHOSTNAME DNS``).

Nobody waits long for a name: what isn't known in time is called by its address, and asked for again
later. Answers are kept for a while, and only so many.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict

from ciphermq import limits


class Hostnames:
    """One worker's names."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[str]] = {}

    def known(self, address: str) -> str:
        """The address's name, if it is known already, or else the address."""
        return self._known.get(address, (address, 0.0))[0]

    async def name(self, address: str) -> str:
        """The address's name, or the address when there is none or it takes too long."""
        loop = asyncio.get_running_loop()
        known = self._known.get(address)
        if known is not None and known[1] > loop.time():
            return known[0]
        task = self._asking.get(address)
        if task is None:
            # Each one holds a thread of the resolver for as long as DNS likes.
            if len(self._asking) >= limits.PROXY_NAMES_AT_ONCE:
                return self.known(address)
            task = loop.create_task(self._ask(address))
            self._asking[address] = task
            task.add_done_callback(lambda _: self._asking.pop(address, None))
        # The question goes on when this client doesn't wait for it any longer: the next one gains.
        await asyncio.wait([task], timeout=limits.PROXY_NAME_TIMEOUT)
        return self.known(address)

    async def _ask(self, address: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            name, _ = await loop.getnameinfo((address, 0), socket.NI_NAMEREQD)
        except OSError:
            name = address
        self._known[address] = name, loop.time() + limits.PROXY_NAME_LIFETIME
        self._known.move_to_end(address)
        while len(self._known) > limits.PROXY_SOURCES:
            self._known.popitem(last=False)
        return name
