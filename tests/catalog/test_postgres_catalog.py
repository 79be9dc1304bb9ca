"""The catalog on a real PostgreSQL: the suite for all, and what is its own."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from catalog.conformance import (
    NOW_MS,
    CatalogConformance,
    Opener,
    eventually,
    message,
    publication,
)
from ciphermq import limits
from ciphermq.catalog import AtRestKey, OnexAtRestKey, PostgresCatalog, postgres_pool
from ciphermq.catalog import postgres_schema as schema
from ciphermq.errors import CatalogError
from ciphermq.model.ids import new_batch_id
from ciphermq.model.onex import internal_id
from ciphermq.settings import DatabaseSection
from support.certificates import Certificates
from support.cutting import cutting
from support.postgres import PASSWORD, USER, Postgres, required_binaries

AES_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(required_binaries()) as running:
        yield running


@pytest.fixture
async def database(server: Postgres) -> str:
    """The name of a new database."""
    name = f"test_{secrets.token_hex(8)}"
    await server.execute(f"CREATE DATABASE {name}")
    return name


def section(server: Postgres, database: str, **changes: object) -> DatabaseSection:
    found = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": USER,
        "password": PASSWORD,
        "dbname": database,
    }
    return DatabaseSection.model_validate({**found, **changes})


def make(
    server: Postgres,
    database: str,
    *,
    metadata_days: float = 30.0,
    clock: Callable[[], float] = lambda: NOW_MS / 1000,
    max_pending: int = 1000,
    **changes: object,
) -> PostgresCatalog:
    onex_key = OnexAtRestKey(AES_KEY)
    return PostgresCatalog(
        section(server, database, **changes),
        onex_key.own_key(),
        onex_key=onex_key,
        metadata_days=metadata_days,
        clock=clock,
        max_pending=max_pending,
    )


@pytest.fixture
def open_catalog(server: Postgres, database: str) -> Opener:
    @asynccontextmanager
    async def opened(**options: object) -> AsyncIterator[PostgresCatalog]:
        catalog = make(server, database, **options)
        await catalog.start()
        try:
            yield catalog
        finally:
            await catalog.stop()

    return opened


class TestPostgresCatalog(CatalogConformance):
    """Everything a catalog must do."""


async def shape(server: Postgres, database: str, table: str) -> list[tuple[object, ...]]:
    query = (
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
        f"WHERE table_name = '{table}' ORDER BY ordinal_position"
    )
    return await server.rows(query, database)


async def start_error(catalog: PostgresCatalog) -> str:
    with pytest.raises(CatalogError) as caught:
        await catalog.start()
    await catalog.stop()
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


# --- a database of 1.x --------------------------------------------------------------------------

TABLES_OF_1X = """
    CREATE TABLE message_metadata (message_id TEXT PRIMARY KEY, client_id TEXT,
        exchange_name TEXT, routing_key TEXT, sent_time TEXT, delivered_time TEXT,
        acknowledged_time TEXT);
    CREATE TABLE public_keys (client_id TEXT PRIMARY KEY, public_key_ciphertext TEXT NOT NULL,
        nonce TEXT NOT NULL, tag TEXT NOT NULL);
"""


def key_of_1x(client: str, cipher: type[AESGCM | ChaCha20Poly1305]) -> str:
    """A statement of 1.x's."""
    sealed = cipher(AES_KEY).encrypt(b"n" * 12, client.encode().ljust(32), None)
    parts = (base64.b64encode(part).decode() for part in (sealed[:-16], b"n" * 12, sealed[-16:]))
    values = "', '".join([client, *parts])
    return f"INSERT INTO public_keys VALUES ('{values}');"


@pytest.fixture
async def database_of_1x(server: Postgres, database: str) -> str:
    await server.execute(
        TABLES_OF_1X
        + key_of_1x("receiver_1", AESGCM)
        + key_of_1x("receiver_2", ChaCha20Poly1305)
        + "INSERT INTO message_metadata VALUES ('old\\1', 'sender_1', 'x', 'k',"
        " '2025-09-08T07:03:00.123456789+00:00', NULL, NULL)",
        database,
    )
    return database


