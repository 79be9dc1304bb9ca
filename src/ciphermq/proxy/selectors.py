"""In which order the backends of a tier are tried: small classes, and users can add theirs.

A selector is made once for each farm in each worker, and asked once for each session. It gets
the tier's backends that may be used now (healthy, not drained), in the farm's own order, and
answers with the same ones in the order in which they are to be tried. It may keep what it likes
between two calls; what it leaves out is tried after what it named.

Of one's own: a class under the entry point group ``ciphermq.proxy.selectors``, whose name there
is the word in ``FARM ADD``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from ciphermq import limits
from ciphermq.proxy.model import Backend
from ciphermq.proxy.plugins import Registry


class Asking(NamedTuple):
    """What a selector may go by."""

    vhost: str
    client: str
    """The client's address."""
    active: Mapping[str, int]
    """This worker's sessions now, by backend."""


class Selector(Protocol):
    """One farm's order."""

    def __init__(self, start: int) -> None:
        """`start` differs from worker to worker, so that they don't all begin alike."""

    def order(self, backends: Sequence[Backend], asking: Asking) -> Sequence[Backend]:
        """The same backends, the one to try first in front."""


_REMEMBERED: Final = 4 * limits.MAX_PROXY_FARM


class RoundRobin:
    """Each in its turn: first whoever was chosen longest ago.

    Turns are remembered by backend, not as a place in a list, so the shares stay even while
    backends come, go, fail and recover. What follows the first is turned one further each time,
    so a failing backend's share goes to all of the others.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._chosen: dict[str, int] = {}
        self._count = 0

    def order(self, backends: Sequence[Backend], asking: Asking) -> Sequence[Backend]:
        """Whoever was chosen longest ago, then the others."""
        count, chosen = len(backends), self._chosen
        self._count += 1
        turn = (self._start + self._count) % count if len(chosen) < count else 0
        first = min(
            [*backends[turn:], *backends[:turn]], key=lambda backend: chosen.get(backend.name, 0)
        )
        chosen[first.name] = self._count
        if len(chosen) > _REMEMBERED:
            # Whoever is forgotten was not chosen for longer than all others, and is next as such.
            newest = sorted(chosen, key=chosen.__getitem__)[-_REMEMBERED // 2 :]
            self._chosen = {name: chosen[name] for name in newest}
        others = [backend for backend in backends if backend is not first]
        turn = (self._count // count) % (count - 1 or 1)
        return [first, *others[turn:], *others[:turn]]


class LeastConnections:
    """Whoever has the fewest sessions from this worker; among equals, each in its turn."""

    def __init__(self, start: int) -> None:
        self._turns = RoundRobin(start)

    def order(self, backends: Sequence[Backend], asking: Asking) -> Sequence[Backend]:
        """By sessions now, fewest first."""
        turned = self._turns.order(backends, asking)
        return sorted(turned, key=lambda backend: asking.active.get(backend.name, 0))


class ClientHash:
    """The same client always to the same backend, while it can be had.

    Rendezvous hashing: when a backend comes or goes, only its own clients move, in every worker
    and after every restart alike.
    """

    def __init__(self, start: int) -> None:
        pass

    def order(self, backends: Sequence[Backend], asking: Asking) -> Sequence[Backend]:
        """By a hash of client and backend, the greatest first."""
        client = asking.client.encode(errors="surrogateescape")

        def weight(backend: Backend) -> bytes:
            name = backend.name.encode(errors="surrogateescape")
            return hashlib.blake2b(client, key=hashlib.blake2b(name).digest()).digest()

        return sorted(backends, key=weight, reverse=True)


OWN: Final = frozenset({RoundRobin, LeastConnections, ClientHash})
"""Those whose answers need no looking over."""

SELECTORS: Final = Registry[type[Selector]](
    "ciphermq.proxy.selectors",
    "Selector",
    {
        "round-robin": RoundRobin,
        "least-connections": LeastConnections,
        "client-hash": ClientHash,
    },
)
