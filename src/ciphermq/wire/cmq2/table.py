"""Who may send which frame, when, and how long it may be.

A connection is two directions, and each has a state of its own, moved by the frames that go
through it and by the CLOSE that comes from the other side::

    client   NEW ──HELLO──► OPEN ──CLOSE──► CLOSED
    server   WAITING ··the client's HELLO··► NEW ──HELLO──► OPEN ──CLOSE──► CLOSED
    either   OPEN ··the other's CLOSE··► CLOSING ──CLOSE──► CLOSED

``CLOSING`` restrains only the side that is in it. Frames cross on the way, so who has sent CLOSE
must go on taking all that the other could have sent before it saw that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.cmq2.frames import Frame, FrameType


class Role(Enum):
    """Which end of the connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(Enum):
    """How far one direction of a connection is."""

    WAITING = "waiting"
    """The server's, until the client's HELLO: the client speaks first."""
    NEW = "new"
    """HELLO is next."""
    OPEN = "open"
    CLOSING = "closing"
    """The other side has sent CLOSE: settle what is owed, then CLOSE."""
    CLOSED = "closed"
    """CLOSE has been sent; nothing follows."""


class Rule(NamedTuple):
    """One frame type: its class, and the greatest length each role may give it (0: none may)."""

    frame: type[Frame]
    client: int
    server: int


_ASK: Final = limits.MAX_REQUEST_FRAME

RULES: Final[Mapping[FrameType, Rule]] = {
    FrameType.HELLO: Rule(frames.Hello, _ASK, _ASK),
    FrameType.OK: Rule(frames.Ok, _ASK, limits.MAX_ANSWER_FRAME),
    FrameType.ERROR: Rule(frames.Error, 0, _ASK),
    FrameType.PUBLISH: Rule(frames.PublishFrame, limits.MAX_FRAME, 0),
    FrameType.CONFIRM: Rule(frames.ConfirmFrame, 0, 10),
    FrameType.RETURN: Rule(frames.Return, 0, _ASK),
    FrameType.DELIVER: Rule(frames.DeliverFrame, 0, limits.MAX_FRAME),
    FrameType.ACK: Rule(frames.AckFrame, 19 + limits.MAX_BATCH_MESSAGES // 8, 0),
    FrameType.NACK: Rule(frames.Nack, _ASK, 0),
    FrameType.DECLARE: Rule(frames.Declare, _ASK, 0),
    FrameType.DELETE: Rule(frames.Delete, _ASK, 0),
    FrameType.BIND: Rule(frames.Bind, _ASK, 0),
    FrameType.UNBIND: Rule(frames.Unbind, _ASK, 0),
    FrameType.CONSUME: Rule(frames.Consume, _ASK, 0),
    FrameType.CANCEL: Rule(frames.Cancel, _ASK, 0),
    FrameType.CREDIT: Rule(frames.Credit, _ASK, 0),
    FrameType.FETCH: Rule(frames.Fetch, _ASK, 0),
    FrameType.PURGE: Rule(frames.Purge, _ASK, 0),
    FrameType.PEEK: Rule(frames.Peek, _ASK, 0),
    FrameType.REDRIVE: Rule(frames.Redrive, _ASK, 0),
    FrameType.LIST: Rule(frames.List, _ASK, 0),
    FrameType.STATUS: Rule(frames.Status, _ASK, 0),
    FrameType.TRACE: Rule(frames.Trace, _ASK, 0),
    FrameType.KEY_PUT: Rule(frames.KeyPut, _ASK, 0),
    FrameType.KEY_GET: Rule(frames.KeyGet, _ASK, 0),
    FrameType.CRL_GET: Rule(frames.CrlGet, _ASK, 0),
    FrameType.PING: Rule(frames.Ping, _ASK, _ASK),
    FrameType.RECONNECT: Rule(frames.Reconnect, 0, _ASK),
    FrameType.CLOSE: Rule(frames.Close, _ASK, _ASK),
    FrameType.CANCELLED: Rule(frames.Cancelled, 0, _ASK),
}

_GREETING: Final = {FrameType.HELLO, FrameType.CLOSE}
_EVERYTHING: Final = set(FrameType) - {FrameType.HELLO}

_MAY_SEND: Final[Mapping[tuple[Role, State], set[FrameType]]] = {
    (Role.CLIENT, State.NEW): _GREETING,
    (Role.CLIENT, State.OPEN): _EVERYTHING,
    (Role.CLIENT, State.CLOSING): {
        FrameType.ACK,
        FrameType.NACK,
        FrameType.OK,
        FrameType.CLOSE,
    },
    (Role.SERVER, State.WAITING): {FrameType.ERROR, FrameType.CLOSE},
    (Role.SERVER, State.NEW): _GREETING | {FrameType.ERROR},
    (Role.SERVER, State.OPEN): _EVERYTHING,
    (Role.SERVER, State.CLOSING): {
        FrameType.CONFIRM,
        FrameType.RETURN,
        FrameType.OK,
        FrameType.ERROR,
        FrameType.CLOSE,
    },
}


def _lengths(role: Role, state: State) -> dict[int, int]:
    allowed = _MAY_SEND.get((role, state), set())
    lengths = {
        int(kind): rule.client if role is Role.CLIENT else rule.server
        for kind, rule in RULES.items()
        if kind in allowed
    }
    return {kind: length for kind, length in lengths.items() if length}


LENGTHS: Final[Mapping[tuple[Role, State], Mapping[int, int]]] = {
    (role, state): _lengths(role, state) for role in Role for state in State
}
"""What `role` may send in `state`: frame type to its greatest length. What isn't here may not."""

FIRST_STATE: Final[Mapping[Role, State]] = {Role.CLIENT: State.NEW, Role.SERVER: State.WAITING}

AFTER_OWN: Final[Mapping[tuple[State, FrameType], State]] = {
    (State.NEW, FrameType.HELLO): State.OPEN,
    **{(state, FrameType.CLOSE): State.CLOSED for state in State},
}
"""How a direction's state moves with a frame that goes through it; others move nothing."""

AFTER_PEER: Final[Mapping[tuple[State, FrameType], State]] = {
    (State.WAITING, FrameType.HELLO): State.NEW,
    **{(state, FrameType.CLOSE): State.CLOSING for state in (State.WAITING, State.NEW, State.OPEN)},
}
"""How a direction's state moves with a frame of the other direction."""