async def test_a_database_of_1x_is_taken_over_in_place(
    server: Postgres, database_of_1x: str, open_catalog: Opener
) -> None:
    tables = ("message_metadata", "public_keys")
    before = [await shape(server, database_of_1x, table) for table in tables]
    async with open_catalog() as catalog:
        assert await catalog.get_onex_key("receiver_1") == b"receiver_1".ljust(32)
        assert await catalog.get_onex_key("receiver_2") == b"receiver_2".ljust(32)
        await catalog.put_onex_key("receiver_2", b"2" * 32)
        # What was waiting for its receiver when 1.x was stopped is delivered by us.
        catalog.note_event("delivered", internal_id("old\\1"), 1, NOW_MS)
        catalog.note_message(message("new"))
        assert await catalog.trace_message("old\\1") == {
            "message_id": "old\\1",
            "client": "sender_1",
            "exchange": "x",
            "routing_key": "k",
            "sent_time": "2025-09-08T07:03:00.123456789+00:00",
            "delivered_time": "2027-01-15T08:00:00.000+00:00",
            "acknowledged_time": None,
        }
    assert [await shape(server, database_of_1x, table) for table in tables] == before


async def test_a_message_that_came_again_leaves_its_row_as_it_is(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    """The broker may have been killed after it stored the message and before it noted that."""
    again = [
        msgspec.structs.replace(message(name), published_ms=NOW_MS + 5000, again=True)
        for name in "ab"
    ]
    async with open_catalog() as catalog:
        catalog.note_message(message("a"))
        catalog.note_event("delivered", internal_id("a"), 1, NOW_MS + 1000)
        await catalog.trace_message("a")
        for each in again:
            catalog.note_message(each)
        catalog.note_event("acked", internal_id("a"), 1, NOW_MS + 9000)
        first, second = [await catalog.trace_message(name) for name in "ab"]
    assert first is not None
    assert second is not None
    times = [first[f"{name}_time"] for name in ("sent", "delivered", "acknowledged")]
    assert times == [f"2027-01-15T08:00:0{second}.000+00:00" for second in (0, 1, 9)]
    assert second["sent_time"] == "2027-01-15T08:00:05.000+00:00"
    assert second["delivered_time"] is None


async def test_what_waited_is_written_by_the_next_broker(
    server: Postgres, database: str, tmp_path: Path
) -> None:
    waiting = tmp_path / "waiting"

    def catalog() -> PostgresCatalog:
        return PostgresCatalog(
            section(server, database), AtRestKey(bytes(32)), waiting=waiting, clock=lambda: 1.8e9
        )

    killed = catalog()
    await killed.start()
    await killed._writer.flush()
    killed._writer._stopping.set()  # it writes no more, as one that is killed
    killed.note_message(message("m"))
    killed.note_event("acked", internal_id("m"), 1, NOW_MS)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    after = catalog()
    await after.start()
    row = await after.trace_message("m")
    assert row is not None
    assert row["acknowledged_time"] == "2027-01-15T08:00:00.000+00:00"
    await after.stop()
    assert [each.stat().st_size for each in tmp_path.iterdir()] == [0]
    await killed._pool.stop()


async def test_a_note_that_is_read_again_takes_nothing_from_its_row(
    server: Postgres, database: str, tmp_path: Path
) -> None:
    """A message is often handed out before its publish is noted. If the files turned just between,
    and the broker was killed when the database had both, then only the second is left to read."""

    def catalog() -> PostgresCatalog:
        return PostgresCatalog(
            section(server, database),
            AtRestKey(bytes(32)),
            waiting=tmp_path / "waiting",
            clock=lambda: 1.8e9,
        )

    killed = catalog()
    await killed.start()
    killed._writer._stopping.set()
    killed.note_event("delivered", internal_id("m"), 1, NOW_MS + 1000)
    await asyncio.sleep(0)
    assert killed._waiting is not None
    killed._waiting.turn()
    killed.note_message(message("m"))
    await asyncio.sleep(0)
    await killed._writer.flush()
    assert [each.stat().st_size > 0 for each in tmp_path.iterdir()] == [True]
    after = catalog()
    await after.start()
    row = await after.trace_message("m")
    assert row is not None
    assert row["delivered_time"] == "2027-01-15T08:00:01.000+00:00"
    # Another message of the same id is another one still.
    after.note_message(msgspec.structs.replace(message("m"), published_ms=NOW_MS + 5000))
    row = await after.trace_message("m")
    assert row is not None
    assert row["sent_time"] == "2027-01-15T08:00:05.000+00:00"
    assert row["delivered_time"] is None
    await after.stop()
    await killed._pool.stop()


async def test_and_1x_can_take_it_back(
    server: Postgres, database_of_1x: str, open_catalog: Opener
) -> None:
    async with open_catalog() as catalog:
        await catalog.put_onex_key("receiver_3", b"3" * 32)
        catalog.note_message(message("new"))
        catalog.note_event("acked", internal_id("new"), 1, NOW_MS)
        await catalog.trace_message("new")
    ((ciphertext, nonce, tag),) = await server.rows(
        "SELECT public_key_ciphertext, nonce, tag FROM public_keys WHERE client_id = 'receiver_3'",
        database_of_1x,
    )
    parts = [base64.b64decode(part, validate=True) for part in (ciphertext, tag, nonce)]
    assert AESGCM(AES_KEY).decrypt(parts[2], parts[0] + parts[1], None) == b"3" * 32
    rows = await server.rows("SELECT * FROM message_metadata ORDER BY message_id", database_of_1x)
    sent = "2027-01-15T08:00:00.000+00:00"
    assert rows[0] == ("new", "sender", "news", "a.b", sent, None, sent)
    await server.execute(
        "INSERT INTO message_metadata VALUES ('new', 'c', 'x', 'k', '1', '2', '3') ON CONFLICT "
        "(message_id) DO UPDATE SET client_id = EXCLUDED.client_id",
        database_of_1x,
    )


async def test_rows_of_1x_are_kept_for_ever(
    server: Postgres, database_of_1x: str, open_catalog: Opener
) -> None:
    async with open_catalog(metadata_days=0.001) as catalog:
        catalog.note_published(publication(new_batch_id(NOW_MS), at_ms=NOW_MS - 10**9))

        async def pruned() -> bool:
            return catalog.stats()["metadata_rows_pruned"] == 1

        catalog._writer._next_prune = 0
        await eventually(pruned)
    rows = await server.rows("SELECT count(*) FROM message_metadata", database_of_1x)
    assert rows == [(1,)]


async def test_another_aes_key_is_noticed_at_the_start(
    server: Postgres, database_of_1x: str
) -> None:
    other = OnexAtRestKey(bytes(32))
    catalog = PostgresCatalog(section(server, database_of_1x), other.own_key(), onex_key=other)
    assert "encryption.aes_key is not the one" in await start_error(catalog)


async def test_without_an_aes_key_1x_keys_are_refused_and_all_else_works(
    server: Postgres, database_of_1x: str
) -> None:
    catalog = PostgresCatalog(section(server, database_of_1x), AtRestKey(bytes(32)))
    await catalog.start()
    await catalog.put_key("a", 1, b"record")
    for refused in (catalog.get_onex_key("receiver_1"), catalog.put_onex_key("a", bytes(32))):
        with pytest.raises(CatalogError, match=r"need encryption\.aes_key"):
            await refused
    await catalog.stop()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("message_metadata (message_id TEXT, sent_time TIMESTAMP)", "'client_id' is missing"),
        ("public_keys (client_id INTEGER)", "'client_id' is integer, not text"),
    ],
)
async def test_a_table_that_is_not_1x_s_is_left_alone(
    server: Postgres, database: str, table: str, said: str
) -> None:
    await server.execute(f"CREATE TABLE {table}", database)
    assert said in await start_error(make(server, database))
    rows = await server.rows("SELECT 1 FROM pg_tables WHERE tablename LIKE 'ciphermq%'", database)
    assert rows == []


