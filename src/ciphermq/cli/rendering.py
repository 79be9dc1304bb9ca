"""What a received batch looks like: text for people, JSON lines, or the bytes themselves."""

from __future__ import annotations

import base64
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from ciphermq.cli.output import moment, printable

if TYPE_CHECKING:
    from ciphermq.client.messages import Batch, Message

Renderer = Callable[["Batch"], bytes]


class Form(StrEnum):
    """How messages are written."""

    TEXT = "text"
    """A line a message: the terminator that it brought is replaced by one line feed."""
    JSON = "json"
    """A JSON object a line, payload and all that is known of the message."""
    RAW = "raw"
    """Payloads end to end, nothing added, nothing taken away."""


def renderer(form: Form, *, terminal: bool = False) -> Renderer:
    """The function that writes a batch; for a `terminal`, nothing in it can steer that."""
    if form is Form.RAW:
        return lambda batch: b"".join(batch.payloads)
    if form is Form.JSON:
        encode = msgspec.json.Encoder().encode_lines
        return lambda batch: encode([describe(message) for message in batch])
    line = _safe_line if terminal else _line
    return lambda batch: b"".join(map(line, batch.payloads))


def _line(payload: bytes) -> bytes:
    return payload.removesuffix(b"\n").removesuffix(b"\r") + b"\n"


def _safe_line(payload: bytes) -> bytes:
    text = payload.decode(errors="backslashreplace").removesuffix("\n").removesuffix("\r")
    return "\n".join(map(_keep_tabs, text.split("\n"))).encode() + b"\n"


def _keep_tabs(line: str) -> str:
    return "\t".join(map(printable, line.split("\t")))


def describe(message: Message) -> dict[str, Any]:
    """A message as JSON: ``payload`` as text, or ``payload_base64`` where it is not UTF-8."""
    described: dict[str, Any] = {
        "id": message.id,
        "sender": message.sender,
        "verified": message.verified,
        "queue": message.queue,
        "sent": moment(message.sent_ms),
        "redeliveries": message.redeliveries,
        "content_type": message.content_type,
        "headers": dict(message.headers),
    }
    if message.dead is not None:
        described["dead"] = {
            "queue": message.dead.queue,
            "reason": message.dead.reason,
            "detail": message.dead.detail,
        }
    payload = message.payload
    try:
        described["payload"] = payload.decode()
    except UnicodeDecodeError:
        described["payload_base64"] = base64.b64encode(payload).decode()
    return described
