"""BACKEND, FARM, MAP, DATACENTER: where sessions go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins

from ciphermq.errors import ProxyError
from ciphermq.proxy.change import (
    AddBackend,
    AddFarm,
    DeleteBackend,
    DeleteFarm,
    DrainBackend,
    Map,
    PartitionFarm,
    SetDatacenter,
    SetDefault,
    Unmap,
)
from ciphermq.proxy.control.grammar import Call
from ciphermq.proxy.control.lookup import address_of
from ciphermq.proxy.control.rules import Answer, rule
from ciphermq.proxy.model import Backend, Farm, Target
from ciphermq.proxy.office import Office
from ciphermq.proxy.partitions import PARTITIONS
from ciphermq.proxy.selectors import SELECTORS


async def _backend(call: Call) -> Backend:
    dns = "ADD_DNS" in call.keywords or "REPLACE_DNS" in call.keywords
    if {"SEND-PROXY", "SEND-PROXY-V2"} <= set(call.keywords):
        raise ProxyError("A connection begins with one PROXY header: SEND-PROXY or SEND-PROXY-V2.")
    return Backend(
        name=call["name"],
        datacenter=call["datacenter"],
        host=call["host"],
        port=call["port"],
        address="" if dns else await address_of(call["host"]),
        dns=dns,
        proxy_protocol=(
            1 if "SEND-PROXY" in call.keywords else 2 if "SEND-PROXY-V2" in call.keywords else 0
        ),
        tls="TLS" in call.keywords,
    )


@rule(
    "BACKEND ADD_DNS name datacenter host port [SEND-PROXY] [SEND-PROXY-V2] [TLS]",
    "Add a broker whose name is looked up for each session",
)
@rule(
    "BACKEND ADD name datacenter host port [SEND-PROXY] [SEND-PROXY-V2] [TLS]",
    "Add a broker; its name is looked up now",
)
async def add_backend(office: Office, call: Call) -> None:
    """Saying it again, word for word, is no fault; another broker of the same name is one.

    SEND-PROXY sends a PROXY header of version 1 first, SEND-PROXY-V2 one of version 2.
    """
    await office.change(AddBackend(await _backend(call)))


@rule("BACKEND REPLACE|REPLACE_DNS name datacenter host port [SEND-PROXY] [SEND-PROXY-V2] [TLS]")
async def replace_backend(office: Office, call: Call) -> None:
    """Give a broker new particulars; its farms keep it, its sessions go on.

    New sessions go to where it is now. Its farms, and whether it is drained, stay.
    """
    await office.change(AddBackend(await _backend(call), instead=True))


@rule("BACKEND DELETE name")
async def delete_backend(office: Office, call: Call) -> None:
    """Delete a broker that no farm has; its sessions go on.

    Refused while a farm has it: taken out in silence, a farm might lose its last broker.
    """
    await office.change(DeleteBackend(call["name"]))


@rule("BACKEND DRAIN|UNDRAIN name")
async def drain_backend(office: Office, call: Call) -> None:
    """Keep new sessions from a broker, or no longer.

    Its sessions go on. A drained broker is tried for nothing, not even when all others fail.
    """
    await office.change(DrainBackend(call["name"], call.keywords[1] == "DRAIN"))


@rule("BACKEND PRINT")
async def print_backends(office: Office, call: Call) -> Answer:
    """Show all brokers.

    A line each: name, data centre, host, address and port, and what it wants.
    """
    backends = [one for _, one in sorted(office.configuration.backends.items())]
    return Answer("".join(map(_backend_line, backends)), to_builtins(backends))


def _backend_line(backend: Backend) -> str:
    address = f"[{backend.address}]" if ":" in backend.address else backend.address
    proxy = f" PROXY PROTOCOL V{backend.proxy_protocol} ENABLED" if backend.proxy_protocol else ""
    return (
        f"{backend.name} ({backend.datacenter}): {backend.host} {address}:{backend.port}{proxy}"
        f"{' TLS' if backend.tls else ''}{' DRAINED' if backend.drained else ''}\n"
    )


@rule("BACKEND HEALTH")
async def print_health(office: Office, call: Call) -> Answer:
    """Show which brokers answered when they were last tried.

    A broker that failed rests for 1 s, and twice as long after each further failure, up to a
    minute; meanwhile it is tried last. When its rest is over, one session tries it.
    """
    known = await office.health()
    value = {
        name: dict(known.get(name, {"state": "healthy"}))
        for name in sorted(office.configuration.backends)
    }
    return Answer("".join(_health_line(name, one) for name, one in value.items()), value)


def _health_line(name: str, health: Mapping[str, Any]) -> str:
    rest = f" for {health['rest']:.0f} s" if health.get("rest") else ""
    error = f": {health['error']}" if health.get("error") else ""
    return f"{name}: {health['state']}{rest}{error}\n"


@rule("FARM ADD|ADD_MANUAL name selector backend...")
async def add_farm(office: Office, call: Call) -> None:
    """Add a farm, or give it other brokers, in the order that the selector makes.

    The selector orders the brokers for each session: `round-robin` gives each the same share,
    `least-connections` prefers whoever has fewest, `client-hash` keeps each client at one broker.
    A broker that fails is passed over for the next, whatever the selector. A farm of that name is
    replaced.
    """
    SELECTORS.find(call["selector"])
    farm = Farm(name=call["name"], selector=call["selector"], backends=tuple(call["backend"]))
    await office.change(AddFarm(farm))


@rule("FARM PARTITION name policy")
async def partition_farm(office: Office, call: Call) -> None:
    """Prefer some of a farm's brokers, as in datacenter-affinity.

    `datacenter-affinity` puts brokers in the proxy's own data centre before all others. Each
    further policy divides the tiers of those before it.
    """
    PARTITIONS.find(call["policy"])
    await office.change(PartitionFarm(call["name"], call["policy"]))


@rule("FARM DELETE name")
async def delete_farm(office: Office, call: Call) -> None:
    """Delete a farm; its sessions go on.

    Vhosts that are mapped to it are refused (320) until there is a farm of that name again.
    """
    await office.change(DeleteFarm(call["name"]))


@rule("FARM PRINT")
async def print_farms(office: Office, call: Call) -> Answer:
    """Show all farms and their brokers."""
    farms = [one for _, one in sorted(office.configuration.farms.items())]
    lines = [f"{farm.name}: {''.join(f'{name} ' for name in farm.backends)}\n" for farm in farms]
    return Answer("".join(lines), to_builtins(farms))


@rule("MAP FARM vhost farm", "Send a vhost's new sessions to a farm")
@rule("MAP BACKEND vhost backend", "Send a vhost's new sessions to a broker")
async def map_vhost(office: Office, call: Call) -> None:
    """What it names need not exist yet; sessions are refused (320) until it does."""
    # The name need not exist yet: set-up scripts run in any order.
    farm = call.get("farm")
    target = Target("backend", call["backend"]) if farm is None else Target("farm", farm)
    await office.change(Map(call["vhost"], target))


@rule("MAP UNMAP vhost")
async def unmap_vhost(office: Office, call: Call) -> None:
    """Send a vhost's new sessions to the default farm, if there is one.

    Without a default farm they are refused (530).
    """
    await office.change(Unmap(call["vhost"]))


@rule("MAP DEFAULT farm")
async def set_default(office: Office, call: Call) -> None:
    """Send vhosts that are not mapped to a farm."""
    await office.change(SetDefault(Target("farm", call["farm"])))


@rule("MAP REMOVE_DEFAULT")
async def remove_default(office: Office, call: Call) -> None:
    """Refuse vhosts that are not mapped."""
    await office.change(SetDefault(None))


@rule("MAP PRINT")
async def print_maps(office: Office, call: Call) -> Answer:
    """Show where vhosts go.

    `"VHOST" => Farm:NAME` or `"VHOST" => Backend:NAME`; `--json` has the default too.
    """
    now = office.configuration
    maps = sorted(now.maps.items())
    lines = [f'"{vhost}" => {target.kind.capitalize()}:{target.name}\n' for vhost, target in maps]
    value = {vhost: {target.kind: target.name} for vhost, target in maps}
    default = {now.default.kind: now.default.name} if now.default else None
    return Answer("".join(lines), {"vhosts": value, "default": default})


@rule("DATACENTER SET name")
async def set_datacenter(office: Office, call: Call) -> None:
    """Say in which data centre this proxy is."""
    await office.change(SetDatacenter(call["name"]))


@rule("DATACENTER UNSET")
async def unset_datacenter(office: Office, call: Call) -> None:
    """Say that this proxy is nowhere in particular."""
    await office.change(SetDatacenter(""))


@rule("DATACENTER PRINT")
async def print_datacenter(office: Office, call: Call) -> Answer:
    """Show in which data centre this proxy is."""
    name = office.configuration.datacenter
    return Answer(f"{name}\n", {"datacenter": name})