async def test_a_message_is_found_by_index_however_many_there_are(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog() as catalog:
        await server.execute(
            "INSERT INTO message_metadata SELECT 'm-' || n FROM generate_series(1, 20000) n;",
            database,
        )
        async with catalog._pool.connection() as connection:
            query = schema.UPDATE_MESSAGES
            for at, value in enumerate(("'{}'", "'{}'", "'{}'", "'{}'"), 1):
                query = query.replace(f"${at}", value)
            plan = await connection.fetch(f"EXPLAIN {query}")
        assert any("ciphermq_message_metadata_by_id" in row[0] for row in plan)
        catalog.note_event("acked", internal_id("m-777"), 1, NOW_MS)
        found = await catalog.trace_message("m-777")
        assert found is not None
        assert found["acknowledged_time"] is not None


# --- the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 1}, "nothing listens there"),
        ({"password": "wrong"}, "the log-in was refused"),
        ({"user": "nobody"}, "the log-in was refused"),
        ({"dbname": "missing"}, "createdb"),
        ({"host": "nowhere.invalid"}, "the host's name is unknown"),
        ({"tls": "verify"}, "does not speak TLS"),
    ],
)
async def test_a_database_that_can_not_be_used_is_named(
    server: Postgres, database: str, changes: dict[str, object], said: str
) -> None:
    found = {"host": "127.0.0.1", "port": server.port, "user": USER, "dbname": database, **changes}
    error = await start_error(make(server, database, **changes))
    assert said in error
    assert f"PostgreSQL at {found['host']}:{found['port']} (user {found['user']!r}" in error
    assert f"database {found['dbname']!r}" in error
    assert "wrong" not in error


