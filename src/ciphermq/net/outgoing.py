"""What a link has to write: frames of one turn of the loop, gathered into few writes.

Each write becomes TLS records of its own, and a record costs 22 bytes and about a microsecond.
So small pieces are joined; a large one goes as it is, since copying it would cost more than the
record saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ciphermq.wire.cmq2.codec import Buffer
from ciphermq.wire.tls import CHUNK

_COPY_BELOW: Final = CHUNK


def gather(pieces: list[Buffer]) -> Iterator[Buffer]:
    """The bytes of `pieces` in the same order, in parts of at most `CHUNK` bytes."""
    run: list[Buffer] = []
    for piece in pieces:
        if len(piece) < _COPY_BELOW:
            run.append(piece)
            continue
        if run:
            yield from _chunks(b"".join(run))
            run = []
        yield from _chunks(piece)
    if run:
        yield from _chunks(run[0] if len(run) == 1 else b"".join(run))


def _chunks(data: Buffer) -> Iterator[Buffer]:
    if len(data) <= CHUNK:
        yield data
        return
    view = memoryview(data)
    for at in range(0, len(view), CHUNK):
        yield view[at : at + CHUNK]
