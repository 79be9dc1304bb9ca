"""Where a session goes, and in which order its backends are tried."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import ProxyError
from ciphermq.proxy import selectors
from ciphermq.proxy.change import (
    AddBackend,
    AddFarm,
    DeleteFarm,
    DrainBackend,
    Map,
    PartitionFarm,
    SetDatacenter,
    SetDefault,
)
from ciphermq.proxy.gate import Refusal
from ciphermq.proxy.model import Backend, Configuration, Farm, Target
from ciphermq.proxy.partitions import PARTITIONS
from ciphermq.proxy.routing import Router
from ciphermq.proxy.selectors import SELECTORS, Asking

_CLIENT = "192.0.2.1"


def _backend(name: str, datacenter: str = "dc1", **more: object) -> Backend:
    return Backend(name=name, datacenter=datacenter, host="127.0.0.1", port=5672, **more)


def _configuration(
    *names: str, selector: str = "round-robin", datacenters: Sequence[str] = ()
) -> Configuration:
    now = Configuration()
    for place, name in enumerate(names):
        home = datacenters[place] if datacenters else "dc1"
        now = AddBackend(_backend(name, home)).apply(now)
    now = AddFarm(Farm(name="f", selector=selector, backends=names)).apply(now)
    return Map("/", Target("farm", "f")).apply(now)


def _names(router: Router, now: float = 0.0, client: str = _CLIENT) -> list[str]:
    return [backend.name for backend in router.route("/", client, now)]


@given(st.integers(1, 30), st.integers(1, 200), st.integers(0, 7))
def test_every_backend_gets_the_same_share(backends: int, sessions: int, start: int) -> None:
    names = [f"b{number}" for number in range(backends)]
    router = Router(_configuration(*names), start=start)
    first = Counter(_names(router)[0] for _ in range(sessions))
    shares = [first[name] for name in names]
    assert max(shares) - min(shares) <= 1


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=8))
def test_shares_stay_even_while_backends_come_and_go(farms: list[set[str]]) -> None:
    """Within every stretch of an unchanged farm, whatever was before."""
    router = Router(Configuration())
    for members in farms:
        router.update(_configuration(*sorted(members)))
        first = Counter(_names(router)[0] for _ in range(10 * len(members)))
        # Whoever is new has waited longest, so it may be one ahead, and another one behind.
        assert max(first.values()) - min(first.values()) <= 2


def test_the_share_of_one_that_fails_goes_to_all_others() -> None:
    """Before its failure is known too: sessions that begin at once all meet it."""
    router = Router(_configuration("bad", "b", "c", "d"))
    landed = Counter(next(name for name in _names(router) if name != "bad") for _ in range(120))
    assert set(landed) == {"b", "c", "d"}
    assert max(landed.values()) - min(landed.values()) <= 12


def test_one_that_rests_is_tried_last_and_the_others_share_evenly() -> None:
    router = Router(_configuration("bad", "b", "c"))
    router.health.failed("bad", 0.0, "refused")
    routes = [_names(router, 0.5) for _ in range(40)]
    assert {route[-1] for route in routes} == {"bad"}
    assert Counter(route[0] for route in routes) == {"b": 20, "c": 20}


def test_with_all_of_them_down_all_are_tried_those_that_wake_soonest_first() -> None:
    router = Router(_configuration("a", "b", "c"))
    for name, when in (("b", 0.0), ("c", 0.1), ("a", 0.2)):
        router.health.failed(name, when)
    assert _names(router, 0.3) == ["b", "c", "a"]


def test_one_session_at_a_time_tries_one_whose_rest_is_over() -> None:
    router = Router(_configuration("bad", "b"))
    router.health.failed("bad", 0.0)
    firsts = [_names(router, 2.0)[0] for _ in range(10)]
    assert firsts.count("bad") == 1
    assert _names(router, 2.0)[-1] == "bad"
    router.health.connected("bad")
    assert Counter(_names(router, 3.0)[0] for _ in range(10)) == {"bad": 5, "b": 5}


def test_a_drained_one_is_not_tried_at_all() -> None:
    router = Router(DrainBackend("a", True).apply(_configuration("a", "b")))
    assert {tuple(_names(router)) for _ in range(5)} == {("b",)}


def test_those_at_home_come_before_those_elsewhere() -> None:
    now = _configuration("far", "near", "also", datacenters=["dc2", "dc1", "dc1"])
    now = PartitionFarm("f", "datacenter-affinity").apply(SetDatacenter("dc1").apply(now))
    router = Router(now)
    routes = [_names(router) for _ in range(10)]
    assert {route[2] for route in routes} == {"far"}
    assert Counter(route[0] for route in routes) == {"near": 5, "also": 5}
    for name in ("near", "also"):
        router.health.failed(name, 0.0)
    assert _names(router, 0.5)[0] == "far"


def test_tiers_do_not_disturb_each_others_turns() -> None:
    near, far = [f"near{number}" for number in range(40)], ["far1", "far2"]
    now = _configuration(*far, *near, datacenters=["dc2"] * 2 + ["dc1"] * 40)
    now = PartitionFarm("f", "datacenter-affinity").apply(SetDatacenter("dc1").apply(now))
    router = Router(now)
    assert Counter(_names(router)[0] for _ in range(400)) == dict.fromkeys(near, 10)


def test_turns_of_backends_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "_REMEMBERED", 8)
    selector = selectors.RoundRobin(0)
    for number in range(100):
        selector.order([_backend(f"gone{number}"), _backend("stays")], Asking("/", _CLIENT, {}))
    assert len(selector._chosen) <= 8
    members = [_backend(name) for name in "abcdefg"]
    first = [selector.order(members, Asking("/", _CLIENT, {}))[0].name for _ in range(70)]
    assert set(Counter(first).values()) == {10}


def test_another_data_centre_changes_who_is_preferred() -> None:
    now = _configuration("a", "b", datacenters=["dc1", "dc2"])
    now = PartitionFarm("f", "datacenter-affinity").apply(SetDatacenter("dc1").apply(now))
    router = Router(now)
    assert _names(router) == ["a", "b"]
    router.update(SetDatacenter("dc2").apply(now))
    assert _names(router) == ["b", "a"]


def test_what_is_known_of_a_backend_is_forgotten_when_it_is_replaced() -> None:
    now = _configuration("a", "b")
    router = Router(now)
    router.health.failed("a", 0.0)
    router.update(Map("/other", Target("farm", "f")).apply(now))
    assert _names(router, 0.1)[-1] == "a"
    router.update(AddBackend(_backend("a", "dc9"), instead=True).apply(now))
    assert router.health.state("a", 0.1) == "healthy"


@pytest.mark.parametrize(
    ("change", "reply", "text"),
    [
        (None, 530, "NOT_ALLOWED - vhost '/' is not mapped"),
        (
            Map("/", Target("farm", "later")),
            320,
            "CONNECTION_FORCED - vhost '/' is mapped to farm 'later', which does not exist",
        ),
        (
            Map("/", Target("backend", "later")),
            320,
            "CONNECTION_FORCED - vhost '/' is mapped to backend 'later', which does not exist",
        ),
        (
            Map("/", Target("backend", "drained")),
            320,
            (
                "CONNECTION_FORCED - vhost '/' is mapped to backend 'drained', which takes no new "
                "connections"
            ),
        ),
        (
            Map("/", Target("farm", "dry")),
            320,
            (
                "CONNECTION_FORCED - vhost '/' is mapped to farm 'dry', none of whose backends "
                "takes connections"
            ),
        ),
    ],
)
def test_a_session_that_leads_nowhere_is_told_why(
    change: Map | None, reply: int, text: str
) -> None:
    now = AddBackend(_backend("drained")).apply(Configuration())
    now = AddFarm(Farm(name="dry", backends=("drained",))).apply(now)
    now = DrainBackend("drained", True).apply(now)
    with pytest.raises(Refusal) as refusal:
        Router(change.apply(now) if change else now).route("/", _CLIENT, 0.0)
    assert (refusal.value.reply, str(refusal.value)) == (reply, text)


def test_vhosts_without_a_map_go_to_the_default() -> None:
    now = SetDefault(Target("farm", "f")).apply(_configuration("a"))
    assert [one.name for one in Router(now).route("any", _CLIENT, 0.0)] == ["a"]


def test_a_vhost_mapped_to_a_backend_goes_there_even_while_it_rests() -> None:
    now = Map("v", Target("backend", "a")).apply(_configuration("a", "b"))
    router = Router(now)
    router.health.failed("a", 0.0)
    assert [one.name for one in router.route("v", _CLIENT, 0.1)] == ["a"]


def test_fewest_sessions_first() -> None:
    router = Router(_configuration("a", "b", "c", selector="least-connections"))
    for name in ("a", "a", "b"):
        router.opened(name)
    assert _names(router) == ["c", "b", "a"]
    router.ended("a")
    router.ended("a")
    assert _names(router)[:1] in (["a"], ["c"])
    assert router.active == {"b": 1}


@given(st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=2, max_size=8), st.text())
def test_a_client_stays_with_its_backend_when_others_go(names: set[str], client: str) -> None:
    members = sorted(names)
    selector = "client-hash"
    order = _names(Router(_configuration(*members, selector=selector)), client=client)
    for gone in members:
        left = [name for name in members if name != gone]
        after = _names(Router(_configuration(*left, selector=selector), start=3), client=client)
        assert after == [name for name in order if name != gone]


@given(
    st.lists(st.sampled_from(["healthy", "resting", "due", "on trial", "drained"]), min_size=1),
    st.sampled_from(["round-robin", "least-connections", "client-hash"]),
    st.booleans(),
)
def test_every_backend_that_may_be_used_is_in_the_route_once(
    states: list[str], selector: str, affinity: bool
) -> None:
    names = [f"b{number}" for number in range(len(states))]
    homes = [f"dc{number % 2}" for number in range(len(states))]
    now = _configuration(*names, selector=selector, datacenters=homes)
    if affinity:
        now = PartitionFarm("f", "datacenter-affinity").apply(SetDatacenter("dc1").apply(now))
    router = Router(now)
    for name, state in zip(names, states, strict=True):
        if state == "drained":
            now = DrainBackend(name, True).apply(now)
        elif state != "healthy":
            router.health.failed(name, 99.9 if state == "resting" else 0.0)
            if state == "on trial":
                router.health.trial(name, 99.0)
    router.update(now)
    usable = [name for name, state in zip(names, states, strict=True) if state != "drained"]
    if usable:
        assert sorted(_names(router, 100.0)) == sorted(usable)
    else:
        with pytest.raises(Refusal):
            router.route("/", _CLIENT, 100.0)


# --- classes that users add --------------------------------------------------------------------

_MODULE = """
class LastFirst:
    def __init__(self, start):
        pass
    def order(self, backends, asking):
        return [*reversed(backends)][:1]

