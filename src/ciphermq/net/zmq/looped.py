"""The same sockets on an event loop: `TlsDealer`, `TlsReq`, `TlsRouter` for asyncio.

Messages of one turn of the loop share TLS writes. What has come is taken in many at a time, and no
message costs an `await` that waits for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import zmq

from ciphermq import limits
from ciphermq.errors import UsageError
from ciphermq.net.zmq.ends import (
    DealerEnd,
    End,
    RouterEnd,
    configure,
    guarded,
    new_socket,
    size_buffer,
)
from ciphermq.net.zmq.faces import DealerFace, RouterFace, dealer_machine, socket_type
from ciphermq.pki.names import client_id_of
from ciphermq.telemetry.logger import get_logger
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.header import Buffer, Kind
from ciphermq.wire.tlszmq.parts import Parts
from ciphermq.wire.tlszmq.router import Bounds, OnEnd, Peer, RouterMachine

_MOST_PUT_OFF: Final = 20
"""Looks at the clocks that are put off in a row: neither a flood nor a loop that is always late
puts them off for good."""

_log = get_logger("net.zmq")


class _Looped:
    """What the three have in common. All of it is for the event loop's thread."""

    def __init__(
        self, kind: int, context: zmq.Context[Any] | None, end: Callable[[zmq.Socket[bytes]], End]
    ) -> None:
        self._loop = asyncio.get_running_loop()  # before there is a socket that would stay open
        self.socket = new_socket(kind, context)
        """ZeroMQ's own, for its options, and to bind and connect."""
        configure(self.socket)
        self._end = end(self.socket)
        self._waiters: list[asyncio.Future[None]] = []
        self._look_due = False
        self._push_due = False
        self._closed = False
        self._fault: zmq.ZMQError | None = None
        self._fault_told = False
        self._put_off = 0
        self._descriptor = int(self.socket.fd)
        self._loop.add_reader(self._descriptor, self._look)
        self._tick_again()
        self._look_soon()

    def bind(self, address: str) -> None:
        """As ZeroMQ's: ``tcp://127.0.0.1:5555``, ``ipc://…``, ``inproc://…``."""
        size_buffer(self.socket, address)
        self.socket.bind(address)

    def connect(self, address: str) -> None:
        """As ZeroMQ's; whether anybody is there is seen later."""
        size_buffer(self.socket, address)
        self.socket.connect(address)
        self._look_soon()

    def close(self) -> None:
        """Send what waits, as far as it can be sent at once, say good-bye, and close the socket;
        ZeroMQ goes on sending for as long as its LINGER says. What could not be sent is dropped,
        and the log says so: `drain` before. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(zmq.ZMQError):
            self._end.push()
        self._warn_of_unsent()
        with contextlib.suppress(zmq.ZMQError):
            self._end.say_goodbye()
        self._shut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """`drain`, if all went well, and `close`. Then an error that nobody was told yet is raised,
        unless another is on its way: what ended a dealer's session, or ZeroMQ's context."""
        try:
            if error is None:
                await self.drain()
        finally:
            self.close()
        if error is None:
            self._raise_untold()

    async def drain(self) -> None:
        """Wait until what was sent has gone to ZeroMQ, for two seconds at most: a session may have
        to begin first, or a window to open. At the end of an ``async with`` by itself. Whoever
        closes the socket meanwhile ends the wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.LINGER):
                self._push()
                while self._end.pending() and not self._closed:
                    await self._wait()

    def _raise_untold(self) -> None:
        """Raise what ended it, or its session, and was raised by no call yet."""
        if self._fault is not None and not self._fault_told:
            self._check_open()

    def _warn_of_unsent(self) -> None:
        if self._end.stuck() or self._end.machine.pending:
            _log.warning(
                "a ZeroMQ socket was closed before all was sent, and the rest is lost: drain() "
                "waits until it has gone, for as long as there is hope"
            )

    def _shut(self) -> None:
        """Let go of the socket and the loop, and of all who wait."""
        self._ticker.cancel()
        self._loop.remove_reader(self._descriptor)
        self.socket.close()
        self._wake()

    def _break(self, fault: zmq.ZMQError) -> None:
        """ZeroMQ's context or socket was ended by somebody else: nothing will ever come."""
        if not self._closed:
            self._closed = True
            self._fault = fault
            self._warn_of_unsent()
            self._shut()

    # --- the socket -----------------------------------------------------------------------------

    def _comes_in(self) -> bool:
        """Whether the application keeps up with what has come."""
        return True

    def _look(self) -> None:
        self._look_due = False
        if self._closed:
            return
        try:
            if not self._comes_in():
                self._more()  # or its descriptor would stay readable
                return
            if self._end.take_in() == limits.ZMQ_TAKE:
                self._look_soon()
        except zmq.ZMQError as fault:
            self._break(fault)
            return
        self._push()
        self._wake()

    def _look_soon(self) -> None:
        if not self._look_due and not self._closed:
            self._look_due = True
            self._loop.call_soon(self._look)

    def _more(self) -> bool:
        """Whether something is there to be taken in."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _push(self) -> None:
        self._push_due = False
        if self._closed:
            return
        try:
            self._end.push()
            # Sending too may have taken the news that something has come.
            if self._more():
                self._look_soon()
        except zmq.ZMQError as fault:
            self._break(fault)

    def _push_soon(self) -> None:
        if not self._push_due:
            self._push_due = True
            self._loop.call_soon(self._push)

    def _tick(self) -> None:
        late = self._loop.time() - self._tick_due > limits.ZMQ_TICK
        self._tick_again()
        try:
            if self._comes_in():
                if late:
                    self._end.catch_up()
                else:
                    self._end.take_in()  # the rest in turns: others want the loop too
            # Nobody is silent whose words are here, unread. Where the loop was held up they may
            # still be in the network: ZeroMQ has read ahead so far, and no farther.
            if self._comes_in():
                if (late or self._more()) and self._put_off < _MOST_PUT_OFF:
                    self._put_off += 1
                else:
                    self._put_off = 0
                    self._end.tick()
        except zmq.ZMQError as fault:
            self._break(fault)
            return
        self._push()
        self._wake()

    def _tick_again(self) -> None:
        self._tick_due = self._loop.time() + limits.ZMQ_TICK
        self._ticker = self._loop.call_at(self._tick_due, self._tick)

    # --- who waits ------------------------------------------------------------------------------

    async def _change(self) -> None:
        """Wait until something may have changed."""
        self._check_open()
        await self._wait()
        self._check_open()

    async def _wait(self) -> None:
        """The same, closed or not."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _check_open(self) -> None:
        if self._fault is not None:
            self._fault_told = True
            raise self._fault
        if self._closed:
            raise UsageError("this socket is closed")

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class TlsDealer(DealerFace, _Looped):
    """As `ciphermq.zmq.TlsDealer`; made where an event loop runs."""

    _KIND = Kind.DATA

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        server_name: str,
        context: zmq.Context[Any] | None = None,
        bare: bool = False,
        times: Times | None = None,
    ) -> None:
        """`tls`: see `client_context`; `server_name` is what the server's certificate must be
        for. `context`: ZeroMQ's, plain or `zmq.asyncio`'s, by default the process's own."""
        self._machine = dealer_machine(tls, self._KIND, server_name, bare=bare, times=times)
        self._inbox = self._machine.inbox
        self._told = ""
        super().__init__(
            socket_type(self._KIND), context, lambda sock: DealerEnd(sock, self._machine)
        )

    def renew(self, tls: ssl.SSLContext) -> None:
        """Begin sessions with this context from now on: see `ciphermq.zmq.TlsDealer.renew`."""
        self._machine.renew(tls)

    async def send_multipart(self, parts: Sequence[Buffer]) -> None:
        """Send a message of one or more parts; waits while too much is under way.

        While 65,536 messages wait to be received nothing is taken in, nor what the server says of
        its window: whoever sends on without receiving waits here in the end. Whoever cancels the
        wait, or is told an error, has not sent it. An error that ended the session is raised once,
        by the next call or the end of an ``async with``."""
        machine = self._machine
        self._check_open()
        self._raise_error()
        while machine.full:
            self._push()
            if machine.full:
                await self._change()
                self._raise_error()
        machine.send(parts)
        if machine.waiting.size >= limits.ZMQ_COALESCE:
            self._push()
        elif not self._push_due:
            self._push_soon()

    async def send(self, data: Buffer) -> None:
        """Send a message of one part."""
        await self.send_multipart([data])

    async def recv_multipart(self) -> Parts:
        """The next message's parts."""
        inbox, machine = self._inbox, self._machine
        if not inbox:
            machine.open()
            self._look_soon()
            while not inbox:
                self._raise_error()
                machine.take()
                self._push()
                try:
                    await self._change()
                except asyncio.CancelledError:  # a time-out's, most often
                    machine.timed_out()
                    raise
        return inbox.popleft()

    async def recv(self) -> bytes:
        """The next message, its parts joined."""
        parts = await self.recv_multipart()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _raise_error(self) -> None:
        self._told = ""
        if self._machine.error is not None:
            self._told = str(self._machine.error)
            self._machine.raise_error()

    def _raise_untold(self) -> None:
        super()._raise_untold()
        # What still waited may have been tried once more, and have failed of the same.
        if str(self._machine.error) != self._told:
            self._machine.raise_at_end()

    def _comes_in(self) -> bool:
        # Messages and what opens the window come one behind the other: to have the one, a sender
        # that does not receive would have to hold any number of the other.
        return len(self._inbox) < limits.ZMQ_INBOX


