"""Sockets that block, on plain pyzmq: `TlsDealer`, `TlsReq`, `TlsRouter`.

Small messages share a TLS write. One that comes after a pause goes out at once; those that follow
wait until 64 KiB are together, for `flush`, for the next `recv`, or for a millisecond: a thread
beside the socket (`kept`) sees to that, and to what comes while the application is busy.

As ZeroMQ's own, a socket is for one thread at a time; `close` alone is for any.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import zmq

from ciphermq import limits
from ciphermq.errors import CipherMQError, ConnectionLost, WaitTimeout
from ciphermq.net.zmq.ends import (
    DealerEnd,
    End,
    RouterEnd,
    guarded,
    size_buffer,
)
from ciphermq.net.zmq.faces import DealerFace, RouterFace, dealer_machine, socket_type
from ciphermq.net.zmq.kept import Kept
from ciphermq.pki.names import client_id_of
from ciphermq.telemetry.logger import get_logger
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.header import Buffer, Kind
from ciphermq.wire.tlszmq.parts import Parts
from ciphermq.wire.tlszmq.router import Bounds, OnEnd, Peer, RouterMachine

_log = get_logger("net.zmq")

_RETRY: Final = 0.01
"""The same for whoever waits for something to come, which may be the answer to what can't be sent:
ZeroMQ would not wake him when it can."""


class _Plain(Kept):
    """What the three have in common."""

    def __init__(
        self, kind: int, context: zmq.Context[Any] | None, end: Callable[..., End]
    ) -> None:
        self._waits = -1
        self._answers = False
        super().__init__(kind, context, end)

    def bind(self, address: str) -> None:
        """As ZeroMQ's: ``tcp://127.0.0.1:5555``, ``ipc://…``, ``inproc://…``."""
        with self._lock:
            self._check_open()
            size_buffer(self.socket, address)
            self.socket.bind(address)

    def connect(self, address: str) -> None:
        """As ZeroMQ's; whether anybody is there is seen later."""
        with self._lock:
            self._check_open()
            size_buffer(self.socket, address)
            self.socket.connect(address)

    def flush(self) -> None:
        """Send what waits for others to share its TLS write."""
        with self._lock:
            self._push_on()

    def close(self, timeout: float = limits.LINGER) -> None:
        """Send what waits, for so many seconds at most (a session may have to begin first, or a
        window to open), say good-bye, and close the socket; ZeroMQ goes on sending for as long as
        its LINGER says. What can't be sent is logged as a warning; nothing is raised, not even an
        error that no call has told yet: that is for the end of a ``with``. Idempotent.

        Another thread may call it, to stop the one that uses the socket: whoever waits in it gets
        `UsageError` ("this socket is closed") within a quarter of a second.
        """
        self._shut(timeout)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the socket. Where nothing else has been raised, a client then raises the error that
        has ended its session and that no call has told yet: what was sent last may be lost. Who
        does not want to hear of it calls `close` before. A server that left in order, and had taken
        all, is no error."""
        self.close()
        if error is None:
            self._raise_at_end()

    # --- of each kind -------------------------------------------------------------------------

    def _raise_at_end(self) -> None:
        """Raise what has ended the session, if no call has told it; a router's are for `on_end`."""

    @abstractmethod
    def _forget_all(self) -> tuple[int, str]:
        """The socket closes: nothing can be received any more. How many messages were not sent (at
        least), and why."""

    # --- with the lock held -------------------------------------------------------------------

    def _shut(self, timeout: float) -> None:
        self._closed.set()  # whoever waits with the lock sees it, and leaves
        with self._lock:
            if self.socket.closed:
                return
            with contextlib.suppress(zmq.ZMQError):
                deadline = time.monotonic() + timeout
                self._push()
                while self._end.pending() and self._step(deadline):
                    self._push()
            with contextlib.suppress(zmq.ZMQError):
                self._push()
            unsent, why = self._forget_all()
            with contextlib.suppress(zmq.ZMQError):
                self._end.say_goodbye()
            self.socket.close()
        self._told.set()
        self._roused.set()
        if unsent:
            _log.warning("a socket was closed before all was sent", messages=unsent, reason=why)

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

    def _wait(
        self, over: Callable[[], bool], timeout: float | None, late: Callable[[], str]
    ) -> None:
        """Send and take in until it is `over`; `WaitTimeout`, with what `late` says, after
        `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        while not over():
            if not in_time:
                raise WaitTimeout(late())
            self._push()
            in_time = self._step(deadline)
            self._check_open()

    def _step(self, deadline: float | None) -> bool:
        """Look at the clocks, then wait a little for what may come. Whoever calls has looked
        whether he must wait at all, and has sent what can be sent. False at the end: what came in
        time has been taken in, and he looks once more."""
        if self._thread is None:  # there will be sessions, and the application may turn its back
            self._start_thread()
        now = time.monotonic()
        # What came may be all that is to come, and what the caller waits for.
        if now - self._ticked >= limits.ZMQ_TICK and self._look(now):
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
        if not self._end.take_one():
            self._let_others()
        # What is sent now is probably an answer, for which somebody waits.
        self._answers = True
        return True


class TlsDealer(DealerFace, _Plain):
    """A DEALER whose messages go through TLS to one `TlsRouter`, over however many hops.

    Errors end a session and are raised once, by the next call: `TlsFailed`, `ConnectionLost`,
    `ProtocolNotOffered`. The call after that begins a new session; what was under way in the old
    one may be lost, as ZeroMQ's messages may.

    A thread beside the application hears that a session has ended, keeps one alive, and tries again
    what got no answer: do not poll or read `socket`, which it uses too.
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
        inbox = self._inbox
        if inbox:
            try:
                return inbox.popleft()
            except IndexError:  # another thread has had it, or has closed the socket
                pass
        return self._wait_for_message(timeout)

    def recv(self, *, timeout: float | None = None) -> bytes:
        """The next message, its parts joined."""
        parts = self.recv_multipart(timeout=timeout)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # --- with the lock held -------------------------------------------------------------------

    def _wait_for_room(self, timeout: float | None) -> None:
        machine = self._machine
        self._check_open()
        self._raise_error()
        self._push_on()
        late = f"the server at {machine.where} did not take what was sent in time"
        self._wait(self._has_room, timeout, lambda: late)
        self._full = False

    def _has_room(self) -> bool:
        self._raise_error()
        self._push()  # what has come may have opened the window
        return not self._machine.full

    def _wait_for_message(self, timeout: float | None) -> Parts:
        with self._lock:
            self._check_open()
            self._machine.open()
            self._wait(self._has_come, timeout, self._in_vain)
            return self._inbox.popleft()

    def _in_vain(self) -> str:
        machine = self._machine
        machine.timed_out()
        return f"nothing came from the server at {machine.where} in time{machine.hint}"

    def _has_come(self) -> bool:
        if self._inbox:
            return True
        self._raise_error()
        self._machine.take()
        return False

    def _keeps_up(self) -> bool:
        return len(self._inbox) < limits.ZMQ_INBOX

    def _raise_at_end(self) -> None:
        self._machine.raise_at_end()

    def _raise_error(self) -> None:
        try:
            self._machine.raise_error()
        except CipherMQError:
            # What waits goes in the next session, though this call has nothing more to do with it.
            if not self._closed.is_set() and self._end.pending():
                self._tell()
            raise

    def _forget_all(self) -> tuple[int, str]:
        self._inbox.clear()
        self._full = True  # the next `send` looks why, and finds the socket closed
        unsent = len(self._machine.waiting.messages) or int(self._end.pending())
        return unsent, str(self._machine.error or "the server did not take it in time")