class Raises(LastFirst):
    def order(self, backends, asking):
        raise RuntimeError("on purpose")

class Invents(LastFirst):
    def order(self, backends, asking):
        return [*backends, *backends, None]

class ByName:
    def tier(self, backend, datacenter):
        return {"c": 0}.get(backend.name, 1)

class NoNumber:
    def tier(self, backend, datacenter):
        return "first"
"""

_ENTRY_POINTS = """
[ciphermq.proxy.selectors]
last-first = users_own_selectors:LastFirst
raises = users_own_selectors:Raises
invents = users_own_selectors:Invents
not-there = users_own_selectors:NotThere
round-robin = users_own_selectors:Raises
[ciphermq.proxy.partitions]
by-name = users_own_selectors:ByName
no-number = users_own_selectors:NoNumber
"""


@pytest.fixture
def users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with selectors and policies of its own, installed as any other."""
    about = tmp_path / "users_own-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: users-own\nVersion: 1\n")
    (about / "entry_points.txt").write_text(_ENTRY_POINTS)
    (tmp_path / "users_own_selectors.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_selectors", raising=False)
    for registry in (SELECTORS, PARTITIONS):  # what is found is remembered: not beyond the test
        monkeypatch.setattr(registry, "_known", dict(registry._known))


@pytest.mark.usefixtures("users_own")
def test_a_users_own_selector_is_found_and_what_it_leaves_out_follows() -> None:
    assert _names(Router(_configuration("a", "b", "c", selector="last-first"))) == ["c", "a", "b"]
    assert "last-first" in SELECTORS.names()


