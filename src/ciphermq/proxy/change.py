"""Every change that can be made to a configuration, as a value that crosses processes.

``change.apply(configuration)`` gives the next configuration or raises `ProxyError` with a
sentence for whoever asked; it touches nothing else. The supervisor applies a change to its own
copy first, so what reaches a worker has been found right.

An addition that is there already, word for word, is no fault: set-up scripts are run again on
proxies that kept their configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.model import (
    AuthService,
    Backend,
    Certificate,
    Configuration,
    Destination,
    ExternalUser,
    Farm,
    Limit,
    LimitKind,
    Listener,
    Side,
    Target,
    TlsSettings,
    Verbosity,
    VerifyMode,
    in_order,
)

_Value = TypeVar("_Value")

TlsFile = Literal["key_file", "chain_file", "dh_file", "ca_file"]
LogSink = Literal["console", "file"]


def check_names(names: Collection[str]) -> None:
    """Raise `ProxyError` if there are too many names, or one is none."""
    if len(names) > limits.MAX_PROXY_ENTRIES:
        raise ProxyError(f"At most {limits.MAX_PROXY_ENTRIES} of each are kept.")
    for name in names:
        # What can't be printed would come out again in a listing, on somebody's terminal.
        if not name or not name.isprintable() or len(name.encode()) > limits.MAX_PROXY_NAME:
            most = limits.MAX_PROXY_NAME
            raise ProxyError(f"A name is 1 to {most} bytes of text, which {name[:40]!r} is not.")


def check_limit(kind: LimitKind, value: int) -> None:
    """Raise `ProxyError` if a limit of this kind can't have this value."""
    least = 1 if kind.startswith("data_rate") else 0
    if not least <= value <= limits.MAX_PROXY_LIMIT:
        raise ProxyError(f"A limit is {least} to {limits.MAX_PROXY_LIMIT}, not {value}.")


def _with(members: Mapping[str, _Value], name: str, value: _Value) -> dict[str, _Value]:
    """A copy that has this member, in its old place if it was there."""
    if name not in members:
        check_names([name])
        if len(members) >= limits.MAX_PROXY_ENTRIES:
            raise ProxyError(f"There are {len(members)} of these already, and no more are kept.")
    return {**members, name: value}


def _without(members: Mapping[str, _Value], name: str) -> dict[str, _Value]:
    return {key: value for key, value in members.items() if key != name}


class _Change(msgspec.Struct, frozen=True, tag=True):
    rereads: ClassVar[bool] = False
    """Whether files are to be read anew although the configuration stays as it is: what is in
    them may have changed (a renewed certificate)."""


# --- backends --------------------------------------------------------------------------------


class AddBackend(_Change, frozen=True):
    """A new backend; or, with `instead`, new particulars of one that is there."""

    backend: Backend
    instead: bool = False

    def apply(self, now: Configuration) -> Configuration:
        new, old = self.backend, now.backends.get(self.backend.name)
        if old is None and self.instead:
            raise ProxyError(f"Backend '{new.name}' not found")
        if old is not None:
            new = replace(new, drained=old.drained)
            if not self.instead and replace(new, address=old.address) != old:
                raise ProxyError(
                    f"Backend '{new.name}' is there already, as {old.host}:{old.port} in "
                    f"{old.datacenter}: BACKEND REPLACE gives it new particulars."
                )
        return replace(now, backends=_with(now.backends, new.name, new))


class DeleteBackend(_Change, frozen=True):
    """Refused while a farm has it: taken out in silence, a farm might lose its last one."""

    name: str

    def apply(self, now: Configuration) -> Configuration:
        if self.name not in now.backends:
            raise ProxyError(f"Backend '{self.name}' not found")
        users = [farm.name for farm in now.farms.values() if self.name in farm.backends]
        if users:
            raise ProxyError(
                f"Backend '{self.name}' not deleted: it is in farm {', '.join(users)}. "
                "FARM ADD the farm without it first; BACKEND DRAIN keeps new sessions off it."
            )
        return replace(now, backends=_without(now.backends, self.name))


class DrainBackend(_Change, frozen=True):
    """No new sessions to it, or again."""

    name: str
    drained: bool

    def apply(self, now: Configuration) -> Configuration:
        old = now.backends.get(self.name)
        if old is None:
            raise ProxyError(f"Backend '{self.name}' not found")
        new = replace(old, drained=self.drained)
        return replace(now, backends=_with(now.backends, self.name, new))


# --- farms and maps --------------------------------------------------------------------------


