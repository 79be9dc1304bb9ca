"""Sockets that block, on plain pyzmq: `TlsDealer`, `TlsReq`, `TlsRouter`.

Small messages share a TLS write. One that comes after a pause goes out at once; those that follow
wait until 64 KiB are together, for `flush`, for the next `recv`, or for a millisecond: a thread
sees to that, which does nothing while the application sends or receives by itself.

As ZeroMQ's own, a socket is for one thread at a time.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import zmq

from ciphermq import limits
from ciphermq.errors import UsageError, WaitTimeout
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
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.header import Buffer, Kind
from ciphermq.wire.tlszmq.parts import Parts
from ciphermq.wire.tlszmq.router import Bounds, OnEnd, Peer, RouterMachine

_SLOWEST: Final = 0.05
"""Seconds between looks of the thread at what can't be sent yet."""

_RETRY: Final = 0.01
"""The same for whoever waits for something to come, which may be the answer to what can't be sent:
ZeroMQ would not wake him when it can."""


class _Plain:
    """What the three have in common."""

    def __init__(
        self, kind: int, context: zmq.Context[Any] | None, end: Callable[..., End]
    ) -> None:
        self.socket = new_socket(kind, context)
        """ZeroMQ's own, for its options, and to bind and connect."""
        configure(self.socket)
        self._end = end(self.socket)
        self._lock = threading.Lock()
        self._pushed = 0.0
        self._pushes = 0
        self._ticked = 0.0
        self._waits = -1
        self._answers = False
        self._told = threading.Event()
        self._dozes = False
        """Whether the thread looks seldom: what waits could not be sent when it last looked."""
        self._roused = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def bind(self, address: str) -> None:
        """As ZeroMQ's: ``tcp://127.0.0.1:5555``, ``ipc://…``, ``inproc://…``."""
        size_buffer(self.socket, address)
        self.socket.bind(address)

    def connect(self, address: str) -> None:
        """As ZeroMQ's; whether anybody is there is seen later."""
        size_buffer(self.socket, address)
        self.socket.connect(address)

    def flush(self) -> None:
        """Send what waits for others to share its TLS write."""
        with self._lock:
            self._push_on()

    def close(self, timeout: float = limits.LINGER) -> None:
        """Send what waits, for so many seconds at most (a session may have to begin first, or a
        window to open), say good-bye, and close the socket; ZeroMQ goes on sending for as long as
        its LINGER says. Idempotent."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            with contextlib.suppress(zmq.ZMQError):
                deadline = time.monotonic() + timeout
                self._push()
                while self._end.pending() and self._step(deadline):
                    self._push()
            with contextlib.suppress(zmq.ZMQError):
                self._push()
                self._end.say_goodbye()
            self.socket.close()
        self._told.set()
        self._roused.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- with the lock held -------------------------------------------------------------------

    def _push(self) -> None:
        self._end.push()
        self._pushes += 1
        self._pushed = time.monotonic()

    def _push_on(self) -> None:
        """Send what can be sent; the thread sees to the rest."""
        self._check_open()
        self._push()
        if self._end.pending():  # the window is closed: has the peer opened it meanwhile?
            self._end.take_in()
            self._push()
            if self._end.pending() and not self._told.is_set():
                self._tell()

    def _tail(self) -> None:
        """The first message since the last push waits: does it go now, or with others?"""
        self._check_open()
        answers, self._answers = self._answers, False
        if answers or time.monotonic() - self._pushed > limits.ZMQ_TAIL_DELAY:
            self._push()
            if not self._end.pending():
                return
        if not self._told.is_set():
            self._tell()
        elif self._dozes:
            self._dozes = False
            self._roused.set()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise UsageError("this socket is closed")

    def _tell(self) -> None:
        """Have the thread send what waits, if nobody else does in a moment."""
        self._told.set()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._push_tails, name="ciphermq zmq", daemon=True
            )
            self._thread.start()

    def _step(self, deadline: float | None) -> bool:
        """Look at the clocks, then wait a little for what may come. Whoever calls has looked
        whether he must wait at all, and has sent what can be sent. False at the end: what came in
        time has been taken in, and he looks once more."""
        now = time.monotonic()
        if now - self._ticked >= limits.ZMQ_TICK:
            self._ticked = now
            # While the application did something else, nobody looked: what came counts as heard.
            came = self._end.catch_up()
            self._end.tick()
            self._push()
            if came:  # it may be all that is to come, and what the caller waits for
                self._answers = True
                return True
        wait = _RETRY if self._end.stuck() else limits.ZMQ_TICK
        if deadline is not None:
            if now >= deadline:
                self._end.take_in()
                return False
            wait = min(wait, deadline - now)
        milliseconds = max(1, int(wait * 1000))
        if self._waits != milliseconds:
            self._waits = self.socket.rcvtimeo = milliseconds
        self._end.take_one()
        # What is sent now is probably an answer, for which somebody waits.
        self._answers = True
        return True

    # --- the thread ---------------------------------------------------------------------------

    def _push_tails(self) -> None:
        # A context that was terminated ends the thread; the application's next call says so.
        with contextlib.suppress(zmq.ZMQError):
            while not self._closed.is_set():
                self._told.wait()
                self._push_tail()

    def _push_tail(self) -> None:
        """Wait a moment; then, unless the application has sent it meanwhile, send what waits."""
        delay = limits.ZMQ_TAIL_DELAY
        while not self._closed.is_set():
            seen = self._pushes
            if self._roused.wait(delay):
                self._roused.clear()
                delay = limits.ZMQ_TAIL_DELAY
            with self._lock:
                if self._closed.is_set():
                    return
                if self._pushes != seen and self._end.pending():
                    delay = limits.ZMQ_TAIL_DELAY
                    continue
                self._push()
                if self._end.pending():
                    # What comes may be what lets us send: the window bounds how much it is.
                    self._end.take_in()
                    self._push()
                self._dozes = self._end.pending()
                if not self._dozes:
                    self._told.clear()
                    return
                delay = min(2 * delay, _SLOWEST)


class TlsDealer(DealerFace, _Plain):
    """A DEALER whose messages go through TLS to one `TlsRouter`, over however many hops.

    Errors end a session and are raised once, by the next call: `TlsFailed`, `ConnectionLost`,
    `ProtocolNotOffered`. The call after that begins a new session; what was under way in the old
    one may be lost, as ZeroMQ's messages may.
    """

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
        for. `context`: ZeroMQ's, by default the process's own."""
        self._machine = dealer_machine(tls, self._KIND, server_name, bare=bare, times=times)
        self._enough = limits.ZMQ_COALESCE
        self._full = False
        super().__init__(
            socket_type(self._KIND), context, lambda sock: DealerEnd(sock, self._machine)
        )
        self._inbox = self._machine.inbox

    def renew(self, tls: ssl.SSLContext) -> None:
        """Begin sessions with this context from now on: a certificate that was renewed, a newer
        revocation list. The session there is goes on. `UsageError` as when it is made."""
        with self._lock:
            self._machine.renew(tls)

    def send_multipart(self, parts: Sequence[Buffer], *, timeout: float | None = None) -> None:
        """Send a message of one or more parts; waits while too much is under way.

        `WaitTimeout` after `timeout` seconds, or an error that ended the session: the message is
        not sent.
        """
        machine = self._machine
        with self._lock:
            if self._full or machine.error is not None:
                self._wait_for_room(timeout)
            first = not machine.waiting.messages
            machine.send(parts)
            if machine.waiting.size >= self._enough:
                self._push_on()
                self._full = machine.full
                # While the window is closed, more is gathered before it is tried again.
                self._enough = machine.waiting.size + limits.ZMQ_COALESCE
            elif first:
                self._tail()

    def send(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Send a message of one part."""
        self.send_multipart([data], timeout=timeout)

    def recv_multipart(self, *, timeout: float | None = None) -> Parts:
        """The next message's parts; `WaitTimeout` after `timeout` seconds."""
        if self._inbox:
            return self._inbox.popleft()
        return self._wait_for_message(timeout)

    def recv(self, *, timeout: float | None = None) -> bytes:
        """The next message, its parts joined."""
        parts = self.recv_multipart(timeout=timeout)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _wait_for_room(self, timeout: float | None) -> None:
        machine = self._machine
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        machine.raise_error()
        self._push_on()
        while machine.full:
            if not in_time:
                raise WaitTimeout(
                    f"the server at {machine.where} did not take what was sent in time"
                )
            in_time = self._step(deadline)
            machine.raise_error()
            self._push()
        self._full = False

    def _wait_for_message(self, timeout: float | None) -> Parts:
        machine, inbox = self._machine, self._inbox
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        with self._lock:
            self._check_open()
            machine.open()
            while not inbox:
                machine.raise_error()
                if not in_time:
                    raise WaitTimeout(f"nothing came from the server at {machine.where} in time")
                machine.take()
                self._push()
                in_time = self._step(deadline)
            return inbox.popleft()


class TlsReq(TlsDealer):
    """A REQ: a request, its answer, the next request. With ``bare=True`` it speaks to servers of
    the published example: TLS bytes behind an empty frame, and nothing else."""

    _KIND = Kind.REQUEST


class TlsRouter(RouterFace, _Plain):
    """A ROUTER for any number of clients, each known by its certificate.

    A session that fails ends by itself: `on_end` is told, the others go on.
    """

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
        """`tls`: see `server_context`. ``bare=True`` lets clients of the published example in too:
        REQ sockets that send TLS bytes behind an empty frame, and nothing else. `on_end` is called
        with the `Peer`, if it was known yet, and the error, or None when it ended in order;
        it must return at once, raise nothing, and leave the router alone."""
        self._machine = RouterMachine(
            tls,
            identify=client_id_of,
            bare=bare,
            on_end=guarded(on_end),
            times=times,
            bounds=bounds,
        )
        super().__init__(zmq.ROUTER, context, lambda sock: RouterEnd(sock, self._machine))
        self._inbox = self._machine.inbox

    @property
    def peers(self) -> list[Peer]:
        """Those who can be sent something."""
        with self._lock:
            return self._machine.peers

    def renew(self, tls: ssl.SSLContext) -> None:
        """Begin sessions with this context from now on: a certificate that was renewed, a newer
        revocation list. Those there are go on: see `end`. `UsageError` as when it is made."""
        with self._lock:
            self._machine.renew(tls)

    def end(self, peer: Peer, reason: str = "the application has ended its session") -> None:
        """End `peer`'s session in order: `on_end` is told, with `reason` as a `ConnectionLost`.

        What waits for it is not sent; what came of it can still be received. It may begin a new
        session, if the context lets it. Nothing happens when it has ended already.
        """
        with self._lock:
            self._check_open()
            self._machine.end(peer, reason)
            self._push()

    def send_multipart(
        self, peer: Peer, parts: Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        """Send `peer` a message; waits while too much is under way to it.

        Raises `ConnectionLost` when it has ended, `WaitTimeout` after `timeout` seconds: the
        message is not sent.
        """
        with self._lock:
            if peer.full:
                self._wait_for_room(peer, timeout)
            size = self._machine.send(peer, parts)
            if size >= limits.ZMQ_COALESCE:
                self._push_on()
            elif not (self._answers and self._inbox):  # else there are more answers to come
                self._tail()
            elif not self._told.is_set():
                self._tell()

    def send(self, peer: Peer, data: Buffer, *, timeout: float | None = None) -> None:
        """Send `peer` a message of one part."""
        self.send_multipart(peer, [data], timeout=timeout)

    def recv_multipart(self, *, timeout: float | None = None) -> tuple[Peer, Parts]:
        """The next message: whose, and its parts; `WaitTimeout` after `timeout` seconds."""
        if self._inbox:
            return self._inbox.popleft()
        return self._wait_for_message(timeout)

    def recv(self, *, timeout: float | None = None) -> tuple[Peer, bytes]:
        """The next message: whose, and its parts joined."""
        peer, parts = self.recv_multipart(timeout=timeout)
        return peer, parts[0] if len(parts) == 1 else b"".join(parts)

    def _wait_for_room(self, peer: Peer, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        self._push_on()
        while peer.full:
            if not in_time:
                raise WaitTimeout(f"{peer!r} did not take what was sent in time")
            in_time = self._step(deadline)
            self._push()

    def _wait_for_message(self, timeout: float | None) -> tuple[Peer, Parts]:
        machine, inbox = self._machine, self._inbox
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        with self._lock:
            self._check_open()
            while not inbox:
                if not in_time:
                    raise WaitTimeout("nothing came from any client in time")
                machine.take()
                self._push()
                in_time = self._step(deadline)
            return inbox.popleft()
