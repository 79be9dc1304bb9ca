"""A real process is killed with SIGKILL while it writes; what it said was confirmed is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ciphermq.journal import Journal, Location
from ciphermq.journal.tools import verify
from ciphermq.limits import KIB

LONG = os.environ.get("CIPHERMQ_LONG") == "1"
pytestmark = pytest.mark.timeout(600 if LONG else 120)
KILLS = 60 if LONG else 6


def payload_of(number: int) -> bytes:
    """What record `number` holds: the reader can tell without having been told."""
    return random.Random(number).randbytes(number * 37 % 5000)


def write_for_ever(directory: Path) -> None:
    """The child: append, compact, and say on standard output what is confirmed."""
    numbers: dict[int, int] = {}
    places: dict[int, Location] = {}
    first = 0

    def replay(lsn: int, kind: int, meta: bytes, location: Location | None) -> None:
        nonlocal first
        if kind == 1 and location is not None:
            number = int(meta)
            first = max(first, number)
            if number in places:
                journal.release(places[number])
            places[number] = location

    def on_durable(placed: list[tuple[int, Location | None]]) -> None:
        confirmed = [numbers[lsn] for lsn, location in placed if location is not None]
        places.update((numbers[lsn], place) for lsn, place in placed if place is not None)
        if confirmed:
            os.write(1, b"%d\n" % max(confirmed))

    journal = Journal(directory, segment_size=256 * KIB, reserve=KIB, max_group=64 * KIB)
    journal.open(replay)
    journal.start(
        snapshot=lambda: (255, b"snapshot"),
        on_durable=on_durable,
        on_refused=lambda _lsns, error: os.write(2, str(error).encode()),
        on_failed=lambda error: os.write(2, str(error).encode()),
    )

    def append(number: int) -> None:
        numbers[journal.append(1, b"%d" % number, payload_of(number), essential=True)] = number

    for number in range(first + 1, 1 << 30):
        append(number)
        while journal.pending_bytes > 500_000:
            time.sleep(0.001)
        segment = journal.oldest_due()
        if segment is not None:
            for old in [n for n, place in list(places.items()) if place.segment == segment]:
                if old % 100 == 0:  # these stay
                    append(old)
                else:
                    del places[old]
            while journal.pending_bytes:
                time.sleep(0.001)
            journal.drop_oldest(segment).result(30)
        if number % 100 and number > 300 and number - 200 in places:
            journal.release(places[number - 200])


@pytest.mark.crash
def test_nothing_confirmed_is_lost_to_sigkill(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    rng = random.Random(11)
    confirmed = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, __file__, str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = said = int(child.stdout.readline())
        while said < first + 100:  # enough to tell something
            said = int(child.stdout.readline())
        confirmed = max(confirmed, said)
        time.sleep(rng.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        rest = [int(line) for line in child.stdout.read().split("\n")[:-1]]
        child.wait(30)
        child.stdout.close()
        confirmed = max([confirmed, *rest])
        check(directory, confirmed)
    assert confirmed > 100


def check(directory: Path, confirmed: int) -> None:
    found: dict[int, Location] = {}

    def replay(_lsn: int, kind: int, meta: bytes, location: Location | None) -> None:
        if kind == 1 and location is not None:
            found[int(meta)] = location

    journal = Journal(directory, segment_size=256 * KIB, reserve=KIB)
    journal.open(replay)
    for number, location in found.items():
        assert journal.read(location) == payload_of(number)
    newest = max(found)
    assert newest >= confirmed
    oldest_whole = min(n for n in found if all(m in found for m in range(n, newest + 1)))
    assert newest - oldest_whole > 50
    assert all(number in found for number in range(100, newest, 100))
    journal.close()
    assert verify(directory).problems == []


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
