"""The file of received messages: what is in it is in it once, whatever is killed when."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ciphermq.client.classic.record import Received, Record
from ciphermq.errors import StoreError


def add(record: Record, *ids: str) -> None:
    record.add([Received(each, f"text of {each}", 1757314980.5) for each in ids])


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["message_id"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "received_messages.jsonl"


def test_a_line_is_as_1x_wrote_it(path: Path) -> None:
    with Record(path) as record:
        record.add([Received("s-1-r", "grüße\n\x1b", 1757314980.25)])
    assert (
        path.read_bytes()
        == (
            '{"message_id": "s-1-r", "message": "grüße\\n\\u001b", "timestamp": 1757314980.25}\n'
        ).encode()
    )


def test_what_was_received_is_known_after_a_restart(path: Path) -> None:
    with Record(path) as record:
        add(record, "a", "b")
        assert "a" in record
        assert "c" not in record
    with Record(path) as record:
        assert "b" in record
        add(record, "c")
    assert ids_in(path) == ["a", "b", "c"]


def test_without_the_ids_beside_it_the_file_is_read(path: Path) -> None:
    with Record(path) as record:
        add(record, *(str(number) for number in range(2_500)))
    for beside in path.parent.glob(".*"):
        beside.unlink()
    with Record(path) as record:
        assert all(str(number) in record for number in range(2_500))
        assert "2500" not in record


def test_lines_that_a_crash_kept_from_the_ids_are_read(path: Path) -> None:
    with Record(path) as record:
        add(record, "a")
    with path.open("ab") as file:
        file.write(Received("b", "text", 1.0).line())
    with Record(path) as record:
        assert "b" in record


def test_a_line_that_a_crash_cut_short_is_taken_back(path: Path) -> None:
    with Record(path) as record:
        add(record, "a")
    with path.open("ab") as file:
        file.write(Received("b", "text", 1.0).line()[:-1])
    with Record(path) as record:
        assert "b" not in record
        add(record, "b")
    assert ids_in(path) == ["a", "b"]


def test_a_file_of_1x_is_taken_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(
        '{"message_id": "old", "message": {"content": "x"}, "timestamp": 1}\n'
        'no line\n[]\n{"message_id": "\\ud800"}\n'
    )
    with Record(path) as record:
        assert "old" in record
        add(record, "new")
    assert path.read_text().splitlines()[-1].startswith('{"message_id": "new"')


def test_a_file_that_was_moved_away_is_still_known(path: Path) -> None:
    with Record(path) as record:
        add(record, "a")
    path.rename(path.with_name("september.jsonl"))
    with Record(path) as record:
        assert "a" in record
        add(record, "b")
    assert ids_in(path) == ["b"]
    with Record(path) as record:
        assert "b" in record


def test_two_receivers_cant_share_a_file(path: Path) -> None:
    with Record(path), pytest.raises(StoreError, match="in use by another"):
        Record(path)
    with Record(path):
        pass


def test_what_cant_be_written_is_not_in_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Record(path) as record:
        add(record, "a")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="No space left"):
                add(record, "b")
        assert ids_in(path) == ["a"]
        assert "b" not in record
        add(record, "b")
    assert ids_in(path) == ["a", "b"]


def test_damaged_ids(path: Path) -> None:
    with Record(path) as record:
        add(record, "a")
    beside = path.with_name(f".{path.name}.ids")
    beside.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="remove it"):
        Record(path)
    beside.unlink()
    with Record(path) as record:
        assert "a" in record
