"""The log: lines of several processes in one file, rotated, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
import time
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.proxy.logs import OFF, Lines, Writer
from ciphermq.telemetry import get_logger
from support.rabbitmq import wait_until

log = get_logger("proxy.tested")


class Taken:
    """What a `Lines` passes on."""

    def __init__(self) -> None:
        self.file = b""
        self.console = b""

    def __call__(self, file: bytes, console: bytes) -> None:
        self.file += file
        self.console += console


async def test_each_place_has_its_own_level() -> None:
    taken = Taken()
    lines = Lines(taken, console=1, file=3)
    lines.start()
    log.info("for the file", vhost="/", session=7, key="value")
    log.error("for both")
    log.debug("for nobody")
    lines.stop()
    assert taken.console == b"ERROR: for both\n"
    first, second = taken.file.decode().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \d+ "
    assert re.fullmatch(stamp + r"INFO \[/\] 7: for the file key=value", first)
    assert re.fullmatch(stamp + "ERROR: for both", second)


async def test_levels_change_while_it_runs() -> None:
    taken = Taken()
    lines = Lines(taken, console=0, file=OFF)
    lines.start()
    log.warning("unheard")
    lines.set_levels(console=4, file=OFF)
    log.debug("heard")
    lines.stop()
    assert (taken.file, taken.console) == (b"", b"DEBUG: heard\n")
    assert not logging.getLogger("ciphermq").isEnabledFor(logging.DEBUG)


async def test_lines_are_passed_on_together_and_soon() -> None:
    batches: list[bytes] = []
    lines = Lines(lambda file, console: batches.append(console), console=3, file=OFF)
    lines.start()
    for number in range(5):
        log.info("line", number=number)
    while not batches:
        await asyncio.sleep(0.005)
    lines.stop()
    assert batches == [b"".join(b"INFO: line number=%d\n" % number for number in range(5))]


async def test_a_stranger_can_not_write_lines_of_its_own() -> None:
    taken = Taken()
    lines = Lines(taken, console=3, file=OFF)
    lines.start()
    log.info('name="a\nERROR: forged\x1b[2J"', vhost="\u2028/\r")
    lines.stop()
    assert taken.console.count(b"\n") == 1
    assert b"\x1b" not in taken.console
    assert taken.console.startswith(b'INFO [\\u2028/\\r]: name="a\\nERROR')


async def test_a_traceback_is_set_in() -> None:
    taken = Taken()
    lines = Lines(taken, console=3, file=OFF, as_json=True)
    lines.start()
    try:
        raise ZeroDivisionError("a\nERROR: forged")
    except ZeroDivisionError:
        log.exception("failed")
    lines.stop()
    shown = taken.console.decode().splitlines()
    assert shown[0] == "ERROR: failed"
    assert all(line.startswith("  ") for line in shown[1:])


async def test_files_may_be_json() -> None:
    taken = Taken()
    lines = Lines(taken, console=OFF, file=3, as_json=True)
    lines.start()
    log.info("words", session=7)
    lines.stop()
    assert json.loads(taken.file)["session"] == 7


def texts(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(directory.iterdir())]


def test_a_new_file_each_start_and_each_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROXY_LOG_FILE", 100)
    for _ in range(2):
        writer = Writer(tmp_path, "prog", io.BytesIO())
        writer.take(b"x" * 99 + b"\n", b"")
        writer.take(b"next\n", b"")
        writer.stop()
    assert texts(tmp_path) == [b"x" * 99 + b"\n", b"next\n"] * 2
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert all(re.fullmatch(r"prog_\d{8}_0000\d\.log", name) for name in names)


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_LOG_FILE", 100)
    monkeypatch.setattr(limits, "PROXY_LOG_FILES", 350)
    (tmp_path / "prog_notes.txt").write_bytes(b"mine" * 100)
    writer = Writer(tmp_path, "prog", io.BytesIO())
    for number in range(10):
        writer.take(b"%d" % number * 99 + b"\n", b"")
    writer.stop()
    kept = [path for path in tmp_path.iterdir() if path.suffix == ".log"]
    assert sum(path.stat().st_size for path in kept) <= 450
    assert (tmp_path / "prog_notes.txt").exists()
    assert any(b"9" in path.read_bytes() for path in kept)


def test_a_directory_that_can_not_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written"):
        Writer(tmp_path / "file", "prog")


class Stuck(io.RawIOBase):
    """A terminal that takes nothing until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.reached = threading.Event()
        self.got = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.reached.set()
        self.free.wait()
        self.got += bytes(data)
        return len(data)


def test_what_a_stuck_terminal_does_not_take_is_counted_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PROXY_LOG_QUEUE", 2)
    console = Stuck()
    writer = Writer(None, "prog", console)  # type: ignore[arg-type]
    writer.take(b"", b"first\n")
    console.reached.wait()
    for _ in range(7):
        writer.take(b"", b"more\n")
    assert writer.dropped == 5
    console.free.set()
    while console.got.count(b"\n") < 3:
        time.sleep(0.005)
    writer.take(b"", b"last\n")
    writer.stop()
    said = b"WARN: 5 log lines were dropped: the disk or terminal was too slow\n"
    assert console.got == b"first\n" + b"more\n" * 2 + said + b"last\n"


def test_a_full_disk_is_counted(tmp_path: Path) -> None:
    full = Path("/dev/full")
    writer = Writer(tmp_path, "prog", full.open("wb", buffering=0))  # type: ignore[arg-type]
    writer.take(b"kept\n", b"lost\n")
    writer.stop()
    assert writer.failures == 1
    assert texts(tmp_path) == [b"kept\n"]


def test_a_new_day_without_its_directory_ends_no_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "logs"
    console = io.BytesIO()
    writer = Writer(directory, "proxy", console)
    writer.take(b"today\n", b"")
    directory_gone = tmp_path / "gone"
    wait_until(lambda: texts(directory) == [b"today\n"])
    directory.rename(directory_gone)
    tomorrow = time.time() + limits.DAY
    monkeypatch.setattr("ciphermq.proxy.logs.time.time", lambda: tomorrow)
    writer.take(b"lost\n", b"lost\n")
    writer.take(b"lost, too\n", b"lost, too\n")
    wait_until(lambda: console.getvalue() == b"lost\nlost, too\n")
    assert writer.failures == 2
    directory_gone.rename(directory)
    writer.take(b"back\n", b"")
    writer.stop()
    assert texts(directory) == [b"today\n", b"back\n"]
