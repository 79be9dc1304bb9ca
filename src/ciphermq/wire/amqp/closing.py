"""The proxy's own methods as bytes: Start, Tune, Close, CloseOk, heartbeats; and reply codes."""

from __future__ import annotations

from functools import cache
from typing import Final

from pamqp import commands
from pamqp.base import Frame as Method
from pamqp.common import FieldValue
from pamqp.frame import marshal

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"

OK: Final = 200
CONNECTION_FORCED: Final = 320
ACCESS_REFUSED: Final = 403
SYNTAX_ERROR: Final = 502
COMMAND_INVALID: Final = 503
CHANNEL_ERROR: Final = 504
UNEXPECTED_FRAME: Final = 505
RESOURCE_ERROR: Final = 506
NOT_ALLOWED: Final = 530
NOT_IMPLEMENTED: Final = 540
INTERNAL_ERROR: Final = 541

MOST_TEXT: Final = 255
"""A reply text is a short string (section 4.2.5.3)."""

HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

CAPABILITIES: Final = (
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
)
"""What the proxy says it can: RabbitMQ's own list."""

CHANNEL_MAX: Final = 2047
FRAME_MAX: Final = 131_072
HEARTBEAT_SECONDS: Final = 60


def _frame(method: Method) -> bytes:
    return bytes(marshal(method, 0))


@cache
def start(*mechanisms: str) -> bytes:
    """Start, with these SASL mechanisms on offer."""
    properties: dict[str, FieldValue] = {
        "capabilities": dict[str, FieldValue].fromkeys(CAPABILITIES, True),
        "product": "CipherMQ proxy",
        "information": "https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf",
    }
    return _frame(commands.Connection.Start(0, 9, properties, " ".join(mechanisms), "en_US"))


TUNE: Final = _frame(commands.Connection.Tune(CHANNEL_MAX, FRAME_MAX, HEARTBEAT_SECONDS))
CLOSE_OK: Final = _frame(commands.Connection.CloseOk())


def close(reply: int, text: str) -> bytes:
    """Close with this reply code and text, which is cut to what fits."""
    short = text.encode()[:MOST_TEXT].decode(errors="ignore")
    return _frame(commands.Connection.Close(reply, short, 0, 0))
