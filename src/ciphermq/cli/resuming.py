"""How far an input has been read into an Outbox: kept in the Outbox's own transactions.

A chunk's lines, and the position after them, are committed together or not at all. So a run that
was killed is followed by one that goes on at the byte where it stopped: no line is left out, none
is added twice.

That holds as long as it is the same input. So the position comes with digests of the first bytes
and of those just before it; an input that does not have them is refused. One that has grown since
is fine: what is new is sent.
"""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ciphermq import limits
from ciphermq.errors import StoreError

if TYPE_CHECKING:
    from ciphermq.cli.inputs import Input
    from ciphermq.client import Outbox

_WINDOW: Final = 64 * limits.KIB
"""Bytes at each end that must be the same."""

_CREATE: Final = """
    CREATE TABLE IF NOT EXISTS ciphermq_inputs (
        source TEXT PRIMARY KEY,
        offset INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        head BLOB NOT NULL,
        tail BLOB NOT NULL
    )
"""


class Position:
    """Where in an input a run is, and what it takes to find that place again."""

    def __init__(self, outbox: Outbox, source: str) -> None:
        """`source`: what tells this input and its destination from others in the Outbox."""
        self.offset = 0
        self.messages = 0
        self._source = source
        self._head = b""
        self._tail = b""
        with outbox.transaction() as database:
            database.execute(_CREATE)
            self._stored = database.execute(
                "SELECT offset, messages, head, tail FROM ciphermq_inputs WHERE source = ?",
                (source,),
            ).fetchone()

    @property
    def begun(self) -> bool:
        """Whether anything of the input has been added, by this run or an earlier one."""
        return self._stored is not None or self.messages > 0

    def find(self, source: Input) -> None:
        """Read `source` up to where the last run stopped, if there was one.

        `StoreError` when it is not the input that was read then.
        """
        if self._stored is None:
            return
        offset, self.messages, head, tail = self._stored
        self._read(source, min(offset, _WINDOW), offset)
        if source.regular and offset - _WINDOW > self.offset:
            self.offset = offset - _WINDOW
            source.seek(self.offset)
        self._read(source, offset, offset)
        if sha256(self._head).digest() != head or sha256(self._tail).digest() != tail:
            raise self.other(source, f"its first {offset} bytes are others")

    def advance(self, database: sqlite3.Connection, messages: list[bytes]) -> None:
        """Note, in the transaction that adds them, that these were read."""
        self._pass(b"".join(messages))
        self.messages += len(messages)
        database.execute(
            "INSERT OR REPLACE INTO ciphermq_inputs VALUES (?, ?, ?, ?, ?)",
            (
                self._source,
                self.offset,
                self.messages,
                sha256(self._head).digest(),
                sha256(self._tail).digest(),
            ),
        )

    def _read(self, source: Input, end: int, offset: int) -> None:
        while self.offset < end:
            data = source.read1(min(end - self.offset, limits.MIB))
            if not data:
                raise self.other(source, f"it ends before byte {offset}, where that run stopped")
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        self.offset += len(data)
        self._head += data[: _WINDOW - len(self._head)]
        self._tail = data[-_WINDOW:] if len(data) >= _WINDOW else (self._tail + data)[-_WINDOW:]

    def other(self, source: Input, why: str) -> StoreError:
        """The error for an input that is not what an earlier run read."""
        name = source.name if source.regular else "standard input"
        return StoreError(
            f"{name} is not what an earlier run sent from there: {why}. To send another input, "
            "or this one again, take another --outbox"
        )
