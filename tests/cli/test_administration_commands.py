"""Queues, exchanges, what waits in them, status and trace: over a real connection."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from cli.live import broker, deployment, receive, send
from cli.stored import run_json
from support.broker import Broker

Capture = pytest.CaptureFixture[str]

__all__ = ["broker", "deployment"]

pytestmark = pytest.mark.usefixtures("broker")


def printed(capsys: Capture, *words: str) -> list[list[str]]:
    """What a command printed, cell by cell; it must succeed."""
    capsys.readouterr()
    assert run(words) == 0
    return [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_queues_are_declared_listed_and_deleted(capsys: Capture) -> None:
    words = ["--max-messages", "10", "--ttl", "1.5", "--max-tries", "3", "--ack-timeout", "60"]
    assert run(["queues", "declare", "jobs", *words, "--dead-letter-key", "k"]) == 0
    assert capsys.readouterr().out == "queue 'jobs' is there\n"
    status, rows = run_json(capsys, "queues", "list", "jo")
    assert status == 0
    (row,) = rows
    assert (row["name"], row["owner"], row["max_messages"]) == ("jobs", "admin", 10)
    assert (row["ttl_ms"], row["max_tries"], row["ack_timeout_ms"]) == (1500, 3, 60_000)
    assert row["dead_letter_key"] == "k"
    assert printed(capsys, "queues") == [
        ["queue", "kind", "owner", "ready", "unacked", "batches", "bytes", "consumers"],
        ["bob", "inbox", "bob", "0", "0", "0", "0", "0"],
        ["jobs", "queue", "admin", "0", "0", "0", "0", "0"],
    ]
    status, said = run_json(capsys, "queues", "declare", "jobs", "--max-messages", "11")
    assert (status, said["error"]) == (3, "precondition-failed")
    assert run_json(capsys, "queues", "delete", "jobs", "--yes") == (
        0,
        {"queue": "jobs", "messages": 0},
    )
    status, said = run_json(capsys, "queues", "delete", "jobs", "--if-empty")
    assert (status, said["error"]) == (3, "not-found")


def test_a_group_alone_lists(capsys: Capture) -> None:
    for group in ("queues", "exchanges", "dead"):
        capsys.readouterr()
        assert run([group]) == run([group, "list"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


def test_deleting_asks_first(capsys: Capture) -> None:
    assert run(["queues", "declare", "jobs"]) == 0
    for words in (["queues", "delete", "jobs"], ["purge", "jobs"]):
        status, said = run_json(capsys, *words)
        assert (status, said["error"]) == (2, "usage")
        assert "--yes" in said["message"]
    assert run(["queues", "delete", "jobs", "--if-empty", "--if-unused"]) == 0


def test_exchanges_and_bindings(tmp_path: Path, capsys: Capture) -> None:
    assert run(["queues", "declare", "jobs"]) == 0
    assert run(["exchanges", "declare", "news", "--type", "topic"]) == 0
    assert run(["bind", "news", "jobs", "--key", "sport.#"]) == 0
    assert printed(capsys, "exchanges") == [
        ["exchange", "type", "owner"],
        ["news", "topic", "admin"],
    ]
    assert printed(capsys, "exchanges", "bindings") == [
        ["exchange", "key", "queue"],
        ["news", "sport.#", "jobs"],
    ]
    (tmp_path / "in").write_text("goal\n")
    to_news = ["bob", tmp_path / "in", "--exchange", "news", "--key"]
    for identity, outcome in (("alice", 3), ("admin", 0)):  # alice may not use admin's exchange
        words = ["send", *map(str, to_news), "sport.football", "--identity", identity]
        assert run(words) == outcome
    status, said = run_json(capsys, "send", *to_news, "weather", "--identity", "admin")
    assert (status, said["error"]) == (3, "unroutable")
    assert run_json(capsys, "queues", "list", "jobs")[1][0]["messages_ready"] == 1
    assert run(["unbind", "news", "jobs", "--key", "sport.#"]) == 0
    assert run_json(capsys, "exchanges", "bindings") == (0, [])
    assert run(["exchanges", "delete", "news", "--if-unused"]) == 0
    assert run_json(capsys, "exchanges") == (0, [])


def test_peek_shows_what_can_be_seen_without_a_key(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").write_text("one\ntwo\n")
    assert send("bob", tmp_path / "in") == 0
    status, (row,) = run_json(capsys, "peek", "bob")
    assert status == 0
    assert (row["sender"], row["receivers"], row["messages"]) == ("alice", ["bob"], 2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", row["published"])
    assert row["expires"] is None
    assert row["dead"] is None
    header, cells = printed(capsys, "peek", "bob", "--count", "1")
    assert header == ["batch", "messages", "bytes", "from", "to", "key", "published", "tries"]
    assert cells[:2] + cells[3:6] == [row["batch_id"], "2", "alice", "bob", "-"]
    assert run_json(capsys, "purge", "bob", "--yes") == (0, {"queue": "bob", "messages": 2})
    assert run_json(capsys, "peek", "bob") == (0, [])
    assert run_json(capsys, "peek", "bob", "--count", "100") == (0, [])
    assert run_json(capsys, "peek", "bob", "--count", "101")[0] == 2  # before anybody is asked


def test_dead_letters_are_listed_and_put_back(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").write_text("one\ntwo\n")
    assert run(["queues", "declare", "jobs", "--max-tries", "1"]) == 0
    assert run(["keys", "renew", "--identity", "admin"]) == 0
    words = ["send", "admin", str(tmp_path / "in"), "--queue", "jobs", "--identity", "admin"]
    assert run(words) == 0
    as_admin = ["--identity", "admin", "--wait", "1"]
    assert run(["receive", "jobs", "--exec", "exit 3", *as_admin]) == 0
    assert "ended with status 3; the message comes again" in capsys.readouterr().err
    status, (row,) = run_json(capsys, "dead")
    assert (status, row["name"], row["messages_ready"]) == (0, "dead.jobs", 2)
    assert printed(capsys, "dead")[1][:2] == ["jobs", "2"]
    rows = run_json(capsys, "dead", "list", "jobs")[1]
    assert {(row["dead"]["queue"], row["dead"]["reason"]) for row in rows} == {("jobs", "tries")}
    assert "at" in rows[0]["dead"]
    assert printed(capsys, "dead", "list", "jobs")[0][-3:] == ["from queue", "reason", "detail"]
    assert run_json(capsys, "dead", "redrive", "jobs", "--count", "1")[1]["messages"] >= 1
    assert run(["dead", "redrive", "dead.jobs"]) == 0
    assert run_json(capsys, "queues", "list", "jobs")[1][0]["messages_ready"] == 2
    capsys.readouterr()
    assert run(["receive", "jobs", *as_admin]) == 0
    assert sorted(capsys.readouterr().out.split()) == ["one", "two"]


def test_status(broker: Broker, capsys: Capture) -> None:
    status, parts = run_json(capsys, "status")
    assert status == 0
    assert list(parts) == ["server", "engine", "journal", "catalog", "log"]
    assert parts["engine"]["queues"] == 1
    rows = printed(capsys, "status")
    assert rows[0] == ["server"]
    assert ["queues", "1"] in rows
    assert ["reserve whole", "yes"] in rows
    connections = run_json(capsys, "status", "--connections")[1]
    assert [row["client"] for row in connections] == ["admin"]
    assert printed(capsys, "status", "--connections")[1][0] == "admin"
    assert run_json(capsys, "status", "--consumers") == (0, [])
    assert printed(capsys, "status", "--consumers") == [["client"]]


def test_only_the_administrator_sees_the_status(capsys: Capture) -> None:
    status, said = run_json(capsys, "status", "--identity", "alice")
    assert (status, said["error"]) == (3, "access-refused")


def test_a_message_is_traced(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").write_text("one\ntwo\n")
    assert send("bob", tmp_path / "in") == 0
    capsys.readouterr()
    assert receive("--json") == 0
    import json

    second = json.loads(capsys.readouterr().out.splitlines()[1])
    status, found = run_json(capsys, "trace", second["id"])
    assert status == 0
    assert (found["client"], found["messages"], found["index"]) == ("alice", 2, 1)
    assert (found["delivered"], found["acked"], found["dead"]) == (2, 2, 0)
    assert re.fullmatch(r"\d{4}-.*Z", found["published"])
    assert found["last_dead"] is None
    assert ["client", "alice"] in printed(capsys, "trace", second["id"])


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("01a3185c-5000-7cf9-b03b-5f5863745400", 3, "not-found"),
        ("sender_1-1a2b3c4d-receiver_1", 3, "not-found"),
        ("00000000-0000-4000-8000-000000000000", 3, "not-found"),
        ("two words", 2, "usage"),
    ],
)
def test_what_can_not_be_traced(capsys: Capture, message: str, status: int, code: str) -> None:
    found, said = run_json(capsys, "trace", message)
    assert (found, said["error"]) == (status, code)
