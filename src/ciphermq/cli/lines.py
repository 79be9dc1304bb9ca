"""Input cut into messages: a line each, terminator included, or the whole as one.

A line keeps the bytes that end it, exactly as in the file (the last may have none), so that the
payloads of a file joined together are the file again. Only a line feed ends a line: a lone
carriage return is content.
"""

from __future__ import annotations

import io
from typing import Final, Protocol

from ciphermq import limits
from ciphermq.errors import BatchTooLarge
from ciphermq.model.body import HEAD_SIZE, MESSAGE_OVERHEAD

CHUNK: Final = limits.MIB
"""Read at once: far more than a batch, so that nothing is done a line at a time."""

LONGEST: Final = limits.MAX_PLAINTEXT - HEAD_SIZE - MESSAGE_OVERHEAD
"""Bytes in the largest message without headers."""


class Source(Protocol):
    """What `io.BufferedReader` gives: at most one read of what lies beneath."""

    def read1(self, size: int, /) -> bytes: ...


class Lines:
    """A source, in bulk: each `read` gives the lines that one read of it completes.

    So a pipe's lines are there as soon as they were written, and a file's come by the thousand.
    `offset` is the byte after the last line that was given out.
    """

    def __init__(self, source: Source, *, offset: int = 0, count: int = 0) -> None:
        """The source stands at byte `offset`, after `count` lines."""
        self._source = source
        self._rest = bytearray()
        self._ended = False
        self.offset = offset
        self.count = count

    def read(self) -> list[bytes]:
        """The next lines; none at the end. `BatchTooLarge` for one that no message can hold."""
        while not self._ended:
            chunk = self._source.read1(CHUNK)
            if not chunk:
                self._ended = True
                return self._given([bytes(self._rest)] if self._rest else [])
            self._rest += chunk
            end = self._rest.rfind(b"\n", len(self._rest) - len(chunk)) + 1
            if end:
                lines = io.BytesIO(self._rest[:end]).readlines()
                del self._rest[:end]
                self._check(len(self._rest), len(lines))
                return self._given(lines)
            # Refused here and not when its end is found: it may have none.
            self._check(len(self._rest), 0)
        return []

    def _given(self, lines: list[bytes]) -> list[bytes]:
        if lines:
            longest = max(lines, key=len)
            self._check(len(longest), lines.index(longest))
        self.offset += sum(map(len, lines))
        self.count += len(lines)
        return lines

    def _check(self, size: int, before: int) -> None:
        if size > LONGEST:
            raise BatchTooLarge(
                f"line {self.count + before + 1} has more than {LONGEST} bytes, which is what a "
                "message can hold: send the file in pieces of your own making"
            )


def read_whole(source: Source) -> bytes:
    """All of the source as one message; `BatchTooLarge` before more is read than one holds."""
    whole = bytearray()
    while chunk := source.read1(CHUNK):
        whole += chunk
        if len(whole) > LONGEST:
            raise BatchTooLarge(
                f"the input has more than {LONGEST} bytes, which is what a message can hold: "
                "send it in pieces of your own making, or a line a message without --whole"
            )
    return bytes(whole)
