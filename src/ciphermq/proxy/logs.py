"""The proxy's log: lines that its processes make, and the one thread that writes them.

Every room logs through `ciphermq.telemetry`. A `Lines` handler in each process turns records into
text; a worker's text goes to the supervisor, some at a time, and the supervisor's `Writer` puts
everything into one file and on standard error, from a thread of its own: a full disk or a stuck
terminal costs lines, which are counted and admitted in the log itself, and never a session's time.

Files are named and rotated as amqpprox names and rotates its own: ``PROGRAM_YYYYMMDD_NNNNN.log``,
a new one each day (in UTC) and each 32 MiB, the oldest removed when all take more than 1 GiB.
A line of the file, and one on the console::

    2026-11-21T02:03:04.567890Z 4711 INFO [vhost] 17: what happened key=value
    INFO [vhost] 17: what happened key=value
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import BinaryIO, Final

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.telemetry.formats import JsonFormatter, parts, printable
from ciphermq.telemetry.logger import ROOT

WORDS: Final = ("fatal", "error", "warn", "info", "debug", "trace")
"""Verbosity, from 0 on."""
_LEVELS: Final = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, 5)
_NAMES: Final = dict(zip(_LEVELS, (word.upper() for word in WORDS), strict=True))

OFF: Final = -1
"""Less than any verbosity: where there is no log file, no line is made for it."""

Take = Callable[[bytes, bytes], None]
"""Takes text for the file and text for the console."""


class Lines(logging.Handler):
    """Turns records into lines, and passes them on a few at a time."""

    def __init__(self, take: Take, *, console: int, file: int, as_json: bool = False) -> None:
        """Pass lines to `take`, on the running loop's thread. Levels are verbosities, or `OFF`."""
        super().__init__()
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._json = JsonFormatter() if as_json else None
        self._file: list[str] = []
        self._console: list[str] = []
        self._due = False
        self._second = ("", 0)
        self._pid = os.getpid()
        self._former = logging.getLogger(ROOT).level
        self.set_levels(console=console, file=file)

    def set_levels(self, *, console: int, file: int) -> None:
        """How much goes where, from now on; `OFF` is nothing at all."""
        self._console_level, self._file_level = _level(console), _level(file)
        logging.getLogger(ROOT).setLevel(min(self._console_level, self._file_level))

    def start(self) -> None:
        """Take what every room logs."""
        root = logging.getLogger(ROOT)
        root.propagate = False
        root.addHandler(self)

    def stop(self) -> None:
        """Pass on what there is, and take no more."""
        root = logging.getLogger(ROOT)
        root.removeHandler(self)
        root.propagate = True
        root.setLevel(self._former)
        self.pass_on()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        to_file = record.levelno >= self._file_level
        to_console = record.levelno >= self._console_level
        text = _text(record)
        if to_file:
            self._file.append(
                self._json.format(record)
                if self._json is not None
                else f"{self._timestamp(record.created)} {self._pid} {text}"
            )
        if to_console:
            self._console.append(text)
        if not self._due and (to_file or to_console):
            self._due = True
            # Some libraries log from their own threads.
            self._loop.call_soon_threadsafe(
                self._loop.call_later, limits.PROXY_LOG_DELAY, self.pass_on
            )

    def pass_on(self) -> None:
        """Pass on what has come together."""
        self.acquire()
        try:
            file, self._file = self._file, []
            console, self._console = self._console, []
            self._due = False
        finally:
            self.release()
        if file or console:
            self._take(_joined(file), _joined(console))

    def _timestamp(self, created: float) -> str:
        """RFC 3339; the date and time are spelt once a second, not once a line."""
        second = int(created)
        if self._second[1] != second:
            spelt = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (spelt, second)
        return f"{self._second[0]}.{int((created - second) * 1_000_000):06d}Z"


def _level(verbosity: int) -> int:
    return _LEVELS[verbosity] if verbosity >= 0 else logging.CRITICAL + 1


def _joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace") if lines else b""


