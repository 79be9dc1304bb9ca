"""The catalog that a server's configuration asks for."""

from __future__ import annotations

from pathlib import Path

from ciphermq.catalog.at_rest import AtRestKey, Unwrap
from ciphermq.catalog.face import Catalog
from ciphermq.catalog.onex import OnexAtRestKey
from ciphermq.catalog.postgres import PostgresCatalog
from ciphermq.catalog.sqlite import SqliteCatalog
from ciphermq.errors import ConfigError
from ciphermq.settings import ServerSettings
from ciphermq.settings.token import TokenSection


def configured_catalog(settings: ServerSettings) -> Catalog:
    """PostgreSQL where there is a ``[database]``, else SQLite; not started.

    Raises what is wrong with the keys: `CatalogError`, `ConfigError`, a kind of `TokenError`, or
    `TokenAway`."""
    storage = settings.storage
    onex_key = OnexAtRestKey(settings.encryption.key()) if settings.encryption else None
    if storage.at_rest_key_path is not None:
        unwrap = _token(settings.token) if settings.token else None
        key = AtRestKey.load(storage.at_rest_key_path, unwrap)
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


def _token(section: TokenSection) -> Unwrap:
    """Opens a file with the token that is configured: called once, at the start."""

    def unwrap(path: Path) -> bytes:
        from ciphermq.custody.pkcs11 import pin, wrapping
        from ciphermq.custody.pkcs11.address import Address
        from ciphermq.custody.pkcs11.token import Token

        if not section.label and not section.serial:
            raise ConfigError("[token] needs a label or a serial, or it could be any token")
        source = pin.check_source(section.pin, "token.pin")
        address = Address(str(section.module_path), section.label, section.serial)
        token = Token(address, pin.read(source, path.parent))
        return wrapping.read(path).open(token, wrapping.FILE, str(path))

    return unwrap
