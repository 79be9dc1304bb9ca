"""Backends, farms, and which vhost goes where."""

from __future__ import annotations

from msgspec.structs import replace

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.change.parts import OneChange, with_member, without
from ciphermq.proxy.model import Backend, Configuration, Farm, Target

# --- backends --------------------------------------------------------------------------------


class AddBackend(OneChange, frozen=True):
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
        return replace(now, backends=with_member(now.backends, new.name, new))


class DeleteBackend(OneChange, frozen=True):
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
        return replace(now, backends=without(now.backends, self.name))


class DrainBackend(OneChange, frozen=True):
    """No new sessions to it, or again."""

    name: str
    drained: bool

    def apply(self, now: Configuration) -> Configuration:
        old = now.backends.get(self.name)
        if old is None:
            raise ProxyError(f"Backend '{self.name}' not found")
        new = replace(old, drained=self.drained)
        return replace(now, backends=with_member(now.backends, self.name, new))


# --- farms and maps --------------------------------------------------------------------------


class AddFarm(OneChange, frozen=True):
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
        return replace(now, farms=with_member(now.farms, farm.name, farm))


class PartitionFarm(OneChange, frozen=True):
    """One more partition policy, which divides the tiers that those before it made."""

    name: str
    policy: str

    def apply(self, now: Configuration) -> Configuration:
        old = now.farms.get(self.name)
        if old is None:
            raise ProxyError(f"Farm '{self.name}' not found")
        new = replace(old, partitions=tuple(dict.fromkeys([*old.partitions, self.policy])))
        return replace(now, farms=with_member(now.farms, self.name, new))


class DeleteFarm(OneChange, frozen=True):
    """Maps to it stay, and lead nowhere until it is there again."""

    name: str

    def apply(self, now: Configuration) -> Configuration:
        if self.name not in now.farms:
            raise ProxyError(f"Farm '{self.name}' not found")
        return replace(now, farms=without(now.farms, self.name))


class Map(OneChange, frozen=True):
    """Where a vhost's new sessions go."""

    vhost: str
    target: Target

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, maps=with_member(now.maps, self.vhost, self.target))


class Unmap(OneChange, frozen=True):
    """Its sessions go to the default farm, if there is one. Nothing, if it was not mapped."""

    vhost: str

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, maps=without(now.maps, self.vhost))


class SetDefault(OneChange, frozen=True):
    """Where vhosts without a map go; None: nowhere."""

    target: Target | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, default=self.target)


class SetDatacenter(OneChange, frozen=True):
    """Where this proxy is."""

    name: str

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, datacenter=self.name)


class SetPaused(OneChange, frozen=True):
    """Hold a vhost's new sessions in their handshake, or let them on (and end the others)."""

    vhost: str
    paused: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, vhosts=with_member(now.vhosts, self.vhost, self.paused))
