"""Where clients come in, by TLS or without, who may, and how much."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.change.parts import OneChange, check_limit, with_member, without
from ciphermq.proxy.model import (
    AuthService,
    Certificate,
    Configuration,
    ExternalUser,
    Limit,
    LimitKind,
    Listener,
    Side,
    TlsSettings,
    VerifyMode,
    in_order,
)

TlsFile = Literal["key_file", "chain_file", "dh_file", "ca_file"]

# --- listening and TLS -----------------------------------------------------------------------


class StartListening(OneChange, frozen=True):
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


class StopListening(OneChange, frozen=True):
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


class SetTlsFile(OneChange, frozen=True):
    """One of a side's files."""

    rereads = True
    side: Side
    member: TlsFile
    path: str

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, replace(_tls(now, self.side), **{self.member: self.path}))


class SetVerify(OneChange, frozen=True):
    """What a side asks of the peer's certificate."""

    side: Side
    modes: tuple[VerifyMode, ...]

    def apply(self, now: Configuration) -> Configuration:
        modes = tuple(dict.fromkeys(self.modes))
        return _set_tls(now, self.side, replace(_tls(now, self.side), verify=modes))


class ResetTls(OneChange, frozen=True):
    """A side's TLS as it is in a proxy that was just started."""

    side: Side

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, TlsSettings())


class SetCiphers(OneChange, frozen=True):
    """The cipher suites of TLS 1.2 that a side takes, in OpenSSL's words."""

    side: Side
    ciphers: str

    def apply(self, now: Configuration) -> Configuration:
        return _set_tls(now, self.side, replace(_tls(now, self.side), ciphers=self.ciphers))


class AddCertificate(OneChange, frozen=True):
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


class DeleteCertificate(OneChange, frozen=True):
    """Clients that ask for this name get the certificate that all others get."""

    server_name: str

    def apply(self, now: Configuration) -> Configuration:
        old = now.ingress.certificates
        kept = tuple(one for one in old if one.server_name != self.server_name)
        if kept == old:
            raise ProxyError(f"No certificate for server name '{self.server_name}'")
        return replace(now, ingress=replace(now.ingress, certificates=kept))


# --- who may connect, and how much -----------------------------------------------------------


class SetLimit(OneChange, frozen=True):
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
            new = replace(old, vhosts=without(old.vhosts, self.vhost))
        else:
            new = replace(old, vhosts=with_member(old.vhosts, self.vhost, self.value))
        kinds = {kind: limit for kind, limit in now.limits.items() if kind != self.kind}
        if new != Limit():
            kinds[self.kind] = new
        return replace(now, limits=kinds)


class SetAuth(OneChange, frozen=True):
    """Which service is asked about each new session; None: none is."""

    service: AuthService | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, auth=self.service)


class SetExternal(OneChange, frozen=True):
    """The broker's user for a certificate's name; None takes it away."""

    certificate: str
    user: ExternalUser | None

    def apply(self, now: Configuration) -> Configuration:
        if self.user is not None:
            return replace(now, external=with_member(now.external, self.certificate, self.user))
        if self.certificate not in now.external:
            raise ProxyError(f"No user for certificate '{self.certificate}'")
        return replace(now, external=without(now.external, self.certificate))
