"""What the proxy is configured to do: one immutable value, the same in every process.

A `Configuration` never changes. A `change.Change` makes the next one out of it
(`change.apply`), so a change that is refused leaves nothing half done, a worker can be sent
either the whole or the change, and a session that is under way keeps the value it began with.

Names that a map points at need not exist (yet): commands come from many scripts in any order,
and a session that meets such a gap is refused with the name that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

LimitKind = Literal[
    "conn_rate",
    "conn_rate_alarm",
    "data_rate",
    "data_rate_alarm",
    "connections",
    "connections_alarm",
]
"""Connections a second (refuse, or only log), bytes a second from the client (pace, or only
log), and connections at a time (refuse, or only log)."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Verbosity = Annotated[int, msgspec.Meta(ge=0, le=5)]
"""0 fatal … 5 trace."""

VerifyMode = Literal["none", "peer", "fail_if_no_peer_cert", "client_once"]
Side = Literal["ingress", "egress"]

DEFAULT_SELECTOR = "round-robin"


class Backend(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One broker.

    `address` is what `host` meant when the backend was added; with `dns` it is empty and the
    name is looked up at each use. `proxy_protocol` is the version of the PROXY header sent
    first, 0 for none. `drained`: no new sessions, the old ones go on.
    """

    name: str
    datacenter: str
    host: str
    port: Port
    address: str = ""
    dns: bool = False
    proxy_protocol: Literal[0, 1, 2] = 0
    tls: bool = False
    drained: bool = False


class Farm(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Several backends, by name: `partitions` order them in tiers, `selector` within a tier."""

    name: str
    selector: str = DEFAULT_SELECTOR
    backends: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a vhost goes."""

    kind: Literal["backend", "farm"]
    name: str


class Listener(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A listening socket. An empty `address` is every address of both families.

    `proxy_header`: every connection begins with a PROXY header (v1 or v2), whose source address
    is believed.
    """

    port: Port
    address: str = ""
    secure: bool = False
    proxy_header: bool = False

    @property
    def key(self) -> tuple[int, str]:
        """What no two listeners share."""
        return self.port, self.address


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate chain and its key, both PEM files, shown for one server name (SNI).

    `server_name` is lower case; ``*.example.org`` stands for any one label.
    """

    server_name: str
    chain_file: str
    key_file: str


class TlsSettings(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One side's TLS; paths are as given, an empty one is not set.

    `key_file` is what KEY_FILE and RSA_KEY_FILE set, whichever was said last. `certificates`
    (ingress only) are chosen by the name the client asks for.
    """

    key_file: str = ""
    chain_file: str = ""
    dh_file: str = ""
    ca_file: str = ""
    verify: tuple[VerifyMode, ...] = ()
    ciphers: str = ""
    certificates: tuple[Certificate, ...] = ()


class Limit(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One kind of limit: for vhosts in general, and those of single vhosts, which go before."""

    default: int | None = None
    vhosts: Mapping[str, int] = {}

    def of(self, vhost: str) -> int | None:
        """The limit that holds for this vhost, or None."""
        own = self.vhosts.get(vhost)
        return self.default if own is None else own


class AuthService(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An HTTP service that is asked about every new session."""

    host: str
    port: Port
    target: str


class ExternalUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker's user for clients that prove a certificate's name with EXTERNAL.

    Only the password's file is kept here (its first line is the password), so no configuration,
    printed or saved, holds a secret.
    """

    user: str
    password_file: str


class Destination(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host and port of something that is not a backend: statsd, the metrics page."""

    host: str
    port: Port


class Configuration(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Everything a proxy is told, by commands or by its file."""

    datacenter: str = ""
    backends: Mapping[str, Backend] = {}
    farms: Mapping[str, Farm] = {}
    maps: Mapping[str, Target] = {}
    default: Target | None = None
    listeners: tuple[Listener, ...] = ()
    ingress: TlsSettings = TlsSettings()
    egress: TlsSettings = TlsSettings()
    vhosts: Mapping[str, bool] = {}
    """Every vhost that was ever paused: whether it is now."""
    limits: Mapping[LimitKind, Limit] = {}
    auth: AuthService | None = None
    external: Mapping[str, ExternalUser] = {}
    """By the certificate's name."""
    timeouts: Mapping[str, float] = {}
    """Only those that were set: `timeouts.Timeouts` has the defaults. Seconds."""
    statsd: Destination | None = None
    per_source: bool = False
    metrics: Destination | None = None
    hostnames: bool = False
    """Clients are named by reverse DNS instead of by address (``MAPHOSTNAME DNS``)."""
    console_level: Verbosity | None = None
    """None leaves what the command line said."""
    file_level: Verbosity | None = None

    def limit(self, kind: LimitKind, vhost: str) -> int | None:
        """The limit of this kind that holds for a vhost, or None."""
        limit = self.limits.get(kind)
        return None if limit is None else limit.of(vhost)

    def target(self, vhost: str) -> Target | None:
        """Where sessions of a vhost go: its map, else the default."""
        return self.maps.get(vhost, self.default)

    def paused(self, vhost: str) -> bool:
        """Whether new sessions of a vhost are held."""
        return self.vhosts.get(vhost, False)


def in_order(configuration: Configuration) -> Configuration:
    """The same with its listeners and certificates sorted, so that equal ones compare as such."""
    certificates = sorted(configuration.ingress.certificates, key=lambda one: one.server_name)
    return replace(
        configuration,
        listeners=tuple(sorted(configuration.listeners, key=lambda listener: listener.key)),
        ingress=replace(configuration.ingress, certificates=tuple(certificates)),
    )
