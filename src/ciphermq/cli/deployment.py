"""What ``ciphermq init`` makes, and where things are in it.

::

    DIR/ca/            the authority: needed to issue, best kept offline
    DIR/server/        all that the broker's machine needs: certificate, key, config.toml, data/
    DIR/admin/         the administrator's identity
    DIR/identities/    the others
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.client import enrol
from ciphermq.client.layout import IdentitySettings
from ciphermq.custody import disk
from ciphermq.custody.passphrase import STRONG, Cost
from ciphermq.errors import AuthorityError, CipherMQError, IdentityNotFound, UsageError
from ciphermq.model.suites import DEFAULT_SUITE, Suite
from ciphermq.net.address import DEFAULT_PORT
from ciphermq.pki import keyfile, names
from ciphermq.pki.authority import CERTIFICATE, REVOCATION_LIST, Authority, AuthorityDirectory
from ciphermq.settings import Address, render_config

DEFAULT_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
ADMINISTRATOR: Final = "admin"
SERVER_CERTIFICATE: Final = "server.crt"
SERVER_KEY: Final = "server.key"


class Deployment:
    """The directories of the deployment in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ca = home / "ca"
        self.server = home / "server"
        self.admin = home / ADMINISTRATOR
        self.identities = home / "identities"

    @property
    def config(self) -> Path:
        """The broker's configuration."""
        return self.server / "config.toml"

    def identity(self, name: str) -> Path:
        """Where the identity `name` of this deployment is, or would be."""
        names.check_issuable(name)
        return self.admin if name == ADMINISTRATOR else self.identities / name

    def identity_directories(self) -> list[Path]:
        """Those that are here, the administrator's first; also those that can't be read."""
        others = sorted(self.identities.iterdir()) if self.identities.is_dir() else []
        found = []
        for path in [self.admin, *others]:
            try:
                IdentitySettings.read(path)
            except IdentityNotFound:
                continue
            except CipherMQError:
                pass  # who means to do something there will be told
            found.append(path)
        return found

    def broker(self) -> tuple[str, str]:
        """URL and server name that new identities get: those of the administrator's."""
        try:
            settings = IdentitySettings.read(self.admin)
        except IdentityNotFound:
            self.authority()  # where there is none either, that is what to say
            raise UsageError(
                f"where is the broker? {self.admin} is not here to tell: say --url cmq://HOST:PORT"
            ) from None
        return settings.url, settings.server_name

    def authority(self) -> AuthorityDirectory:
        """The authority, to look at."""
        return AuthorityDirectory(self.ca)

    def open_authority(self, passphrase: str | None) -> Authority:
        """The authority, to issue with."""
        return Authority.open(self.ca, passphrase)


def make(
    home: Path,
    *,
    now_ms: int,
    passphrase: str | None,
    hosts: Sequence[str] = DEFAULT_HOSTS,
    listen: str | None = None,
    port: int = DEFAULT_PORT,
    admin_passphrase: str | None = None,
    suite: Suite = DEFAULT_SUITE,
    cost: Cost = STRONG,
) -> Deployment:
    """Make a deployment in the new directory `home`: all of it, or nothing.

    The broker is at the first of `hosts` for its clients; it listens on `listen` (an address;
    None: on loopback when all hosts are this machine, else on every interface) and `port`.
    Raises `FileExistsError` when there is something at `home`.
    """
    url = f"cmq://{Address(hosts[0].strip('[]'), port)}"
    with disk.new_directory(home) as directory:
        new = Deployment(directory)
        authority = Authority.create(new.ca, passphrase=passphrase, now_ms=now_ms, cost=cost)
        _make_server(new, authority, hosts, Address(listen or _interface(hosts), port), now_ms)
        disk.make_private_directory(new.identities)
        enrol.create(
            new.admin,
            name=ADMINISTRATOR,
            url=url,
            authority=authority,
            now_ms=now_ms,
            passphrase=admin_passphrase,
            suite=suite,
            cost=cost,
        )
    return Deployment(home)


def renew_server(
    deployment: Deployment, authority: Authority, *, now_ms: int, hosts: Sequence[str] = ()
) -> x509.Certificate:
    """A new certificate for the broker's key, for the same host names unless others are given."""
    path = deployment.server / SERVER_CERTIFICATE
    try:
        old = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *names.UNREADABLE) as error:
        raise AuthorityError(f"the broker's certificate {path} can't be read: {error}") from error
    key = keyfile.read_key(deployment.server / SERVER_KEY, None)
    new = authority.issue_server(hosts or server_hosts(old), key.public_key(), now_ms=now_ms)
    disk.write_file(path, new.public_bytes(Encoding.PEM), mode=disk.PUBLIC, replace=True)
    return new


def server_hosts(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses that a server's certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return found.get_values_for_type(x509.DNSName) + addresses


def _make_server(
    new: Deployment, authority: Authority, hosts: Sequence[str], listen: Address, now_ms: int
) -> None:
    disk.make_private_directory(new.server / "data")
    key = keyfile.new_key(enrol.KEY_CURVE)
    # In the clear: a broker starts by itself after a power cut, when nobody types a passphrase.
    keyfile.write_key(new.server / SERVER_KEY, key, None)
    certificate = authority.issue_server(hosts, key.public_key(), now_ms=now_ms)
    AtRestKey.create(new.server / "at-rest.key")
    for name, data in {
        SERVER_CERTIFICATE: certificate.public_bytes(Encoding.PEM),
        CERTIFICATE: authority.certificate_pem,
        REVOCATION_LIST: (new.ca / REVOCATION_LIST).read_bytes(),
        new.config.name: render_config(address=str(listen)).encode(),
    }.items():
        disk.write_file(new.server / name, data, mode=disk.PUBLIC)


def _interface(hosts: Sequence[str]) -> str:
    return "127.0.0.1" if all(_is_this_machine(host) for host in hosts) else "0.0.0.0"  # noqa: S104


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
