"""What a server's ``config.toml`` may hold: one class a section, one member a key.

Each member's description says what is allowed; it is printed when a value is not, and it is
the comment beside the key in the file that ``ciphermq init`` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ciphermq import limits
from ciphermq.settings.catalog import DatabaseSection, EncryptionSection
from ciphermq.settings.onex import OnexSection
from ciphermq.settings.section import Section, none_when_empty
from ciphermq.settings.token import TokenSection
from ciphermq.settings.values import Address, AddressValue, Names, OptionalAddress, parse_level

ENVIRONMENT_PREFIX = "CIPHERMQ_"
ENVIRONMENT_DELIMITER = "__"

JOURNAL_DIRECTORY = "journal"
CATALOG_FILE = "catalog.db"
"""In the directory that ``storage.directory`` names."""

LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(parse_level)]


class ServerSection(Section):
    """``[server]``: where it listens and how it ends."""

    address: AddressValue = Field(
        default=Address("127.0.0.1", 7443),
        description="HOST:PORT to listen on; 0.0.0.0 or [::] for every interface, port 0 for any",
    )
    zmq_address: OptionalAddress = Field(
        default=None,
        description='HOST:PORT to listen on over ZeroMQ as well (zmq+tls://), 7444 by custom; "": '
        "not over ZeroMQ",
    )
    connection_type: str | None = Field(
        default=None,
        description="any text; what marks a configuration of 1.x. Connections are always mutual "
        "TLS",
    )
    max_connections: int = Field(
        default=limits.MAX_CONNECTIONS, ge=1, le=1_000_000, description="connections, 1 to 1000000"
    )
    max_connections_per_client: int = Field(
        default=limits.MAX_CONNECTIONS_PER_CLIENT,
        ge=1,
        le=1_000_000,
        description="connections of one client, 1 to 1000000",
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds that clients get to finish when the server stops, 0 to 3600",
    )

    _absent = field_validator("connection_type", mode="before")(none_when_empty)


class TlsSection(Section):
    """``[tls]``: who the server is and whom it believes."""

    cert_path: Path = Field(
        default=Path("server.crt"), description="the server's certificate chain, a PEM file"
    )
    key_path: Path = Field(
        default=Path("server.key"), description="its private key, a PEM file of mode 0600"
    )
    ca_cert_path: Path = Field(
        default=Path("ca.crt"),
        description="the authority whose clients may connect, a PEM file (the certificate only)",
    )
    crl_path: Path | None = Field(
        default=Path("crl.pem"),
        description='the authority\'s revocation list, a PEM file; "" for none, as in 1.x: then '
        "nobody can be shut out, and nothing of cmq/2 be verified",
    )

    reload_seconds: float = Field(
        default=limits.TRUST_POLL,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds between looks whether these files have changed, up to 3600; 0: only "
        "on SIGHUP",
    )

    allow_authority_key: bool = Field(
        default=False,
        description="true or false: start although the authority's private key lies beside the "
        "server's, as in 1.x; whoever breaks in can then make identities",
    )

    _absent = field_validator("crl_path", mode="before")(none_when_empty)


class StorageSection(Section):
    """``[storage]``: what the server keeps."""

    directory: Path = Field(
        default=Path("data"), description="a directory for the journal and the catalog"
    )
    at_rest_key_path: Path | None = Field(
        default=Path("at-rest.key"),
        description="the key that encrypts the catalog's key records, a file of mode 0600, which "
        '`ciphermq hsm wrap` may have wrapped; "": it is derived from encryption.aes_key',
    )
    reserve_mb: float = Field(
        default=limits.JOURNAL_RESERVE / limits.MIB,
        ge=0,
        le=1024 * 1024,
        allow_inf_nan=False,
        description="MiB of disk kept back, with which a full disk can be emptied, 0 to 1048576",
    )
    metadata_days: float = Field(
        default=30.0,
        ge=0,
        le=3650,
        allow_inf_nan=False,
        description="days that `ciphermq trace` can look back, 0 (none are kept) to 3650",
    )

    _absent = field_validator("at_rest_key_path", mode="before")(none_when_empty)

    @property
    def journal_directory(self) -> Path:
        """Where the journal is: everything that queues hold."""
        return self.directory / JOURNAL_DIRECTORY

    @property
    def catalog_path(self) -> Path:
        """Where the catalog is: key records and metadata."""
        return self.directory / CATALOG_FILE


class LoggingSection(Section):
    """``[logging]``: JSON lines to files, readable text on the console."""

    level: LogLevel = Field(default="info", description="debug, info, warning or error")
    directory: Path | None = Field(
        default=Path("logs"),
        description='a directory for info.log, error.log and debug.log; "" for no files',
    )
    info_file_path: Path | None = Field(
        default=None, description='a file instead of info.log; "" for none of its own'
    )
    debug_file_path: Path | None = Field(
        default=None, description='a file instead of debug.log; "" for none of its own'
    )
    error_file_path: Path | None = Field(
        default=None, description='a file instead of error.log; "" for none of its own'
    )
    rotation: Literal["never", "hourly", "daily"] = Field(
        default="never", description="never, hourly or daily (in UTC): a new file, besides by size"
    )
    max_size_mb: float = Field(
        default=64.0,
        gt=0,
        le=10_240,
        allow_inf_nan=False,
        description="MiB after which a file is rotated, above 0 to 10240",
    )
    backups: int = Field(
        default=5, ge=0, le=1000, description="rotated files that are kept of each, 0 to 1000"
    )
    console: bool = Field(default=True, description="true or false: text on standard error too")
    messages: bool = Field(
        default=True,
        description="true or false: at level info, a line in the files for each message of 1.x and "
        "each batch that is published, delivered or acknowledged",
    )

    _absent = field_validator(
        "directory", "info_file_path", "debug_file_path", "error_file_path", mode="before"
    )(none_when_empty)


class LimitsSection(Section):
    """``[limits]``: what one broker takes."""

    max_queues: int = Field(default=limits.MAX_QUEUES, ge=1, description="queues, from 1")
    max_exchanges: int = Field(default=limits.MAX_EXCHANGES, ge=1, description="exchanges, from 1")
    max_bindings: int = Field(default=limits.MAX_BINDINGS, ge=1, description="bindings, from 1")
    max_publish_window: int = Field(
        default=limits.MAX_PUBLISH_WINDOW,
        ge=1,
        le=4096,
        description="batches a connection may have unconfirmed, 1 to 4096",
    )


class DeliverySection(Section):
    """``[delivery]``: dedup and redelivery."""

    dedup_window_seconds: float = Field(
        default=limits.DEDUP_WINDOW,
        gt=0,
        le=limits.DAY,
        allow_inf_nan=False,
        description="seconds in which a repeated batch is recognised, above 0 to 86400",
    )
    max_dedup_entries: int = Field(
        default=limits.MAX_DEDUP_ENTRIES,
        ge=1,
        le=100_000_000,
        description="batches remembered in that window, 1 to 100000000",
    )


class AccessSection(Section):
    """``[access]``: who may do everything."""

    administrators: Names = Field(
        default=("admin",), description='a list of client ids, such as ["admin"]'
    )
    allow_all: bool = Field(
        default=False,
        description="true or false: every client may do what an administrator may, as in 1.x",
    )


class ServerSettings(BaseSettings):
    """A whole server's configuration.

    Values given to the constructor come from the file; the environment
    (``CIPHERMQ_SECTION__KEY``) goes before them. Use `load_server_settings`, which resolves
    paths and words the errors.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=ENVIRONMENT_DELIMITER,
        extra="forbid",
        frozen=True,
    )

    server: ServerSection = ServerSection()
    tls: TlsSection = TlsSection()
    storage: StorageSection = StorageSection()
    logging: LoggingSection = LoggingSection()
    limits: LimitsSection = LimitsSection()
    delivery: DeliverySection = DeliverySection()
    access: AccessSection = AccessSection()
    one_x: OnexSection = OnexSection()
    database: DatabaseSection | None = None
    encryption: EncryptionSection | None = None
    token: TokenSection | None = None

    _left_out: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What a file of 1.x says and has no effect here, a sentence each."""
        return self._left_out

    def with_left_out(self, sentences: tuple[str, ...]) -> ServerSettings:
        """The same, which also knows of these."""
        copy = self.model_copy()
        copy._left_out = sentences  # noqa: SLF001  (of the same class)
        return copy

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then the file; no ``.env`` file that happens to lie about."""
        return env_settings, init_settings


def sections() -> dict[str, type[Section]]:
    """Each section's name and type, in the order of the file."""
    return {
        name: kind
        for name, field in ServerSettings.model_fields.items()
        for kind in get_args(field.annotation) or (field.annotation,)
        if issubclass(kind, Section)
    }


def optional_sections() -> set[str]:
    """Those that mean something by being there at all."""
    return {name for name, field in ServerSettings.model_fields.items() if field.default is None}