class AddFarm(_Change, frozen=True):
    """A farm, instead of the one of that name if there is one."""

    farm: Farm

    def apply(self, now: Configuration) -> Configuration:
        missing = [name for name in self.farm.backends if name not in now.backends]
        if missing:
            lines = [f"Backend '{name}' not found" for name in missing]
            raise ProxyError(
                "\n".join([*lines, "Farm not inserted due to at least one missing Backend"])
            )
        if len(self.farm.backends) > limits.MAX_PROXY_FARM:
            raise ProxyError(f"A farm has at most {limits.MAX_PROXY_FARM} backends.")
        members = tuple(dict.fromkeys(self.farm.backends))
        farm = replace(self.farm, backends=members)
        return replace(now, farms=_with(now.farms, farm.name, farm))


class PartitionFarm(_Change, frozen=True):
    """One more partition policy, which divides the tiers that those before it made."""

    name: str
    policy: str

    def apply(self, now: Configuration) -> Configuration:
        old = now.farms.get(self.name)
        if old is None:
            raise ProxyError(f"Farm '{self.name}' not found")
        new = replace(old, partitions=tuple(dict.fromkeys([*old.partitions, self.policy])))
        return replace(now, farms=_with(now.farms, self.name, new))


class DeleteFarm(_Change, frozen=True):
    """Maps to it stay, and lead nowhere until it is there again."""

    name: str

    def apply(self, now: Configuration) -> Configuration:
        if self.name not in now.farms:
            raise ProxyError(f"Farm '{self.name}' not found")
        return replace(now, farms=_without(now.farms, self.name))


class Map(_Change, frozen=True):
    """Where a vhost's new sessions go."""

    vhost: str
    target: Target

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, maps=_with(now.maps, self.vhost, self.target))


class Unmap(_Change, frozen=True):
    """Its sessions go to the default farm, if there is one. Nothing, if it was not mapped."""

    vhost: str

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, maps=_without(now.maps, self.vhost))


class SetDefault(_Change, frozen=True):
    """Where vhosts without a map go; None: nowhere."""

    target: Target | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, default=self.target)


class SetDatacenter(_Change, frozen=True):
    """Where this proxy is."""

    name: str

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, datacenter=self.name)


class SetPaused(_Change, frozen=True):
    """Hold a vhost's new sessions in their handshake, or let them on (and end the others)."""

    vhost: str
    paused: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, vhosts=_with(now.vhosts, self.vhost, self.paused))


# --- listening and TLS -----------------------------------------------------------------------


class StartListening(_Change, frozen=True):
    """One more listening socket."""

    listener: Listener

    def apply(self, now: Configuration) -> Configuration:
        new = self.listener
        for old in now.listeners:
            if old == new:
                return now
            if old.key == new.key or (old.port == new.port and "" in (old.address, new.address)):
                raise ProxyError(
                    f"Port {old.port} is listened on already, at {old.address or 'every address'}:"
                    f" LISTEN STOP {old.port} first."
                )
        if len(now.listeners) >= limits.MAX_PROXY_LISTENERS:
            raise ProxyError(f"At most {limits.MAX_PROXY_LISTENERS} ports are listened on.")
        return in_order(replace(now, listeners=(*now.listeners, new)))


class StopListening(_Change, frozen=True):
    """No more new connections: at one port (at one address), or, without a port, at any."""

    port: int | None = None
    address: str | None = None

    def apply(self, now: Configuration) -> Configuration:
        def stays(listener: Listener) -> bool:
            other_port = self.port is not None and listener.port != self.port
            return other_port or (self.address is not None and listener.address != self.address)

        kept = tuple(listener for listener in now.listeners if stays(listener))
        if self.port is not None and kept == now.listeners:
            place = f"{self.address} port {self.port}" if self.address else f"port {self.port}"
            raise ProxyError(f"Not listening on {place}.")
        return replace(now, listeners=kept)


def _tls(now: Configuration, side: Side) -> TlsSettings:
    return now.ingress if side == "ingress" else now.egress


def _set_tls(now: Configuration, side: Side, settings: TlsSettings) -> Configuration:
    return replace(now, **{side: settings})


class SetTlsFile(_Change, frozen=True):
    """One of a side's files."""

    rereads = True
    side: Side
    member: TlsFile
    path: str

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, replace(_tls(now, self.side), **{self.member: self.path}))


class SetVerify(_Change, frozen=True):
    """What a side asks of the peer's certificate."""

    side: Side
    modes: tuple[VerifyMode, ...]

    def apply(self, now: Configuration) -> Configuration:
        modes = tuple(dict.fromkeys(self.modes))
        return _set_tls(now, self.side, replace(_tls(now, self.side), verify=modes))


class ResetTls(_Change, frozen=True):
    """A side's TLS as it is in a proxy that was just started."""

    side: Side

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, TlsSettings())


class SetCiphers(_Change, frozen=True):
    """The cipher suites of TLS 1.2 that a side takes, in OpenSSL's words."""

    side: Side
    ciphers: str

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, replace(_tls(now, self.side), ciphers=self.ciphers))


