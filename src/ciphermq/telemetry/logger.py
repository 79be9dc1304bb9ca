"""The logger that every room uses: an event in words, and its fields beside it.

Built on structlog over the standard library's loggers, without touching either's global
configuration: an application that embeds the client keeps its own, and sees nothing of ours
unless it listens to the logger ``ciphermq``.

What a log must never hold is stopped here, once: fields whose names say secret or payload are
hidden, and bytes are shown by their length unless they are as short as an id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

Logger = structlog.stdlib.BoundLogger
ROOT: Final = "ciphermq"
RECORD_FIELDS: Final = "ciphermq_fields"
"""Attribute of a `logging.LogRecord` that holds our event and its fields."""

_HIDDEN: Final = re.compile(r"passphrase|password|secret|token|private|payload|plaintext|pin$")
_LONGEST_ID: Final = 32
_LONGEST_TEXT: Final = 2000

# A library is silent until its application asks (and `lastResort` would print warnings).
logging.getLogger(ROOT).addHandler(logging.NullHandler())


def get_logger(room: str, **fields: Any) -> Logger:
    """The logger ``ciphermq.<room>``, with `fields` on every line."""
    logger: Logger = structlog.wrap_logger(
        logging.getLogger(f"{ROOT}.{room}"),
        processors=[structlog.stdlib.filter_by_level, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
        **fields,
    )
    return logger


def _to_record(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[str, str], dict[str, Any]]:
    """What is passed to the standard library: readable text, with the parts in `extra`."""
    exc_info = event.pop("exc_info", None)
    message = str(event.pop("event", ""))
    fields = {key: clean(key, value) for key, value in event.items()}
    text = message + "".join(f" {key}={value}" for key, value in fields.items())
    # The text is the message itself, not a %-format: it may hold a stranger's per cent sign.
    return ("%s", text), {"extra": {RECORD_FIELDS: (message, fields)}, "exc_info": exc_info}


def clean(key: str, value: Any) -> Any:
    """`value` as it may stand in a log: no secrets, no payloads, nothing endless."""
    if _HIDDEN.search(key.lower()):
        return "(hidden)"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex() if len(value) <= _LONGEST_ID else f"({len(value)} bytes)"
    if isinstance(value, Mapping):
        return {str(name): clean(str(name), member) for name, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(key, member) for member in value]
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
