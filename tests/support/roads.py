"""Two roads to one vhost: straight to its node, and through the proxy. Clients should not be able
to tell which they are on."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote

from support.proxy import Proxy
from support.rabbitmq import Node


@dataclass(frozen=True)
class Road:
    """How a client gets to a vhost."""

    name: str
    port: int
    vhost: str
    user: str
    password: str
    authority: str = ""
    """With TLS: the file with the certificate to trust."""

    @property
    def url(self) -> str:
        """As clients know it."""
        scheme = "amqps" if self.authority else "amqp"
        login = f"{self.user}:{quote(self.password, safe='')}"
        return f"{scheme}://{login}@localhost:{self.port}/{quote(self.vhost, safe='')}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What checks the other end, with TLS."""
        return ssl.create_default_context(cafile=self.authority) if self.authority else None

    def otherwise(self, **changes: str) -> Road:
        """The same, but for these."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Roads:
    """The two of them."""

    direct: Road
    proxied: Road

    def __iter__(self) -> Iterator[Road]:
        return iter((self.direct, self.proxied))

    def otherwise(self, **changes: str) -> Roads:
        """Both, but for these."""
        return Roads(self.direct.otherwise(**changes), self.proxied.otherwise(**changes))


class Junction:
    """A proxy with both kinds of listeners, in front of a node, by TCP and by TLS."""

    def __init__(self, proxy: Proxy, node: Node) -> None:
        self._proxy = proxy
        self._node = node
        proxy("TLS", "EGRESS", "CA_CERT_FILE", node.authority)
        proxy("TLS", "EGRESS", "VERIFY_MODE", "PEER")
        proxy.farm("plain", node)
        proxy("BACKEND", "ADD", "secure", "dc", "localhost", str(node.tls_port), "TLS")
        proxy("FARM", "ADD", "tls", "round-robin", "secure")
        proxy("MAP", "DEFAULT", "plain")
        self._ports = {"plain": proxy.listen(), "tls": proxy.listen_secure(node)}

    def roads(self, kind: str, vhost: str) -> Roads:
        """To a vhost, `plain` or `tls` all the way."""
        node = self._node
        self._proxy("MAP", "FARM", vhost, kind)
        authority = node.authority if kind == "tls" else ""
        straight = node.tls_port if kind == "tls" else node.port
        return Roads(
            Road("direct", straight, vhost, node.user, node.password, authority),
            Road("proxied", self._ports[kind], vhost, node.user, node.password, authority),
        )
