"""The catalog on a real PostgreSQL: the suite for all, and what is its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from catalog.conformance import NOW_MS, CatalogConformance, Opener
from ciphermq.catalog import AtRestKey, OnexAtRestKey, PostgresCatalog
from ciphermq.settings import DatabaseSection
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
