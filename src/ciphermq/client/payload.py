"""What applications hand over as messages."""

from __future__ import annotations

from collections.abc import Mapping

from ciphermq.client.session import now_ms
from ciphermq.errors import UsageError
from ciphermq.model.message import NO_HEADERS, OutgoingMessage

Payload = bytes | bytearray | memoryview | str


def as_bytes(payload: Payload) -> bytes:
    """The bytes to send: text as UTF-8, a buffer as a copy that nobody can change any more."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, bytearray | memoryview):
        return bytes(payload)
    raise UsageError(f"a payload is bytes or text, not {type(payload).__name__}")


def outgoing(
    payload: Payload, headers: Mapping[str, str] | None, content_type: str | None
) -> OutgoingMessage:
    """A message handed over now."""
    return OutgoingMessage(
        as_bytes(payload), dict(headers) if headers else NO_HEADERS, content_type, now_ms()
    )


def expiry_ms(sent_ms: int, ttl: float | None) -> int:
    """When a message with `ttl` seconds to live ends; 0: never."""
    if ttl is None:
        return 0
    if not 0 < ttl < float("inf"):
        raise UsageError(f"a time to live is a number of seconds above 0, not {ttl}")
    return sent_ms + max(1, round(ttl * 1000))