class AddCertificate(_Change, frozen=True):
    """A certificate for clients that ask for this server name, instead of the one it had."""

    rereads = True
    certificate: Certificate

    def apply(self, now: Configuration) -> Configuration:
        old = now.ingress.certificates
        kept = [one for one in old if one.server_name != self.certificate.server_name]
        if len(kept) >= limits.MAX_PROXY_CERTIFICATES:
            raise ProxyError(f"At most {limits.MAX_PROXY_CERTIFICATES} server names have one.")
        certificates = (*kept, self.certificate)
        return in_order(replace(now, ingress=replace(now.ingress, certificates=certificates)))


class DeleteCertificate(_Change, frozen=True):
    """Clients that ask for this name get the certificate that all others get."""

    server_name: str

    def apply(self, now: Configuration) -> Configuration:
        old = now.ingress.certificates
        kept = tuple(one for one in old if one.server_name != self.server_name)
        if kept == old:
            raise ProxyError(f"No certificate for server name '{self.server_name}'")
        return replace(now, ingress=replace(now.ingress, certificates=kept))


# --- who may connect, and how much -----------------------------------------------------------


class SetLimit(_Change, frozen=True):
    """One limit: a vhost's, or without one the default. None takes it away."""

    kind: LimitKind
    vhost: str | None
    value: int | None

    def apply(self, now: Configuration) -> Configuration:
        if self.value is not None:
            check_limit(self.kind, self.value)
        old = now.limits.get(self.kind, Limit())
        if self.vhost is None:
            new = replace(old, default=self.value)
        elif self.value is None:
            new = replace(old, vhosts=_without(old.vhosts, self.vhost))
        else:
            new = replace(old, vhosts=_with(old.vhosts, self.vhost, self.value))
        kinds = {kind: limit for kind, limit in now.limits.items() if kind != self.kind}
        if new != Limit():
            kinds[self.kind] = new
        return replace(now, limits=kinds)


class SetAuth(_Change, frozen=True):
    """Which service is asked about each new session; None: none is."""

    service: AuthService | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, auth=self.service)


class SetExternal(_Change, frozen=True):
    """The broker's user for a certificate's name; None takes it away."""

    certificate: str
    user: ExternalUser | None

    def apply(self, now: Configuration) -> Configuration:
        if self.user is not None:
            return replace(now, external=_with(now.external, self.certificate, self.user))
        if self.certificate not in now.external:
            raise ProxyError(f"No user for certificate '{self.certificate}'")
        return replace(now, external=_without(now.external, self.certificate))


# --- the proxy itself ------------------------------------------------------------------------


class SetTimeout(_Change, frozen=True):
    """How long one phase may take, in seconds; None: as long as it may by itself."""

    name: str
    seconds: float | None

    def apply(self, now: Configuration) -> Configuration:
        if self.seconds is None:
            return replace(now, timeouts=_without(now.timeouts, self.name))
        return replace(now, timeouts=_with(now.timeouts, self.name, self.seconds))


class SetStatsd(_Change, frozen=True):
    """Where statistics are sent; None: nowhere."""

    destination: Destination | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, statsd=self.destination)


class SetPerSource(_Change, frozen=True):
    """Whether statistics are also sent for every client's machine."""

    enabled: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, per_source=self.enabled)


class SetMetrics(_Change, frozen=True):
    """Where the metrics page for Prometheus is served; None: nowhere."""

    destination: Destination | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, metrics=self.destination)


class SetHostnames(_Change, frozen=True):
    """Whether clients are named by reverse DNS."""

    enabled: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, hostnames=self.enabled)


class SetLog(_Change, frozen=True):
    """How much is logged to one place: 0 fatal … 5 trace."""

    sink: LogSink
    level: Verbosity

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, **{f"{self.sink}_level": self.level})


class ReplaceAll(_Change, frozen=True):
    """Another configuration altogether (``CONFIG RELOAD``)."""

    rereads = True
    configuration: Configuration

    def apply(self, now: Configuration) -> Configuration:
        return self.configuration


Change = (
    AddBackend
    | DeleteBackend
    | DrainBackend
    | AddFarm
    | PartitionFarm
    | DeleteFarm
    | Map
    | Unmap
    | SetDefault
    | SetDatacenter
    | SetPaused
    | StartListening
    | StopListening
    | SetTlsFile
    | SetVerify
    | ResetTls
    | SetCiphers
    | AddCertificate
    | DeleteCertificate
    | SetLimit
    | SetAuth
    | SetExternal
    | SetTimeout
    | SetStatsd
    | SetPerSource
    | SetMetrics
    | SetHostnames
    | SetLog
    | ReplaceAll
)