def _text(record: logging.LogRecord) -> str:
    """A record without its time: everything a stranger may have chosen is shown escaped."""
    message, fields = parts(record)
    level = _NAMES.get(record.levelno, record.levelname)
    where = ""
    if "vhost" in fields:
        where += f" [{printable(str(fields['vhost']))}]"
    if "session" in fields:
        where += f" {fields['session']}"
    text = f"{level}{where}: {printable(message)}"
    for key, value in fields.items():
        if key not in ("vhost", "session"):
            text += f" {key}={printable(str(value))}"
    # Set in, no line of a traceback can pose as another event.
    for line in (record.exc_text or "").splitlines():
        text += f"\n  {printable(line)}"
    return text


class Writer:
    """Writes lines to the log file and standard error, in a thread. `take` never waits."""

    def __init__(self, directory: Path | None, program: str, console: BinaryIO | None = None):
        """Write to files in `directory`, if there is one. `ConfigError` when that can't be."""
        self._file = None if directory is None else _File(directory, program)
        self._console = console if console is not None else sys.stderr.buffer
        self._queue: Queue[tuple[bytes, bytes] | None] = Queue(limits.PROXY_LOG_QUEUE)
        self.dropped = 0
        """Lines there was no room for."""
        self.failures = 0
        """Writes that failed: a full disk, a closed terminal."""
        self._admitted = 0
        self._thread = Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def take(self, file: bytes, console: bytes) -> None:
        """Write these when their turn comes; drop and count them when too much waits."""
        missing = self.dropped - self._admitted
        note = b""
        if missing:
            words = f"WARN: {missing} log lines were dropped: the disk or terminal was too slow\n"
            note = words.encode()
        try:
            self._queue.put_nowait((note + file, note + console))
        except Full:
            self.dropped += max(file.count(b"\n"), console.count(b"\n"))
        else:
            self._admitted += missing

    def stop(self) -> None:
        """Write what waits, for as long as that may take, and close the file."""
        try:
            self._queue.put(None, timeout=limits.PROXY_LOG_STOP)
        except Full:
            return
        self._thread.join(limits.PROXY_LOG_STOP)

    def _write_all(self) -> None:
        while (lines := self._queue.get()) is not None:
            file, console = lines
            try:
                if file and self._file is not None:
                    self._file.write(file)
            except OSError:
                self.failures += 1
            try:
                if console:
                    self._console.write(console)
                    self._console.flush()
            except (OSError, ValueError):
                self.failures += 1
        if self._file is not None:
            self._file.close()


class _File:
    """The log files of one directory, of which the last is written."""

    def __init__(self, directory: Path, program: str) -> None:
        self._directory, self._program = directory, program
        self._pattern = re.compile(rf"{re.escape(program)}_\d{{8}}_(\d{{5,}})\.log")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ConfigError(
                f"The log directory {directory} can't be written: {error.strerror}"
            ) from error

    def write(self, lines: bytes) -> None:
        if self._size >= limits.PROXY_LOG_FILE or time.time() >= self._until:
            self.close()
            self._open()
        self._size += len(lines)
        view = memoryview(lines)
        while view:
            view = view[self._out.write(view) :]

    def close(self) -> None:
        self._out.close()

    def _open(self) -> None:
        """Begin a new file, and remove the oldest ones where there are too many bytes."""
        now = time.time()
        numbers = [int(found[1]) for path in self._files() if (found := self._match(path))]
        number = max(numbers, default=-1) + 1
        today = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d")
        path = self._directory / f"{self._program}_{today}_{number:05d}.log"
        # Another proxy that logs to the same directory may have taken the number just now: two
        # may share a file, since every write is an append.
        self._out = path.open("ab", buffering=0)
        # Only now: while there is no new file, each write is to try again.
        self._size = self._out.tell()
        self._until = (now // limits.DAY + 1) * limits.DAY
        self._remove_oldest(keep=path)

    def _files(self) -> list[Path]:
        return [path for path in self._directory.iterdir() if self._match(path)]

    def _match(self, path: Path) -> re.Match[str] | None:
        return self._pattern.fullmatch(path.name)

    def _remove_oldest(self, keep: Path) -> None:
        sizes = {path: path.stat().st_size for path in self._files()}
        total = sum(sizes.values())
        for path in sorted(sizes):
            if total <= limits.PROXY_LOG_FILES or path == keep:
                break
            path.unlink(missing_ok=True)
            total -= sizes[path]
