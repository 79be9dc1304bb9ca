"""Files that hold secrets or decide about trust: private, whole or not there at all, synced."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ciphermq.errors import IdentityError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
_PRIVATE_DIRECTORY: Final = 0o700
_FORBIDDEN: Final = stat.S_IWGRP | stat.S_IRWXO


def make_private_directory(path: Path) -> None:
    """`path` and its missing parents, open to their owner only; an existing one is left as is."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=_PRIVATE_DIRECTORY, exist_ok=True)


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE, replace: bool = False) -> None:
    """Write `data` so that a crash leaves the old file or the new one, never a part.

    Without `replace` an existing file is an error (`FileExistsError`), even if it appears
    meanwhile. The mode is the file's from its first moment on.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The process's umask must not open or close what the caller asked for.
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a new private directory: it appears at `path` whole, when the block ends, or not at
    all. `FileExistsError` when there is something at `path` other than an empty directory."""
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, "there is something already", str(path))
    make_private_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.mkdir(mode=_PRIVATE_DIRECTORY)
    try:
        yield temporary
        sync_directory(temporary)
        # Fails, rather than replaces, when somebody else filled `path` meanwhile.
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path, *, limit: int) -> bytes:
    """A secret file's bytes.

    Raises `IdentityError` when it is missing, over `limit` bytes, or when others than its owner
    (and those of its group who may read it) could have read or changed it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & _FORBIDDEN:
                raise IdentityError(
                    f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); what it "
                    f"holds may be known to them. Close it with: chmod 600 {path}"
                )
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing") from None
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > limit:
        raise IdentityError(f"{path} has more than {limit} bytes: it is not what it should be")
    return data


def claim(path: Path) -> int:
    """A descriptor of `path` (made when missing) that keeps other processes from claiming it, until
    it is closed or this process ends. `BlockingIOError` when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made when missing) against other processes and threads.

    Waits for whoever holds it: holders only read and write a few small files.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
