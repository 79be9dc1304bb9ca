"""Statistics: sums, differences, and how they are shown, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ciphermq import limits
from ciphermq.proxy.messages import Report
from ciphermq.proxy.metrics import FAMILIES, PREFIX, Facts, MetricsPage, page
from ciphermq.proxy.model import Destination
from ciphermq.proxy.sampling import Sample, Sampler
from ciphermq.proxy.statistics import (
    FIELDS,
    GAUGES,
    MEMBERS,
    OTHERS,
    Counts,
    Lines,
    Process,
    Snapshot,
    Tally,
    show,
)
from ciphermq.proxy.statsd import StatsdSender, datagrams

COUNTS = st.builds(Counts, *(st.integers(0, 2**40) for _ in FIELDS))
LINES = st.builds(Lines, *(st.sampled_from(["", "a", "b"]) for _ in range(4)))

ZEROS = (
    '"pausedConnectionCount": 0, "activeConnectionCount": 0, "authDeniedConnectionCount": 0, '
    '"limitedConnectionCount": 0, "removedConnectionGraceful": 0, '
    '"removedConnectionBrokerSnapped": 0, "removedConnectionClientSnapped": 0, '
    '"packetsReceived": 0, "packetsSent": 0, "framesReceived": 0, "framesSent": 0, '
    '"bytesReceived": 0, "bytesSent": 0'
)


def snapshot(*counted: tuple[Counts, Lines]) -> Snapshot:
    tally = Tally()
    for counts, lines in counted:
        tally.count(counts, lines)
    return Snapshot(tally, 0.123, 0.05, 2048, 3, {4096: (1, 2)})


def shown(what: str, shape: str, it: Snapshot) -> str:
    found = show(shape, what)
    assert found is not None
    return found(it)


@given(st.lists(st.tuples(COUNTS, LINES)), st.lists(st.tuples(COUNTS, LINES)))
def test_a_second_is_the_difference_of_two_sums(
    first: list[tuple[Counts, Lines]], then: list[tuple[Counts, Lines]]
) -> None:
    before, now, between = Tally(), Tally(), Tally()
    for counts, lines in first:
        before.count(counts, lines)
    for counts, lines in then:
        between.count(counts, lines)
    now.add(before)
    now.add(between)
    grown = now.since(before)
    for name in FIELDS[GAUGES:]:
        assert getattr(grown.overall, name) == getattr(between.overall, name)
        for key, counts in between.vhosts.items():
            assert getattr(grown.vhosts[key], name) == getattr(counts, name)
    assert grown.overall.active == now.overall.active
    left = now.without_gauges()
    assert (left.overall.paused, left.overall.active) == (0, 0)
    assert left.overall.bytes_sent == now.overall.bytes_sent


def test_sources_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_SOURCES", 3)
    tally = Tally()
    for number in range(9):
        tally.count(Counts(graceful=1), Lines("/", "", "", f"host{number}"))
    assert set(tally.sources) == {"host0", "host1", "host2", OTHERS}
    assert tally.sources[OTHERS].graceful == 6
    assert tally.overall.graceful == 9


def test_vhosts_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a default farm, a client may name any."""
    monkeypatch.setattr(limits, "PROXY_VHOSTS", 3)
    tally = Tally()
    for number in range(9):
        tally.count(Counts(graceful=1), Lines(f"vhost{number}", "", "", ""))
    tally.count(Counts(graceful=1), Lines("vhost0", "", "", ""))
    assert set(tally.vhosts) == {"vhost0", "vhost1", "vhost2"}
    assert tally.vhosts["vhost0"].graceful == 2
    assert tally.overall.graceful == 10


