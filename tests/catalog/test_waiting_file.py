"""What waits for the database outlives the broker, whatever it was in the middle of."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.catalog.face import OnexPublication
from ciphermq.catalog.pending import MessageRow, PendingMetadata
from ciphermq.catalog.waiting import WaitingFile
from ciphermq.errors import CatalogError
from ciphermq.model.onex import internal_id


def publication(name: str, **others: object) -> OnexPublication:
    return OnexPublication(name, "alice", "x", "k", 1000, **others)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "waiting"


def opened(path: Path) -> WaitingFile:
    made = WaitingFile(path)
    made.open(PendingMetadata(1000))
    return made


def left(path: Path) -> dict[str | None, MessageRow]:
    """What a broker that starts now would know."""
    pending = PendingMetadata(1000)
    found = WaitingFile(path)
    found.open(pending)
    found.close()
    return {row.message_id: row for row in pending.take().messages}


async def turn_of_the_loop() -> None:
    for _ in range(2):
        await asyncio.sleep(0)


async def test_what_was_noted_is_known_after_a_kill(path: Path) -> None:
    waiting = opened(path)
    waiting.published(publication("m-1"))
    waiting.published(publication("m-2", again=True))
    waiting.happened("delivered", internal_id("m-1"), 2000)
    waiting.happened("acked", internal_id("m-1"), 3000)
    await turn_of_the_loop()
    found = left(path)  # the first has not been closed: it might have been killed
    assert found.keys() == {"m-1", "m-2"}
    row = found["m-1"]
    assert (row.client, row.exchange, row.routing_key) == ("alice", "x", "k")
    assert (row.sent_ms, row.delivered_ms, row.acked_ms) == (1000, 2000, 3000)
    assert (row.again, found["m-2"].again) == (False, True)
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}


async def test_what_is_in_the_database_is_forgotten_and_what_came_since_is_not(
    path: Path,
) -> None:
    waiting = opened(path)
    waiting.published(publication("m-1"))
    await turn_of_the_loop()
    waiting.turn()
    waiting.published(publication("m-2"))
    await turn_of_the_loop()
    assert left(path).keys() == {"m-1", "m-2"}
    waiting.turn()  # the first is not over: the database was away
    waiting.turned()
    assert left(path).keys() == {"m-2"}
    waiting.turn()
    waiting.turned()
    assert left(path) == {}
    waiting.published(publication("m-3"))
    await turn_of_the_loop()
    assert left(path).keys() == {"m-3"}


async def test_an_event_before_its_message_is_kept(path: Path) -> None:
    waiting = opened(path)
    row = MessageRow(internal_id("m"), delivered_ms=2000, acked_ms=3000)
    waiting.early([row])
    await turn_of_the_loop()
    (found,) = left(path).values()
    assert (found.internal_id, found.delivered_ms, found.acked_ms) == (row.internal_id, 2000, 3000)


async def test_what_is_noted_again_is_there_before_the_first_note_goes(path: Path) -> None:
    waiting = opened(path)
    waiting.happened("delivered", internal_id("m"), 2000)
    await turn_of_the_loop()
    waiting.turn()
    waiting.early([MessageRow(internal_id("m"), delivered_ms=2000)])
    waiting.turned()
    (found,) = left(path).values()  # killed in the same turn of the loop
    assert found.delivered_ms == 2000


async def test_a_note_that_was_cut_ends_the_file(path: Path) -> None:
    waiting = opened(path)
    for name in ("m-1", "m-2"):
        waiting.published(publication(name))
    await turn_of_the_loop()
    (file,) = path.parent.iterdir()
    whole = file.read_bytes()
    for cut in range(len(whole) // 2, len(whole)):
        file.write_bytes(whole[:cut])
        assert left(path).keys() == {"m-1"}
        again = opened(path)
        again.published(publication("m-3"))
        await turn_of_the_loop()
        assert left(path).keys() == {"m-1", "m-3"}


async def test_what_is_no_file_of_ours_stops_the_start(path: Path) -> None:
    path.with_name("waiting.0").write_bytes(b"\0\0\0\5phello")
    with pytest.raises(CatalogError, match=r"can't be read .*move the files waiting\.\* away"):
        opened(path)


async def test_a_full_disk_is_said_once_and_stops_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = opened(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for number in range(3):
            waiting.published(publication(f"m-{number}"))
            await turn_of_the_loop()
    said = [record for record in caplog.records if "in memory alone" in record.getMessage()]
    assert len(said) == 1
    waiting.close()
    assert left(path) == {}


async def test_it_has_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITING_METADATA", 2000)
    waiting = opened(path)
    for number in range(200):
        waiting.published(publication(f"m-{number}"))
        await turn_of_the_loop()
    (file,) = path.parent.iterdir()
    assert 1900 < file.stat().st_size < 2200
