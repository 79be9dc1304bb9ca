"""Changes: what each makes of a configuration, and what it refuses."""

from __future__ import annotations

import msgspec
import pytest
from configurations import configurations
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy import change
from ciphermq.proxy.change import (
    AddBackend,
    AddCertificate,
    AddFarm,
    DeleteBackend,
    DeleteCertificate,
    DeleteFarm,
    DrainBackend,
    Map,
    PartitionFarm,
    ReplaceAll,
    SetExternal,
    SetLimit,
    SetPaused,
    SetTimeout,
    StartListening,
    StopListening,
    Unmap,
)
from ciphermq.proxy.model import Backend, Certificate, Configuration, Farm, Listener, Target


def _backend(name: str = "a", port: int = 1, **more: object) -> Backend:
    return Backend(name=name, datacenter="d", host="h", port=port, **more)


def _made(*changes: change.Change) -> Configuration:
    now = Configuration()
    for one in changes:
        now = one.apply(now)
    return now


def _refused(one: change.Change, now: Configuration) -> str:
    before = msgspec.json.encode(now)
    with pytest.raises(ProxyError) as error:
        one.apply(now)
    assert msgspec.json.encode(now) == before
    return str(error.value)


def test_an_addition_that_is_there_is_no_fault() -> None:
    once = _made(AddBackend(_backend(address="192.0.2.1")))
    again = AddBackend(_backend(address="192.0.2.2")).apply(once)
    assert again.backends["a"].address == "192.0.2.2"
    listening = _made(StartListening(Listener(port=1)), StartListening(Listener(port=1)))
    assert listening.listeners == (Listener(port=1),)


def test_another_backend_of_the_name_is_refused_until_replaced_by_name() -> None:
    now = DrainBackend("a", True).apply(_made(AddBackend(_backend())))
    assert _refused(AddBackend(_backend(port=2)), now) == (
        "Backend 'a' is there already, as h:1 in d: BACKEND REPLACE gives it new particulars."
    )
    assert AddBackend(_backend(port=2), instead=True).apply(now).backends["a"] == _backend(
        port=2, drained=True
    )
    assert _refused(AddBackend(_backend("b"), instead=True), now) == "Backend 'b' not found"


def test_a_backend_stays_while_a_farm_has_it() -> None:
    now = _made(AddBackend(_backend()), AddBackend(_backend("b")))
    now = AddFarm(Farm(name="f", backends=("a",))).apply(now)
    assert _refused(DeleteBackend("a"), now) == (
        "Backend 'a' not deleted: it is in farm f. FARM ADD the farm without it first; "
        "BACKEND DRAIN keeps new sessions off it."
    )
    now = AddFarm(Farm(name="f", backends=("b",))).apply(now)
    assert list(DeleteBackend("a").apply(now).backends) == ["b"]


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (DeleteBackend("x"), "Backend 'x' not found"),
        (DrainBackend("x", True), "Backend 'x' not found"),
        (DeleteFarm("x"), "Farm 'x' not found"),
        (PartitionFarm("x", "datacenter-affinity"), "Farm 'x' not found"),
        (
            AddFarm(Farm(name="f", backends=("x", "y"))),
            (
                "Backend 'x' not found\nBackend 'y' not found\n"
                "Farm not inserted due to at least one missing Backend"
            ),
        ),
        (StopListening(7), "Not listening on port 7."),
        (StopListening(7, "::1"), "Not listening on ::1 port 7."),
        (DeleteCertificate("x"), "No certificate for server name 'x'"),
        (SetExternal("x", None), "No user for certificate 'x'"),
        (SetLimit("conn_rate", None, -1), "A limit is 0 to 9007199254740991, not -1."),
        (SetLimit("data_rate", "/", 0), "A limit is 1 to 9007199254740991, not 0."),
        (Map("", Target("farm", "f")), "A name is 1 to 255 bytes of text, which '' is not."),
        (SetPaused("a\nb", True), "A name is 1 to 255 bytes of text, which 'a\\nb' is not."),
    ],
)
def test_what_can_not_be_done_is_said(one: change.Change, sentence: str) -> None:
    assert _refused(one, Configuration()) == sentence


def test_maps_may_lead_to_what_is_not_there_yet() -> None:
    now = _made(Map("/", Target("farm", "later")), Map("/", Target("backend", "rmq")))
    assert now.maps == {"/": Target("backend", "rmq")}
    assert Unmap("/").apply(Unmap("/").apply(now)).maps == {}


def test_a_farm_takes_each_backend_and_policy_once() -> None:
    now = _made(AddBackend(_backend()), AddFarm(Farm(name="f", backends=("a", "a"))))
    for _ in range(2):
        now = PartitionFarm("f", "datacenter-affinity").apply(now)
    assert now.farms["f"] == Farm(name="f", backends=("a",), partitions=("datacenter-affinity",))


def test_one_port_on_two_addresses_but_not_on_all_and_one() -> None:
    now = _made(
        StartListening(Listener(port=1, address="::1")),
        StartListening(Listener(port=1, address="127.0.0.1")),
    )
    assert _refused(StartListening(Listener(port=1)), now).startswith("Port 1 is listened on")
    assert _refused(StartListening(Listener(port=1, address="::1", secure=True)), now) == (
        "Port 1 is listened on already, at ::1: LISTEN STOP 1 first."
    )
    assert StopListening(1, "::1").apply(now).listeners == (Listener(port=1, address="127.0.0.1"),)
    assert StopListening(1).apply(now).listeners == ()
    assert StopListening().apply(now).listeners == ()
    assert StopListening().apply(Configuration()).listeners == ()


def test_a_limit_that_is_taken_away_leaves_nothing() -> None:
    now = _made(SetLimit("conn_rate", "/", 5), SetLimit("conn_rate", None, 7))
    assert (now.limit("conn_rate", "/"), now.limit("conn_rate", "x")) == (5, 7)
    now = SetLimit("conn_rate", "/", None).apply(now)
    assert now.limit("conn_rate", "/") == 7
    assert SetLimit("conn_rate", None, None).apply(now) == Configuration()
    assert SetTimeout("header", None).apply(_made(SetTimeout("header", 2.0))) == Configuration()


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PROXY_ENTRIES", 2)
    monkeypatch.setattr(limits, "MAX_PROXY_LISTENERS", 1)
    monkeypatch.setattr(limits, "MAX_PROXY_FARM", 1)
    monkeypatch.setattr(limits, "MAX_PROXY_CERTIFICATES", 1)
    now = _made(AddBackend(_backend("a")), AddBackend(_backend("b")))
    assert "no more are kept" in _refused(AddBackend(_backend("c")), now)
    assert DrainBackend("a", True).apply(now).backends["a"].drained
    assert "at most 1 " in _refused(AddFarm(Farm(name="f", backends=("a", "b"))), now)
    now = _made(StartListening(Listener(port=1)))
    assert "At most 1 " in _refused(StartListening(Listener(port=2)), now)
    certificate = Certificate(server_name="a", chain_file="c", key_file="k")
    now = _made(AddCertificate(certificate), AddCertificate(certificate))
    other = Certificate(server_name="b", chain_file="c", key_file="k")
    assert "At most 1 " in _refused(AddCertificate(other), now)


@given(configurations())
def test_every_configuration_crosses_processes_as_it_is(made: Configuration) -> None:
    sent = msgspec.msgpack.encode(ReplaceAll(made))
    assert msgspec.msgpack.decode(sent, type=change.Change).apply(Configuration()) == made


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(sent: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.msgpack.decode(sent, type=change.Change)
