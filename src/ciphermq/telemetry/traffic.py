"""Lines of the log for each message that passes: published, delivered, acknowledged.

At full speed a logger's own way, a record and a turn in the queue for each line, would cost more
than the messages. So the event loop only notes what happened; hundreds of notes go to the log's
thread in one record, and are made lines there all at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import msgspec

from ciphermq import limits

_LEVEL: Final = "INFO"
_LOGGER: Final = "ciphermq.server"

NOT_IN_A_LINE: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON may hold as it is, although it ends lines (to some readers), steers terminals, or shows
text in another order than it stands in."""


class Note(msgspec.Struct, gc=False):
    """What a line says; members are in its order. Without `gc`: there are many, and they refer to
    texts alone."""

    what: ClassVar[str]
    """The `event`."""
    words: ClassVar[tuple[str, str, str]]
    """The `message`, before and after the id and behind the place, if that is in it. They are
    those of CipherMQ 1.x, which people look for in their logs."""
    place: ClassVar[int] = 0
    """Which of the members is the place; 0: none."""

    timestamp: str
    level: str
    logger: str
    message: str
    event: str


class MessagePublished(Note, gc=False):
    """A message of 1.x is in the journal, for the first time."""

    what = "message published"
    words = ("Published message ", " via exchange '", "'")
    place = 2

    message_id: str
    client: str
    exchange: str
    routing_key: str


class MessageDelivered(Note, gc=False):
    """A message of 1.x was given to a client."""

    what = "message delivered"
    words = ("Delivered message ", " from queue '", "'")
    place = 2

    message_id: str
    client: str
    queue: str


class MessageAcknowledged(Note, gc=False):
    """A message of 1.x was acked by a client, and that is in the journal."""

    what = "message acknowledged"
    words = ("Message ", " acknowledged by client, removed from its queue", "")

    message_id: str
    client: str


class BatchPublished(Note, gc=False):
    """As `MessagePublished`, of a batch."""

    what = "batch published"
    words = ("Published batch ", " via exchange '", "'")
    place = 2

    batch_id: str
    client: str
    exchange: str
    routing_key: str
    messages: int


class BatchDelivered(Note, gc=False):
    """As `MessageDelivered`, of those messages of a batch that were meant."""

    what = "batch delivered"
    words = ("Delivered batch ", " from queue '", "'")
    place = 2

    batch_id: str
    client: str
    queue: str
    messages: int


class BatchAcknowledged(Note, gc=False):
    """As `MessageAcknowledged`, of those messages of a batch that were meant."""

    what = "batch acknowledged"
    words = ("Batch ", " acknowledged by client, removed from its queue", "")

    batch_id: str
    client: str
    messages: int


KINDS: Final[tuple[type[Note], ...]] = (
    *(MessagePublished, MessageDelivered, MessageAcknowledged),
    *(BatchPublished, BatchDelivered, BatchAcknowledged),
)


class Traffic:
    """What one event loop notes of its messages. Costs next to nothing while nobody listens."""

    def __init__(self, take: Callable[[list[Note]], None] | None = None) -> None:
        """`take` is given the notes, many at a time; None: nobody wants any."""
        self._take = take
        self._notes: list[Note] = []
        self._ms = 0
        self._moment = ""

    @property
    def wanted(self) -> bool:
        """Whether anybody listens; otherwise `note` does nothing."""
        return self._take is not None

    def note(self, kind: type[Note], *members: str | int) -> None:
        """This has happened, now. `members`: those that `kind` adds, in their order."""
        if self._take is None:
            return
        ms = int(time.time() * 1000)
        if ms != self._ms:
            self._ms, self._moment = ms, spell(ms)
        before, after, end = kind.words
        place = members[kind.place] if kind.place else ""
        message = f"{before}{members[0]}{after}{place}{end}"
        notes = self._notes
        notes.append(kind(self._moment, _LEVEL, _LOGGER, message, kind.what, *members))
        if len(notes) == 1:
            asyncio.get_running_loop().call_later(limits.LOG_FLUSH, self.flush)
        elif len(notes) >= limits.LOG_CHUNK:
            self.flush()

    def flush(self) -> None:
        """Hand over what was noted."""
        notes, self._notes = self._notes, []
        if notes and self._take is not None:
            self._take(notes)


def spell(ms: int) -> str:
    """A time as it stands in a line; RFC 3339 in UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000))
    return f"{whole}.{ms % 1000:03}000Z"


_encode: Final = msgspec.json.Encoder().encode_lines


def lines(notes: Sequence[Note]) -> str:
    """The lines of these, each a JSON object as `ciphermq.telemetry.logs` describes it; the last
    is not ended."""
    data = _encode(notes)[:-1]
    text = data.decode()
    if data.isascii() and b"\x7f" not in data:
        return text
    return escape(text)


def escape(text: str) -> str:
    """JSON without what may not stand in a line as it is."""
    return NOT_IN_A_LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
