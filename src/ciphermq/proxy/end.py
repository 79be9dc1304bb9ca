"""One of a session's two connections: a non-blocking socket, and what it would not take yet.

All of a worker's connections read into one buffer. What was read is scanned and sent on before
anything else is read, so an idle connection holds no memory of ours, and a busy one is copied
nowhere but into and out of the kernel. Only what a slow peer doesn't take is kept, and then the
other side is not read until it has gone.

TLS sits on the socket itself (`ssl.SSLSocket`): OpenSSL writes its alert to the peer when a
handshake fails, and records are decrypted into the shared buffer. Python's `ssl` and the kernel
each hold bytes of their own, so readiness of the socket is not all: what fills the buffer whole
is followed by another read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final

from ciphermq import limits
from ciphermq.errors import TlsFailed

BUFFER: Final = bytearray(limits.PROXY_BUFFER)
"""Where everything is read into; free again when the callback that filled it returns."""
VIEW: Final = memoryview(BUFFER)
_SMALL: Final = VIEW[: limits.PROXY_SMALL_BUFFER]

STALLED: Final = 1
"""Reasons not to read: the other side does not take what was read;"""
PAUSED: Final = 2
"""somebody said so;"""
PACED: Final = 4
"""more came than its data rate allows;"""
WAITING: Final = 8
"""or there is nothing to do with what would come."""

_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NOW: Final = struct.pack("ii", 1, 0)


class Kept:
    """Bytes that slow peers have not taken, of all of a worker's sessions together."""

    total = 0


def prepare(sock: socket.socket, stall: float) -> None:
    """No delays, and an end for connections whose other machine is gone (`Timeouts.stall`)."""
    tcp, seconds = socket.IPPROTO_TCP, max(1, round(stall))
    sock.setblocking(False)
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, seconds)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, seconds // 4))
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, round(stall * 1000))


