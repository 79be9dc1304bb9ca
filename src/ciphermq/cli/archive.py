"""A backup of a broker: what is in it, how it is made and put back.

::

    MANIFEST.json    format, when, and for each file its size and SHA-256
    config.toml      as it was
    server.crt  server.key  ca.crt  crl.pem  at-rest.key
    aes.key  database-password  database-ca.crt
    catalog.db       one consistent copy; not of PostgreSQL, which has its own tools (pg_dump)
    journal/         segments, up to some moment during the backup

Names in a backup are fixed, whatever the configuration calls them. Restoring puts each file
where the restored configuration looks for it. The backup holds the server's keys and is as
private as they are; message contents it can't show, no more than the broker can.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ciphermq.catalog.copying import check_catalog, copy_catalog
from ciphermq.custody import disk
from ciphermq.errors import StoreError, UsageError
from ciphermq.journal import backup as journal_backup
from ciphermq.journal import tools
from ciphermq.settings import load_server_settings

if TYPE_CHECKING:
    from ciphermq.settings import ServerSettings

FORMAT: Final = 1
MANIFEST: Final = "MANIFEST.json"
CONFIG: Final = "config.toml"
CATALOG: Final = "catalog.db"
JOURNAL: Final = "journal"
_PRIVATE_DIRECTORY: Final = 0o700

Progress = Callable[[int, int], None]


class File(msgspec.Struct, frozen=True):
    """One file of a backup."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. `files` are by path within it."""

    made: str
    software: str
    files: dict[str, File]
    format: int = FORMAT


class Summary(msgspec.Struct, frozen=True):
    """What was copied and checked."""

    directory: str
    files: int
    size: int
    records: int
    """In the journal."""
    keys: int
    """In the catalog."""
    damaged: list[str]
    """Payloads that were damaged in the broker's own journal already: copied as they are."""
    elsewhere: str = ""
    """The PostgreSQL database that has the catalog, which is not in the backup."""