class TlsReq(TlsDealer):
    """A REQ: a request, its answer, the next request. With ``bare=True`` it speaks to servers of
    the published example: TLS bytes behind an empty frame, and nothing else."""

    _KIND = Kind.REQUEST

    def _rests(self) -> bool:
        # Between two requests nobody wants a session: that none can begin is told who asks next.
        return not self._end.pending()


class TlsRouter(RouterFace, _Plain):
    """A ROUTER for any number of clients, each known by its certificate.

    A session that fails ends by itself: `on_end` is told, the others go on.

    While the application works on what it has received, a thread beside it takes in what comes
    meanwhile, answers clients that ask whether anybody is there, and lets others begin sessions,
    for as long as no more than 65,536 messages (`limits.ZMQ_INBOX`) wait to be received. So do not
    poll or read `socket`, which it uses too.
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
        it must return at once, raise nothing, and leave the router alone; the thread may be who
        calls it."""
        self._machine = RouterMachine(
            tls,
            identify=client_id_of,
            bare=bare,
            on_end=guarded(on_end),
            times=times,
            bounds=bounds,
        )
        super().__init__(zmq.ROUTER, context, lambda sock: RouterEnd(sock, self._machine))
        self._inbox: deque[tuple[Peer, Parts]] = deque()
        """What the application is given next; what comes meanwhile is in the machine's."""

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
            try:
                size = self._machine.send(peer, parts)
            except ConnectionLost:
                self._check_open()
                raise
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
        inbox = self._inbox
        if inbox:
            try:
                return inbox.popleft()
            except IndexError:  # another thread has had it, or has closed the socket
                pass
        return self._wait_for_message(timeout)

    def recv(self, *, timeout: float | None = None) -> tuple[Peer, bytes]:
        """The next message: whose, and its parts joined."""
        peer, parts = self.recv_multipart(timeout=timeout)
        return peer, parts[0] if len(parts) == 1 else b"".join(parts)

    # --- with the lock held -------------------------------------------------------------------

    def _wait_for_room(self, peer: Peer, timeout: float | None) -> None:
        self._push_on()
        late = f"{peer!r} did not take what was sent in time"

        def has_room() -> bool:
            self._push()  # as above
            return not peer.full

        self._wait(has_room, timeout, lambda: late)

    def _wait_for_message(self, timeout: float | None) -> tuple[Peer, Parts]:
        with self._lock:
            self._check_open()
            # The application has had all it was given. What the thread took in meanwhile counts
            # as had too: else a client would wait for its window until no other sends anything. So
            # two windows of a client may be here.
            self._machine.take()
            self._wait(self._has_come, timeout, lambda: "nothing came from any client in time")
            return self._inbox.popleft()

    def _has_come(self) -> bool:
        machine = self._machine
        if not self._inbox:
            self._inbox, machine.inbox = machine.inbox, self._inbox
            if not self._inbox:
                machine.take()
        return bool(self._inbox)

    def _keeps_up(self) -> bool:
        return len(self._machine.inbox) < limits.ZMQ_INBOX

    def _forget_all(self) -> tuple[int, str]:
        self._inbox.clear()
        self._machine.inbox.clear()
        found = (peer.speaker for peer in self._machine.peers)
        unsent = sum(len(speaker.waiting.messages) for speaker in found if speaker is not None)
        return unsent or int(self._end.pending()), "clients did not take it in time"
