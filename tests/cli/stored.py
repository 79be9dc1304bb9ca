"""A broker's stored state without a broker: for tests of the commands that work on directories."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.cli.main import run
from ciphermq.journal import Journal
from ciphermq.limits import KIB


class Writer:
    """A journal that is open and written to, as a running broker's is."""

    def __init__(self, directory: Path) -> None:
        self._durable = 0
        self._moved = threading.Condition()
        self.journal = Journal(directory, segment_size=64 * KIB, reserve=0)
        self.journal.open(lambda *_: None)
        self.journal.start(
            snapshot=lambda: (255, b"snapshot"),
            on_durable=self._placed,
            on_refused=lambda *_: None,
            on_failed=lambda *_: None,
        )

    def _placed(self, placed: list[tuple[int, Any]]) -> None:
        with self._moved:
            self._durable = placed[-1][0]
            self._moved.notify_all()

    def write(self, count: int, size: int = 5_000) -> None:
        lsn = 0
        for number in range(count):
            lsn = self.journal.append(1, b"meta %d" % number, b"payload" * (size // 7))
        with self._moved:
            assert self._moved.wait_for(lambda: self._durable >= lsn, 30)


def write_state(server_dir: Path) -> None:
    """A journal of several segments and a catalog of two keys, in the server's directory."""
    data = server_dir / "data"
    writer = Writer(data / "journal")
    writer.write(40)
    writer.journal.close()

    async def keys() -> None:
        catalog = SqliteCatalog(data / "catalog.db", AtRestKey.load(server_dir / "at-rest.key"))
        await catalog.start()
        await catalog.put_key("alice", 1, b"record of alice")
        await catalog.put_key("bob", 1, b"record of bob")
        await catalog.stop()

    asyncio.run(keys())


def damage(journal: Path, at: int = 20_000) -> Path:
    """Overwrite bytes of the first segment, a payload's unless told otherwise; its path."""
    segment = sorted(journal.glob("segment-*"))[0]
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 64)
    return segment


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Exit status of a command with ``--json``, and what it printed: the result or the error."""
    capsys.readouterr()
    status = run([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out or err)