def back_up(config: Path, target: Path, *, progress: Progress | None = None) -> Summary:
    """Copy the broker that `config` configures to the new directory `target`, and check it.

    The broker may be running. `target` appears only once it is whole. `UsageError` when there
    is something at `target`; `JournalError`, `CatalogError` or `StoreError` when a part can't be
    copied.
    """
    settings = load_server_settings(config)
    with _explained("the backup"), disk.new_directory(target) as work:
        _copy(config, work / CONFIG)
        for name, path in _single_files(settings).items():
            _copy(path, work / name)
        if settings.database is None and settings.storage.catalog_path.exists():
            copy_catalog(settings.storage.catalog_path, work / CATALOG)
        if settings.storage.journal_directory.exists():
            source, copy = settings.storage.journal_directory, work / JOURNAL
            journal_backup.copy(source, copy, progress=progress)
            copy.chmod(_PRIVATE_DIRECTORY)
        paths = [path for path in sorted(work.rglob("*")) if path.is_file()]
        files = {str(path.relative_to(work)): _measure(path) for path in paths}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(made=made, software=version("ciphermq"), files=files)
        disk.write_file(work / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        summary = _check(work / JOURNAL, work / CATALOG, files)
    return msgspec.structs.replace(summary, directory=str(target), elsewhere=_elsewhere(settings))


def restore(backup: Path, target: Path, *, progress: Progress | None = None) -> Summary:
    """Put `backup` back as the server directory `target`, which must be new or empty.

    So must be whatever the restored configuration names outside of it. Everything is compared
    with the manifest after it was written. `StoreError` when the backup is not whole.
    """
    manifest = _read_manifest(backup)
    total = sum(file.size for file in manifest.files.values())
    done = 0
    with (
        _explained("the restore"),
        disk.new_directory(target) as work,
        contextlib.ExitStack() as undo,
    ):
        _copy(backup / CONFIG, work / CONFIG)
        settings = load_server_settings(work / CONFIG, secrets=False)
        places = _Places(settings)
        for name, file in manifest.files.items():
            place = work / CONFIG if name == CONFIG else places.of(name)
            if name != CONFIG:
                if not place.is_relative_to(work):
                    undo.callback(place.unlink, missing_ok=True)
                _copy(backup / name, place)
            if _measure(place) != file:
                raise StoreError(
                    f"{backup / name} is not what the manifest says: the backup is damaged, or "
                    "was changed"
                )
            done += file.size
            if progress is not None:
                progress(done, total)
        summary = _check(places.journal, places.catalog, manifest.files)
        undo.pop_all()
    return msgspec.structs.replace(summary, directory=str(target), elsewhere=_elsewhere(settings))


class _Places:
    """Where a restored configuration has its parts. None of them may be there already."""

    def __init__(self, settings: ServerSettings) -> None:
        self.journal = settings.storage.journal_directory
        self.catalog = settings.storage.catalog_path
        self._single = {**_single_files(settings), CATALOG: self.catalog}
        for path in (*self._single.values(), self.journal):
            if path.exists():
                raise UsageError(f"{path} is there already: a restore overwrites nothing")

    def of(self, name: str) -> Path:
        """Where the file `name` of a backup goes."""
        if name in self._single:
            return self._single[name]
        directory, _, segment = name.partition("/")
        # A manifest that somebody tampered with must not write elsewhere.
        if directory != JOURNAL or not segment or segment != Path(segment).name:
            raise StoreError(f"the manifest names {name!r}, which no backup of ours holds")
        return self.journal / segment


def _single_files(settings: ServerSettings) -> dict[str, Path]:
    """Name in a backup, and where the configuration has it, if it has."""
    files = {
        "server.crt": settings.tls.cert_path,
        "server.key": settings.tls.key_path,
        "ca.crt": settings.tls.ca_cert_path,
        "crl.pem": settings.tls.crl_path,
        "at-rest.key": settings.storage.at_rest_key_path,
    }
    if settings.encryption is not None:
        files["aes.key"] = settings.encryption.aes_key_path
    if settings.database is not None:
        files["database-password"] = settings.database.password_path
        files["database-ca.crt"] = settings.database.ca_cert_path
    return {name: path for name, path in files.items() if path is not None}


def _elsewhere(settings: ServerSettings) -> str:
    database = settings.database
    if database is None:
        return ""
    return f"the PostgreSQL database {database.dbname!r} at {database.host}:{database.port}"


def _read_manifest(backup: Path) -> Manifest:
    path = backup / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: {backup} is no backup, or not a whole one") from None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} can't be read: {error}") from error
    if manifest.format != FORMAT:
        raise StoreError(f"{path} has format {manifest.format}: this program knows {FORMAT}")
    if CONFIG not in manifest.files:
        raise StoreError(f"{path} names no {CONFIG}: {backup} is not a whole backup")
    return manifest


def _check(journal: Path, catalog: Path, files: dict[str, File]) -> Summary:
    """Read back what was copied."""
    records, damaged = 0, []
    if journal.exists():
        found = tools.verify(journal)
        records = found.records
        damaged = [
            msgspec.structs.replace(problem, path=Path(JOURNAL, problem.path.name)).describe()
            for problem in found.problems
        ]
    return Summary(
        directory="",
        files=len(files),
        size=sum(file.size for file in files.values()),
        records=records,
        keys=check_catalog(catalog) if catalog.exists() else 0,
        damaged=damaged,
    )


def _copy(source: Path, target: Path) -> None:
    """A private, synced copy in a new file."""
    disk.make_private_directory(target.parent)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, disk.PRIVATE)
    with os.fdopen(descriptor, "wb") as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy)
        copy.flush()
        os.fsync(copy.fileno())
    disk.sync_directory(target.parent)


def _measure(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(size=file.tell(), sha256=digest)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename} is there already and is not empty: {what} overwrites nothing"
        ) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StoreError(f"{where}{what} failed: {error.strerror or error}") from error
