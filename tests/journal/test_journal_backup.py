"""A copy made while the broker writes is a log that starts, with all that was confirmed before."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path

import pytest
from journal_harness import Threaded
from test_journal_roundtrip import Owner

from ciphermq.errors import JournalDamaged, JournalError
from ciphermq.journal import OsFiles, backup
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


def test_a_segment_dropped_before_it_was_opened_starts_the_copy_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Threaded(tmp_path / "log")
    for _ in range(100):
        owner.journal.append(1, b"meta", bytes(3000))
    owner.journal.close()

    class Dropping(OsFiles):
        opened = 0

        def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
            if path == segment_path(tmp_path / "log", 1):
                Dropping.opened += 1
                if Dropping.opened == 2:
                    path.unlink()
            return super().open(path, create=create, write=write)

    monkeypatch.setattr(backup, "OsFiles", Dropping)
    done = backup.copy(tmp_path / "log", tmp_path / "copy")
    assert Dropping.opened == 2
    assert not segment_path(tmp_path / "copy", 1).exists()
    assert done.segments == len(list((tmp_path / "log").glob("segment-*")))
    assert verify(tmp_path / "copy").problems == []


def test_a_last_segment_that_changed_under_the_copy_is_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a broker on a full disk takes back half a group and writes another in its place."""
    owner = Threaded(tmp_path / "log")
    for _ in range(3):
        owner.journal.append(1, b"meta", bytes(3000))
        while owner.journal.pending_bytes:  # a group each
            time.sleep(0.001)
    owner.journal.close()
    path = segment_path(tmp_path / "log", 1)
    whole = path.read_bytes()

    class Changing(OsFiles):
        reads = 0

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            data = super().pread(fd, length, offset)
            if length == backup._CHUNK and data:
                Changing.reads += 1
                if Changing.reads == 1:  # a group's header among them, and a good group behind
                    return data[:5000] + b"\xff" * 4000 + data[9000:]
            return data

    monkeypatch.setattr(backup, "OsFiles", Changing)
    backup.copy(tmp_path / "log", tmp_path / "copy")
    assert Changing.reads == 2
    assert segment_path(tmp_path / "copy", 1).read_bytes() == whole


def test_more_segments_than_descriptors_raise_the_limit(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    owner = Threaded(tmp_path / "log", segment_size=2 * BLOCK_SIZE)
    for _ in range(150):
        owner.journal.append(1, b"meta", bytes(5000))
    owner.journal.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert backup.copy(tmp_path / "log", tmp_path / "copy").segments == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
