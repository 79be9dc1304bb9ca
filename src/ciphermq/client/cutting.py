"""Many messages cut into batches by their sizes, with little work for a single one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from ciphermq import limits
from ciphermq.client.batcher import fitting
from ciphermq.client.payload import Payload, as_bytes
from ciphermq.client.session import now_ms
from ciphermq.errors import BatchTooLarge
from ciphermq.model.body import MESSAGE_OVERHEAD, Body, encoded_size
from ciphermq.model.message import OutgoingMessage

TOGETHER: Final = limits.MAX_BATCH_MESSAGES
"""Messages handled in one step."""

_SURELY_FITS: Final = limits.MAX_PLAINTEXT // 2


class Cutter:
    """Cuts a stream of messages into bodies of batches."""

    def __init__(self, batch_bytes: int = limits.SEND_BATCH) -> None:
        """`batch_bytes`: a body's size at most, but for a single message that is larger."""
        self._batch_bytes = batch_bytes
        self._waiting: list[bytes | OutgoingMessage] = []
        self._sizes: list[int] = []
        self._before = 0

    def feed(self, messages: Iterable[Payload | OutgoingMessage]) -> Iterator[Body]:
        """The bodies that are full with these. `BatchTooLarge` says which message is."""
        fresh = [each if isinstance(each, OutgoingMessage) else as_bytes(each) for each in messages]
        self._sizes += self._measure(fresh)
        self._waiting += fresh
        while len(self._waiting) >= TOGETHER or sum(self._sizes) > self._batch_bytes:
            yield self._cut()

    def rest(self) -> Iterator[Body]:
        """The last bodies, full or not."""
        while self._waiting:
            yield self._cut()

    def _cut(self) -> Body:
        count = fitting(self._sizes, self._batch_bytes)
        messages = self._waiting[:count]
        del self._waiting[:count], self._sizes[:count]
        self._before += count
        return _body(messages)

    def _measure(self, messages: list[bytes | OutgoingMessage]) -> list[int]:
        sizes = []
        for index, message in enumerate(messages):
            try:
                if isinstance(message, bytes) and len(message) < _SURELY_FITS:
                    sizes.append(MESSAGE_OVERHEAD + len(message))
                else:
                    sizes.append(encoded_size(_whole(message)))
            except BatchTooLarge as error:
                number = self._before + len(self._waiting) + index + 1
                raise BatchTooLarge(f"message {number}: {error}") from error
        return sizes


def bodies(
    messages: Iterable[Payload | OutgoingMessage], batch_bytes: int = limits.SEND_BATCH
) -> Iterator[Body]:
    """All of `messages`, cut."""
    cutter = Cutter(batch_bytes)
    iterator = iter(messages)
    while chunk := list(islice(iterator, TOGETHER)):
        yield from cutter.feed(chunk)
    yield from cutter.rest()


def _body(messages: list[bytes | OutgoingMessage]) -> Body:
    now = now_ms()
    payloads = [message for message in messages if isinstance(message, bytes)]
    if len(payloads) == len(messages):
        return Body.of_payloads(payloads, now)
    return Body.of([_whole(message, now) for message in messages])


def _whole(message: bytes | OutgoingMessage, sent_ms: int = 0) -> OutgoingMessage:
    return OutgoingMessage(message, sent_ms=sent_ms) if isinstance(message, bytes) else message
