"""Many messages cut into batches by their sizes, with little work for a single one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from typing import Final, cast

from ciphermq import limits
from ciphermq.client.payload import Payload, as_bytes
from ciphermq.client.session import now_ms
from ciphermq.errors import BatchTooLarge
from ciphermq.model.body import HEAD_SIZE, MESSAGE_OVERHEAD, Body, encoded_size
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
        self._size = 0
        self._before = 0

    def feed(self, messages: list[Payload | OutgoingMessage]) -> Iterator[Body]:
        """The bodies that are full with these. `BatchTooLarge` says which message is."""
        fresh, sizes = self._measured(messages)
        self._waiting += fresh
        self._sizes += sizes
        self._size += sum(sizes)
        while len(self._waiting) >= TOGETHER or self._size > self._batch_bytes:
            yield self._cut()

    def rest(self) -> Iterator[Body]:
        """The last bodies, full or not."""
        while self._waiting:
            yield self._cut()

    def _cut(self) -> Body:
        ends = list(accumulate(self._sizes[:TOGETHER], initial=HEAD_SIZE))
        count = max(1, bisect_right(ends, self._batch_bytes) - 1)
        messages = self._waiting[:count]
        del self._waiting[:count], self._sizes[:count]
        self._size -= ends[count] - HEAD_SIZE
        self._before += count
        return _body(messages)

    def _measured(
        self, messages: list[Payload | OutgoingMessage]
    ) -> tuple[list[bytes | OutgoingMessage], list[int]]:
        """The messages as they are kept, and what each adds to a plaintext."""
        if set(map(type, messages)) == {bytes}:
            payloads = cast("list[bytes | OutgoingMessage]", messages)
            sizes = [MESSAGE_OVERHEAD + size for size in map(len, cast("list[bytes]", messages))]
            if max(sizes) < _SURELY_FITS:
                return payloads, sizes
        kept = [each if isinstance(each, OutgoingMessage) else as_bytes(each) for each in messages]
        sizes = []
        for index, message in enumerate(kept):
            try:
                sizes.append(encoded_size(_whole(message)))
            except BatchTooLarge as error:
                number = self._before + len(self._waiting) + index + 1
                raise BatchTooLarge(f"message {number}: {error}") from error
        return kept, sizes


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
    if set(map(type, messages)) == {bytes}:
        return Body.of_payloads(cast("list[bytes]", messages), now)
    return Body.of([_whole(message, now) for message in messages])


def _whole(message: bytes | OutgoingMessage, sent_ms: int = 0) -> OutgoingMessage:
    return OutgoingMessage(message, sent_ms=sent_ms) if isinstance(message, bytes) else message
