"""What is appended is confirmed, read back and replayed, in order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ciphermq.errors import JournalInUse, UsageError
from ciphermq.journal import Journal, Location
from ciphermq.limits import KIB


def _ignore(*_: object) -> None:
    pass


class Owner:
    """A journal with a list of what it confirmed."""

    def __init__(self, directory: Path, segment_size: int = 64 * KIB) -> None:
        self.replayed: list[tuple[int, int, bytes, Location | None]] = []
        self.durable: list[tuple[int, Location | None]] = []
        self.snapshots = 0
        self._moved = threading.Condition()
        self.journal = Journal(directory, segment_size=segment_size, reserve=0)
        self.report = self.journal.open(lambda *record: self.replayed.append(record))
        self.journal.start(
            snapshot=self._snapshot, on_durable=self._durable, on_refused=_ignore, on_failed=_ignore
        )

    def _snapshot(self) -> tuple[int, bytes]:
        self.snapshots += 1
        return 255, b"snapshot"

    def _durable(self, placed: list[tuple[int, Location | None]]) -> None:
        with self._moved:
            self.durable += placed
            self._moved.notify_all()

    def wait(self, lsn: int) -> None:
        with self._moved:
            assert self._moved.wait_for(lambda: self.durable and self.durable[-1][0] >= lsn, 30)


def test_what_was_appended_comes_back_in_order(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "log")
    wanted = []
    for i in range(500):
        payload = bytes([i % 251]) * (i * 3) if i % 3 else None
        wanted.append((owner.journal.append(1 + i % 200, b"meta %d" % i, payload), payload))
    owner.wait(wanted[-1][0])
    located = dict(owner.durable)
    for lsn, payload in wanted:
        location = located[lsn]
        assert (location is None) == (payload is None)
        if location is not None:
            assert owner.journal.read(location) == payload
    assert owner.snapshots > 3
    owner.journal.close()

    again = Owner(tmp_path / "log")
    assert [(lsn, location) for lsn, _, _, location in again.replayed] == owner.durable
    assert [meta for _, kind, meta, _ in again.replayed if kind != 255] == [
        b"meta %d" % i for i in range(500)
    ]
    assert again.report.cut is None
    assert again.report.records == 500 + owner.snapshots
    assert again.journal.append(9, b"") > owner.durable[-1][0]
    again.journal.close()


def test_one_directory_has_one_owner(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "log")
    second = Journal(tmp_path / "log")
    with pytest.raises(JournalInUse, match=str(tmp_path / "log")):
        second.open(_ignore)
    owner.journal.close()
    third = Owner(tmp_path / "log")
    third.journal.close()


def test_a_segment_is_dropped_when_its_payloads_are_released(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "log")
    for _ in range(100):
        lsn = owner.journal.append(1, b"", bytes(4000))
    owner.wait(lsn)
    assert owner.journal.oldest_due() is None
    for _, location in owner.durable:
        if location is not None:
            owner.journal.release(location)
    dropped = 0
    while (segment := owner.journal.oldest_due()) is not None:
        owner.journal.drop_oldest(segment).result(30)
        dropped += 1
    assert dropped >= 4
    assert owner.journal.stats().segments == len(list((tmp_path / "log").glob("segment-*")))
    owner.journal.close()
    again = Owner(tmp_path / "log")
    assert again.replayed[0][1] == 255
    again.journal.close()


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", reserve=0)
    with pytest.raises(UsageError, match="not open"):
        journal.append(1, b"")
    journal.open(_ignore)
    with pytest.raises(UsageError, match="not started"):
        journal.append(1, b"")
    journal.close()
    journal.close()
    with pytest.raises(UsageError, match="not open"):
        journal.append(1, b"")