def test_json_is_amqpproxs_to_the_byte() -> None:
    it = snapshot()
    assert shown("overall", "json", it) == "{" + ZEROS + "}\n"
    assert shown("vhost=none", "JSON", it) == "{" + ZEROS + "}\n"
    process = (
        '{"cpu_percent_overall": 17, "cpu_percent_user": 12, "cpu_percent_system": 5, '
        '"mem_rss_kb": 2048}'
    )
    pool = '{"spill_to_heap_count": 3, "pools": {"4096": { "current": 1, "highest": 2}}}'
    assert shown("process", "json", it) == process + "\n"
    assert shown("bufferpool", "json", it) == pool + "\n"
    everything = (
        f'{{"overall": {{{ZEROS}}}, "process": {process}, "bufferpool": {pool}, '
        '"vhosts": {}, "sources": {}, "backends": {}}\n'
    )
    assert shown("all", "json", it) == everything
    assert shown("ALL-EXCEPT-PER-SOURCE", "json", it) == everything.replace('"sources": {}, ', "")


def test_lines_are_found_by_name() -> None:
    it = snapshot((Counts(active=1, bytes_received=7), Lines("/", "rmq1", "10.0.0.1_5672", "host")))
    for what in ("vhost=/", "backend=10.0.0.1_5672", "backend=rmq1", "source=host", "overall"):
        assert json.loads(shown(what, "json", it))["bytesReceived"] == 7
    everything = json.loads(shown("all", "json", it))
    assert list(everything["vhosts"]) == ["/"]
    assert list(everything["backends"]) == ["10.0.0.1_5672"]
    assert list(everything["sources"]) == ["host"]


def test_text_is_amqpproxs() -> None:
    counts = Counts(bytes_received=512, bytes_sent=3_500_000, graceful=2, frames_received=4)
    it = snapshot((counts, Lines("/", "", "", "")))
    line = (
        "Paused: 0 Active: 0 Auth denied: 0 Limited connections: 0 Removed(Clean): 2 "
        "Removed(Broker): 0 Removed(Client): 0 IN: 512 B/s 0 pkt/s 4 frames/s "
        "OUT: 3.33786 MB/s 0 pkt/s 0 frames/s"
    )
    assert shown("overall", "human", it) == line + "\n"
    assert shown("process", "human", it) == "CPU%: 17 USR%: 12 SYS%: 5 RSS: 2 MB\n"
    assert shown("bufferpool", "human", it) == "Spilt to heap: 3, Pools (Current/Peak): 4096=1/2\n"
    everything = shown("all", "human", it).splitlines()
    assert everything[:2] == ["Overall:", line]
    assert f"/: {line}" in everything


@pytest.mark.parametrize("what", ["", "vhost", "vhost=", "nonsense", "other=x", "overall=x"])
def test_what_there_is_not_is_none(what: str) -> None:
    assert show("json", what) is None
    assert show("xml", "overall") is None


@given(st.text(max_size=20))
def test_a_name_can_not_break_a_statsd_line(name: str) -> None:
    it = snapshot((Counts(active=1), Lines(name or "x", "", name, name)))
    for line in datagrams(it, per_source=True):
        text = line.decode("utf-8", "surrogatepass")
        assert text.startswith("amqpprox.")
        head, _, value = text.rpartition(":")
        assert ":" not in head
        assert value.partition("|")[2] in ("g", "c")
        assert "\n" not in text


def facts(tally: Tally, reports: Sequence[Report | None] = ()) -> Facts:
    sample = Sample(0.0, tally, Process(1.0, 2.0, 100, 7), 0, {}, reports)
    return Facts(sample, {"rmq1": False}, 1, 2, 3)


@given(st.lists(st.tuples(COUNTS, LINES), max_size=5))
def test_the_page_is_read_as_it_was_meant(counted: list[tuple[Counts, Lines]]) -> None:
    tally = snapshot(*counted).tally
    families = {
        one.name: one for one in text_string_to_metric_families(page(facts(tally)).decode())
    }
    assert set(families) == {PREFIX + family.name for family in FAMILIES}
    for family in FAMILIES:
        for sample in families[PREFIX + family.name].samples:
            assert set(sample.labels) == set(family.labels)
    # Vhosts, and those without one, are all there is.
    received = [
        sample.value
        for sample in families[f"{PREFIX}bytes"].samples
        if sample.labels["direction"] == "received"
    ]
    assert sum(received) == tally.overall.bytes_received
    assert families[f"{PREFIX}backend_up"].samples[0].value == 0


