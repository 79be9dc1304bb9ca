"""The catalog on SQLite: the suite for all, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from catalog.conformance import NOW_MS, CatalogConformance, Opener, publication
from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.catalog.copying import check_catalog, copy_catalog
from ciphermq.errors import CatalogError
from ciphermq.model.ids import new_batch_id


@pytest.fixture
def key(tmp_path: Path) -> AtRestKey:
    return AtRestKey.create(tmp_path / "at-rest.key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def open_catalog(path: Path, key: AtRestKey) -> Opener:
    @asynccontextmanager
    async def opened(
        *,
        metadata_days: float = 30.0,
        clock: Callable[[], float] = lambda: NOW_MS / 1000,
        max_pending: int = 1000,
    ) -> AsyncIterator[SqliteCatalog]:
        catalog = SqliteCatalog(
            path, key, metadata_days=metadata_days, clock=clock, max_pending=max_pending
        )
        await catalog.start()
        try:
            yield catalog
        finally:
            await catalog.stop()

    return opened


class TestSqliteCatalog(CatalogConformance):
    """Everything a catalog must do."""


async def test_a_stolen_disk_shows_no_key_record(open_catalog: Opener, tmp_path: Path) -> None:
    marker = b"this stands in the record"
    async with open_catalog() as catalog:
        await catalog.put_key("a", 1, marker)
        for path in tmp_path.iterdir():
            assert marker not in path.read_bytes()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_record_can_not_be_moved_under_another_name(
    open_catalog: Opener, path: Path
) -> None:
    async with open_catalog() as catalog:
        await catalog.put_key("mallory", 1, b"mine")
        await catalog.put_key("alice", 1, b"hers")
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE keys SET sealed = (SELECT sealed FROM keys WHERE client = 'mallory')"
            " WHERE client = 'alice'"
        )
    database.close()
    async with open_catalog() as catalog:
        assert await catalog.get_key("mallory") == b"mine"
        with pytest.raises(CatalogError, match="'alice' does not open"):
            await catalog.get_key("alice")


async def test_a_record_can_not_be_given_another_version(open_catalog: Opener, path: Path) -> None:
    async with open_catalog() as catalog:
        await catalog.put_key("a", 1, b"record")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE keys SET version = x'0000000000000002'")
    database.close()
    async with open_catalog() as catalog:
        with pytest.raises(CatalogError, match="does not open"):
            await catalog.get_key("a")


async def test_another_at_rest_key_is_noticed_at_the_start(
    open_catalog: Opener, path: Path, tmp_path: Path
) -> None:
    async with open_catalog() as catalog:
        await catalog.put_key("a", 1, b"record")
    other = SqliteCatalog(path, AtRestKey.create(tmp_path / "other.key"))
    with pytest.raises(CatalogError, match="not the one this catalog was made with"):
        await other.start()
    async with open_catalog() as catalog:
        assert await catalog.get_key("a") == b"record"


async def test_a_newer_catalog_is_refused(open_catalog: Opener, path: Path) -> None:
    async with open_catalog():
        pass
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(CatalogError, match="version 99"):
        async with open_catalog():
            pass


async def test_a_file_that_is_no_catalog(open_catalog: Opener, path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(CatalogError, match=r"catalog\.db: the catalog can't be used"):
        async with open_catalog():
            pass


async def test_a_directory_that_is_not_there(key: AtRestKey, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="can't be used"):
        await SqliteCatalog(tmp_path / "missing" / "catalog.db", key).start()


async def test_a_crash_in_a_migration_leaves_an_empty_catalog_usable(
    open_catalog: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ciphermq.catalog import schema

    broken = schema._STEPS[0] + "; CREATE TABLE keys (again)"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_STEPS", (broken,))
        with pytest.raises(CatalogError, match="already exists"):
            async with open_catalog():
                pass
    async with open_catalog() as catalog:
        assert await catalog.keys() == []


async def test_metadata_that_can_not_be_written_is_counted_and_keys_go_on(
    open_catalog: Opener, path: Path
) -> None:
    async with open_catalog() as catalog:
        with sqlite3.connect(path) as database:
            database.execute(
                "CREATE TRIGGER no BEFORE INSERT ON batches BEGIN SELECT RAISE(FAIL, 'no'); END"
            )
        database.close()
        batch_id = new_batch_id(NOW_MS)
        catalog.note_published(publication(batch_id))
        assert await catalog.trace(batch_id) is None
        assert catalog.stats()["metadata_rows_failed"] == 1
        await catalog.put_key("a", 1, b"record")
        assert await catalog.get_key("a") == b"record"


async def test_a_backup_may_hold_the_file_for_a_moment(open_catalog: Opener, path: Path) -> None:
    async with open_catalog() as catalog:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        put = asyncio.create_task(catalog.put_key("a", 1, b"record"))
        await asyncio.sleep(0.05)
        assert not put.done()
        holder.execute("COMMIT")
        holder.close()
        await put
        assert await catalog.get_key("a") == b"record"


async def test_one_who_gives_up_waiting_takes_nobody_along(
    open_catalog: Opener, path: Path
) -> None:
    async with open_catalog() as catalog:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        storing = asyncio.create_task(catalog.put_key("alice", 1, b"record"))
        asking = asyncio.create_task(catalog.get_key("alice"))
        await asyncio.sleep(0.05)
        for task in (storing, asking):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        other.execute("COMMIT")
        other.close()
        async with asyncio.timeout(10):
            assert await catalog.get_key("nobody") is None


async def test_a_copy_made_while_it_is_open_is_whole(
    open_catalog: Opener, path: Path, tmp_path: Path, key: AtRestKey
) -> None:
    copy = tmp_path / "copy.db"
    async with open_catalog() as catalog:
        await catalog.put_key("a", 1, b"record")
        copy_catalog(path, copy)
        await catalog.put_key("b", 1, b"later")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert check_catalog(copy) == 1
    assert check_catalog(path) == 2
    copied = SqliteCatalog(copy, key)
    await copied.start()
    assert await copied.get_key("a") == b"record"
    await copied.stop()
    with pytest.raises(CatalogError, match="can't be copied"):
        copy_catalog(path, copy)


async def test_a_damaged_catalog_is_not_taken_for_sound(
    open_catalog: Opener, path: Path, tmp_path: Path
) -> None:
    async with open_catalog() as catalog:
        for number in range(200):
            await catalog.put_key(f"client-{number:03}", 1, b"record" * 50)
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 8192)
    for damaged in (path, tmp_path / "missing.db"):
        with pytest.raises(CatalogError):
            check_catalog(damaged)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(CatalogError, match="not a catalog"):
        check_catalog(tmp_path / "other.db")


class TestAtRestKey:
    """The key file."""

    def test_it_is_private(self, key: AtRestKey, tmp_path: Path) -> None:
        assert stat.S_IMODE((tmp_path / "at-rest.key").stat().st_mode) == 0o600
        assert "key" not in vars(key)

    def test_it_opens_what_it_sealed(self, key: AtRestKey, tmp_path: Path) -> None:
        loaded = AtRestKey.load(tmp_path / "at-rest.key")
        sealed = key.seal("a", 1, b"record")
        assert loaded.open("a", 1, sealed) == b"record"
        assert key.seal("a", 1, b"record") != sealed

    @pytest.mark.parametrize(("client", "version"), [("b", 1), ("a", 2), ("", 1)])
    def test_what_is_sealed_is_bound_to_its_row(
        self, key: AtRestKey, client: str, version: int
    ) -> None:
        sealed = key.seal("a", 1, b"record")
        with pytest.raises(CatalogError):
            key.open(client, version, sealed)

    def test_every_flipped_byte_is_noticed(self, key: AtRestKey) -> None:
        sealed = key.seal("a", 1, b"record")
        for index in range(len(sealed)):
            changed = bytearray(sealed)
            changed[index] ^= 1
            with pytest.raises(CatalogError):
                key.open("a", 1, bytes(changed))
        for length in range(len(sealed)):
            with pytest.raises(CatalogError):
                key.open("a", 1, sealed[:length])

    def test_it_is_never_made_twice(self, key: AtRestKey, tmp_path: Path) -> None:
        del key
        with pytest.raises(CatalogError, match="there is an at-rest key already"):
            AtRestKey.create(tmp_path / "at-rest.key")

    def test_one_that_others_can_read_is_refused(self, key: AtRestKey, tmp_path: Path) -> None:
        del key
        (tmp_path / "at-rest.key").chmod(0o644)
        with pytest.raises(CatalogError, match="chmod 600"):
            AtRestKey.load(tmp_path / "at-rest.key")

    def test_one_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match=r"storage\.at_rest_key_path"):
            AtRestKey.load(tmp_path / "nothing")

    @pytest.mark.parametrize("content", [b"", b"00" * 31, b"00" * 33, b"zz" * 32, b"\0" * 32])
    def test_one_that_is_no_key(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "at-rest.key"
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(CatalogError, match="64 hexadecimal digits"):
            AtRestKey.load(path)

    def test_it_can_not_be_written_everywhere(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="can't be written"):
            AtRestKey.create(tmp_path / "missing" / "key")
