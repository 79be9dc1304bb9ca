"""What a link has to write: frames of one turn of the loop, gathered into few writes.

Each write becomes TLS records of its own, and a record costs 22 bytes and about a microsecond.
So small pieces are joined; a large one goes as it is, since copying it would cost more than the
record saves.
"""

from __future__ import annotations

from typing import Final

from ciphermq.wire.cmq2.codec import Buffer

TLS_RECORD: Final = 16 * 1024
"""Most plaintext in one TLS record (RFC 8446 section 5.1)."""

_COPY_BELOW: Final = 64 * 1024


def gather(pieces: list[Buffer]) -> list[Buffer]:
    """`pieces` in the same order, small neighbours joined."""
    if len(pieces) == 1:
        return pieces
    writes: list[Buffer] = []
    run: list[Buffer] = []
    for piece in pieces:
        if len(piece) < _COPY_BELOW:
            run.append(piece)
            continue
        if run:
            writes.append(b"".join(run))
            run = []
        writes.append(piece)
    if run:
        writes.append(b"".join(run))
    return writes


def records(size: int) -> int:
    """TLS records that one write of `size` bytes makes."""
    return (size + TLS_RECORD - 1) // TLS_RECORD