async def test_a_user_who_may_not_make_tables(server: Postgres, database: str) -> None:
    name = f"poor_{secrets.token_hex(4)}"
    await server.execute(f"CREATE USER {name} PASSWORD 'poor secret'", database)
    catalog = make(server, database, user=name, password="poor secret")
    error = await start_error(catalog)
    assert "permission denied" in error
    assert "GRANT CREATE" in error
    assert "poor secret" not in error


async def test_another_at_rest_key_is_noticed_at_the_start(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog():
        pass
    catalog = PostgresCatalog(section(server, database), AtRestKey(bytes(32)))
    assert "not the one this catalog was made with" in await start_error(catalog)


async def test_a_newer_catalog_is_refused(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog():
        pass
    await server.execute("INSERT INTO ciphermq_schema VALUES (99)", database)
    assert "version 99" in await start_error(make(server, database))


async def test_an_old_postgresql_is_refused(
    server: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 990_000)
    assert "the oldest that has what the catalog needs is 99" in await start_error(
        make(server, database)
    )


async def test_two_servers_that_start_at_once_migrate_once(server: Postgres, database: str) -> None:
    catalogs = [make(server, database) for _ in range(4)]
    await asyncio.gather(*(catalog.start() for catalog in catalogs))
    await catalogs[0].put_key("a", 1, b"record")
    assert await catalogs[3].get_key("a") == b"record"
    await asyncio.gather(*(catalog.stop() for catalog in catalogs))
    assert await server.rows("SELECT version FROM ciphermq_schema", database) == [(1,)]
    assert await server.rows("SELECT * FROM ciphermq_writers", database) == []


async def test_a_stolen_database_shows_no_key_record(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog() as catalog:
        await catalog.put_key("mallory", 1, b"mine")
        await catalog.put_key("alice", 1, b"hers")
        rows = await server.rows("SELECT sealed FROM ciphermq_keys", database)
        assert not any(b"hers" in bytes(row[0]) for row in rows)
        await server.execute(
            "UPDATE ciphermq_keys SET sealed = (SELECT sealed FROM ciphermq_keys WHERE client = "
            "'mallory') WHERE client = 'alice'",
            database,
        )
        with pytest.raises(CatalogError, match="'alice' does not open"):
            await catalog.get_key("alice")


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[Postgres]:
    with Postgres(required_binaries()) as running:
        running.stop()
        for name in ("crt", "key"):
            text = certificates.path("server", name).read_text()
            running.write(running.data / f"server.{name}", text)
        running.configure(ssl="on")
        rules = "hostssl all all 127.0.0.1/32 scram-sha-256\n"
        running.write(running.data / "pg_hba.conf", rules)
        running.start()
        yield running


async def test_the_database_is_verified(tls_server: Postgres, certificates: Certificates) -> None:
    authority = certificates.authority.path / "ca.crt"
    catalog = make(tls_server, "postgres", host="localhost", ca_cert_path=authority)
    await catalog.start()
    async with catalog._pool.connection() as connection:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await catalog.put_key("a", 1, b"record")
    await catalog.stop()


async def test_a_database_of_another_authority_is_refused(
    tls_server: Postgres, tmp_path: Path
) -> None:
    other = Certificates(tmp_path / "other").authority.path / "ca.crt"
    for changes in ({"ca_cert_path": other}, {"tls": "verify"}):
        error = await start_error(make(tls_server, "postgres", host="localhost", **changes))
        assert "its certificate is not to be trusted" in error


async def test_a_database_of_another_name_is_refused(
    tls_server: Postgres, certificates: Certificates
) -> None:
    authority = certificates.authority.path / "ca.crt"
    catalog = make(tls_server, "postgres", host="localhost.localdomain", ca_cert_path=authority)
    error = await start_error(catalog)
    assert "not to be trusted" in error or "name is unknown" in error
    catalog = make(tls_server, "postgres", host="127.0.0.2", ca_cert_path=authority)
    error = await start_error(catalog)
    assert "not to be trusted" in error or "nothing listens" in error


async def test_what_demands_tls_is_not_spoken_to_without(tls_server: Postgres) -> None:
    error = await start_error(make(tls_server, "postgres", tls="off"))
    assert "the log-in was refused" in error
    catalog = make(tls_server, "postgres", tls="prefer")
    await catalog.start()
    await catalog.stop()


async def test_an_authority_s_file_that_can_not_be_used(
    tls_server: Postgres, tmp_path: Path
) -> None:
    path = tmp_path / "ca.crt"
    error = await start_error(make(tls_server, "postgres", ca_cert_path=path))
    assert f"database.ca_cert_path = {path}: can't be read: No such file" in error
    path.write_text("this is no certificate")
    error = await start_error(make(tls_server, "postgres", ca_cert_path=path))
    assert f"database.ca_cert_path = {path}: can't be read" in error


# --- away and back --------------------------------------------------------------------------------


async def test_every_row_is_written_once_through_kills_of_the_database(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    batches = [new_batch_id(NOW_MS) for _ in range(40)]
    noted = 0

    async def note_on(seconds: float) -> None:
        """A delivery of every batch, and some messages, every few milliseconds."""
        nonlocal noted
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            for batch_id in batches:
                catalog.note_event("delivered", batch_id, 1, NOW_MS)
            catalog.note_message(message(f"m-{noted}"))
            catalog.note_event("delivered", internal_id(f"m-{noted}"), 1, NOW_MS)
            noted += 1
            await asyncio.sleep(0.002)

    async with open_catalog(max_pending=100_000) as catalog:
        for end in (server.kill, server.stop, server.kill):
            await note_on(0.4)
            end()
            await note_on(0.6)
            server.start()
        await note_on(0.4)

        async def written() -> bool:
            return catalog.stats()["metadata_rows_waiting"] == 0

        await eventually(written)
        stats = catalog.stats()
        assert stats["database"] == "connected"
        assert isinstance(stats["database_losses"], int)
        assert stats["database_losses"] >= 1
        assert stats["metadata_rows_dropped"] == stats["metadata_rows_failed"] == 0
    rows = await server.rows("SELECT DISTINCT delivered FROM ciphermq_batches", database)
    assert rows == [(noted,)]
    rows = await server.rows(
        "SELECT count(*), count(sent_time), count(delivered_time) FROM message_metadata", database
    )
    assert rows == [(noted, noted, noted)]


@pytest.mark.parametrize("word", [b"COMMIT", b"ciphermq_writers"])
async def test_what_was_committed_unheard_is_not_written_again(
    server: Postgres, database: str, open_catalog: Opener, word: bytes
) -> None:
    async with open_catalog():
        pass
    batch_id = new_batch_id(NOW_MS)
    async with cutting(server.port) as cutter:
        catalog = make(server, database, port=cutter.port)
        await catalog.start()
        cutter.word = word
        catalog.note_event("delivered", batch_id, 7, NOW_MS)
        catalog.note_event("delivered", internal_id("m"), 1, NOW_MS)

        async def written() -> bool:
            return cutter.cuts == 1 and catalog.stats()["metadata_rows_written"] == 1

        await eventually(written)
        found = await catalog.trace(batch_id)
        assert found is not None
        assert found["delivered"] == 7
        catalog.note_message(message("m"))
        noted = await catalog.trace_message("m")
        assert noted is not None
        assert noted["delivered_time"] is not None
        await catalog.stop()


async def test_while_the_database_is_away_it_is_said_and_memory_is_bounded(
    server: Postgres, open_catalog: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [new_batch_id(NOW_MS) for _ in range(40)]
    caplog.set_level(logging.INFO, logger="ciphermq")
    async with open_catalog(max_pending=30) as catalog:
        await catalog.put_key("a", 1, b"record")
        server.stop()
        try:
            for refused in (
                catalog.get_key("a"),
                catalog.put_key("a", 2, b"later"),
                catalog.keys(),
                catalog.get_onex_key("a"),
                catalog.trace(ids[0]),
            ):
                with pytest.raises(CatalogError, match=f"127.0.0.1:{server.port}.*nothing listens"):
                    await refused
            for batch_id in ids[:20]:
                catalog.note_published(publication(batch_id))

            async def said() -> bool:
                return str(catalog.stats()["database"]).startswith("away: nothing listens")

            await eventually(said)
            for batch_id in ids[20:]:
                catalog.note_published(publication(batch_id))
            stats = catalog.stats()
            assert (stats["metadata_rows_waiting"], stats["metadata_rows_dropped"]) == (30, 10)
        finally:
            server.start()

        async def written() -> bool:
            return catalog.stats()["metadata_rows_waiting"] == 0

        await eventually(written)
        assert catalog.stats()["database"] == "connected"
        assert catalog.stats()["metadata_rows_written"] == 30
        assert [await catalog.trace(each) is not None for each in ids] == [True] * 30 + [False] * 10
        assert await catalog.get_key("a") == b"record"
    assert "metadata can't be written for now and waits" in caplog.text
    assert "metadata is written again" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_database_that_does_not_answer_is_away_too(
    server: Postgres, open_catalog: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "_TIMEOUT", 2.0)  # enough for a busy machine to start in
    async with open_catalog() as catalog:
        await catalog.put_key("a", 1, b"record")
        server.freeze()
        try:
            with pytest.raises(CatalogError, match=r"did not answer within 2 s"):
                await catalog.get_key("a")
            catalog.note_message(message("m"))

            async def said() -> bool:
                return "did not answer" in str(catalog.stats()["database"])

            await eventually(said)
        finally:
            server.thaw()

        async def back() -> bool:
            return catalog.stats()["metadata_rows_waiting"] == 0

        await eventually(back)
        assert await catalog.get_key("a") == b"record"
        assert await catalog.trace_message("m") is not None


async def test_a_stop_while_the_database_is_away_ends_and_says_what_is_lost(
    server: Postgres, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = make(server, database)
    await catalog.start()
    server.stop()
    try:
        catalog.note_message(message("a"))
        await catalog.stop()
    finally:
        server.start()
    (record,) = [each for each in caplog.records if "could not be written" in each.getMessage()]
    assert "rows=1" in record.getMessage()


async def test_a_row_that_does_not_fit_is_left_out_and_the_others_are_written(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog() as catalog:
        for number in range(50):
            name = "a\0b" if number == 17 else f"client-{number}"
            catalog.note_published(publication(new_batch_id(NOW_MS), name))
            catalog.note_message(message(f"m-{number}", name))
        catalog.note_message(message(secrets.token_hex(20_000)))
        assert await catalog.trace_message("m-49") is not None
        stats = catalog.stats()
        assert (stats["metadata_rows_written"], stats["metadata_rows_failed"]) == (98, 3)
        assert stats["metadata_rows_waiting"] == 0
    for table, count in (("ciphermq_batches", 49), ("message_metadata", 49)):
        assert await server.rows(f"SELECT count(*) FROM {table}", database) == [(count,)]


async def test_a_table_that_is_gone_is_waited_for(
    server: Postgres, database: str, open_catalog: Opener
) -> None:
    async with open_catalog() as catalog:
        await server.execute("ALTER TABLE message_metadata RENAME TO hidden", database)
        catalog.note_message(message("a"))

        async def said() -> bool:
            return "does not exist" in str(catalog.stats()["database"])

        await eventually(said)
        await server.execute("ALTER TABLE hidden RENAME TO message_metadata", database)

        async def written() -> bool:
            return catalog.stats()["metadata_rows_waiting"] == 0

        await eventually(written)
        assert await catalog.trace_message("a") is not None


async def test_metadata_is_written_although_it_can_not_be_pruned(
    server: Postgres, database: str, open_catalog: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_catalog() as catalog:
        await server.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE TRIGGER no BEFORE DELETE ON ciphermq_batches EXECUTE FUNCTION no()",
            database,
        )
        catalog._writer._next_prune = 0

        async def said() -> bool:
            return "old metadata can't be pruned" in caplog.text

        await eventually(said)
        catalog.note_published(publication(new_batch_id(NOW_MS)))

        async def written() -> bool:
            return catalog.stats()["metadata_rows_written"] == 1

        await eventually(written)
        assert catalog.stats()["database"] == "connected"
    assert caplog.text.count("can't be pruned") == 1


async def test_news_of_a_message_that_never_was_is_given_up(
    open_catalog: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_catalog() as catalog:
        catalog.note_event("acked", internal_id("never"), 1, NOW_MS)
        await catalog.trace_message("never")
        assert catalog.stats()["metadata_rows_waiting"] == 1
        monkeypatch.setattr(limits, "DATABASE_GRACE", 0.0)

        async def given_up() -> bool:
            return catalog.stats()["metadata_rows_waiting"] == 0

        await eventually(given_up)


async def test_a_warning_for_an_unverified_database_elsewhere(
    server: Postgres,
    database: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog = make(server, database)
    await catalog.start()
    await catalog.stop()
    assert "need not prove" not in caplog.text
    monkeypatch.setattr(DatabaseSection, "local", False)
    catalog = make(server, database)
    await catalog.start()
    await catalog.stop()
    assert "need not prove" in caplog.text


def test_no_error_shows_the_password(server: Postgres) -> None:
    pool = postgres_pool.PostgresPool(section(server, "x"))
    error = asyncpg.PostgresError(f"connection string: password={PASSWORD} is wrong")
    assert PASSWORD not in str(pool.failed(error))
    assert "(hidden)" in str(pool.failed(error))
