"""A disk in memory that forgets what was not synced, fails on order, and loses power.

`SimDisk` is a `Files`. It keeps, for each file, what the running system shows and what is on the
platters, with the writes and truncations in between; and the same for names. `after_crash` makes
the disk as it may be found afterwards: any subset of the unsynced pieces is there, in any order,
pages between them hold zeros or another file's old bytes.

Calls that change something are counted, so a test can stop the world at each of them in turn.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ciphermq.journal.files import Buffer


class Write(NamedTuple):
    offset: int
    data: bytes


class Truncate(NamedTuple):
    size: int


@dataclass(eq=False)
class Inode:
    """One file."""

    shown: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)
    names: int = 0


@dataclass
class Move:
    """A change of names that no sync of its directories has made durable yet."""

    source: Path | None
    target: Path | None
    inode: Inode | None
    unsynced: set[Path]


class SimDisk:
    """See the module's docstring. `fault`, if set, is asked before each counted call."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.calls: list[str] = []
        self.crash_at: int | None = None
        self.fault: Callable[[str, int], OSError | None] | None = None
        self.shorten: Callable[[int], int | None] = lambda _call: None
        self.capacity = capacity
        self.dead = False
        self._shown: dict[Path, Inode] = {}
        self._durable: dict[Path, Inode] = {}
        self._moves: list[Move] = []
        self._directories: set[Path] = set()
        self._open: dict[int, tuple[Inode | None, Path]] = {}
        self._next_fd = 100
        self._locked: dict[Path, int] = {}
        self._rng = random.Random(7)

    # --- what goes wrong ----------------------------------------------------------------------

    def _call(self, name: str) -> int:
        """Count a call that changes something; raise what was ordered for it."""
        if self.dead:
            raise OSError(errno.EIO, "the machine is off")
        number = len(self.calls)
        self.calls.append(name)
        if self.fault is not None and (error := self.fault(name, number)) is not None:
            raise error
        return number

    def _crash(self, number: int) -> None:
        """After the call has taken what effect it has: off, if this is the moment."""
        if number == self.crash_at:
            self.dead = True
            raise OSError(errno.EIO, "the machine went off")

    def _used(self) -> int:
        return sum(len(inode.shown) for inode in self._shown.values())

    def _check_alive(self) -> None:
        if self.dead:
            raise OSError(errno.EIO, "the machine is off")

    # --- files ----------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        del write
        self._check_alive()
        inode = self._shown.get(path)
        if create:
            number = self._call("create")
            if inode is not None:
                raise FileExistsError(errno.EEXIST, "exists", str(path))
            if path.parent not in self._directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
            inode = Inode(names=1)
            self._shown[path] = inode
            self._moves.append(Move(None, path, inode, {path.parent}))
            self._crash(number)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._new_fd(inode, path)

    def _new_fd(self, inode: Inode | None, path: Path) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = (inode, path)
        return self._next_fd

    def close(self, fd: int) -> None:
        _, path = self._open.pop(fd)
        if self._locked.get(path) == fd:
            del self._locked[path]

    def _inode(self, fd: int) -> Inode:
        inode, _ = self._open[fd]
        assert inode is not None
        return inode

    def size(self, fd: int) -> int:
        return len(self._inode(fd).shown)

    def linked(self, fd: int) -> bool:
        return self._inode(fd).names > 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._check_alive()
        return bytes(self._inode(fd).shown[offset : offset + length])

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        inode = self._inode(fd)
        data = b"".join(buffers)
        number = self._call("write")
        grown = max(0, offset + len(data) - len(inode.shown))
        room = max(0, self.capacity - self._used())
        limit = len(data) if grown <= room else max(0, len(data) - (grown - room))
        short = self.shorten(number)
        if short is not None:
            limit = min(limit, short)
        elif limit == 0 and data:
            self._crash(number)
            raise OSError(errno.ENOSPC, "No space left on device")
        data = data[:limit]
        _overlay(inode.shown, offset, data)
        inode.pending.append(Write(offset, data))
        self._crash(number)
        return len(data)

    def sync(self, fd: int) -> None:
        inode = self._inode(fd)
        number = len(self.calls)
        try:
            self._call("sync")
        except OSError:
            if not self.dead:
                self._lose_pages(inode)
            raise
        self._crash(number)
        # Only what was written since: pages that a failed sync left clean are not written again.
        for change in inode.pending:
            if isinstance(change, Truncate):
                _cut(inode.durable, change.size)
            else:
                _overlay(inode.durable, change.offset, change.data)
        inode.pending.clear()

    def _lose_pages(self, inode: Inode) -> None:
        """As Linux does after a failed write-back: the pages are shown, but clean."""
        inode.durable = _as_found(inode, self._rng, b"")
        inode.pending.clear()

    def truncate(self, fd: int, size: int) -> None:
        inode = self._inode(fd)
        number = self._call("truncate")
        _cut(inode.shown, size)
        inode.pending.append(Truncate(size))
        self._crash(number)

    def preallocate(self, fd: int, size: int) -> None:
        inode = self._inode(fd)
        number = self._call("preallocate")
        room = self.capacity - self._used()
        grown = size - len(inode.shown)
        if grown > room:
            _cut(inode.shown, len(inode.shown) + max(0, room))
            self._crash(number)
            raise OSError(errno.ENOSPC, "No space left on device")
        _cut(inode.shown, max(size, len(inode.shown)))
        inode.pending.append(Truncate(size))
        self._crash(number)

    # --- names ----------------------------------------------------------------------------------

    def names(self, directory: Path) -> list[str]:
        self._check_alive()
        if directory not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(directory))
        paths = [*self._shown, *self._directories]
        return [path.name for path in paths if path.parent == directory]

    def make_directory(self, directory: Path) -> None:
        number = self._call("mkdir")
        self._directories.add(directory)
        self._crash(number)

    def remove_directory(self, directory: Path) -> None:
        number = self._call("rmdir")
        if any(path.parent == directory for path in self._shown):
            raise OSError(errno.ENOTEMPTY, "not empty", str(directory))
        self._directories.discard(directory)
        self._crash(number)

    def rename(self, source: Path, target: Path) -> None:
        number = self._call("rename")
        if source in self._directories:
            # Seen and durable at once: what a directory holds was synced before, and whether the
            # new name is there after a crash makes two crash points that are both tried.
            self._directories.remove(source)
            self._directories.add(target)
            for names in (self._shown, self._durable):
                for path in [path for path in names if path.parent == source]:
                    names[target / path.name] = names.pop(path)
        else:
            inode = self._shown.pop(source)
            self._shown[target] = inode
            self._moves.append(Move(source, target, inode, {source.parent, target.parent}))
        self._crash(number)

    def unlink(self, path: Path) -> None:
        number = self._call("unlink")
        inode = self._shown.pop(path, None)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        inode.names -= 1
        self._moves.append(Move(path, None, inode, {path.parent}))
        self._crash(number)

    def sync_directory(self, directory: Path) -> None:
        number = self._call("sync directory")
        self._crash(number)
        for move in list(self._moves):
            move.unsynced.discard(directory)
            if not move.unsynced:
                _apply(self._durable, move)
                self._moves.remove(move)

    def lock(self, directory: Path) -> int:
        self._check_alive()
        if directory in self._locked:
            raise BlockingIOError(errno.EAGAIN, "locked", str(directory))
        fd = self._new_fd(None, directory)
        self._locked[directory] = fd
        return fd

    # --- afterwards -----------------------------------------------------------------------------

    def killed(self) -> None:
        """The process is gone, the machine stays up: what is shown is shown."""
        self._open.clear()
        self._locked.clear()
        self.dead = False
        self.crash_at = None
        self.fault = None

    def after_crash(self, rng: random.Random | str) -> SimDisk:
        """The disk as it may be found. `rng` may be ``"all"`` or ``"nothing"`` of the unsynced."""
        found = SimDisk(self.capacity)
        found._directories = set(self._directories)
        names = dict(self._durable)
        for move in self._moves:
            if rng == "all" or (isinstance(rng, random.Random) and rng.random() < 0.5):
                _apply(names, move)
        stale = b"".join(bytes(inode.shown) for inode in self._shown.values())[:100_000]
        for path, inode in names.items():
            if rng == "all":
                content = bytearray(inode.shown)
            elif isinstance(rng, random.Random):
                content = _as_found(inode, rng, stale if rng.random() < 0.5 else b"")
            else:
                content = bytearray(inode.durable)
            copy = Inode(bytearray(content), bytearray(content), names=1)
            found._shown[path] = copy
            found._durable[path] = copy
        return found

    def contents(self) -> dict[Path, bytes]:
        """All files as shown."""
        return {path: bytes(inode.shown) for path, inode in self._shown.items()}

    def content(self, path: Path) -> bytearray:
        """One file, to be damaged in place."""
        inode = self._shown[path]
        inode.durable = inode.shown
        return inode.shown


