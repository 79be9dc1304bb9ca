"""What a supervisor and its workers say to each other, and what a restart's two supervisors do.

Each class is one message; `ANSWERS` says what comes back, None where nothing but the fact that it
is done. Descriptors travel beside a message, in the order its fields name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ciphermq.proxy.change import Change
from ciphermq.proxy.limits import Verdict
from ciphermq.proxy.model import Configuration, Listener
from ciphermq.proxy.office import SessionAct, VhostAct
from ciphermq.proxy.statistics import Process, Tally


class _Message(msgspec.Struct, frozen=True, tag=True):
    """Knows its own name on the wire."""


# --- to a worker -------------------------------------------------------------------------------


class Begin(_Message, frozen=True, kw_only=True):
    """The first one: what to serve. `listeners` has one entry a descriptor."""

    worker: int
    """From 0."""
    workers: int
    first_id: int
    """Of its sessions; the next ones are `workers` further each."""
    configuration: Configuration
    console_level: int
    file_level: int
    """Unless the configuration says otherwise."""
    log_as_json: bool
    listeners: tuple[Listener, ...]


class Apply(_Message, frozen=True):
    """One change of the configuration, and the sockets of listeners that are new in it."""

    change: Change
    listeners: tuple[Listener, ...] = ()


class ListSessions(_Message, frozen=True):
    """Every session's description, by id."""


class DoSession(_Message, frozen=True):
    """Do something to one session."""

    number: int
    act: SessionAct


class DoVhost(_Message, frozen=True):
    """Do something to every session of a vhost."""

    vhost: str
    act: VhostAct


class AskReport(_Message, frozen=True):
    """What has been counted so far."""


class AskHealth(_Message, frozen=True):
    """What is known of the backends' health."""


class StopAccepting(_Message, frozen=True):
    """Let go of the listening sockets: somebody else accepts from them, or nobody shall."""

    drain_backlog: bool
    """Take in first what has connected already; not where another process will."""


class Drain(_Message, frozen=True):
    """End every session in order, and answer with the number of those that had to be cut off.

    They may go on for `patience` seconds; those that are left get Close 320 with `reason`, one
    after another over `spread` seconds; `close_seconds` after the last Close they are cut off.
    """

    patience: float
    spread: float
    close_seconds: float
    reason: str


# --- to the supervisor -------------------------------------------------------------------------


class Log(_Message, frozen=True):
    """Lines for the log file and for the console, ready to be written."""

    file: bytes
    console: bytes


class MayOpen(_Message, frozen=True):
    """May one more session of this vhost be opened? Counts it, if so."""

    vhost: str


class Closed(_Message, frozen=True):
    """A session that `MayOpen` had counted is gone."""

    vhost: str


class Held(_Message, frozen=True):
    """How many sessions the worker has of vhosts that have a cap from now on."""

    vhosts: Mapping[str, int]


# --- between the supervisors of a restart ------------------------------------------------------


class TakeOver(_Message, frozen=True):
    """The new process asks for everything. Until it says `Taken`, the old one changes nothing."""

    version: int


class Taken(_Message, frozen=True):
    """The new process serves: the old one lets go and drains its sessions. From then on the new one
    passes on what is to be said to all sessions, as to a worker."""


# --- answers -----------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has counted."""

    tally: Tally
    process: Process
    spilled: int
    pools: Mapping[int, tuple[int, int]]
    next_id: int
    accepting: bool


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """What the old process hands over; descriptors: the control socket, then one for each of
    `listeners` in order."""

    configuration: Configuration
    listeners: tuple[Listener, ...]
    next_id: int


ToWorker = (
    Begin
    | Apply
    | ListSessions
    | DoSession
    | DoVhost
    | AskReport
    | AskHealth
    | StopAccepting
    | Drain
)
ToSupervisor = Log | MayOpen | Closed | Held
Steering = Apply | ListSessions | DoSession | DoVhost | Drain
"""What a worker is told, and a predecessor too while its sessions last."""
ToPredecessor = TakeOver | Taken | Steering

ANSWERS: Final[Mapping[type, Any]] = {
    Begin: None,
    Apply: None,
    ListSessions: list[dict[str, Any]],
    DoSession: bool,
    DoVhost: int,
    AskReport: Report,
    AskHealth: dict[str, dict[str, Any]],
    StopAccepting: None,
    Drain: int,
    MayOpen: Verdict,
    TakeOver: Estate,
    Taken: None,
}