def test_every_member_is_a_field() -> None:
    assert set(MEMBERS.values()) <= set(FIELDS)
    assert len(MEMBERS) == 13


# --- sampling ------------------------------------------------------------------------------------


def report(graceful: int, active: int, next_id: int = 1) -> Report:
    tally = Tally()
    tally.count(Counts(graceful=graceful, active=active), Lines("/", "", "", ""))
    return Report(
        tally=tally,
        process=Process(1.0, 1.0, 10, 5),
        spilled=1,
        pools={64: (1, 1)},
        next_id=next_id,
        accepting=True,
    )


async def test_what_a_dead_worker_counted_is_kept() -> None:
    answers: list[list[Report | None]] = [
        [report(5, 2, 11), report(1, 1)],
        [None, report(1, 1)],
        [report(1, 0), report(1, 1)],
    ]

    async def ask() -> Sequence[Report | None]:
        return answers.pop(0)

    sampler = Sampler(ask, Process, 0.01)
    first = await sampler.sample()
    assert (first.tally.overall.graceful, first.tally.overall.active) == (6, 3)
    assert first.process.user == 2.0
    assert first.pools == {64: (2, 2)}
    sampler.lost(0)
    second = await sampler.sample()
    assert (second.tally.overall.graceful, second.tally.overall.active) == (6, 1)
    assert second.process.user == 2.0
    assert sampler.next_id(0) == 11
    third = await sampler.sample()
    assert third.tally.overall.graceful == 7


async def test_readers_share_one_round_of_questions() -> None:
    asked = 0

    async def ask() -> Sequence[Report | None]:
        nonlocal asked
        asked += 1
        return [report(asked, 1)]

    sampler = Sampler(ask, Process, 0.01)
    readers = [sampler.snapshots() for _ in range(3)]
    for _ in range(3):
        seen = await asyncio.gather(*(anext(reader) for reader in readers))
        assert [one.tally.overall.graceful for one in seen] == [1, 1, 1]
    assert asked <= 6
    for reader in readers:
        await reader.aclose()
    done = asked
    await asyncio.sleep(0.05)
    assert asked == done  # nobody wants to know: nobody is asked


async def test_a_process_that_can_not_look_at_itself_ends_no_statistics() -> None:
    """As one that has no descriptor left can't for a while."""
    asked = 0

    async def ask() -> Sequence[Report | None]:
        return [report(1, 0)]

    def own() -> Process:
        nonlocal asked
        asked += 1
        if asked in (1, 3):
            raise OSError(errno.EMFILE, "Too many open files")
        return Process()

    async with asyncio.timeout(30):
        snapshots = Sampler(ask, own, 0.01).snapshots()
        async with contextlib.aclosing(snapshots):
            assert (await anext(snapshots)).rss_kb >= 0
    assert asked >= 4


async def test_a_scraper_that_stops_reading_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_CONTROL_TIMEOUT", 0.2)
    tally = Tally()
    for number in range(8000):
        tally.vhosts[f"vhost {number}"] = Counts()

    async def ask() -> Facts:
        return facts(tally)

    own = asyncio.all_tasks()
    metrics = MetricsPage(Destination("127.0.0.1", 0), ask)
    await metrics.start()
    with socket.socket() as scraper:
        scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        scraper.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(scraper, ("127.0.0.1", metrics.port))
        await loop.sock_sendall(scraper, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert await loop.sock_recv(scraper, 1) == b"H"
        async with asyncio.timeout(30):
            while asyncio.all_tasks() - own:
                await asyncio.sleep(0.02)
    await metrics.close()


async def test_a_name_that_no_dns_has_costs_datagrams_only() -> None:
    """A file may say what no command takes."""

    async def snapshots() -> AsyncGenerator[Snapshot, None]:
        while True:
            yield snapshot()
            await asyncio.sleep(0.01)

    place = Destination(f"{'long' * 20}.example", 8125)
    sender = StatsdSender(place, snapshots, lambda: False)
    try:
        async with asyncio.timeout(30):
            while sender.lost < 2 * len(list(datagrams(snapshot(), per_source=False))):
                await asyncio.sleep(0.01)
    finally:
        await sender.close()
