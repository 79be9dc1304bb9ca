"""Lines about messages: as others are, however many come and whatever they are called."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.settings import LoggingSection
from ciphermq.telemetry import traffic
from ciphermq.telemetry.logs import JsonFormatter, Logging, start_logging
from ciphermq.telemetry.traffic import KINDS, NOT_IN_A_LINE, Note, Traffic

texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.text(
    'a\x00\x1b\x7f\x85\u2028"\\\n', max_size=8
)
FORBIDDEN = {chr(code) for code in range(32)} | {
    chr(code) for code in range(0x3000) if NOT_IN_A_LINE.match(chr(code))
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_logs(directory: Path, **members: Any) -> Logging:
    return start_logging(LoggingSection(directory=directory, console=False, **members))


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.lists(texts, min_size=5, max_size=5), st.integers(0)),
        max_size=5,
    ),
    st.integers(10**12, 2 * 10**12),
)
def test_each_note_is_a_line_that_nobody_can_break(
    made: list[tuple[type[Note], list[str], int]], ms: int
) -> None:
    notes = []
    for kind, parts, messages in made:
        members: list[str | int] = list(parts[: len(kind.__struct_fields__) - 5])
        if kind.__struct_fields__[-1] == "messages":
            members[-1] = messages
        texts_of = (f"{kind.words[0]}{members[0]}", kind.what)
        notes.append(kind(traffic.spell(ms), "INFO", "ciphermq.server", *texts_of, *members))  # type: ignore[call-arg]
    text = traffic.lines(notes)
    assert all(character == "\n" or character not in FORBIDDEN for character in text)
    found = [json.loads(line) for line in text.split("\n") if line]
    assert found == [msgspec.to_builtins(note) for note in notes]
    for line in found:
        record = logging.LogRecord("ciphermq.server", logging.INFO, "", 0, "", None, None)
        record.created = ms / 1000
        plain = json.loads(JsonFormatter().format(record))
        assert line["timestamp"][:23] == plain["timestamp"][:23]
        assert list(plain) == list(line)[:4]
        assert (plain["level"], plain["logger"]) == (line["level"], line["logger"])


async def test_they_stand_among_the_others_in_order(tmp_path: Path) -> None:
    logs = open_logs(tmp_path)
    for number in range(limits.LOG_CHUNK + 10):
        logs.traffic.note(traffic.MessageAcknowledged, f"m-{number}", "bob")
    logs.stop()
    found = read(tmp_path / "info.log")
    assert [line["message_id"] for line in found] == [
        f"m-{n}" for n in range(limits.LOG_CHUNK + 10)
    ]
    assert (tmp_path / "error.log").read_text() == ""


async def test_they_have_the_words_of_1x(tmp_path: Path) -> None:
    """The sentences of its document, as far as they are true here."""
    logs = open_logs(tmp_path)
    logs.traffic.note(traffic.MessagePublished, "m-1", "ann", "my_exchange", "my_key")
    logs.traffic.note(traffic.MessageDelivered, "m-1", "bob", "my_queue")
    logs.traffic.note(traffic.MessageAcknowledged, "m-1", "bob")
    logs.stop()
    assert [(line["message"], line["event"]) for line in read(tmp_path / "info.log")] == [
        ("Published message m-1 via exchange 'my_exchange'", "message published"),
        ("Delivered message m-1 from queue 'my_queue'", "message delivered"),
        ("Message m-1 acknowledged by client, removed from its queue", "message acknowledged"),
    ]


async def test_few_are_written_soon_too(tmp_path: Path) -> None:
    logs = open_logs(tmp_path)
    logs.traffic.note(traffic.BatchDelivered, "00ff", "bob", "q", 7)
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
    logs.traffic.note(traffic.MessageAcknowledged, "m", "bob")
    logs.stop()
    assert (tmp_path / "info.log").read_text() == ""


async def test_files_are_rotated_by_their_size(tmp_path: Path) -> None:
    logs = open_logs(tmp_path, max_size_mb=0.5, backups=100)
    for number in range(12_000):
        logs.traffic.note(traffic.MessageAcknowledged, f"m-{number:05}", "bob")
    logs.stop()
    files = sorted(tmp_path.glob("info.log*"))
    assert len(files) > 3
    assert all(path.stat().st_size <= 0.5 * limits.MIB for path in files)
    found = sorted(line["message_id"] for path in files for line in read(path))
    assert found == [f"m-{n:05}" for n in range(12_000)]


async def test_a_stalled_disk_costs_lines_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_NOTES", 2000)
    stalled, begun = threading.Event(), threading.Event()
    real = JsonFormatter.format

    def slow(self: JsonFormatter, record: logging.LogRecord) -> str:
        begun.set()
        assert stalled.wait(20)
        return real(self, record)

    monkeypatch.setattr(JsonFormatter, "format", slow)
    logs = open_logs(tmp_path)
    for number in range(5000):
        logs.traffic.note(traffic.MessageAcknowledged, f"m-{number}", "bob")
    assert await asyncio.to_thread(begun.wait, 20)
    dropped = logs.stats()["lines_dropped"]
    assert dropped >= 3000 - limits.LOG_CHUNK
    assert logs.stats()["lines_waiting"] <= 2000 + 1
    stalled.set()
    logs.stop()
    *kept, said = read(tmp_path / "info.log")
    assert len(kept) + logs.dropped == 5000
    assert said["message"].startswith(f"{logs.dropped} log lines were dropped")


def test_without_anybody_who_listens_nothing_is_noted() -> None:
    silent = Traffic()
    silent.note(traffic.MessageAcknowledged, "m", "bob")  # and needs no event loop
    silent.flush()
    assert not silent.wanted