class End:
    """A connection. Every callback is made from the loop, never from within a call to the `End`."""

    __slots__ = (
        "_awaits",
        "_held",
        "_left",
        "_loop",
        "_on_drained",
        "_on_readable",
        "_writing",
        "closed",
        "error",
        "fd",
        "sock",
        "tls",
    )

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """`sock` is connected and `prepare`d. Nothing is read before `on_readable`."""
        self.sock = sock
        self.fd = sock.fileno()
        self.tls = False
        self.closed = False
        self.error: OSError | None = None
        """What ended it, if that was no end of stream in order."""
        self._loop = loop
        self._on_readable: Callable[[], None] = _nothing
        self._on_drained: Callable[[], None] = _nothing
        self._left = bytearray()
        self._held = WAITING
        self._writing = False
        self._awaits = False

    # --- reading ------------------------------------------------------------------------------

    def on_readable(self, callback: Callable[[], None]) -> None:
        """Call this when there is something to `receive`; replaces what was called before."""
        self._on_readable = callback
        if self._held:
            self._held &= ~WAITING
            self._watch()
        else:
            self._look_into_tls()

    def hold(self, reason: int) -> None:
        """Read no more until each reason given is `release`d."""
        if not self._held and not self.closed:
            self._loop.remove_reader(self.fd)
        self._held |= reason

    def release(self, reason: int) -> None:
        """That reason is over."""
        if self._held & reason:
            self._held &= ~reason
            self._watch()

    def _watch(self) -> None:
        if not self._held and not self.closed:
            self._loop.add_reader(self.fd, self._again)
            self._look_into_tls()

    def _look_into_tls(self) -> None:
        """What OpenSSL holds already makes no socket readable."""
        if self.tls and self.sock.pending():  # type: ignore[attr-defined]
            self._loop.call_soon(self._again)

    def _again(self) -> None:
        if not self._held and not self.closed:
            self._on_readable()

    def receive(self, most: int = limits.PROXY_BUFFER) -> int | None:
        """Read into `BUFFER`; how many bytes, 0 at the end of the stream, None: nothing there."""
        view = VIEW if Kept.total < limits.PROXY_KEPT else _SMALL
        if most < len(view):
            view = VIEW[:most]
        try:
            if self.tls:
                return self._receive_records(view)
            return self.sock.recv_into(view)
        except _WOULD_BLOCK:
            return None
        except OSError as error:
            self.error = error
            return 0

    def _receive_records(self, view: memoryview) -> int:
        """TLS gives one record at a time, 16 KiB at most: read until there is no more."""
        at, size = self.sock.recv_into(view), len(view)
        if not at:
            return 0
        with contextlib.suppress(OSError):  # said again by the next call
            while at < size and (got := self.sock.recv_into(view[at:])):
                at += got
        if at == size or self.sock.pending():  # type: ignore[attr-defined]
            self._loop.call_soon(self._again)
        return at

    # --- writing ------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Bytes written that the peer has not taken yet."""
        return len(self._left)

    def write(self, data: bytes | bytearray | memoryview) -> bool:
        """Send; whether all has gone. What has not is kept, and goes as soon as it can."""
        if self.closed:
            return True
        if self._left:
            self._keep(data)
            return False
        try:
            sent = self.sock.send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self.error = error  # reading will see the end
            return True
        if sent == len(data):
            return True
        self._keep(memoryview(data)[sent:])
        return False

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call this once nothing is left; at once, if nothing is."""
        self._on_drained = callback
        if not self._left:
            self._loop.call_soon(self._drained)

    def _drained(self) -> None:
        callback, self._on_drained = self._on_drained, _nothing
        callback()

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        self._left += data
        Kept.total += len(data)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self.fd, self._flush)

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self._left)
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self.error = error
            sent = len(self._left)
        Kept.total -= sent
        if sent < len(self._left):
            del self._left[:sent]
            return
        self._left = bytearray()  # clear() would keep its memory
        self._writing = False
        self._loop.remove_writer(self.fd)
        self._drained()

    # --- TLS ----------------------------------------------------------------------------------

    async def start_tls(self, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        """Make it a TLS connection, as a client if there is a `server_name`. Raises `TlsFailed`.

        A name that is an address is not sent (RFC 6066 section 3), but checked.
        """
        try:
            self.sock = sock = context.wrap_socket(
                self.sock,
                server_side=server_name is None,
                server_hostname=server_name,
                do_handshake_on_connect=False,
            )
            self.tls = True
            while True:
                try:
                    sock.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    await self._ready(self._loop.add_reader, self._loop.remove_reader)
                except ssl.SSLWantWriteError:
                    await self._ready(self._loop.add_writer, self._loop.remove_writer)
        except ssl.SSLError as error:
            raise TlsFailed(f"TLS failed: {error.reason or error}") from error
        except (OSError, ValueError) as error:
            raise TlsFailed(f"the connection ended within the TLS handshake: {error}") from error

    async def connected(self) -> None:
        """Wait until `connect`, which was in progress, is done. Raises `OSError`."""
        await self._ready(self._loop.add_writer, self._loop.remove_writer)
        if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))

    async def _ready(
        self,
        add: Callable[[int, Callable[[], None]], None],
        remove: Callable[[int], object],
    ) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(self.fd, lambda: None if ready.done() else ready.set_result(None))
        self._awaits = True
        try:
            await ready
        finally:
            self._awaits = False
            if not self.closed:  # else its number may be another connection's by now
                remove(self.fd)

    async def readable(self) -> None:
        """Wait until there is something to read."""
        await self._ready(self._loop.add_reader, self._loop.remove_reader)

    # --- the end ------------------------------------------------------------------------------

    def shut(self) -> None:
        """End our half: the peer still can read what was written, and end its own."""
        with contextlib.suppress(OSError, ValueError):
            if self.tls:
                self.sock.unwrap()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, at_once: bool = False) -> None:
        """End it. With `at_once` the peer sees a reset, and nothing that is left is sent."""
        if self.closed:
            return
        self.closed = True
        Kept.total -= len(self._left)
        self._left = bytearray()
        if not self._held or self._awaits:
            self._loop.remove_reader(self.fd)
        if self._writing or self._awaits:
            self._loop.remove_writer(self.fd)
        self._on_readable = self._on_drained = _nothing
        with contextlib.suppress(OSError, ValueError):
            if at_once:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
            elif self.tls:
                self.sock.unwrap()  # type: ignore[attr-defined]
        self.sock.close()


def _nothing() -> None:
    pass
