"""A ZeroMQ socket with a machine behind it. Nothing here waits."""

from __future__ import annotations

import ipaddress
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Final

import zmq

from ciphermq import limits
from ciphermq.errors import CipherMQError
from ciphermq.net.memory import keep_freed_memory
from ciphermq.net.zmq.turns import Turns
from ciphermq.telemetry.logger import get_logger
from ciphermq.wire.tlszmq.dealer import DealerMachine
from ciphermq.wire.tlszmq.header import DELIMITER, TOKEN_SIZE, Buffer
from ciphermq.wire.tlszmq.router import OnEnd, Peer, RouterMachine

_log = get_logger("net.zmq")

_COPIED: Final = 256
"""Frames shorter than this are envelopes and headers: to copy them costs less than to keep them."""

# As plain numbers: to join two of pyzmq's flags costs as much as to send a frame.
NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)

# Around the methods in Python that pyzmq has in front of these, whose options are not used here:
# for a small frame those take a fifth of the time.
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv

_CATCH_UP: Final = 64
"""Times `limits.ZMQ_TAKE` messages: a flood can't keep a socket from looking at its clocks."""

AGAIN: Final = frozenset({zmq.EAGAIN, zmq.EFSM})
"""Not now: nothing has come, nothing fits, or it is not this REQ's turn."""


def new_socket(kind: int, context: zmq.Context[Any] | None = None) -> zmq.Socket[bytes]:
    """A plain socket, also where `context` (by default the process's own) makes others."""
    made: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(
        kind, socket_class=zmq.Socket
    )
    return made


def new_token() -> bytes:
    """A token for a session: nobody can guess it, and so end the session from afar."""
    return secrets.token_bytes(TOKEN_SIZE)


def configure(sock: zmq.Socket[bytes]) -> None:
    """What every socket of ours has set: see the comments."""
    keep_freed_memory()
    sock.linger = int(limits.LINGER * 1000)
    # A peer could otherwise have any amount of memory allocated by announcing a frame.
    sock.maxmsgsize = limits.MAX_ZMQ_FRAME
    if sock.type == zmq.ROUTER:
        # Without this a message for a peer that is gone or slow would be dropped in silence.
        sock.router_mandatory = True
    if sock.type == zmq.REQ:
        # After a time-out, or a lost answer, the next request may be sent.
        sock.req_relaxed = True


def guarded(on_end: OnEnd | None) -> OnEnd | None:
    """`on_end`, whose exceptions are logged: raised where a session ends, one would reach whoever
    happens to receive, or end the thread that sends what waits for others."""
    if on_end is None:
        return None

    def tell(peer: Peer | None, error: CipherMQError | None) -> None:
        try:
            on_end(peer, error)
        except Exception:  # noqa: BLE001 - it is the application's
            _log.exception("on_end, which is to raise nothing, has raised", peer=repr(peer))

    return tell


def size_buffer(sock: zmq.Socket[bytes], address: str) -> None:
    """Before a socket binds or connects: small buffers on the loopback (`limits.ZMQ_LOCAL_BUFFER`),
    the system's own elsewhere. What the application has set stays."""
    if sock.sndbuf in (-1, limits.ZMQ_LOCAL_BUFFER):
        sock.sndbuf = limits.ZMQ_LOCAL_BUFFER if _is_loopback(address) else -1


def _is_loopback(address: str) -> bool:
    if not address.startswith("tcp://"):
        return False
    host = address[len("tcp://") :].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read(sock: zmq.Socket[bytes], flags: int) -> list[Buffer]:
    """The next message, its large frames not copied; raises as `zmq.Socket.recv` does."""
    frames: list[Buffer] = []
    while True:
        frame = _recv(sock, flags, False)
        frames.append(frame.bytes if len(frame) < _COPIED else frame.buffer)
        if not frame.more:
            return frames


def write(sock: zmq.Socket[bytes], frames: list[Buffer]) -> None:
    """Send a message, whole or not at all; raises `zmq.Again` when there is no room."""
    last = len(frames) - 1
    for at, frame in enumerate(frames):
        flags = NOBLOCK if at == last else _MORE
        # Without a copy pyzmq would note when ZeroMQ is done with the bytes, which costs a thread's
        # turn at the interpreter for every frame: more than copying it.
        _send(sock, frame, flags)


class _End(ABC):
    """What both ends do the same way."""

    @abstractmethod
    def take_in(self, most: int = limits.ZMQ_TAKE) -> int:
        """Take in what has come, up to `most` messages; how many there were."""

    def catch_up(self) -> bool:
        """Take in what has come, before clocks are looked at; whether there was anything."""
        for count in range(_CATCH_UP):
            if (taken := self.take_in()) < limits.ZMQ_TAKE:
                return bool(count or taken)
        return True


