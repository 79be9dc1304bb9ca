"""What is known of a delivered batch besides its messages."""

from __future__ import annotations

import msgspec

from ciphermq.model.topology import DeadInfo


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a batch comes from. An Inbox that stores payloads keeps it with them."""

    queue: str
    sender: str | None
    """Client id of who signed it; None when nobody did."""
    batch_id: bytes
    count: int
    """Messages in the whole batch."""
    digest: bytes = b""
    """Equal exactly for equal batches."""
    created_ms: int = 0
    exchange: str = ""
    routing_key: str = ""
    redeliveries: int = 0
    """Of its most retried message; 0 at first."""
    redelivered: bool = False
    published_ms: int = 0
    dead: DeadInfo | None = None
