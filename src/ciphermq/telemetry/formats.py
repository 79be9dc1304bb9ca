"""How a record becomes a line: JSON for files, text for people."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Final

from ciphermq.telemetry.logger import RECORD_FIELDS

_NOT_IN_A_LINE: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON may hold as it is, although it ends lines (to some readers), steers terminals, or shows
text in another order than it stands in."""

_RESERVED: Final = frozenset({"timestamp", "level", "logger", "message", "exception"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        message, fields = parts(record)
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        # A field must not be able to pass itself off as the line's own time or level.
        line.update({f"{key}_" if key in _RESERVED else key: fields[key] for key in fields})
        if record.exc_text:
            line["exception"] = record.exc_text
        text = json.dumps(line, ensure_ascii=False, default=str)
        return _NOT_IN_A_LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class ConsoleFormatter(logging.Formatter):
    """``12:30:01 warning  message  key=value``, safe to show on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        message, fields = parts(record)
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        text = f"{time} {record.levelname.lower():<8} {printable(message)}"
        text += "".join(f"  {key}={printable(str(value))}" for key, value in fields.items())
        # A traceback quotes strangers, too: set in, none of its lines can pose as another event.
        traceback = (record.exc_text or "").splitlines()
        return "\n".join([text, *(f"  {printable(line)}" for line in traceback)])


def parts(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """An event and its fields; a record of another library has only its text."""
    parts: tuple[str, dict[str, object]] | None = getattr(record, RECORD_FIELDS, None)
    return parts if parts is not None else (record.getMessage(), {})


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """`text` with control characters escaped: a stranger's name must not steer the terminal."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