def _apply(names: dict[Path, Inode], move: Move) -> None:
    if move.source is not None:
        names.pop(move.source, None)
    if move.target is not None and move.inode is not None:
        names[move.target] = move.inode


def _cut(data: bytearray, size: int, filler: bytes = b"") -> None:
    if len(data) > size:
        del data[size:]
    else:
        gap = size - len(data)
        data += (filler[len(data) : len(data) + gap]).ljust(gap, b"\0")


def _overlay(data: bytearray, offset: int, new: bytes, filler: bytes = b"") -> None:
    if offset > len(data):
        _cut(data, offset, filler)
    data[offset : offset + len(new)] = new


def _as_found(inode: Inode, rng: random.Random, filler: bytes) -> bytearray:
    """The file's content if power fails now: each unsynced sector is there or not."""
    data = bytearray(inode.durable)
    sector = rng.choice((512, 4096))
    share = rng.choice((0.1, 0.5, 0.9, 1.0))
    for change in inode.pending:
        if isinstance(change, Truncate):
            if rng.random() < share:
                _cut(data, change.size, filler)
            continue
        at = 0
        while at < len(change.data):
            end = at + sector - (change.offset + at) % sector
            if rng.random() < share:
                _overlay(data, change.offset + at, change.data[at:end], filler)
            at = end
    if rng.random() < 0.3 and len(inode.shown) > len(data):
        _cut(data, len(inode.shown), filler)  # the size arrived, the bytes did not
    return data
