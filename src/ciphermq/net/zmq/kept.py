"""What a socket that blocks shares with the thread beside it.

The application sends and receives by itself; the thread does what must not wait for it. Small
messages that were to share a TLS write go out a millisecond later though nothing follows. And a few
times a second, unless the application has done so, it looks at the socket and the clocks: takes in
what has come, answers, lets handshakes begin and go on, tries again what got no answer, and learns
that a session has ended. So a server that works on a request is there for its other clients, and a
client that only sends is told that nobody is there.

It holds the socket's lock while it does so, and the socket itself only then: a socket that nobody
has any more is collected, with a `ResourceWarning`, and its thread ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import zmq

from ciphermq import limits
from ciphermq.errors import UsageError
from ciphermq.net.zmq.ends import End, configure, new_socket
from ciphermq.telemetry.logger import get_logger

_log = get_logger("net.zmq")

_SLOWEST: Final = 0.05
"""Seconds between looks of the thread at what can't be sent yet."""

_BREATH: Final = 0.0001
"""Seconds for which whoever waits lets go of the lock: enough for another thread to wake up."""

_NO_TAIL: Final = -1

_Pause = tuple[threading.Event, float]
"""What the thread waits for until its next turn, and for how many seconds at most."""


class Kept(ABC):
    """A socket of ZeroMQ's, the machine behind it, a lock, and the thread."""

    def __init__(
        self, kind: int, context: zmq.Context[Any] | None, end: Callable[..., End]
    ) -> None:
        self.socket = new_socket(kind, context)
        """ZeroMQ's own, for its options, and to bind and connect before the first message. Not to
        be polled, read or written: the thread uses it too, and what came may be here already."""
        configure(self.socket)
        self._end = end(self.socket)
        self._lock = threading.Lock()
        self._pushed = 0.0
        self._pushes = 0
        self._ticked = 0.0
        self._told = threading.Event()
        """Whether the thread is to see to it that what waits is sent."""
        self._tail_from = _NO_TAIL
        self._tail_delay = limits.ZMQ_TAIL_DELAY
        self._dozes = False
        """Whether the thread looks seldom: what waits could not be sent when it last looked."""
        self._roused = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def __del__(self) -> None:
        closed = getattr(self, "_closed", None)
        if closed is None or closed.is_set():
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            with contextlib.suppress(Exception):  # at the interpreter's end much is gone already
                self._shut(0.0)

    # --- with the lock held -------------------------------------------------------------------

    @abstractmethod
    def _keeps_up(self) -> bool:
        """Whether the application has not too many messages to receive already."""

    def _rests(self) -> bool:
        """Whether there is nothing to look after until the application calls."""
        return False

    @abstractmethod
    def _shut(self, timeout: float) -> None:
        """Close the socket, within `timeout`. It takes the lock by itself."""

    def _push(self) -> None:
        self._end.push()
        self._pushes += 1
        self._pushed = time.monotonic()

    def _look(self, now: float) -> bool:
        """Take in what has come, look at the clocks, send what both bring about; whether anything
        came."""
        self._ticked = now
        # While the application did something else, nobody looked: what came counts as heard.
        came = self._end.catch_up()
        if self._keeps_up():  # else the silence is our own
            self._end.tick()
        self._push()
        return came

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise UsageError("this socket is closed")

    def _tell(self) -> None:
        """Have the thread send what waits, if nobody else does in a moment."""
        self._told.set()
        if self._thread is None:
            self._start_thread()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(
            target=_keep, args=(weakref.ref(self),), name="ciphermq zmq", daemon=True
        )
        self._thread.start()

    def _let_others(self) -> None:
        """Nothing has come: whoever wants to close the socket, or to send, gets the lock. Only to
        release it is not enough: whoever does so has it again before another wakes up."""
        if not self._closed.is_set():
            self._lock.release()
            try:
                time.sleep(_BREATH)
            finally:
                self._lock.acquire()

    # --- the thread's turns -------------------------------------------------------------------

    def _turn(self) -> _Pause | None:
        """One turn of the thread, and what it waits for then; None: it is over."""
        if self._closed.is_set():
            return None
        if self._told.is_set():
            return self._push_tail()
        if time.monotonic() - self._ticked >= limits.ZMQ_TICK and not self._rests():
            with self._lock:
                if self._closed.is_set():
                    return None
                now = time.monotonic()
                if now - self._ticked >= limits.ZMQ_TICK:
                    self._look(now)
        return self._told, limits.ZMQ_TICK

    def _push_tail(self) -> _Pause | None:
        """Wait a moment; then, unless the application has sent it meanwhile, send what waits."""
        if self._tail_from == _NO_TAIL:
            return self._wait_on(limits.ZMQ_TAIL_DELAY)
        if self._roused.is_set():
            self._roused.clear()
            self._tail_delay = limits.ZMQ_TAIL_DELAY
        with self._lock:
            if self._closed.is_set():
                return None
            now = time.monotonic()
            if now - self._ticked >= limits.ZMQ_TICK:
                self._look(now)
            elif self._pushes != self._tail_from and self._end.pending():
                return self._wait_on(limits.ZMQ_TAIL_DELAY)
            else:
                self._push()
                if self._end.pending():
                    # What comes may be what lets us send: the window bounds how much it is.
                    self._end.take_in()
                    self._push()
            self._dozes = self._end.pending()
            if self._dozes:
                return self._wait_on(min(2 * self._tail_delay, _SLOWEST))
            self._told.clear()
            self._tail_from = _NO_TAIL
        return self._told, limits.ZMQ_TICK

    def _wait_on(self, delay: float) -> _Pause:
        self._tail_from, self._tail_delay = self._pushes, delay
        return self._roused, delay


def _keep(of: weakref.ref[Kept]) -> None:
    """The thread."""
    while True:
        kept = of()
        if kept is None:
            return
        try:
            pause = kept._turn()  # noqa: SLF001 - it is its other half
        except zmq.ZMQError as error:
            # A context that was terminated: the application's next call says so.
            _log.debug("the thread of a ZeroMQ socket ends", error=str(error))
            return
        del kept
        if pause is None:
            return
        event, delay = pause
        event.wait(delay)
