"""`verify` and `stats` tell what is there, of a log at rest and of one being written."""

from __future__ import annotations

from pathlib import Path

import pytest
from journal_harness import DIRECTORY, Log, Threaded

from ciphermq.errors import JournalError
from ciphermq.journal import OsFiles
from ciphermq.journal.format import BLOCK_SIZE
from ciphermq.journal.segments import segment_path
from ciphermq.journal.tools import stats, verify


def test_a_good_log_is_counted() -> None:
    log = Log()
    progress: list[tuple[int, int]] = []
    found = verify(DIRECTORY, files=log.disk, progress=lambda *step: progress.append(step))
    assert found.problems == []
    assert found.torn is None
    assert found.records == len(log.records)
    assert found.payloads == sum(1 for record in log.records if record[3] is not None)
    assert found.segments == len(log.segments)
    assert found.size == sum(map(len, log.disk.contents().values()))
    assert progress == sorted(progress)
    assert progress[-1][0] <= progress[-1][1] == found.size


def test_every_damage_is_listed_with_its_place() -> None:
    log = Log()
    log.content(0)[BLOCK_SIZE + 5] ^= 1
    bad_payload = next(
        location for location in reversed(log.located.values()) if location and location.length
    )
    log.disk.content(segment_path(DIRECTORY, bad_payload.segment))[bad_payload.offset] ^= 1
    log.content(-1).extend(b"unfinished")
    found = verify(DIRECTORY, files=log.disk)
    assert [(problem.path, problem.offset) for problem in found.problems] == [
        (segment_path(DIRECTORY, log.segments[0]), BLOCK_SIZE),
        (segment_path(DIRECTORY, bad_payload.segment), bad_payload.offset),
    ]
    assert found.problems[1].lsn
    assert found.torn is not None
    assert found.torn.size == len(b"unfinished")


def test_segments_in_numbers() -> None:
    log = Log()
    rows = stats(DIRECTORY, files=log.disk)
    assert [row.segment for row in rows] == log.segments
    assert sum(row.records for row in rows) == len(log.records)
    assert sum(row.payload_bytes for row in rows) == sum(
        len(record[3]) for record in log.records if record[3] is not None
    )
    assert [row.first_lsn for row in rows[1:]] == [row.last_lsn + 1 for row in rows[:-1]]
    assert rows[0].groups > 1


def test_no_journal_is_said_so(tmp_path: Path) -> None:
    for tool in (verify, stats):
        with pytest.raises(JournalError, match=r"holds no journal .* under \[storage\]"):
            tool(tmp_path)
        with pytest.raises(JournalError, match="can't be read"):
            tool(tmp_path / "nowhere")


def test_a_running_journal_can_be_verified(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    for _ in range(30):
        for _ in range(10):
            owner.journal.append(1, b"meta", b"x" * 3000)
        assert owner.durable.acquire(timeout=30)
        assert verify(tmp_path / "log").problems == []
        assert stats(tmp_path / "log")[0].first_lsn == 1
    owner.journal.close()
    assert verify(tmp_path / "log").torn is None


class Dropping(OsFiles):
    """Drops the two oldest segments, as a broker might, when the second is opened again."""

    opened = 0

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        if path == segment_path(path.parent, 2):
            self.opened += 1
            if self.opened == 2:
                segment_path(path.parent, 1).unlink()
                path.unlink()
        return super().open(path, create=create, write=write)


def test_segments_dropped_while_they_are_verified_are_no_damage(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    for _ in range(100):
        owner.journal.append(1, b"meta", bytes(3000))
    owner.journal.close()
    assert verify(tmp_path / "log", files=Dropping()).problems == []
    again = verify(tmp_path / "log")
    assert again.problems == []
    assert again.segments == len(list((tmp_path / "log").glob("segment-*")))


def test_a_segment_that_vanishes_with_older_ones_left_is_no_drop(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    for _ in range(100):
        owner.journal.append(1, b"meta", bytes(3000))
    owner.journal.close()

    class Losing(OsFiles):
        opened = 0

        def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
            if path == segment_path(path.parent, 2):
                self.opened += 1
                if self.opened == 2:
                    path.unlink()
            return super().open(path, create=create, write=write)

    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "log", files=Losing())