@pytest.mark.usefixtures("users_own")
@pytest.mark.parametrize("selector", ["raises", "invents", "not-there", "nowhere"])
def test_a_users_own_selector_that_fails_costs_its_order_not_the_session(selector: str) -> None:
    complaints: list[str] = []
    router = Router(_configuration("a", "b", selector=selector), complain=complaints.append)
    assert _names(router) == ["a", "b"]
    (complaint,) = complaints
    assert complaint.startswith(f"Selector '{selector}' of farm 'f': ")


@pytest.mark.usefixtures("users_own")
def test_a_name_of_ours_stays_ours() -> None:
    asking = Asking("/", _CLIENT, {})
    assert SELECTORS.find("round-robin")(0).order([_backend("a")], asking) == [_backend("a")]


@pytest.mark.usefixtures("users_own")
def test_a_users_own_policy() -> None:
    now = PartitionFarm("f", "by-name").apply(_configuration("a", "b", "c"))
    assert {_names(Router(now, start=start))[0] for start in range(6)} == {"c"}
    complaints: list[str] = []
    now = PartitionFarm("f", "no-number").apply(_configuration("a", "b"))
    assert sorted(_names(Router(now, complain=complaints.append))) == ["a", "b"]
    assert complaints


def test_an_unknown_selector_is_refused_with_those_there_are() -> None:
    with pytest.raises(ProxyError) as error:
        SELECTORS.find("fastest")
    assert str(error.value) == (
        "Selector 'fastest' not found; there are client-hash, least-connections, round-robin."
    )


def test_a_farm_that_is_gone_and_comes_back_begins_anew() -> None:
    now = _configuration("a", "b")
    router = Router(now)
    first = _names(router)[0]
    router.update(DeleteFarm("f").apply(now))
    router.update(now)
    assert _names(router)[0] == first
