"""The catalog that a server's configuration asks for."""

from __future__ import annotations

from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.catalog.face import Catalog
from ciphermq.catalog.onex import OnexAtRestKey
from ciphermq.catalog.postgres import PostgresCatalog
from ciphermq.catalog.sqlite import SqliteCatalog
from ciphermq.errors import ConfigError
from ciphermq.settings import ServerSettings


def configured_catalog(settings: ServerSettings) -> Catalog:
    """PostgreSQL where there is a ``[database]``, else SQLite; not started.

    Raises what is wrong with the keys: `CatalogError`, `ConfigError`."""
    storage = settings.storage
    onex_key = OnexAtRestKey(settings.encryption.key()) if settings.encryption else None
    if storage.at_rest_key_path is not None:
        key = AtRestKey.load(storage.at_rest_key_path)
    elif onex_key is not None:
        key = onex_key.own_key()
    else:
        raise ConfigError("neither storage.at_rest_key_path nor encryption.aes_key is given")
    if settings.database is None:
        return SqliteCatalog(storage.catalog_path, key, metadata_days=storage.metadata_days)
    return PostgresCatalog(
        settings.database,
        key,
        onex_key=onex_key,
        metadata_days=storage.metadata_days,
        waiting=storage.directory / "metadata-waiting",
    )
