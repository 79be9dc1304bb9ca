"""The benchmarks run, and say what they measured; how fast is nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import softhsm
from support.postgres import required_binaries

pytestmark = pytest.mark.crash

ROOT = Path(__file__).resolve().parent.parent


def bench(topic: str, messages: int, directory: Path) -> dict[str, Any]:
    made = subprocess.run(
        [
            *(sys.executable, "-m", "bench", topic, "--json"),
            *("--messages", str(messages), "--rounds", "1", "--directory", str(directory)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (line,) = made.stdout.splitlines()
    assert list(directory.iterdir()) == []
    found: dict[str, Any] = json.loads(line)
    assert found["topic"] == topic
    assert found["measured"]
    assert {"cpu", "cores", "kernel", "python", "versions", "filesystem"} <= found["machine"].keys()
    return found


@pytest.mark.parametrize("topic", [None, "zmq"])
def test_help_says_what_is_measured_and_how_long_it_takes(topic: str | None) -> None:
    words = [sys.executable, "-m", "bench", *([topic] if topic else []), "--help"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    options, _, about = said.stdout.partition("--directory")
    assert "`" not in options
    for name, word in [("zmq", "CurveZMQ"), ("queue", "messages/s"), ("proxy", "HAProxy")]:
        assert (word in about) is (topic in {None, name})
    assert about.count("takes ") >= (8 if topic is None else 1)
    assert ("begun afresh for every measurement" in about) is (topic == "zmq")


def test_the_whole_path(tmp_path: Path) -> None:
    found = bench("queue", 3000, tmp_path)
    assert found["messages_per_second"] > 0
    assert [each["inbox"] for each in found["results"]] == ["none", "ids", "payloads"]
    for each in found["results"]:
        assert each["messages"] == 3000
        assert each["rounds_messages_per_second"] == [each["messages_per_second"]]
    assert found["alone"]["p50_ms"] <= found["alone"]["p99_ms"]


def test_what_waits(tmp_path: Path) -> None:
    found = bench("waiting", 600, tmp_path)
    many, one = found["results"]
    assert (many["batches"], one["batches"]) == (3, 600)
    for each in (many, one):
        assert each["broker_full"]["rss_mb"] > 10
        assert each["restart_seconds"] > 0


def test_one_x(tmp_path: Path) -> None:
    required_binaries()
    found = bench("one-x", 300, tmp_path)
    ways = ["one at a time", "pipelined", "batches"]
    assert [(each["catalog"], each["published"]) for each in found["results"]] == [
        (catalog, way) for catalog in ("postgresql", "sqlite") for way in ways
    ]
    for each in found["results"]:
        assert each["messages"] == 300
        assert each["published_per_second"] > 0
        assert each["messages_per_second"] > 0
        assert each["metadata_rows_behind"] >= 0


def test_hsm(tmp_path: Path) -> None:
    softhsm.require()
    found = bench("hsm", 3000, tmp_path)
    assert all(rate > 0 for rate in found["operations_per_second"].values())
    none, receiver, both = found["results"]
    assert none["token_calls"] == {"receiver": {}, "sender": {}}
    # One a batch at each end that has its key there, and no other; so none a message.
    for each, calls in (
        (receiver, {"receiver": {"ecdh": receiver["batches"]}, "sender": {}}),
        (
            both,
            {
                "receiver": {"ecdh": both["batches"]},
                "sender": {"sign": both["batches"] - 1},  # the first was sent before
            },
        ),
    ):
        assert each["token_calls"] == calls
        assert each["batches"] < 100
        assert each["messages"] == 3000
    assert found["most_token_calls_per_batch"] == 1.0


def test_what_logs_cost(tmp_path: Path) -> None:
    found = bench("logging", 300, tmp_path)
    assert [each["path"] for each in found["results"]] == [
        *("cmq/2", "one-x pipelined", "one-x batches")
    ]
    for each in found["results"]:
        assert each["ratio"] > 0
        assert len(each["rounds_logged"]) == len(each["rounds_silent"]) == 1
    batches, *one_x = [each["log_lines"] for each in found["results"]]
    assert batches > 0
    assert min(one_x) >= 3 * 300


def test_cmq2_with_each_catalog(tmp_path: Path) -> None:
    required_binaries()
    found = bench("catalogs", 3000, tmp_path)
    assert [each["catalog"] for each in found["results"]] == ["sqlite", "postgresql"]
    for each in found["results"]:
        assert each["messages_per_second"] > 0
        assert each["metadata_rows_behind"] >= 0
        assert each["metadata_rows_dropped"] == 0


def test_zeromq(tmp_path: Path) -> None:
    found = bench("zmq", 50, tmp_path)
    assert [each["bytes"] for each in found["results"]] == [100, 1024, 65_536, 1_048_576]
    for each in found["results"]:
        for road in ("plain", "curve", "tls"):
            for way in ("one_way", "round_trip"):
                assert each[road][way]["messages_per_second"] > 0
                assert each[road][way]["p50_ms"] <= each[road][way]["p99_ms"]
        assert each["tls_over_curve"]["one_way"]["messages_per_second"] > 0


def test_the_proxy(tmp_path: Path) -> None:
    found = bench("proxy", 2000, tmp_path)
    ours = {"ciphermq_1", "ciphermq_2"}
    for work in ("open_and_close", "large_messages", "small_messages", "mixed_messages", "tls_in"):
        assert ours | {"direct"} <= found["results"][work].keys()
        for figures in found["results"][work].values():
            assert next(iter(figures.values())) > 0
    for figures in found["results"]["round_trips"].values():
        assert 0 < figures["p50_us"] <= figures["p99_us"]
    assert ours <= found["memory"].keys()
