"""Which backends of a farm are preferred to which: small classes, and users can add theirs.

A partition policy gives each backend a tier; lower tiers are tried first, and a higher one only
when nothing healthy is left in those below. A farm's second policy divides the tiers of its
first, and so on.

Of one's own: a class under the entry point group ``ciphermq.proxy.partitions``, whose name there
is the word in ``FARM PARTITION``.
"""

from __future__ import annotations

from typing import Final, Protocol

from ciphermq.proxy.model import Backend
from ciphermq.proxy.plugins import Registry


class Partition(Protocol):
    """One policy. It is made without arguments, once in each worker, and asked about a farm's
    backends when the configuration has changed."""

    def tier(self, backend: Backend, datacenter: str) -> int:
        """The backend's tier for a proxy in this data centre (empty: it doesn't know)."""


class DatacenterAffinity:
    """Backends in the proxy's own data centre before all others."""

    def tier(self, backend: Backend, datacenter: str) -> int:
        """0 at home, 1 elsewhere."""
        return int(backend.datacenter != datacenter)


PARTITIONS: Final = Registry[type[Partition]](
    "ciphermq.proxy.partitions",
    "Partition policy",
    {"datacenter-affinity": DatacenterAffinity},
)
