"""The file that knows how far a move is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq.errors import MoveError, MoveRefused
from ciphermq.proxy.move.record import Record, Shelf, Side, default_directory

BLUE = Side(
    kind="farm",
    name="blue",
    management="http://127.0.0.1:1",
    user="a",
    addresses=(("127.0.0.1", 2, False), ("::1", 3, True)),
)
GREEN = Side(kind="backend", name="green", management="http://127.0.0.1:4", user="b")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "deep" / "er", "a/b")
    assert shelf.read() is None
    record = Record(vhost="a/b", source=BLUE, target=GREEN)
    for step in ("prepared", "draining", "returning", "remapped", "done", "undone"):
        record.step = step
        shelf.write(record)
        assert shelf.read() == record
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a%2Fb.json"]


def test_which_steps_are_the_last() -> None:
    record = Record(vhost="v", source=BLUE, target=GREEN)
    assert not record.finished
    record.step = "done"
    assert record.finished
    turned = record.turned()
    assert (turned.source, turned.target, turned.step) == (GREEN, BLUE, "prepared")


@pytest.mark.parametrize("content", ["", "{", '{"vhost": 3}', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    shelf = Shelf(tmp_path, "v")
    shelf.path.write_text(content)
    with pytest.raises(MoveError, match=r"v\.json is no record of a move"):
        shelf.read()


def test_a_file_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "v")
    shelf.write(Record(version=9, vhost="v", source=BLUE, target=GREEN))
    with pytest.raises(MoveError, match="another version, 9"):
        shelf.read()


def test_only_one_process_moves_a_vhost(tmp_path: Path) -> None:
    with Shelf(tmp_path, "v").claimed():
        with Shelf(tmp_path, "w").claimed():
            pass
        with pytest.raises(MoveRefused, match="Another process"), Shelf(tmp_path, "v").claimed():
            pass
    with Shelf(tmp_path, "v").claimed():
        pass


def test_records_are_the_users_own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "ciphermq" / "moves"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".local" / "state" / "ciphermq" / "moves"
