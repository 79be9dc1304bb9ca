"""What is noted of 1.x messages and is not in PostgreSQL yet, in a file: it outlives the broker.

1.x has a row for each message, so a broker that is killed must not leave any out. What is noted is
appended, without a sync: that is safe from the broker's end, though not from the machine's. There
are two files at most, one that is being written to the database and one that grows meanwhile.
After a start both are read. To note the same again does no harm: a row is what all its notes say.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.catalog.face import OnexPublication
from ciphermq.catalog.pending import MessageRow, PendingMetadata
from ciphermq.errors import CatalogError
from ciphermq.telemetry import get_logger

_LENGTH: Final = 4
_PRIVATE: Final = 0o600
_EVENT: Final = b"e"
_PUBLISHED: Final = b"p"

_log = get_logger("catalog")
_pack = msgspec.msgpack.Encoder().encode
_Fields = tuple[str, str, str, str, int, bool]


class Event(msgspec.Struct, frozen=True, array_like=True):
    """What became of a message."""

    event: str
    batch_id: bytes
    at_ms: int


class WaitingFile:
    """Notes of one event loop, on their way to the database. All failures of its disk are logged
    once and cost no more than what this file is for."""

    def __init__(self, path: Path) -> None:
        self._paths = (path.with_name(f"{path.name}.0"), path.with_name(f"{path.name}.1"))
        self._grows = 0
        """Which of the two grows."""
        self._descriptor = -1
        self._size = 0
        self._notes: list[bytes] = []
        self._writing = False
        self._failed = False

    # --- life -----------------------------------------------------------------------------------

    def open(self, pending: PendingMetadata) -> None:
        """Have `pending` know what was left, and go on behind that. `CatalogError` if the files
        can't be read: to start without them would lose what they hold."""
        try:
            for path in sorted(
                filter(Path.exists, self._paths), key=lambda each: each.stat().st_mtime_ns
            ):
                notes, whole = _read(path.read_bytes())
                for note in notes:
                    if isinstance(note, Event):
                        pending.event(note.event, note.batch_id, 1, note.at_ms)
                    else:
                        pending.publish_message(note)
                os.truncate(path, whole)  # what comes behind a torn note could never be read
                self._grows = self._paths.index(path)
            self._grow()
        except (OSError, msgspec.MsgspecError) as error:
            raise CatalogError(
                f"metadata that waits for the database is in {self._paths[0].parent} and can't be "
                f"read ({error}): mend that, or move the files {self._paths[0].stem}.* away"
            ) from error

    def close(self) -> None:
        """Nothing more is noted. The files stay, if anything is in them."""
        self._write()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- notes ----------------------------------------------------------------------------------

    def published(self, publication: OnexPublication) -> None:
        """A message was."""
        self._note(_PUBLISHED + _pack(msgspec.structs.astuple(publication)))

    def happened(self, event: str, batch_id: bytes, at_ms: int) -> None:
        """To a message."""
        self._note(_EVENT + _pack(Event(event, batch_id, at_ms)))

    def early(self, rows: list[MessageRow]) -> None:
        """These wait on, although what was noted with them is written."""
        for row in rows:
            for event, at_ms in (("delivered", row.delivered_ms), ("acked", row.acked_ms)):
                if at_ms is not None:
                    self.happened(event, row.internal_id, at_ms)

    def _note(self, data: bytes) -> None:
        if self._descriptor < 0 or self._failed or self._size > limits.WAITING_METADATA:
            return
        self._notes += (len(data).to_bytes(_LENGTH, "big"), data)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """All of this turn of the loop at once, before its replies are sent."""
        self._writing = False
        notes, self._notes = self._notes, []
        if not notes or self._descriptor < 0:
            return
        data = b"".join(notes)
        try:
            if os.write(self._descriptor, data) < len(data):
                os.ftruncate(self._descriptor, self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._fail(error)
        else:
            self._size += len(data)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            _log.error(
                "metadata that waits is in memory alone: it would not outlive the broker",
                why=str(error),
            )
        self._failed = True

    # --- the two files --------------------------------------------------------------------------

    def turn(self) -> None:
        """All that was noted so far is being written to the database; what comes from now on
        goes to the other file. Nothing, if that is in use: an earlier turn is not over."""
        other = self._paths[1 - self._grows]
        if self._descriptor < 0 or other.exists() or not self._size:
            return
        self._write()
        self._grows = 1 - self._grows
        with self._failing():
            self._grow()

    def turned(self) -> None:
        """What was noted before the last `turn` is in the database, or has been noted since."""
        self._write()  # a kill between the two would lose what is noted again
        with self._failing():
            self._paths[1 - self._grows].unlink(missing_ok=True)

    def _grow(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._paths[self._grows], flags, _PRIVATE)
        self._size = os.fstat(self._descriptor).st_size

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fail(error)


def _read(data: bytes) -> tuple[list[Event | OnexPublication], int]:
    """What a file holds, and how much of it is whole: the last note may have been cut."""
    notes: list[Event | OnexPublication] = []
    at = 0
    while (begin := at + _LENGTH) <= len(data):
        end = begin + int.from_bytes(data[at:begin], "big")
        if end > len(data):
            break
        if data[begin : begin + 1] == _EVENT:
            notes.append(msgspec.msgpack.decode(data[begin + 1 : end], type=Event))
        else:
            fields = msgspec.msgpack.decode(data[begin + 1 : end], type=_Fields)
            notes.append(OnexPublication(*fields))
        at = end
    return notes, at
