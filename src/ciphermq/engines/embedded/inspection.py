"""What can be seen of a waiting batch without any key."""

from __future__ import annotations

from ciphermq.broker.entries import Entry
from ciphermq.engines.face import Peeked, Sealed
from ciphermq.model.envelope import Header, read_header

_BATCH_ID_TIME: int = 80
"""A batch id begins with 48 bits of milliseconds (RFC 9562 section 5.7)."""


def peeked(entry: Entry, sealed: Sealed | None) -> Peeked:
    """An entry as it is now; without its bytes, what the broker itself knows of it."""
    batch = entry.batch
    return Peeked(
        batch_id=batch.batch_id,
        # The header of a 1.x message is made up, when it comes in, of what is known here too.
        header=_known(entry) if sealed is None or batch.onex else read_header(sealed),
        live=entry.live,
        size=batch.size,
        published_ms=batch.published_ms,
        redeliveries=entry.times_given(entry.live),
        unacked=entry.queue.in_hand(entry) != 0,
        dead=entry.dead,
    )


def _known(entry: Entry) -> Header:
    """The header of a batch whose bytes are damaged, as far as the broker remembers it."""
    batch = entry.batch
    return Header(
        sender=batch.sender,
        certificate_sha256=b"",
        batch_id=batch.batch_id,
        created_ms=batch.published_ms if batch.onex else batch.id >> _BATCH_ID_TIME,
        expires_ms=batch.expires_ms,
        exchange="",
        routing_key=batch.routing_key,
        count=batch.count,
        commitment=b"",
        receivers=(),
    )
