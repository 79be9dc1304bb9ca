"""``ciphermq journal`` on sound and damaged logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq.cli.journal import journal_in
from ciphermq.cli.main import run
from cli.stored import Writer, damage, run_json


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a journal of several segments."""
    writer = Writer(tmp_path / "data" / "journal")
    writer.write(40)
    writer.journal.close()
    return tmp_path / "data"


def test_the_journal_is_found_from_any_of_its_parents(data: Path) -> None:
    assert journal_in(data.parent) == journal_in(data) == journal_in(data / "journal")


def test_a_sound_log(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["journal", "verify", str(data)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "40 payloads" in out[0]
    assert out[-1] == "sound"
    status, found = run_json(capsys, "journal", "verify", data)
    assert (status, found["payloads"], found["problems"], found["torn"]) == (0, 40, [], None)


def test_a_running_brokers_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(tmp_path / "data" / "journal")
    writer.write(10)
    status, found = run_json(capsys, "journal", "verify", tmp_path / "data")
    writer.journal.close()
    assert (status, found["payloads"]) == (0, 10)


def test_an_unfinished_end_is_no_damage(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = sorted((data / "journal").glob("segment-*"))[-1]
    with last.open("ab") as file:
        file.write(b"half a group")
    assert run(["journal", "verify", str(data)]) == 0
    assert "unfinished end" in capsys.readouterr().out


def test_damage_is_named_and_salvaged(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = damage(data / "journal")
    assert run(["journal", "verify", str(data)]) == 6
    out = capsys.readouterr().out
    assert str(segment) in out
    assert "ciphermq journal repair" in out
    status, found = run_json(capsys, "journal", "verify", data)
    assert status == 6
    assert found["problems"][0]["path"] == str(segment)

    status, done = run_json(capsys, "journal", "repair", data, "--yes")
    assert status == 0
    assert done["changed"]
    assert done["lost"][0]["path"] == str(segment)
    assert (Path(done["aside"]) / segment.name).exists()
    assert run(["journal", "verify", str(data)]) == 0
    assert run(["journal", "repair", str(data), "--yes"]) == 0
    assert "nothing was changed" in capsys.readouterr().out


def test_a_repair_says_what_it_did(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / "journal")
    assert run(["journal", "repair", str(data), "--yes"]) == 0
    out = capsys.readouterr().out
    assert "salvaged: " in out
    assert "lost: " in out
    assert "the old files are in " in out


def test_a_repair_asks_first(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / "journal")
    status, said = run_json(capsys, "journal", "repair", data)
    assert (status, said["error"]) == (2, "usage")
    assert "--yes" in said["message"]
    assert run(["journal", "verify", str(data)]) == 6


def test_a_running_brokers_log_is_not_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path / "data" / "journal")
    writer.write(10)
    status, said = run_json(capsys, "journal", "repair", tmp_path / "data", "--yes")
    writer.journal.close()
    assert (status, said["error"]) == (6, "journal-in-use")


def test_stats(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = run_json(capsys, "journal", "stats", data)
    assert status == 0
    assert len(rows) > 1
    assert sum(row["payload_bytes"] for row in rows) == 40 * 4998
    assert run(["journal", "stats", str(data)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["segment", "bytes"]
    assert len(out) == 1 + len(rows)


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_where_there_is_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    status, said = run_json(capsys, "journal", command, tmp_path)
    assert (status, said["error"]) == (6, "journal")
    assert "holds no journal" in said["message"]
