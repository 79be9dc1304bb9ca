"""A ZeroMQ socket on an event loop, read without an `await` a message.

ZeroMQ gives one descriptor for a socket, which says only that something may have changed, and says
it once: whoever has sent or received must look again. So one look takes what there is, up to a
bound, and asks for another look in the loop's next turn as long as there may be more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from ciphermq import limits
from ciphermq.net.zmq.ends import NOBLOCK, read, write
from ciphermq.wire.tlszmq.header import Buffer


class Wires:
    """One socket, which belongs to it from now on. All of it is for the event loop's thread."""

    def __init__(
        self,
        sock: zmq.Socket[bytes],
        on_message: Callable[[list[Buffer]], None],
        on_broken: Callable[[zmq.ZMQError], None] | None = None,
    ) -> None:
        """`on_broken` is told, once, when somebody else has ended the socket or its context: it is
        closed then."""
        self.sock = sock
        self._on_message = on_message
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(sock.fd)
        self._look_due = False
        self._closed = False
        self._loop.add_reader(self._descriptor, self._look)
        self._look_soon()

    def send(self, frames: list[Buffer]) -> None:
        """Send a message, whole or not at all; raises `zmq.ZMQError` as ZeroMQ does."""
        write(self.sock, frames)
        self._look_soon()

    def close(self) -> None:
        """Close the socket; ZeroMQ goes on sending for as long as its LINGER says."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self.sock.close()

    def _look_soon(self) -> None:
        if not self._look_due and not self._closed:
            self._look_due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._look_due = False
        for _ in range(limits.ZMQ_TAKE):
            if self._closed:
                return
            try:
                frames = read(self.sock, NOBLOCK)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                self.close()
                if self._on_broken is not None:
                    self._on_broken(error)
                return
            try:
                self._on_message(frames)
            except BaseException:
                self._look_soon()  # one that fails must not leave the others lying there
                raise
        self._look_soon()
