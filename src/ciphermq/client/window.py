"""Which sealed batches are under way, and which goes next: decisions only, `now` is an argument.

A connection answers publishes by number. The window gives batches their numbers on the present
connection, and holds each until it is confirmed or refused for good. Three things bring a batch
back among the waiting, always at the place where it stood:

* the connection ended: what was on it goes again, the same bytes, on the next one. The broker
  knows a batch by its id, so one that had arrived is confirmed again, not stored again;
* a refusal that may pass (a full queue): its lane waits a while, and then goes on with it;
* a refusal of an earlier one: to keep the order, the broker refuses all that follow it on the
  connection until it sees the `restart` flag.

The last is why nothing is sent between a refusal and the answer to all that was under way with
it. After that, everything that came back is in order again, and the flag means what it says.

A lane is one sender's batches: their order is kept. Lanes don't wait for each other.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Final, NamedTuple

from ciphermq.client.backoff import Backoff
from ciphermq.errors import (
    AfterRefusal,
    NoSpace,
    QueueFull,
    Refused,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)

PASSING: Final = (QueueFull, NoSpace, Unavailable)
"""Refusals after which the same batch may be taken later."""


@dataclass(eq=False, slots=True)
class Parcel:
    """One sealed batch that its sender wants to have confirmed."""

    lane: Hashable
    sealed: bytes
    abandoned: bool = False
    """Nobody waits for it any more: it is not sent again."""
    sent: bool = False
    """It is on a connection, or was when that ended: it may be stored."""
    order: int = field(default=0, init=False)


class Sending(NamedTuple):
    """What to put on the connection now."""

    seq: int
    restart: bool
    parcel: Parcel


class Verdict(Enum):
    """What a refusal means for the batch."""

    AGAIN = "again"
    """It stays in the window."""
    FAILED = "failed"
    """It has left the window; its sender is to be told."""


class Window:
    """The batches of one client on their way to the broker, over any number of connections."""

    def __init__(self, most: int, rng: random.Random | None = None) -> None:
        """`most`: batches under way at a time, where the server doesn't allow fewer."""
        self._most = most
        self._limit = 0
        """0: no connection to send on."""
        self._waiting: list[Parcel] = []
        """By order."""
        self._flight: dict[int, Parcel] = {}
        """By number, ascending."""
        self._next_seq = 1
        self._next_order = 1
        self._refused = False
        """A refusal came; the rest of the flight must be answered before anything is sent."""
        self._restart = False
        self._holds: dict[Hashable, _Hold] = {}
        self._rng = rng

    @property
    def settled(self) -> bool:
        """Nothing on the connection waits for an answer."""
        return not self._flight

    @property
    def idle(self) -> bool:
        """No batch at all."""
        return not self._flight and not self._waiting

    def add(self, parcel: Parcel) -> None:
        """A new batch, after all others."""
        parcel.order = self._next_order
        self._next_order += 1
        self._waiting.append(parcel)

    def abandon(self, parcel: Parcel) -> None:
        """Nobody waits for `parcel` any more. If it isn't on the connection it leaves at once."""
        parcel.abandoned = True
        if parcel in self._waiting:
            self._waiting.remove(parcel)
        self._forget(parcel.lane)

    def refusal(self, lane: Hashable) -> Refused | None:
        """What the broker said when it last refused the lane's first batch for now; None once it
        has taken one."""
        hold = self._holds.get(lane)
        return None if hold is None else hold.error

    # --- connections ------------------------------------------------------------------------

    def connect(self, most: int) -> None:
        """A fresh connection that allows `most` unconfirmed batches: numbers begin at 1."""
        if self._flight:
            raise UsageError("the old connection's batches are neither answered nor lost")
        self._limit = max(1, min(self._most, most))
        self._next_seq = 1
        self._refused = self._restart = False

    def pause(self) -> None:
        """Send nothing more on this connection; answers still come."""
        self._limit = 0

    def disconnect(self) -> None:
        """The connection is gone: what was on it waits for the next one."""
        self._limit = 0
        flight, self._flight = self._flight, {}
        for parcel in flight.values():
            self._put_back(parcel)
            self._forget(parcel.lane)

    # --- sending ----------------------------------------------------------------------------

    def next(self, now: float) -> Sending | None:
        """What may be sent now, which counts as sent; None when nothing may."""
        if len(self._flight) >= self._limit or self._refused:
            return None
        for index, parcel in enumerate(self._waiting):
            hold = self._holds.get(parcel.lane)
            if hold is not None and now < hold.until:
                continue
            del self._waiting[index]
            sending = Sending(self._next_seq, self._restart, parcel)
            self._flight[self._next_seq] = parcel
            self._next_seq += 1
            self._restart = False
            parcel.sent = True
            return sending
        return None

    def next_time(self) -> float | None:
        """When a lane's hold ends, so that `next` is worth asking again; None: only an event
        (an answer, a connection, a new batch) changes anything."""
        if not self._holds or self._refused or len(self._flight) >= self._limit:
            return None
        waiting = {parcel.lane for parcel in self._waiting}
        return min((self._holds[lane].until for lane in waiting & self._holds.keys()), default=None)

    # --- answers ----------------------------------------------------------------------------

    def confirmed(self, number: int) -> list[Parcel]:
        """All under way up to `number` are stored; they have left the window."""
        if number >= self._next_seq:
            raise RemoteProtocolError(f"publish {number} is confirmed but was never sent")
        done = []
        for seq in list(self._flight):
            if seq > number:
                break
            parcel = self._flight.pop(seq)
            self._holds.pop(parcel.lane, None)
            done.append(parcel)
        self._flight_answered()
        return done

    def returned(self, seq: int, error: Refused, now: float) -> tuple[Parcel, Verdict]:
        """Publish `seq` was not stored, and why."""
        parcel = self._flight.pop(seq, None)
        if parcel is None:
            raise RemoteProtocolError(f"publish {seq} is returned but was not under way")
        self._refused = True
        parcel.sent = False
        verdict = Verdict.AGAIN
        if isinstance(error, PASSING):
            hold = self._holds.setdefault(parcel.lane, _Hold(Backoff(rng=self._rng), error))
            hold.error, hold.until = error, now + hold.backoff.next()
            self._put_back(parcel)
        elif isinstance(error, AfterRefusal):
            self._put_back(parcel)
        else:
            verdict = Verdict.FAILED
        self._forget(parcel.lane)
        self._flight_answered()
        return parcel, verdict

    def _flight_answered(self) -> None:
        if self._refused and not self._flight:
            self._refused, self._restart = False, True

    def _forget(self, lane: Hashable) -> None:
        """A lane without a batch has nothing to wait for, and may never come again."""
        if lane in self._holds:
            flight = self._flight.values()
            if not any(parcel.lane == lane for parcel in chain(self._waiting, flight)):
                del self._holds[lane]

    def _put_back(self, parcel: Parcel) -> None:
        if not parcel.abandoned:
            insort(self._waiting, parcel, key=lambda each: each.order)


@dataclass(slots=True)
class _Hold:
    backoff: Backoff
    error: Refused
    """The last one."""
    until: float = 0.0
