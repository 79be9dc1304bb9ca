"""Puts sealed batches on the connection and learns what became of them.

The decisions are the window's (`client.window`); this brings it the clock, the connection and those
who wait. One for a client: the broker numbers publishes by connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from ciphermq import limits
from ciphermq.client.reconnect import Line
from ciphermq.client.session import Session
from ciphermq.client.window import Parcel, Verdict, Window
from ciphermq.errors import CipherMQError, ConnectionLost, Refused, WaitTimeout

Done = Callable[[BaseException | None], None]


class Publisher:
    """All of a client's batches that are under way (a `reconnect.Party`)."""

    def __init__(self, line: Line, most: int) -> None:
        """`most`: unconfirmed batches, where the broker doesn't allow fewer."""
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._window = Window(most)
        self._done: dict[Parcel, Done] = {}
        self._session: Session | None = None
        """What the window's flight is on."""
        self._next: Session | None = None
        """What to turn to once that flight is answered."""
        self._timer: asyncio.TimerHandle | None = None
        line.publishing = self
        line.join(self)

    def send(self, lane: Hashable, sealed: bytes, done: Done) -> Parcel:
        """Have a batch sent, after those of its lane before it, and `done` called once with None
        when the broker has stored it, else with the reason why not."""
        parcel = Parcel(lane, sealed)
        self._done[parcel] = done
        self._window.add(parcel)
        self._pump()
        return parcel

    def abandon(self, parcel: Parcel, error: BaseException) -> None:
        """Nobody waits any longer: `done` is called with `error`, and it isn't sent again. If it
        is on its way already it may have been stored, or still be."""
        done = self._done.pop(parcel, None)
        self._window.abandon(parcel)
        if done is not None:
            done(error)

    def refusal(self, lane: Hashable) -> Refused | None:
        """Why the broker takes none of a lane's batches for now; None when that is not so, or
        there is no connection to hear it on."""
        return None if self._line.current is None else self._window.refusal(lane)

    def gave_up(
        self, said: str, lane: Hashable | None = None, parcel: Parcel | None = None
    ) -> CipherMQError:
        """The error for who has waited long enough: what was `said`, and what it waits for.

        The broker's refusal where that is the reason, and `parcel`, if there is one, is not
        stored for certain; otherwise `WaitTimeout`.
        """
        session, refusal = self._line.current, self.refusal(lane)
        if session is None:
            return WaitTimeout(f"{said}: {self._line.describe()}")
        if refusal is None:
            return WaitTimeout(
                f"{said}: the broker ({session.peer}) is connected but has not answered"
            )
        # What is on its way once more may be stored by now: then nobody may call it refused.
        kind = WaitTimeout if parcel is not None and parcel.sent else type(refusal)
        return kind(f"{said}: the broker refuses it for now: {refusal}")

    def close(self) -> None:
        """Abandon all that isn't confirmed."""
        if self._timer is not None:
            self._timer.cancel()
        for parcel in list(self._done):
            self.abandon(parcel, ConnectionLost("the client was closed before the confirmation"))

    # --- reconnect.Party ------------------------------------------------------------------------

    def attach(self, session: Session) -> None:
        """Publish on this one, as soon as nothing on the former is unanswered: otherwise the
        same batch could be on both, and later ones could overtake it."""
        self._next = session
        if self._session is not None:
            self._window.pause()
        self._advance()

    def detach(self, session: Session) -> None:
        """What was on it goes again on the next."""
        if session is self._next:
            self._next = None
        if session is self._session:
            self._session = None
            self._window.disconnect()
            self._advance()

    def ending(self, session: Session) -> None:
        """Nothing to do: `detach` follows."""

    def settled(self, session: Session) -> bool:
        """Whether no batch waits for an answer on that one."""
        return session is not self._session or self._window.settled

    # --- reconnect.Publishing ------------------------------------------------------------------

    def confirmed(self, session: Session, number: int) -> None:
        """All up to `number` are stored."""
        if session is not self._session:
            return
        for parcel in self._window.confirmed(number):
            if (done := self._done.pop(parcel, None)) is not None:
                done(None)
        self._advance()

    def returned(self, session: Session, seq: int, error: Refused) -> None:
        """One is not stored."""
        if session is not self._session:
            return
        parcel, verdict = self._window.returned(seq, error, self._loop.time())
        if verdict is Verdict.FAILED and (done := self._done.pop(parcel, None)) is not None:
            done(error)
        self._advance()

    def writable(self, session: Session) -> None:
        """The connection takes more."""
        self._pump()

    # --- sending --------------------------------------------------------------------------------

    def _advance(self) -> None:
        if self._next is not None and self._window.settled:
            self._session, self._next = self._next, None
            allowed = self._session.hello.max_publish_window
            self._window.connect(allowed or limits.MAX_PUBLISH_WINDOW)
        self._pump()

    def _pump(self) -> None:
        session = self._session
        if session is None:
            return
        while session.alive and session.writable:
            sending = self._window.next(self._loop.time())
            if sending is None:
                self._set_timer(self._window.next_time())
                return
            session.publish(sending.seq, sending.parcel.sealed, restart=sending.restart)
        # `writable` or another session comes next: no clock is needed for that.
        self._set_timer(None)

    def _set_timer(self, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._pump)
