"""Lines about messages: as others are, however many come and whatever they are called."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.settings import LoggingSection
from ciphermq.telemetry import traffic
from ciphermq.telemetry.logs import JsonFormatter, Logging, start_logging
from ciphermq.telemetry.traffic import KINDS, Kind, Notes, Traffic

texts = st.text(st.characters(codec="utf-8"), max_size=30)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_logs(directory: Path, **members: Any) -> Logging:
    return start_logging(LoggingSection(directory=directory, console=False, **members))


@given(
    st.lists(
        st.tuples(
            st.floats(1e9, 2e9), st.sampled_from(KINDS), texts, st.lists(texts), st.integers(0, 999)
        ),
        max_size=5,
    )
)
def test_each_note_is_a_line_that_nobody_can_break(
    made: list[tuple[float, Kind, str, list[str], int]],
) -> None:
    notes: Notes = []
    for at, kind, name, others, messages in made:
        wanted = len(kind.members) - 1 - ("messages" in kind.members)
        others = (others + [""] * 4)[:wanted]
        notes.append((at, kind, name, tuple(others), messages))
    text = traffic.lines(notes)
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)
    found = [json.loads(line) for line in text.split("\n") if line]
    assert len(found) == len(notes)
    for line, (at, kind, name, others, messages) in zip(found, notes, strict=True):
        record = logging.LogRecord("x", logging.INFO, "", 0, kind.message, None, None)
        record.created = at
        plain = json.loads(JsonFormatter().format(record))
        assert line.pop("timestamp")[:23] == plain["timestamp"][:23]
        assert line.pop("level") == plain["level"] == "INFO"
        assert line.pop("logger") == "ciphermq.server"
        assert line.pop("message") == kind.message
        assert line.pop("messages", 0) == messages
        assert line == dict(zip(kind.members, (name, *others), strict=False))


async def test_they_stand_among_the_others_in_order(tmp_path: Path) -> None:
    logs = open_logs(tmp_path)
    for number in range(limits.LOG_CHUNK + 10):
        logs.traffic.note(traffic.MESSAGE_ACKNOWLEDGED, f"m-{number}", "bob")
    logs.stop()
    found = read(tmp_path / "info.log")
    assert [line["message_id"] for line in found] == [f"m-{n}" for n in range(266)]
    assert (tmp_path / "error.log").read_text() == ""


async def test_few_are_written_soon_too(tmp_path: Path) -> None:
    logs = open_logs(tmp_path)
    logs.traffic.note(traffic.BATCH_DELIVERED, "00ff", "bob", "q", messages=7)
    async with asyncio.timeout(20):
        while not (tmp_path / "info.log").read_text():
            await asyncio.sleep(0.01)
    (line,) = read(tmp_path / "info.log")
    assert (line["batch_id"], line["queue"], line["messages"]) == ("00ff", "q", 7)
    logs.stop()
    assert logs.stats() == {"lines_dropped": 0, "write_failures": 0, "lines_waiting": 0}


@pytest.mark.parametrize("members", [{"messages": False}, {"level": "warning"}, {"level": "error"}])
async def test_they_can_be_done_without(tmp_path: Path, members: dict[str, Any]) -> None:
    logs = open_logs(tmp_path, **members)
    assert not logs.traffic.wanted
    logs.traffic.note(traffic.MESSAGE_ACKNOWLEDGED, "m", "bob")
    logs.stop()
    assert (tmp_path / "info.log").read_text() == ""


async def test_files_are_rotated_by_their_size(tmp_path: Path) -> None:
    logs = open_logs(tmp_path, max_size_mb=0.05, backups=100)
    for number in range(2000):
        logs.traffic.note(traffic.MESSAGE_ACKNOWLEDGED, f"m-{number:05}", "bob")
    logs.stop()
    files = sorted(tmp_path.glob("info.log*"))
    assert len(files) > 3
    assert all(path.stat().st_size <= 0.05 * limits.MIB for path in files)
    found = sorted(line["message_id"] for path in files for line in read(path))
    assert found == [f"m-{n:05}" for n in range(2000)]


async def test_a_stalled_disk_costs_lines_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_NOTES", 1000)
    stalled, begun = threading.Event(), threading.Event()
    real = JsonFormatter.format

    def slow(self: JsonFormatter, record: logging.LogRecord) -> str:
        begun.set()
        assert stalled.wait(20)
        return real(self, record)

    monkeypatch.setattr(JsonFormatter, "format", slow)
    logs = open_logs(tmp_path)
    for number in range(5000):
        logs.traffic.note(traffic.MESSAGE_ACKNOWLEDGED, f"m-{number}", "bob")
    assert await asyncio.to_thread(begun.wait, 20)
    dropped = logs.stats()["lines_dropped"]
    assert dropped >= 4000 - limits.LOG_CHUNK
    assert logs.stats()["lines_waiting"] <= 1000 + 1
    stalled.set()
    logs.stop()
    *kept, said = read(tmp_path / "info.log")
    assert len(kept) + logs.dropped == 5000
    assert said["message"].startswith(f"{logs.dropped} log lines were dropped")


def test_without_anybody_who_listens_nothing_is_noted() -> None:
    silent = Traffic()
    silent.note(traffic.MESSAGE_ACKNOWLEDGED, "m", "bob")  # and needs no event loop
    silent.flush()
    assert not silent.wanted
