"""Answers in the order of their questions, though some take longer than those asked later."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ciphermq.wire.lines.speech import Reply


class Answer:
    """What one command is owed: no reply yet, or those that wait until it is their turn."""

    __slots__ = ("first", "replies")

    def __init__(self) -> None:
        self.replies: tuple[Reply, ...] | None = None
        self.first: asyncio.Future[None] | None = None
        """For who waits until this is the next to be answered."""


class Answers:
    """The answers that one connection is owed."""

    def __init__(self, send: Callable[[Reply], None], on_fewer: Callable[[], None]) -> None:
        """`on_fewer` is called whenever some were given."""
        self._send = send
        self._on_fewer = on_fewer
        self._owed: deque[Answer] = deque()

    def __len__(self) -> int:
        """How many are owed, with those that wait behind another."""
        return len(self._owed)

    def open(self) -> Answer:
        """One more command has come."""
        answer = Answer()
        self._owed.append(answer)
        return answer

    def settle(self, answer: Answer, *replies: Reply) -> None:
        """That is what is to be said; it is said once it is its turn."""
        answer.replies = replies
        owed = self._owed
        if owed[0] is not answer:
            return
        while owed and (ready := owed[0].replies) is not None:
            owed.popleft()
            for reply in ready:
                self._send(reply)
        if owed:
            _wake(owed[0])
        self._on_fewer()

    async def turn(self, answer: Answer) -> None:
        """Wait until all before it are given."""
        if self._owed[0] is not answer:
            answer.first = asyncio.get_running_loop().create_future()
            await answer.first


def _wake(answer: Answer) -> None:
    if answer.first is not None and not answer.first.done():
        answer.first.set_result(None)