class DealerEnd(_End):
    """A DEALER or REQ socket."""

    def __init__(self, sock: zmq.Socket[bytes], machine: DealerMachine) -> None:
        self.sock = sock
        self.machine = machine
        self._prefix = [DELIMITER] if sock.type == zmq.REQ else []  # a REQ takes it off
        self._stuck: deque[list[Buffer]] = deque()
        self._turns = Turns()

    def stuck(self) -> bool:
        """Whether ZeroMQ had no room for something."""
        return bool(self._stuck)

    def pending(self) -> bool:
        """Whether something waits to be sent, and could be: not before an error was told."""
        return self.machine.error is None and (bool(self._stuck) or self.machine.pending)

    def take_in(self, most: int = limits.ZMQ_TAKE) -> int:
        """Take in what has come, up to `most` messages, as long as the application has not too
        many to receive already; how many there were."""
        machine, prefix, now = self.machine, self._prefix, time.monotonic()
        for count in range(most):
            if len(machine.inbox) >= limits.ZMQ_INBOX:
                return count
            try:
                frames = read(self.sock, NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno not in AGAIN:
                    raise
                return count
            machine.receive(prefix + frames, now)
        return most

    def take_one(self) -> bool:
        """Wait for a message for as long as the socket's own time-out says, and take it in; whether
        one came."""
        try:
            frames = read(self.sock, 0)
        except zmq.ZMQError as error:
            if error.errno not in AGAIN:
                raise
            if error.errno == zmq.EFSM:
                time.sleep(limits.ZMQ_TAIL_DELAY)
            return False
        self.machine.receive(self._prefix + frames, time.monotonic())
        return True

    def push(self) -> None:
        """Send what can be sent now."""
        stuck = self._stuck
        if not stuck and self.machine.idle:
            return
        while stuck:
            if not self._sent(stuck[0]):
                return
            stuck.popleft()
        self._push_more()

    def _push_more(self) -> None:
        stuck = self._stuck
        for frames in self.machine.outgoing(time.monotonic()):
            if stuck or not self._sent(frames):
                stuck.append(frames)
                if len(stuck) > limits.ZMQ_TAKE:
                    return

    def tick(self) -> None:
        """Look at the clocks."""
        for frames in self.machine.tick(time.monotonic()):
            if not self._stuck:  # none may overtake these; it is asked again
                self._sent(frames)

    def say_goodbye(self) -> None:
        """Tell the peer that this is the end."""
        for frames in self.machine.close():
            self._sent(frames)

    def _sent(self, frames: list[Buffer]) -> bool:
        try:
            write(self.sock, frames)
        except zmq.ZMQError as error:
            if error.errno not in AGAIN:
                raise
            return False
        self._turns.give(frames)
        return True


class RouterEnd(_End):
    """A ROUTER socket."""

    def __init__(self, sock: zmq.Socket[bytes], machine: RouterMachine) -> None:
        self.sock = sock
        self.machine = machine
        self._turns = Turns()

    def stuck(self) -> bool:
        """Whether ZeroMQ had no room for something."""
        return self.machine.stuck

    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return self.machine.pending

    def take_in(self, most: int = limits.ZMQ_TAKE) -> int:
        """Take in what has come, up to `most` messages, as long as the application has not too
        many to receive already; how many there were."""
        machine, now = self.machine, time.monotonic()
        for count in range(most):
            if len(machine.inbox) >= limits.ZMQ_INBOX:
                return count
            try:
                frames = read(self.sock, NOBLOCK)
            except zmq.Again:
                return count
            machine.receive(frames, now)
        return most

    def take_one(self) -> bool:
        """Wait for a message for as long as the socket's own time-out says, and take it in; whether
        one came."""
        try:
            frames = read(self.sock, 0)
        except zmq.Again:
            return False
        self.machine.receive(frames, time.monotonic())
        return True

    def push(self) -> None:
        """Send what can be sent now."""
        machine, sock = self.machine, self.sock
        gone: list[Peer | None] = []
        for peer, frames in machine.outgoing():
            try:
                write(sock, frames)
            except zmq.Again:
                machine.put_back(peer, frames)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                gone.append(peer)
            else:
                self._turns.give(frames)
        if gone:
            self.catch_up()  # what they said last may have come: their good-bye
            for peer in gone:
                machine.unreachable(peer)

    def tick(self) -> None:
        """Look at the clocks."""
        self.machine.tick(time.monotonic())

    def say_goodbye(self) -> None:
        """Tell the peers that this is the end."""
        for frames in self.machine.close():
            try:
                write(self.sock, frames)
            except zmq.ZMQError:  # whoever can't hear it will find out
                continue


End = DealerEnd | RouterEnd
