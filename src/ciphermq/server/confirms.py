"""Answers to numbered frames: in order, and many of them with one CONFIRM."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ciphermq.net.link import Link
from ciphermq.wire.cmq2.frames import ConfirmFrame, ConfirmKind


class Confirms:
    """The numbers of one kind that wait for their answer on one connection.

    A CONFIRM covers all numbers up to its own, so none is sent past one that still waits; what is
    settled within one turn of the event loop shares one.
    """

    def __init__(self, link: Link, kind: ConfirmKind, on_idle: Callable[[], None]) -> None:
        """`on_idle` is called whenever nothing waits any more."""
        self._link = link
        self._kind = kind
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[int] = deque()
        self._settled: dict[int, bool] = {}
        self._reached = 0
        self._sent = 0
        self._due = False

    def __len__(self) -> int:
        """How many wait, with those that are settled but stand behind one that isn't."""
        return len(self._waiting)

    def open(self, number: int) -> None:
        """`number` has come, the next of its kind."""
        self._waiting.append(number)

    def settle(self, number: int, *, confirmed: bool = True) -> None:
        """`number` is done; not `confirmed`: it has been answered otherwise."""
        self._settled[number] = confirmed
        waiting, settled = self._waiting, self._settled
        while waiting and waiting[0] in settled:
            first = waiting.popleft()
            if settled.pop(first):
                self._reached = first
        if not self._due:
            self._due = True
            self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        self._due = False
        if self._reached > self._sent:
            self._sent = self._reached
            self._link.send(ConfirmFrame(self._kind, self._reached))
        if not self._waiting:
            self._on_idle()
