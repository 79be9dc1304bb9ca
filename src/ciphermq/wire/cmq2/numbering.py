"""The numbers of publishes and acks, checked as they go by.

Publishes and acks are numbered by connection, each from 1 and without a gap, so an answer needs
to say no more than a number. Both ends run the same check: the sender's finds its own mistakes,
the receiver's finds the peer's, and neither has to be ready for an answer to nothing.
"""

from __future__ import annotations

from typing import Final

from ciphermq.wire.cmq2.frames import AckFrame, ConfirmFrame, ConfirmKind, PublishFrame, Return

NUMBERED: Final = (PublishFrame, AckFrame, ConfirmFrame, Return)


class Numbering:
    """What has been numbered on one connection, and how far it has been answered."""

    def __init__(self) -> None:
        self._asked = {ConfirmKind.PUBLISH: 0, ConfirmKind.ACK: 0}
        self._confirmed = {ConfirmKind.PUBLISH: 0, ConfirmKind.ACK: 0}

    def check(self, frame: PublishFrame | AckFrame | ConfirmFrame | Return) -> str:
        """Take note of `frame`; what is wrong with its number, or nothing."""
        if isinstance(frame, PublishFrame):
            return self._ask(ConfirmKind.PUBLISH, frame.seq)
        if isinstance(frame, AckFrame):
            return self._ask(ConfirmKind.ACK, frame.number)
        if isinstance(frame, Return):
            return self._answer("RETURN", ConfirmKind.PUBLISH, frame.seq)
        wrong = self._answer("CONFIRM", frame.kind, frame.number)
        if not wrong:
            self._confirmed[frame.kind] = frame.number
        return wrong

    def _ask(self, kind: ConfirmKind, number: int) -> str:
        expected = self._asked[kind] + 1
        if number != expected:
            return f"{kind.name} number {number}, but {expected} is next"
        self._asked[kind] = number
        return ""

    def _answer(self, name: str, kind: ConfirmKind, number: int) -> str:
        first, last = self._confirmed[kind] + 1, self._asked[kind]
        if first <= number <= last:
            return ""
        waiting = f"{first} to {last} are waiting" if first <= last else "nothing is waiting"
        return f"{name} of {kind.name} number {number}, but {waiting}"
