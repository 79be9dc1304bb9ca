"""The console of the clients of CipherMQ 1.x, and their log files.

A line is ``[2025-09-08 07:03:00] [SENDER] Encrypted message …``, in local time, as 1.x shows it;
with ``--json`` one object a line. What a message says is shown and in no log.
"""

from __future__ import annotations

import io
import sys
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ciphermq.cli.output import print_json, printable
from ciphermq.telemetry import get_logger
from ciphermq.telemetry.logs import Logging, start_logging

if TYPE_CHECKING:
    from ciphermq.settings.onexclient import LoggingPart

_PROBLEMS: Final = frozenset(
    {"ack_failed", "away", "failed", "given_up", "lost", "no_key", "refused", "unexpected"}
)
_DETAILS: Final = frozenset({"ack", "confirmed", "declared", "retry", "duplicate"})
_TEXT: Final = "message"
"""The fact that is what a message says."""

_log = get_logger("client")


class OnexConsole:
    """One program's, as long as it runs."""

    def __init__(self, program: str, logging: LoggingPart | None, *, as_json: bool) -> None:
        """`logging`: its files, if there are any; `ConfigError` when they can't be written."""
        self._program = program
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A message may say what the terminal's character set has not; that ends nothing.
            sys.stdout.reconfigure(errors="backslashreplace")
        self._as_json = as_json
        self._logs: Logging | None = None if logging is None else start_logging(logging)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._logs is not None:
            if isinstance(error, Exception):
                _log.error("the program ends", reason=str(error))
            self._logs.stop()

    def say(self, event: str, line: str, /, **facts: Any) -> None:
        """Show what has happened, and log it."""
        now = datetime.now().astimezone()
        if self._as_json:
            told = {} if facts else {"text": line}
            print_json({"time": now.isoformat(), "event": event, **told, **facts})
        else:
            # In one write, so that nobody else's line comes into the middle of it.
            sys.stdout.write(f"[{now:%Y-%m-%d %H:%M:%S}] [{self._program}] {printable(line)}\n")
            sys.stdout.flush()
        if self._logs is not None:
            self._log(event, line, facts)

    def _log(self, event: str, line: str, facts: dict[str, Any]) -> None:
        kept = {name: value for name, value in facts.items() if name != _TEXT}
        said = line if len(kept) == len(facts) else line.partition(": ")[0]
        if event in _PROBLEMS:
            _log.error(said, **kept)
        elif event in _DETAILS:
            _log.debug(said, **kept)
        else:
            _log.info(said, **kept)
