"""The handshake with a broker, in the client's name, until OpenOk or the broker's refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ciphermq.errors import AmqpFault, ConnectionLost, TransportError, WaitTimeout
from ciphermq.proxy.deadline import Deadline
from ciphermq.proxy.end import BUFFER, VIEW, End
from ciphermq.proxy.model import Backend
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.frames import Frame
from ciphermq.wire.amqp.handshake import Handshake, Method, Role, State, Step

_NEXT_MAY_DO = frozenset({closing.CONNECTION_FORCED, closing.INTERNAL_ERROR})
"""A broker that closes with one of these is stopping or failing: another may take the client."""


class Opened(NamedTuple):
    """The broker took the client in."""

    open_ok: Frame
    rest: bytes
    """What came behind OpenOk."""


class Declined(NamedTuple):
    """The broker refused the client itself: that is for the client to know, not for another
    broker to try."""

    close: Frame | None
    """Its Close; None when it just ended, as brokers do to old clients whose login is wrong."""


class Replay(NamedTuple):
    """What the client said to us, to be said to the broker. Its repr shows no credentials."""

    handshake: bytes
    """StartOk, TuneOk and Open."""
    told_of_failure: bool
    """Whether the client understands a Close when its login is wrong."""

    def __repr__(self) -> str:
        return "Replay(hidden)"


class Approach:
    """The client's part of one handshake. `run` it once."""

    def __init__(
        self,
        end: End,
        backend: Backend,
        replay: Replay,
        timeouts: Timeouts,
        on_start: Callable[[], None],
    ) -> None:
        """`on_start` is told when the broker has said Start: it lives."""
        loop = asyncio.get_running_loop()
        self._end = end
        self._backend = backend
        self._replay = replay
        self._timeouts = timeouts
        self._on_start = on_start
        self._handshake = Handshake(Role.CLIENT)
        self._done: asyncio.Future[Opened | Declined] = loop.create_future()
        self._deadline = Deadline(loop, self._late)

    async def run(self) -> Opened | Declined:
        """Raises `TransportError` or `AmqpFault` when this broker failed and another may do."""
        self._end.on_readable(self._readable)
        self._end.write(closing.PROTOCOL_HEADER)
        self._deadline.set(self._timeouts.start, State.START.value)
        try:
            return await self._done
        finally:
            self._deadline.clear()

    def _readable(self) -> None:
        if self._done.done():
            return  # what comes behind OpenOk is the session's to read
        size = self._end.receive()
        if size is None:
            return
        if not size:
            self._lost()
            return
        handshake = self._handshake
        if (
            handshake.state is State.START
            and not handshake.waiting
            and BUFFER.startswith(b"AMQP", 0, size)
        ):
            self._fail(ConnectionLost(f"{self._where()} speaks another version of AMQP than 0.9.1"))
            return
        handshake.receive(VIEW[:size])
        try:
            while not self._done.done() and (step := handshake.next_step()) is not None:
                self._take(step)
        except AmqpFault as fault:
            self._fail(AmqpFault(fault.reply, f"{self._where()}: {fault}"))

    def _take(self, step: Step) -> None:
        if step.method is Method.START:
            self._on_start()
            # All at once: nothing of it depends on the broker's Tune, and the client waits.
            self._end.write(self._replay.handshake)
            self._deadline.set(self._timeouts.tune, State.TUNE.value)
        elif step.method is Method.TUNE:
            self._deadline.set(self._timeouts.open_ok, State.OPEN_OK.value)
        elif step.method is Method.OPEN_OK:
            self._done.set_result(Opened(step.frame, self._handshake.rest()))
        else:
            self._end.write(closing.CLOSE_OK)
            reply, text = properties.read_close(step.frame.payload)
            if reply in _NEXT_MAY_DO:
                self._fail(ConnectionLost(f"{self._where()} closed with {reply} {text}"))
            else:
                self._done.set_result(Declined(step.frame))

    def _lost(self) -> None:
        state = self._handshake.state
        if state is State.TUNE and not self._replay.told_of_failure:
            self._done.set_result(Declined(None))
            return
        why = f": {self._end.error}" if self._end.error else ""
        self._fail(
            ConnectionLost(f"{self._where()} ended the connection before its {state.value}{why}")
        )

    def _late(self, what: str) -> None:
        self._fail(WaitTimeout(f"{self._where()} did not send {what} in time"))

    def _fail(self, error: TransportError | AmqpFault) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _where(self) -> str:
        return f"backend {self._backend.name} at {self._backend.host}:{self._backend.port}"
