"""Any configuration that commands could have made, for property tests."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st
from msgspec.structs import replace

from ciphermq import limits
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
    Target,
    TlsSettings,
    VerifyMode,
    in_order,
)
from ciphermq.proxy.timeouts import Timeouts

names = st.one_of(
    st.sampled_from(["/", "rmq1", "a b", 'quo"te', "back\\slash", "a.b", "[x]", "#", "é", "'"]),
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12),
)
ports = st.integers(1, 65535)
hosts = st.sampled_from(["127.0.0.1", "::1", "rmq.example.org", "fe80::1%eth0"])
paths = st.sampled_from(["", "/etc/proxy/a.pem", "/with space/ü.pem"])
_numbers = st.integers(1, limits.MAX_PROXY_LIMIT)


def _backends(name: str) -> st.SearchStrategy[Backend]:
    return st.builds(
        Backend,
        name=st.just(name),
        datacenter=names,
        host=hosts,
        port=ports,
        dns=st.booleans(),
        proxy_protocol=st.sampled_from([0, 1, 2]),
        tls=st.booleans(),
        drained=st.booleans(),
    )


_certificates = st.builds(Certificate, server_name=names, chain_file=paths, key_file=paths)
_tls = st.builds(
    TlsSettings,
    key_file=paths,
    chain_file=paths,
    dh_file=paths,
    ca_file=paths,
    verify=st.lists(st.sampled_from(get_args(VerifyMode)), unique=True).map(tuple),
    ciphers=st.sampled_from(["", "ECDHE+AESGCM"]),
    certificates=st.lists(_certificates, unique_by=lambda one: one.server_name, max_size=3).map(
        tuple
    ),
)
_limits = st.dictionaries(
    st.sampled_from(get_args(LimitKind)),
    st.one_of(
        st.builds(Limit, default=_numbers, vhosts=st.dictionaries(names, _numbers, max_size=3)),
        st.builds(Limit, vhosts=st.dictionaries(names, _numbers, min_size=1, max_size=3)),
    ),
)
_listeners = st.lists(
    st.builds(
        Listener,
        port=ports,
        address=st.sampled_from(["", "127.0.0.1", "::1"]),
        secure=st.booleans(),
        proxy_header=st.booleans(),
    ),
    unique_by=lambda listener: listener.port,
    max_size=4,
).map(tuple)
_targets = st.builds(Target, st.sampled_from(["backend", "farm"]), names)
_destinations = st.one_of(st.none(), st.builds(Destination, hosts, ports))
_levels = st.one_of(st.none(), st.integers(0, 5))


@st.composite
def configurations(draw: Any) -> Configuration:
    """Everything that a configuration may say."""
    backends = {name: draw(_backends(name)) for name in draw(st.sets(names, max_size=5))}
    farms = {}
    if backends:
        for name in draw(st.sets(names, max_size=3)):
            farms[name] = Farm(
                name=name,
                selector=draw(st.sampled_from(["round-robin", "client-hash"])),
                backends=tuple(
                    draw(st.lists(st.sampled_from(sorted(backends)), min_size=1, unique=True))
                ),
                partitions=draw(st.sampled_from([(), ("datacenter-affinity",)])),
            )
    phases = st.sampled_from(sorted(Timeouts.__dataclass_fields__))
    seconds = st.floats(0.001, limits.DAY, allow_nan=False)
    made = Configuration(
        datacenter=draw(st.one_of(st.just(""), names)),
        backends=backends,
        farms=farms,
        maps=draw(st.dictionaries(names, _targets, max_size=4)),
        default=draw(st.one_of(st.none(), _targets)),
        listeners=draw(_listeners),
        ingress=draw(_tls),
        egress=replace(draw(_tls), certificates=()),
        vhosts=draw(st.dictionaries(names, st.booleans(), max_size=3)),
        limits=draw(_limits),
        auth=draw(st.one_of(st.none(), st.builds(AuthService, hosts, ports, paths))),
        external=draw(st.dictionaries(names, st.builds(ExternalUser, names, paths), max_size=2)),
        timeouts=draw(st.dictionaries(phases, seconds, max_size=4)),
        statsd=draw(_destinations),
        per_source=draw(st.booleans()),
        metrics=draw(_destinations),
        hostnames=draw(st.booleans()),
        console_level=draw(_levels),
        file_level=draw(_levels),
    )
    return in_order(made)
