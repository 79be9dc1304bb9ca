"""Where a session goes: from its vhost to backends, in the order in which they are tried.

1. The vhost's map, else the default farm; without either the client is refused (530).
2. A farm's backends fall into tiers by its partition policies.
3. Within a tier the farm's selector orders those that are healthy, and those whose rest is over
   (`health`); the first of the latter is on trial from now on.
4. Those that rest come after all tiers, the one that wakes first in front: with a farm that is
   wholly down, whatever has just come back is still found.
5. Drained ones are left out. If nothing is left the client is refused (320: it may come again).

All decisions are made from what this worker knows; `now` is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from ciphermq.proxy.gate import Refusal
from ciphermq.proxy.health import Health
from ciphermq.proxy.model import Backend, Configuration, Farm
from ciphermq.proxy.partitions import PARTITIONS, Partition
from ciphermq.proxy.selectors import OWN, SELECTORS, Asking, Selector

NOT_ALLOWED = 530
CONNECTION_FORCED = 320


class Router:
    """One worker's routes.

    `start` is the worker's number, `complain` is told a sentence when a class that a user added
    fails; that costs its order, not the session.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        start: int = 0,
        health: Health | None = None,
        complain: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.health = health or Health()
        self.active: Counter[str] = Counter()
        self._start = start
        self._complain = complain
        self._configuration = configuration
        self._tiers: dict[str, list[list[Backend]]] = {}
        self._selectors: dict[str, tuple[str, Selector]] = {}
        self._partitions: dict[str, Partition] = {}

    def update(self, configuration: Configuration) -> None:
        """Take over a configuration. What is known of what stays as it was is kept."""
        before, after = self._configuration.backends, configuration.backends
        for name in self.health.names():
            if name not in after or after[name] != before.get(name):
                self.health.forget(name)
        for name in [name for name in self._selectors if name not in configuration.farms]:
            del self._selectors[name]
        self._configuration = configuration
        self._tiers.clear()

    def route(self, vhost: str, client: str, now: float) -> Sequence[Backend]:
        """The backends to try, in order; at least one. `Refusal` when there is none."""
        target = self._configuration.target(vhost)
        if target is None:
            raise Refusal(NOT_ALLOWED, f"NOT_ALLOWED - vhost '{vhost}' is not mapped")
        if target.kind == "backend":
            backend = self._configuration.backends.get(target.name)
            if backend is None:
                raise _gap(vhost, f"backend '{target.name}', which does not exist")
            if backend.drained:
                raise _gap(vhost, f"backend '{target.name}', which takes no new connections")
            return (backend,)
        farm = self._configuration.farms.get(target.name)
        if farm is None:
            raise _gap(vhost, f"farm '{target.name}', which does not exist")
        tiers = self._tiers.get(farm.name)
        if tiers is None:
            tiers = self._tiers[farm.name] = self._divide(farm)
        if not tiers:
            raise _gap(vhost, f"farm '{farm.name}', none of whose backends takes connections")
        return self._order(farm, tiers, Asking(vhost, client, self.active), now)

    def opened(self, name: str) -> None:
        """One more session is with this backend."""
        self.active[name] += 1

    def ended(self, name: str) -> None:
        """One less."""
        self.active[name] -= 1
        if self.active[name] <= 0:
            del self.active[name]

    def _divide(self, farm: Farm) -> list[list[Backend]]:
        """A farm's tiers, without drained backends; once for each configuration."""
        usable = [
            (self._tier(farm, backend), backend)
            for name in farm.backends
            if (backend := self._configuration.backends.get(name)) and not backend.drained
        ]
        usable.sort(key=lambda pair: pair[0])
        return [
            [backend for _, backend in tier]
            for _, tier in groupby(usable, key=lambda pair: pair[0])
        ]

    def _order(
        self, farm: Farm, tiers: Iterable[list[Backend]], asking: Asking, now: float
    ) -> Sequence[Backend]:
        route: list[Backend] = []
        resting: list[Backend] = []
        ailing = self.health.names()
        for tier in tiers:
            ready = tier
            if ailing:
                states = [(backend, self.health.state(backend.name, now)) for backend in tier]
                ready = [backend for backend, state in states if state in ("healthy", "due")]
                resting += [
                    backend for backend, state in states if state in ("resting", "on trial")
                ]
            route += ready if len(ready) < 2 else self._select(farm, ready, asking)
        if ailing and route:
            self.health.trial(route[0].name, now)
        resting.sort(key=lambda backend: self.health.wakes(backend.name))
        return route + resting

    def _tier(self, farm: Farm, backend: Backend) -> tuple[int, ...]:
        tier = []
        for name in farm.partitions:
            try:
                policy = self._partitions.get(name)
                if policy is None:
                    policy = self._partitions[name] = PARTITIONS.find(name)()
                tier.append(int(policy.tier(backend, self._configuration.datacenter)))
            except Exception as error:  # noqa: BLE001 — whatever a user's class raises
                self._complain(f"Partition policy '{name}' of farm '{farm.name}': {error!r}")
                tier.append(0)
        return tuple(tier)

    def _select(self, farm: Farm, tier: list[Backend], asking: Asking) -> list[Backend]:
        known = {backend.name: backend for backend in tier}
        try:
            made = self._selectors.get(farm.name)
            if made is None or made[0] != farm.selector:
                made = farm.selector, SELECTORS.find(farm.selector)(self._start)
                self._selectors[farm.name] = made
            ordered = made[1].order(tier, asking)
            if type(made[1]) in OWN:
                return list(ordered)
            named = [backend.name for backend in ordered]
        except Exception as error:  # noqa: BLE001 — whatever a user's class raises
            self._complain(f"Selector '{farm.selector}' of farm '{farm.name}': {error!r}")
            named = []
        # What the selector left out comes after what it named; what it invented is dropped.
        return [known[name] for name in dict.fromkeys([*named, *known]) if name in known]


def _gap(vhost: str, leads_to: str) -> Refusal:
    """A map that leads nowhere, for now: the client may come again."""
    return Refusal(
        CONNECTION_FORCED, f"CONNECTION_FORCED - vhost '{vhost}' is mapped to {leads_to}"
    )
