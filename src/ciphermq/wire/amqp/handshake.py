"""The handshake of both sides as one table: state × method → what follows.

Towards clients the proxy speaks as a broker (`Role.BROKER`), towards brokers as a client
(`Role.CLIENT`). What is not in the table is refused with the reply code that says why. The table
ends where the connection is open: from there on bytes go by (`frames.Scanner`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import AmqpFault, NotAmqp
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.frames import Frame, FrameReader
from ciphermq.wire.amqp.leaps import BODY, HEADER, HEARTBEAT, METHOD


class Role(Enum):
    """Whose part the proxy plays."""

    BROKER = "broker"
    CLIENT = "client"


class State(Enum):
    """What is waited for."""

    HEADER = "the protocol header"
    START_OK = "StartOk"
    TUNE_OK = "TuneOk"
    OPEN = "Open"
    HELD = "the broker"
    """The client waits for OpenOk, and may send nothing but heartbeats and Close."""
    START = "Start"
    TUNE = "Tune"
    OPEN_OK = "OpenOk"
    DONE = "nothing: the connection is open"
    CLOSING = "CloseOk"
    """The proxy has sent Close."""
    CLOSED = "nothing: the connection is closed"

    __hash__ = object.__hash__  # Enum's own is written in Python, and this is looked up often


class Method(Enum):
    """Methods of class connection, by number; the header is no method, but moves the state too."""

    PROTOCOL_HEADER = 0
    START = 10
    START_OK = 11
    SECURE = 20
    SECURE_OK = 21
    TUNE = 30
    TUNE_OK = 31
    OPEN = 40
    OPEN_OK = 41
    CLOSE = 50
    CLOSE_OK = 51
    BLOCKED = 60
    UNBLOCKED = 61
    UPDATE_SECRET = 70
    UPDATE_SECRET_OK = 71

    __hash__ = object.__hash__


class Rule(NamedTuple):
    """What follows: the next state, what the proxy answers at once, and what else it does."""

    next: State
    answer: str
    does: str = ""


FIRST: Final = {Role.BROKER: State.HEADER, Role.CLIENT: State.START}

TABLE: Final[Mapping[tuple[State, Method], Rule]] = {
    # as a broker
    (State.HEADER, Method.PROTOCOL_HEADER): Rule(State.START_OK, "Start"),
    (State.START_OK, Method.START_OK): Rule(State.TUNE_OK, "Tune", "it is kept for the broker"),
    (State.TUNE_OK, Method.TUNE_OK): Rule(State.OPEN, "", "it is kept for the broker"),
    (State.OPEN, Method.OPEN): Rule(
        State.HELD, "", "the client is admitted, a broker chosen and connected to"
    ),
    (State.START_OK, Method.CLOSE): Rule(State.CLOSED, "CloseOk"),
    (State.TUNE_OK, Method.CLOSE): Rule(State.CLOSED, "CloseOk"),
    (State.OPEN, Method.CLOSE): Rule(State.CLOSED, "CloseOk"),
    (State.HELD, Method.CLOSE): Rule(State.CLOSED, "CloseOk", "the broker is left"),
    # as a client
    (State.START, Method.START): Rule(
        State.TUNE,
        "StartOk, TuneOk, Open",
        "they are the client's own, with the proxy's properties at the end of StartOk's",
    ),
    (State.TUNE, Method.TUNE): Rule(State.OPEN_OK, ""),
    (State.OPEN_OK, Method.OPEN_OK): Rule(State.DONE, "", "it is passed on to the client"),
    (State.START, Method.CLOSE): Rule(State.CLOSED, "CloseOk", "the client is told"),
    (State.TUNE, Method.CLOSE): Rule(State.CLOSED, "CloseOk", "the client is told"),
    (State.OPEN_OK, Method.CLOSE): Rule(State.CLOSED, "CloseOk", "the client is told"),
    # as either
    (State.CLOSING, Method.CLOSE): Rule(State.CLOSED, "CloseOk"),
    (State.CLOSING, Method.CLOSE_OK): Rule(State.CLOSED, ""),
}

_NUMBERS: Final = {method.value: method for method in Method if method.value}
_CONNECTION: Final = 10


class Step(NamedTuple):
    """A method that the table allowed, and its frame (empty for the protocol header)."""

    method: Method
    frame: Frame


_HEADER_STEP: Final = Step(Method.PROTOCOL_HEADER, Frame(0, 0, closing.PROTOCOL_HEADER))


class Handshake:
    """One side of one connection until it is open. Bytes in, allowed methods out.

    `receive` what comes, then take `next_step` until it is None. Heartbeats are dropped. Any cut
    of the stream gives the same steps.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = FIRST[role]
        self._frames = FrameReader(limits.AMQP_HANDSHAKE_FRAME)

    @property
    def waiting(self) -> int:
        """Bytes received and not yet taken."""
        return len(self._frames)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what came."""
        self._frames.feed(data)

    def rest(self) -> bytes:
        """Takes out what came behind the last step."""
        return self._frames.rest()

    def close(self) -> None:
        """The proxy sends Close: from now on only the answer counts."""
        self.state = State.CLOSING

    def next_step(self) -> Step | None:
        """The next method, or None until more has come. Raises `AmqpFault`."""
        if self.state is State.HEADER:
            return self._header()
        while self.state not in (State.DONE, State.CLOSED):
            if self.state is State.HELD and self._pipelined():
                return None
            frame = self._frames.next()
            if frame is None:
                return None
            step = self._allowed(frame)
            if step is not None:
                self.state = TABLE[self.state, step.method].next
                return step
        return None

    def _header(self) -> Step | None:
        held = self._frames.rest()
        wanted = closing.PROTOCOL_HEADER
        if not wanted.startswith(held[:8]):
            raise NotAmqp(closing.NOT_IMPLEMENTED, _what_it_is(held))
        if len(held) < 8:
            self._frames.feed(held)
            return None
        self._frames.feed(held[8:])
        self.state = TABLE[State.HEADER, Method.PROTOCOL_HEADER].next
        return _HEADER_STEP

    def _pipelined(self) -> bool:
        """Whether the next frame is for the broker: clients may send on before OpenOk."""
        head = self._frames.peek(3)
        return len(head) == 3 and head[0] in (METHOD, HEADER, BODY) and head[1:3] != b"\0\0"

    def _allowed(self, frame: Frame) -> Step | None:
        if frame.type == HEARTBEAT and not frame.channel:
            return None
        if frame.type != METHOD:
            if self.state is State.CLOSING:
                return None
            raise AmqpFault(
                closing.UNEXPECTED_FRAME,
                f"UNEXPECTED_FRAME - a content frame instead of {self.state.value}",
            )
        of, number = frame.method
        method = _NUMBERS.get(number) if of == _CONNECTION and not frame.channel else None
        if method is not None and (self.state, method) in TABLE:
            return Step(method, frame)
        if self.state is State.CLOSING:
            return None  # sent before our Close was seen (section 4.2.3)
        raise self._refusal(frame, method)

    def _refusal(self, frame: Frame, method: Method | None) -> AmqpFault:
        wanted = self.state.value
        if frame.channel:
            return AmqpFault(
                closing.CHANNEL_ERROR,
                f"CHANNEL_ERROR - channel {frame.channel} is used before the connection is open; "
                f"waiting for {wanted}",
            )
        if method is Method.SECURE:
            return AmqpFault(
                closing.NOT_IMPLEMENTED,
                "NOT_IMPLEMENTED - the broker wants a second step of authentication (Secure), "
                "which can't be passed on",
            )
        name = method.name if method else "method {}.{}".format(*frame.method)
        return AmqpFault(closing.COMMAND_INVALID, f"COMMAND_INVALID - {name} instead of {wanted}")


def _what_it_is(data: bytes) -> str:
    if data[:1] == b"\x16":
        return "TLS, on a port that has none: use the port for TLS"
    if data[:4] == b"AMQP":
        return f"AMQP {'.'.join(str(part) for part in data[4:8])}, not 0.9.1"
    return "something that is not AMQP"