class TlsReq(TlsDealer):
    """As `ciphermq.zmq.TlsReq`; made where an event loop runs."""

    _KIND = Kind.REQUEST


class TlsRouter(RouterFace, _Looped):
    """As `ciphermq.zmq.TlsRouter`; made where an event loop runs."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        context: zmq.Context[Any] | None = None,
        bare: bool = False,
        on_end: OnEnd | None = None,
        times: Times | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """`tls`: see `server_context`. ``bare=True`` lets clients of the published example in too.
        `on_end` is called with the `Peer`, if it was known yet, and the error, or None when it
        ended in order."""
        self._machine = RouterMachine(
            tls,
            identify=client_id_of,
            bare=bare,
            on_end=guarded(on_end),
            times=times,
            bounds=bounds,
        )
        self._inbox = self._machine.inbox
        super().__init__(zmq.ROUTER, context, lambda sock: RouterEnd(sock, self._machine))

    @property
    def peers(self) -> list[Peer]:
        """Those who can be sent something."""
        return self._machine.peers

    def renew(self, tls: ssl.SSLContext) -> None:
        """Begin sessions with this context from now on: see `ciphermq.zmq.TlsRouter.renew`."""
        self._machine.renew(tls)

    def end(self, peer: Peer, reason: str = "the application has ended its session") -> None:
        """End `peer`'s session in order: see `ciphermq.zmq.TlsRouter.end`."""
        self._check_open()
        self._machine.end(peer, reason)
        self._push()
        self._wake()

    async def send_multipart(self, peer: Peer, parts: Sequence[Buffer]) -> None:
        """Send `peer` a message; waits while too much is under way to it, and in the end while
        65,536 messages wait to be received, since nothing is taken in then.

        Raises `ConnectionLost` when it has ended. Whoever cancels the wait has not sent it."""
        self._check_open()
        while peer.full:
            self._push()
            if peer.full:
                await self._change()
        if self._machine.send(peer, parts) >= limits.ZMQ_COALESCE:
            self._push()
        elif not self._push_due:
            self._push_soon()

    async def send(self, peer: Peer, data: Buffer) -> None:
        """Send `peer` a message of one part."""
        await self.send_multipart(peer, [data])

    async def recv_multipart(self) -> tuple[Peer, Parts]:
        """The next message: whose, and its parts."""
        inbox = self._inbox
        if not inbox:
            self._look_soon()
            while not inbox:
                self._machine.take()
                self._push()
                await self._change()
        return inbox.popleft()

    async def recv(self) -> tuple[Peer, bytes]:
        """The next message: whose, and its parts joined."""
        peer, parts = await self.recv_multipart()
        return peer, parts[0] if len(parts) == 1 else b"".join(parts)

    def _comes_in(self) -> bool:
        return len(self._inbox) < limits.ZMQ_INBOX
