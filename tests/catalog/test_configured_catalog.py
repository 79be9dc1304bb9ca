"""Which catalog a configuration gets, and with which keys."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ciphermq.catalog import AtRestKey, PostgresCatalog, SqliteCatalog
from ciphermq.catalog.configured import configured_catalog
from ciphermq.catalog.face import Catalog
from ciphermq.errors import CatalogError
from ciphermq.settings import load_server_settings

ENCRYPTION = f"[encryption]\naes_key = '{base64.b64encode(bytes(32)).decode()}'\n"


def configured(directory: Path, text: str) -> Catalog:
    path = directory / "config.toml"
    path.write_text(text)
    (directory / "data").mkdir(exist_ok=True)
    return configured_catalog(load_server_settings(path))


async def test_without_a_database_it_is_sqlite(tmp_path: Path) -> None:
    AtRestKey.create(tmp_path / "at-rest.key")
    catalog = configured(tmp_path, "")
    assert isinstance(catalog, SqliteCatalog)
    await catalog.start()
    await catalog.stop()
    assert (tmp_path / "data" / "catalog.db").exists()


async def test_a_file_of_1x_without_a_database_needs_no_key_file(tmp_path: Path) -> None:
    text = f"[server]\nconnection_type = 'tls'\n{ENCRYPTION}"
    catalog = configured(tmp_path, text)
    assert isinstance(catalog, SqliteCatalog)
    await catalog.start()
    await catalog.put_key("a", 1, b"record")
    await catalog.put_onex_key("a", b"a" * 32)
    await catalog.stop()
    again = configured(tmp_path, text)
    await again.start()
    assert await again.get_key("a") == b"record"
    assert await again.get_onex_key("a") == b"a" * 32
    await again.stop()


def test_with_a_database_it_is_postgresql(tmp_path: Path) -> None:
    catalog = configured(tmp_path, f"[server]\nconnection_type = 'tls'\n[database]\n{ENCRYPTION}")
    assert isinstance(catalog, PostgresCatalog)
    assert catalog.stats()["kind"] == "postgresql"


def test_a_key_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"storage\.at_rest_key_path"):
        configured(tmp_path, "[database]\n")
