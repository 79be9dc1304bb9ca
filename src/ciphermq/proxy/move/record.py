"""The file that knows how far a move is, so that it can be taken up again from any point.

One file a vhost, written anew (whole, synced, renamed) before each step that could not simply be
done again from the start. It names brokers and users, never a password. It stays after the move:
``--back`` reads there where back is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from ciphermq.errors import MoveError, MoveRefused

Step = Literal["prepared", "draining", "returning", "remapped", "done", "undone"]
"""`prepared`: no message has been touched. `draining`: from the source to the target. `returning`:
the move is being undone, from the target to the source. `remapped`: the vhost is the target's."""

FINISHED: Final = frozenset({"done", "undone"})
_VERSION: Final = 1


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a move: what the proxy calls it, and where its broker is."""

    kind: Literal["backend", "farm"]
    name: str
    management: str
    user: str
    addresses: tuple[tuple[str, int, bool], ...] = ()
    """Host, port and whether by TLS; the first that answers is taken."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Record(msgspec.Struct, kw_only=True):
    """A move of one vhost, from `source` to `target`."""

    version: int = _VERSION
    vhost: str
    source: Side
    target: Side
    step: Step = "prepared"
    granted: set[str] = msgspec.field(default_factory=set)
    """URLs of the management APIs where our user was let into the vhost for the time being."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing to go on with."""
        return self.step in FINISHED

    def turned(self) -> Record:
        """The move in the other direction."""
        return Record(vhost=self.vhost, source=self.target, target=self.source)


class Shelf:
    """Where a vhost's record is kept."""

    def __init__(self, directory: Path, vhost: str) -> None:
        self.path = directory / f"{quote(vhost, safe='')}.json"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """No other process moves this vhost meanwhile. The kernel ends the claim with us."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MoveRefused(
                    f"Another process is moving this vhost ({self.path} is in use)"
                ) from None
            yield

    def read(self) -> Record | None:
        """The record, if there is one."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = msgspec.json.decode(data, type=Record)
        except msgspec.DecodeError as error:
            raise MoveError(
                f"{self.path} is no record of a move ({error}): mend it, or delete it to begin anew"
            ) from error
        if record.version != _VERSION:
            raise MoveError(f"{self.path} was written by another version, {record.version}")
        return record

    def write(self, record: Record) -> None:
        """Keep it, whatever happens next."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def default_directory() -> Path:
    """Where records are, unless the caller says otherwise: the user's own state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ciphermq" / "moves"
