"""A whole deployment for a test: what `ciphermq init` and `ciphermq identity add` make, fast.

::

    deployment = make_deployment(tmp_path, clients=["alice", "bob"])
    alice = Identity.load(deployment.identity("alice"))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ciphermq import limits
from ciphermq.cli import deployment as real
from ciphermq.client import enrol
from ciphermq.client.identity import Identity
from ciphermq.custody import disk
from ciphermq.custody.passphrase import CHEAP
from ciphermq.model.suites import DEFAULT_SUITE, Suite
from ciphermq.pki.authority import REVOCATION_LIST, Authority


def now_ms() -> int:
    """This machine's clock."""
    return int(time.time() * 1000)


class Deployment:
    """What `make_deployment` made. Its authority is open and can issue and revoke."""

    def __init__(self, made: real.Deployment, authority: Authority, suite: Suite) -> None:
        self.made = made
        self.home = made.home
        self.ca_dir = made.ca
        self.server_dir = made.server
        self.config = made.config
        self.authority = authority
        self.suite = suite

    def identity(self, name: str) -> Path:
        """The identity's directory; "admin" is the administrator's."""
        return self.made.identity(name)

    def load(self, name: str) -> Identity:
        """The identity, open."""
        return Identity.load(self.identity(name))

    def add(
        self,
        name: str,
        *,
        passphrase: str | None = None,
        at_ms: int | None = None,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
    ) -> Path:
        """One more client. `at_ms`: when its certificate is issued; `lifetime`: seconds from then
        (-60: it ended a minute ago)."""
        url, server_name = self.made.broker()
        enrol.create(
            self.identity(name),
            name=name,
            url=url,
            server_name=server_name,
            authority=self.authority,
            now_ms=now_ms() if at_ms is None else at_ms,
            passphrase=passphrase,
            suite=self.suite,
            lifetime=lifetime,
            cost=CHEAP,
        )
        return self.identity(name)

    def revoke(self, *names: str) -> None:
        """Put these clients' certificates on a new revocation list, and give it to the server."""
        serials = [
            item.certificate.serial_number for item in self.authority.issued() if item.name in names
        ]
        self.authority.issue_crl(now_ms=now_ms(), revoke=serials)
        new = (self.ca_dir / REVOCATION_LIST).read_bytes()
        disk.write_file(self.server_dir / REVOCATION_LIST, new, mode=disk.PUBLIC, replace=True)


def make_deployment(
    tmp_path: Path,
    clients: Iterable[str] = (),
    *,
    hosts: Sequence[str] = real.DEFAULT_HOSTS,
    port: int = 0,
    at_ms: int | None = None,
    suite: Suite = DEFAULT_SUITE,
) -> Deployment:
    """A deployment in ``tmp_path / "deployment"``, with keys in the clear.

    Port 0: the server takes any free one, and clients are told its URL when they connect.
    """
    made = real.make(
        tmp_path / "deployment",
        now_ms=now_ms() if at_ms is None else at_ms,
        passphrase=None,
        hosts=hosts,
        port=port,
        suite=suite,
        cost=CHEAP,
    )
    # 128 MiB a test would fill the disk of whoever runs them all.
    text = made.config.read_text()
    made.config.write_text(text.replace("# reserve_mb = 128.0", "reserve_mb = 1.0"))
    deployment = Deployment(made, made.open_authority(None), suite)
    for name in clients:
        deployment.add(name, at_ms=at_ms)
    return deployment
