"""What holds a command up while it runs, for who sits at the terminal.

The client tells it to its loggers, which nobody listens to here otherwise; shown are its words, and
the reason once until it changes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_ROOMS: Final = ("ciphermq.client.token", "ciphermq.client.connection")


class _Shown(logging.Handler):
    """Shows a record on standard error as the command's own words."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        from ciphermq.telemetry.logger import RECORD_FIELDS

        event, fields = getattr(record, RECORD_FIELDS)
        reason = f": {fields['reason']}" if "reason" in fields else ""
        say(f"{event}{reason}")


@contextmanager
def shown() -> Iterator[None]:
    """In the block, it is told when a token or the broker is waited for, and when it is back:
    nothing else would show why nothing comes."""
    handler = _Shown()
    loggers = [logging.getLogger(room) for room in _ROOMS]
    former = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, former, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def say(words: str) -> None:
    """A line on standard error. It may quote a broker's words."""
    from ciphermq.cli.output import printable

    # Messages must go on where nobody reads this any more.
    with suppress(OSError):
        print(printable(f"ciphermq: {words}"), file=sys.stderr, flush=True)
