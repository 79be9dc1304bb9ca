"""How a record becomes a line: JSON for files, text for people."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

from ciphermq.telemetry.logger import RECORD_FIELDS
from ciphermq.telemetry.traffic import Note, escape, lines

NOTES: Final = "ciphermq_notes"
"""Attribute of a `logging.LogRecord` that stands for many lines about messages."""
_TEXT: Final = "ciphermq_text"
"""And of one that was made text."""

_RESERVED: Final = frozenset({"timestamp", "level", "logger", "message", "exception"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        # A rotating file asks twice, once for the size alone; and there may be two files.
        text: str | None = getattr(record, _TEXT, None)
        if text is None:
            notes: list[Note] | None = getattr(record, NOTES, None)
            text = self._line(record) if notes is None else lines(notes)
            record.__dict__[_TEXT] = text
        return text

    def _line(self, record: logging.LogRecord) -> str:
        message, fields = parts(record)
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        # A field must not be able to pass itself off as the line's own time or level.
        line.update({f"{key}_" if key in _RESERVED else key: fields[key] for key in fields})
        if record.exc_text:
            line["exception"] = record.exc_text
        return escape(json.dumps(line, ensure_ascii=False, default=str))


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
