"""Client, batch and message ids.

A batch id is a UUIDv7 (RFC 9562 section 5.7) whose last ten bits are zero. A message's id is its
batch's id with the message's index in those bits, so an id leads to its batch without a look-up.
"""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Final

from ciphermq import limits
from ciphermq.errors import UsageError

INDEX_BITS: Final = 10
_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
_CLIENT_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.MAX_CLIENT_ID}}}")
DEAD_PREFIX: Final = "dead."


def is_client_id(name: str) -> bool:
    """Whether `name` may be a client's id (and so the name of its inbox queue)."""
    return _CLIENT_ID.fullmatch(name) is not None and not name.startswith(DEAD_PREFIX)


def check_client_id(name: str) -> str:
    """`name`, or `UsageError` with the rule it breaks."""
    if not is_client_id(name):
        raise UsageError(
            f"{name!r} can't be a client id: 1 to {limits.MAX_CLIENT_ID} letters, digits, "
            f"'.', '_' or '-', not beginning with '{DEAD_PREFIX}'"
        )
    return name


def new_batch_id(now_ms: int) -> bytes:
    """A fresh batch id: 16 bytes, the last ten bits zero."""
    rand = int.from_bytes(secrets.token_bytes(10), "big")
    value = (now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (rand >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | rand & (1 << 62) - 1 & ~_INDEX_MASK
    return value.to_bytes(16, "big")


def is_batch_id(data: bytes) -> bool:
    """Whether these 16 bytes are a UUIDv7 with a zero index."""
    return (
        len(data) == 16
        and data[6] >> 4 == 7
        and data[8] >> 6 == 2
        and not (data[15] or data[14] & 3)
    )


def message_id(batch_id: bytes, index: int) -> str:
    """The id of one message, in the usual UUID spelling."""
    return str(uuid.UUID(int=int.from_bytes(batch_id, "big") | index))


def parse_message_id(text: str) -> tuple[bytes, int]:
    """A message id's batch id and index; `UsageError` when it is no message id."""
    try:
        value = uuid.UUID(text).int
    except ValueError:
        raise UsageError(f"{text!r} is not a message id (a UUID was expected)") from None
    batch_id = (value & ~_INDEX_MASK).to_bytes(16, "big")
    if not is_batch_id(batch_id):
        raise UsageError(f"{text!r} is a UUID but not a message id (version 7 was expected)")
    return batch_id, value & _INDEX_MASK


def batch_of(text: str) -> bytes | None:
    """The batch id of a message id; None when it is no message id."""
    try:
        return parse_message_id(text)[0]
    except UsageError:
        return None
