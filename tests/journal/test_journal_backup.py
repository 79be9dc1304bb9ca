"""A copy made while the broker writes is a log that starts, with all that was confirmed before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from journal_harness import Threaded
from test_journal_roundtrip import Owner

from ciphermq.errors import JournalDamaged, JournalError
from ciphermq.journal import backup
from ciphermq.journal.format import BLOCK_SIZE
from ciphermq.journal.segments import segment_path
from ciphermq.journal.tools import verify


def test_a_copy_of_a_log_at_rest_is_the_log(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "log")
    for i in range(100):
        lsn = owner.journal.append(1, b"meta %d" % i, bytes(2000))
    owner.wait(lsn)
    steps: list[tuple[int, int]] = []
    done = backup.copy(
        tmp_path / "log", tmp_path / "new" / "copy", progress=lambda *step: steps.append(step)
    )
    assert done.last_lsn == lsn
    assert steps[-1] == (done.size, done.size)
    owner.journal.close()
    for path in (tmp_path / "log").glob("segment-*"):
        assert (tmp_path / "new" / "copy" / path.name).read_bytes() == path.read_bytes()
    copied = Owner(tmp_path / "new" / "copy")
    assert len(copied.replayed) == done.records
    copied.journal.close()


def test_a_copy_of_a_running_log_holds_what_was_confirmed_before(tmp_path: Path) -> None:
    """Meanwhile segments are begun and dropped."""
    owner = Owner(tmp_path / "log")
    stop = threading.Event()

    def work() -> None:
        done = 0
        while not stop.is_set():
            lsn = owner.journal.append(1, b"meta", b"x" * 3000)
            if owner.journal.pending_bytes > 200_000:
                owner.wait(lsn)
            for number, location in owner.durable[done:]:
                if location is not None and number % 50:
                    owner.journal.release(location)
                done += 1
            segment = owner.journal.oldest_due()
            if segment is not None:
                for number, location in list(owner.durable):
                    if location is not None and location.segment == segment and not number % 50:
                        owner.journal.append(2, b"copy %d" % number, owner.journal.read(location))
                owner.journal.drop_oldest(segment).result(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(6):
            owner.wait(1 if not i else owner.durable[-1][0] + 50)
            before = owner.durable[-1][0]
            target = tmp_path / f"copy{i}"
            done = backup.copy(tmp_path / "log", target)
            assert done.last_lsn >= before
            assert verify(target).problems == []
            copied = Owner(target)
            assert copied.report.cut is None
            assert copied.replayed[0][1] == 255
            assert copied.replayed[-1][0] == done.last_lsn
            copied.journal.close()
    finally:
        stop.set()
        thread.join()
        owner.journal.close()


def test_an_unfinished_end_is_left_out(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    owner.journal.append(1, b"meta", b"x" * 1000)
    owner.journal.close()
    path = segment_path(tmp_path / "log", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b"in flight")
    backup.copy(tmp_path / "log", tmp_path / "copy")
    assert segment_path(tmp_path / "copy", 1).read_bytes() == whole


def test_a_damaged_log_is_not_copied_in_silence(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    for _ in range(100):
        owner.journal.append(1, b"meta", b"x" * 3000)
    owner.journal.close()
    path = segment_path(tmp_path / "log", 1)
    content = bytearray(path.read_bytes())
    content[BLOCK_SIZE + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match=str(path)):
        backup.copy(tmp_path / "log", tmp_path / "copy")


def test_a_target_in_use_is_refused(tmp_path: Path) -> None:
    owner = Threaded(tmp_path / "log")
    owner.journal.append(1, b"meta")
    owner.journal.close()
    backup.copy(tmp_path / "log", tmp_path / "copy")
    with pytest.raises(JournalError, match="holds a journal already"):
        backup.copy(tmp_path / "log", tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JournalError, match="holds no journal"):
        backup.copy(tmp_path / "empty", tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="the copy failed"):
        backup.copy(tmp_path / "log", tmp_path / "file" / "copy")
