"""``[database]`` and ``[encryption]``: the catalog in PostgreSQL, and what a 1.x one is read with.

Both sections may be missing. A secret stands in the file, in the environment or in a file of its
own, such as a container's secret.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, field_validator

from ciphermq.errors import ConfigError
from ciphermq.settings.section import Section, none_when_empty

_KEY_SIZE: Final = 32
_LONGEST_SECRET: Final = 4096
_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain"})


class DatabaseSection(Section):
    """``[database]``: PostgreSQL for keys and metadata; without it they are in SQLite."""

    host: str = Field(
        default="localhost",
        min_length=1,
        description="the database's host, or the directory of its Unix socket",
    )
    port: int = Field(default=5432, ge=1, le=65_535, description="its port, 1 to 65535")
    user: str = Field(default="ciphermq", min_length=1, description="whom to log in as")
    password: SecretStr | None = Field(
        default=None, description="the user's password; or give password_path"
    )
    password_path: Path | None = Field(
        default=None, description='a file that holds the password and nothing else; "" for none'
    )
    dbname: str = Field(default="ciphermq", min_length=1, description="the database's name")
    tls: Literal["auto", "verify", "prefer", "off"] = Field(
        default="auto",
        description="verify (certificate and host name), prefer (encrypted if it can be, verified "
        "never), off, or auto: verify where ca_cert_path is given, else prefer",
    )
    ca_cert_path: Path | None = Field(
        default=None,
        description="the authority of the database's certificate, a PEM file; \"\": the system's",
    )
    connections: int = Field(
        default=4, ge=1, le=64, description="connections kept to the database, 1 to 64"
    )

    _absent = field_validator("password", "password_path", "ca_cert_path", mode="before")(
        none_when_empty
    )

    @property
    def verified(self) -> bool:
        """Whether the database must prove who it is."""
        return self.tls == "verify" or (self.tls == "auto" and self.ca_cert_path is not None)

    @property
    def local(self) -> bool:
        """Whether nothing between here and the database leaves this machine."""
        if self.host.startswith("/") or self.host.lower() in _LOCAL_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def secret(self) -> str | None:
        """The password, from wherever it is; `ConfigError` when that can't be read."""
        return _secret("database.password", self.password, self.password_path)


class EncryptionSection(Section):
    """``[encryption]``: how CipherMQ 1.x keeps public keys in its database."""

    algorithm: str = Field(
        default="x25519_chacha20_poly1305",
        description="any text; kept for 1.x, both of its ciphers are read",
    )
    aes_key: SecretStr | None = Field(
        default=None, description="32 bytes in base64; or give aes_key_path"
    )
    aes_key_path: Path | None = Field(
        default=None, description='a file that holds the key in base64; "" for none'
    )

    _absent = field_validator("aes_key", "aes_key_path", mode="before")(none_when_empty)

    def key(self) -> bytes:
        """The 32 bytes; `ConfigError`, without showing them, when they are not that."""
        text = _secret("encryption.aes_key", self.aes_key, self.aes_key_path)
        if not text:
            raise ConfigError(
                "encryption.aes_key is missing; allowed: 32 bytes in base64, or aes_key_path: in "
                "CipherMQ 1.x it is what the public keys in the database are encrypted with"
            )
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(
                "encryption.aes_key is not base64; allowed: 32 bytes in base64, as `openssl rand "
                "-base64 32` makes them"
            ) from None
        if len(key) != _KEY_SIZE:
            raise ConfigError(
                f"encryption.aes_key has {len(key)} bytes; allowed: {_KEY_SIZE} bytes in base64, "
                "as `openssl rand -base64 32` makes them"
            )
        return key


def _secret(name: str, value: SecretStr | None, path: Path | None) -> str | None:
    if path is None:
        return None if value is None else value.get_secret_value()
    if value is not None:
        raise ConfigError(f"{name} and {name}_path are both given: only one can count")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_SECRET + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_path = {path}: can't be read: {error}") from None
    if len(text) > _LONGEST_SECRET:
        raise ConfigError(f"{name}_path = {path}: too long for a secret")
    return text.rstrip("\r\n")
