"""Copy and check a SQLite catalog, whether or not a server has it open."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from ciphermq.catalog import schema
from ciphermq.errors import CatalogError


def copy_catalog(source: Path, target: Path) -> None:
    """A consistent copy of `source` in the new file `target`, synced and checked.

    A server that has it open goes on meanwhile. `CatalogError` when either fails.
    """
    try:
        with (
            contextlib.closing(_open_read_only(source)) as original,
            contextlib.closing(_create(target)) as copy,
        ):
            original.backup(copy)
            # One file and no log beside it: what is copied on is then the whole of it.
            copy.execute("PRAGMA journal_mode = DELETE")
    except (sqlite3.Error, OSError) as error:
        raise CatalogError(f"{source}: the catalog can't be copied to {target}: {error}") from error
    check_catalog(target)


def check_catalog(path: Path) -> int:
    """The number of key records in a sound catalog; `CatalogError` when it is not sound."""
    try:
        with contextlib.closing(_open_read_only(path)) as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise CatalogError(f"{path}: the catalog is damaged: {found}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not 0 < version <= schema.VERSION:
                raise CatalogError(f"{path}: not a catalog of this program (version {version})")
            (keys,) = connection.execute("SELECT count(*) FROM keys").fetchone()
            return int(keys)
    except sqlite3.Error as error:
        raise CatalogError(f"{path}: the catalog can't be read: {error}") from error


def _open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _create(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    return sqlite3.connect(path, isolation_level=None)
