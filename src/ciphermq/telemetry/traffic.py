"""Lines of the log for each message that passes: published, delivered, acknowledged.

At full speed a logger's own way, a record and a turn in the queue for each line, would cost more
than the messages. So the event loop only notes what happened; hundreds of notes go to the log's
thread in one record, and become lines there, by templates that have nothing left to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Final, NamedTuple

from ciphermq import limits

_LOGGER: Final = "ciphermq.server"


class Kind(NamedTuple):
    """What can happen, and the names of what is said about it."""

    message: str
    members: tuple[str, ...]
    """The first names the message, or the batch; ``messages`` is a number, all others are text."""


MESSAGE_PUBLISHED: Final = Kind(
    "message published", ("message_id", "client", "exchange", "routing_key")
)
MESSAGE_DELIVERED: Final = Kind("message delivered", ("message_id", "client", "queue"))
MESSAGE_ACKNOWLEDGED: Final = Kind("message acknowledged", ("message_id", "client"))
BATCH_PUBLISHED: Final = Kind(
    "batch published", ("batch_id", "client", "exchange", "routing_key", "messages")
)
BATCH_DELIVERED: Final = Kind("batch delivered", ("batch_id", "client", "queue", "messages"))
BATCH_ACKNOWLEDGED: Final = Kind("batch acknowledged", ("batch_id", "client", "messages"))
KINDS: Final = (
    *(MESSAGE_PUBLISHED, MESSAGE_DELIVERED, MESSAGE_ACKNOWLEDGED),
    *(BATCH_PUBLISHED, BATCH_DELIVERED, BATCH_ACKNOWLEDGED),
)

Note = tuple[float, Kind, str, tuple[str, ...], int]
"""When (seconds since the epoch), what, its id, the other texts, and how many messages."""
Notes = list[Note]


class Traffic:
    """What one event loop notes of its messages. Costs next to nothing while nobody listens."""

    def __init__(self, take: Callable[[Notes], None] | None = None) -> None:
        """`take` is given the notes, many at a time; None: nobody wants any."""
        self._take = take
        self._notes: Notes = []

    @property
    def wanted(self) -> bool:
        """Whether anybody listens; otherwise `note` does nothing."""
        return self._take is not None

    def note(self, kind: Kind, name: str, *texts: str, messages: int = 0) -> None:
        """This has happened, now, to what is called `name`. The others are `kind.members`, in
        their order."""
        if self._take is None:
            return
        notes = self._notes
        if not notes:
            asyncio.get_running_loop().call_later(limits.LOG_FLUSH, self.flush)
        notes.append((time.time(), kind, name, texts, messages))
        if len(notes) >= limits.LOG_CHUNK:
            self.flush()

    def flush(self) -> None:
        """Hand over what was noted."""
        notes, self._notes = self._notes, []
        if notes and self._take is not None:
            self._take(notes)


def lines(notes: Notes) -> str:
    """The lines of these, each a JSON object as `ciphermq.telemetry.logs` describes it."""
    second, moment = -1, ""
    made = []
    for at, kind, name, texts, messages in notes:
        if int(at) != second:
            second = int(at)
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        made.append(
            f'{{"timestamp":"{moment}.{int(at % 1 * 1e6):06}Z",{_start(kind)}'
            f"{encode_basestring_ascii(name)}{_rest(kind, texts)}"
            + (f',"messages":{messages}}}' if messages else "}")
        )
    # The one character that neither JSON nor ASCII keeps from steering a terminal.
    return "\n".join(made).replace("\x7f", "\\u007f")


@lru_cache(maxsize=len(KINDS))
def _start(kind: Kind) -> str:
    return f'"level":"INFO","logger":"{_LOGGER}","message":"{kind.message}","{kind.members[0]}":'


@lru_cache(maxsize=1024)
def _rest(kind: Kind, texts: tuple[str, ...]) -> str:
    """Members that are the same for many: who, and where."""
    named: Iterable[tuple[str, str]] = zip(kind.members[1:], texts, strict=False)
    return "".join(f',"{member}":{encode_basestring_ascii(text)}' for member, text in named)
