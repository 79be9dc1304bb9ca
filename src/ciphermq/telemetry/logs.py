"""A server's logs: JSON lines in files, readable text on standard error, never in the way.

The thread that logs only puts the record on a bounded queue; a listener thread formats and
writes it. A full queue (a disk or terminal that takes nothing) costs lines, which are counted
and admitted in the log itself, and never the broker's time.

Files, in the configured directory or where each is configured to be, rotated by size and by time::

    info.log    everything from the configured level on, but debug; each message that passes
    error.log   errors
    debug.log   everything; written only at level ``debug``

A line is one JSON object: ``timestamp`` (RFC 3339, UTC), ``level`` (``INFO``), ``logger``,
``message``, the event's fields and, for an unforeseen error, ``exception``.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import Full, Queue
from typing import Final, TextIO

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.settings import LoggingSection
from ciphermq.telemetry.formats import NOTES, ConsoleFormatter, JsonFormatter
from ciphermq.telemetry.logger import ROOT
from ciphermq.telemetry.traffic import Note, Traffic

_PERIODS: Final = {"never": 0, "hourly": 3600, "daily": 86_400}


class _BoundedQueueHandler(QueueHandler):
    """Puts records on a bounded queue; counts those it has no room for."""

    queue: Queue[logging.LogRecord]

    def __init__(self, target: Queue[logging.LogRecord]) -> None:
        super().__init__(target)
        self.dropped = 0
        self._admitted = 0
        self._notes_put = 0
        self.notes_written = 0
        """Of those that were put; counted by the thread that writes."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The traceback is made text here: held as an object it would keep every frame's locals,
        # payloads and keys among them, alive in the queue.
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._offer(record):
            self.admit()
        else:
            self.dropped += 1

    def put_notes(self, notes: list[Note]) -> None:
        """Lines about messages, in one record: at most `limits.LOG_NOTES` of them wait."""
        if self.notes_waiting + len(notes) > limits.LOG_NOTES:
            self.dropped += len(notes)
            return
        record = logging.LogRecord(f"{ROOT}.server", logging.INFO, __file__, 0, "", None, None)
        record.__dict__[NOTES] = notes
        if self._offer(record):
            self._notes_put += len(notes)
            self.admit()
        else:
            self.dropped += len(notes)

    @property
    def notes_waiting(self) -> int:
        """How many lines about messages wait."""
        return self._notes_put - self.notes_written

    def admit(self) -> None:
        """Say in the log how many lines there was no room for, once there is room again."""
        missing = self.dropped - self._admitted
        if not missing:
            return
        text = f"{missing} log lines were dropped: the log's disk or terminal was too slow"
        name = f"{ROOT}.telemetry"
        line = logging.LogRecord(name, logging.WARNING, __file__, 0, text, None, None)
        if self._offer(line):
            self._admitted += missing

    def _offer(self, record: logging.LogRecord) -> bool:
        try:
            self.queue.put_nowait(record)
        except Full:
            return False
        return True


class _QuietRotatingFile(RotatingFileHandler):
    """A rotating file whose own trouble (a full disk) is counted, not thrown at the console."""

    failures = 0

    def __init__(self, path: Path, settings: LoggingSection) -> None:
        super().__init__(
            path,
            maxBytes=int(settings.max_size_mb * limits.MIB),
            backupCount=settings.backups,
            encoding="utf-8",
        )
        self._seconds = _PERIODS[settings.rotation]
        self._period = self._period_of(path.stat().st_mtime)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        """When the file is full, or its hour or day is over (in UTC, as the lines' times are)."""
        period = self._period_of(record.created)
        over, self._period = period > self._period, max(period, self._period)
        if over and Path(self.baseFilename).stat().st_size > 0:
            return True
        return bool(super().shouldRollover(record))

    def _period_of(self, at: float) -> int:
        return int(at // self._seconds) if self._seconds else 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.failures += 1


class _Listener(QueueListener):
    """Writes what is on the queue."""

    queue: Queue[logging.LogRecord | None]
    front: _BoundedQueueHandler

    def handle(self, record: logging.LogRecord) -> None:
        """Write one record, and count what it stood for."""
        super().handle(record)
        self.front.notes_written += len(getattr(record, NOTES, ()))

    def enqueue_sentinel(self) -> None:
        # The end stands in line too: with a slow disk there may be no room for it at first.
        self.queue.put(None)


class Logging:
    """Running logs; made by `start_logging`, ended by `stop`."""

    def __init__(
        self, level: int, handlers: list[logging.Handler], *, traffic: bool = False
    ) -> None:
        self._handlers = handlers
        self._front = _BoundedQueueHandler(Queue(limits.LOG_QUEUE))
        self._listener = _Listener(self._front.queue, *handlers, respect_handler_level=True)
        self._listener.front = self._front
        self.traffic = Traffic(self._front.put_notes if traffic else None)
        """Where the server notes each message that passes."""
        self._root = logging.getLogger(ROOT)
        self._former = (self._root.level, self._root.propagate)
        self._root.setLevel(level)
        self._root.propagate = False
        self._root.addHandler(self._front)
        self._listener.start()

    @property
    def dropped(self) -> int:
        """Lines there was no room for, because the disk or the terminal was too slow."""
        return self._front.dropped

    def stats(self) -> dict[str, int]:
        """For the status: lines dropped, lines a file could not take, lines waiting."""
        files = [handler for handler in self._handlers if isinstance(handler, _QuietRotatingFile)]
        return {
            "lines_dropped": self.dropped,
            "write_failures": sum(handler.failures for handler in files),
            "lines_waiting": self._front.queue.qsize() + self._front.notes_waiting,
        }

    def stop(self) -> None:
        """Write what waits, close the files, leave the loggers as they were. May be repeated."""
        if self._front not in self._root.handlers:
            return
        self.traffic.flush()
        self._front.admit()
        self._root.removeHandler(self._front)
        self._listener.stop()
        for handler in self._handlers:
            handler.close()
        self._root.setLevel(self._former[0])
        self._root.propagate = self._former[1]


def start_logging(settings: LoggingSection, *, console: TextIO | None = None) -> Logging:
    """Log as configured, the text to `console` (standard error by default).

    `ConfigError` when the directory can't be written.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    handlers = _files(settings, level)
    traffic = settings.messages and any(handler.level <= logging.INFO for handler in handlers)
    if settings.console:
        handlers.append(_console(console if console is not None else sys.stderr))
    return Logging(level, handlers, traffic=traffic)


def _files(settings: LoggingSection, level: int) -> list[logging.Handler]:
    wanted = [
        ("info", settings.info_file_path, max(level, logging.INFO)),
        ("error", settings.error_file_path, logging.ERROR),
    ]
    if level <= logging.DEBUG:
        wanted.append(("debug", settings.debug_file_path, logging.DEBUG))
    handlers: list[logging.Handler] = []
    for name, own_path, least in wanted:
        if own_path is not None:
            path, key = own_path, f"logging.{name}_file_path"
        elif settings.directory is not None:
            path, key = settings.directory / f"{name}.log", "logging.directory"
        else:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = _QuietRotatingFile(path, settings)
        except OSError as error:
            for opened in handlers:
                opened.close()
            place = path.parent if key == "logging.directory" else path
            raise ConfigError(f"{key} = {place}: can't be written: {error.strerror}") from error
        handler.setLevel(least)
        handler.setFormatter(JsonFormatter())
        handlers.append(handler)
    return handlers


def _console(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ConsoleFormatter())
    # Nobody can read so many lines, and a terminal would hold up the files.
    handler.addFilter(lambda record: not hasattr(record, NOTES))
    return handler
