"""Logs: what a line holds, what it never holds, and that nobody waits for them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.settings import LoggingSection
from ciphermq.telemetry import Counters, get_logger
from ciphermq.telemetry.logs import Logging, start_logging


def section(directory: Path | None, **members: Any) -> LoggingSection:
    members = {"console": False, **members}
    return LoggingSection(directory=directory, **members)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stopped(logging_: Logging) -> None:
    logging_.stop()
    logging_.stop()


def test_a_line_is_json_with_time_level_message_and_fields(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path))
    get_logger("room").info("a thing happened", queue="q", count=3, odd="50% \n of\x1b[2J")
    stopped(running)
    (line,) = lines(tmp_path / "info.log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "logger": "ciphermq.room",
        "message": "a thing happened",
        "queue": "q",
        "count": 3,
        "odd": "50% \n of\x1b[2J",
    }
    assert len((tmp_path / "info.log").read_text().splitlines()) == 1


def test_each_file_has_its_levels(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path, level="debug"))
    log = get_logger("room")
    for method in (log.debug, log.info, log.warning, log.error):
        method("said")
    stopped(running)

    def levels(name: str) -> list[str]:
        return [line["level"] for line in lines(tmp_path / name)]

    assert levels("debug.log") == ["DEBUG", "INFO", "WARNING", "ERROR"]
    assert levels("info.log") == ["INFO", "WARNING", "ERROR"]
    assert levels("error.log") == ["ERROR"]


def test_debug_costs_nothing_where_it_is_not_wanted(tmp_path: Path) -> None:
    class Explosive:
        def __str__(self) -> str:
            raise AssertionError("formatted for nobody")

    running = start_logging(section(tmp_path))
    get_logger("room").debug("unseen", value=Explosive())
    stopped(running)
    assert not (tmp_path / "debug.log").exists()
    assert lines(tmp_path / "info.log") == []


def test_secrets_and_payloads_do_not_get_in(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path))
    get_logger("room").info(
        "said",
        passphrase="hunter2",
        session={"private_key": "hunter2", "id": b"\1" * 16},
        payload=b"hunter2",
        data=b"hunter2" * 100,
        list=[b"hunter2" * 100],
        batch_id=b"\2" * 16,
    )
    stopped(running)
    text = (tmp_path / "info.log").read_text()
    assert "hunter2" not in text
    assert b"hunter2".hex() not in text
    (line,) = lines(tmp_path / "info.log")
    assert line["batch_id"] == "02" * 16
    assert line["data"] == "(700 bytes)"
    assert line["session"]["id"] == "01" * 16


def test_a_field_can_not_pose_as_the_line_itself(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path))
    get_logger("room").info("true", level="error", timestamp="never", message="false")
    stopped(running)
    (line,) = lines(tmp_path / "info.log")
    assert line["message"] == "true"
    assert line["level"] == "INFO"
    assert line["message_"] == "false"


def test_an_exception_is_in_the_line(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path))
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("room").exception("it failed")
    stopped(running)
    (line,) = lines(tmp_path / "error.log")
    assert "ValueError: broken" in line["exception"]


def test_the_console_is_readable_and_safe(tmp_path: Path) -> None:
    console = io.StringIO()
    running = start_logging(section(None, console=True), console=console)
    get_logger("room").warning("queue full", queue="evil\x1b[2J\nname")
    stopped(running)
    (line,) = console.getvalue().splitlines()
    assert re.match(r"\d\d:\d\d:\d\d warning  queue full  queue=evil\\x1b\[2J\\nname$", line)
    assert list(tmp_path.iterdir()) == []


def test_what_a_stranger_says_begins_no_line_and_steers_no_terminal(tmp_path: Path) -> None:
    console = io.StringIO()
    running = start_logging(section(tmp_path, console=True), console=console)
    evil = "x\x85\u2028\n12:00:00 error  forged\x1b[2J\x9b2J\u202e"
    try:
        raise ValueError(evil)
    except ValueError:
        get_logger("room").exception("it failed", client=evil)
    stopped(running)
    (line,) = lines(tmp_path / "error.log")
    assert line["client"] == evil
    assert evil in line["exception"]
    text = (tmp_path / "error.log").read_text()
    assert text.removesuffix("\n").isprintable()
    shown = console.getvalue().splitlines()
    assert all(map(str.isprintable, shown))
    assert not any(line.startswith("12:00:00 error") for line in shown)


def test_files_are_rotated_by_size(tmp_path: Path) -> None:
    running = start_logging(section(tmp_path, max_size_mb=0.001, backups=2))
    for number in range(100):
        get_logger("room").info("a line", number=number)
    stopped(running)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"info.log", "info.log.1", "info.log.2", "error.log"}
    assert all(path.stat().st_size <= 1048 for path in tmp_path.iterdir())
    assert lines(tmp_path / "info.log")[-1]["number"] == 99


@pytest.mark.parametrize("admitted_by", ["the next line", "the end"])
def test_a_stalled_log_costs_lines_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admitted_by: str
) -> None:
    monkeypatch.setattr(limits, "LOG_QUEUE", 10)
    let_go = threading.Event()

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            let_go.wait(30)
            return super().write(text)

    console = Stalled()
    running = start_logging(section(tmp_path, console=True), console=console)
    for number in range(100):
        get_logger("room").info("a line", number=number)  # would hang here if it waited
    assert running.dropped >= 88
    assert running.stats()["lines_dropped"] == running.dropped
    let_go.set()
    while running.stats()["lines_waiting"]:
        threading.Event().wait(0.01)
    if admitted_by == "the next line":
        get_logger("room").info("it flows again")
    stopped(running)
    assert console.getvalue().count(f"{running.dropped} log lines were dropped") == 1


def test_what_waits_for_a_slow_log_is_written_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_QUEUE", 10)
    let_go = threading.Event()

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            let_go.wait(30)
            return super().write(text)

    running = start_logging(section(tmp_path, console=True), console=Stalled())
    while not running.dropped:
        get_logger("room").info("a line")
    later = threading.Timer(0.1, let_go.set)
    later.start()
    running.stop()
    later.join()
    written = [line["message"] for line in lines(tmp_path / "info.log")]
    assert written.count("a line") >= 10


def test_a_file_that_takes_no_more_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "info.log").symlink_to("/dev/full")
    running = start_logging(section(tmp_path))
    get_logger("room").info("a line")
    while running.stats()["lines_waiting"]:
        threading.Event().wait(0.01)
    running._listener.stop()
    assert running.stats()["write_failures"] >= 1
    running._listener.start()
    for handler in running._handlers:
        handler.stream = io.StringIO()  # type: ignore[attr-defined]
    stopped(running)
    assert capsys.readouterr().err == ""


def test_a_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"logging.directory = .*file/logs: can't be written"):
        start_logging(section(tmp_path / "file" / "logs"))


def test_a_library_says_nothing_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("room").error("nobody listens")
    assert capsys.readouterr() == ("", "")


def test_an_application_may_listen_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ciphermq"):
        get_logger("room", client="a").info("100% sure", count=1)
    assert caplog.messages == ["100% sure client=a count=1"]


def test_stopping_leaves_the_loggers_as_they_were(tmp_path: Path) -> None:
    root = logging.getLogger("ciphermq")
    before = (root.level, root.propagate, list(root.handlers))
    stopped(start_logging(section(tmp_path)))
    assert (root.level, root.propagate, list(root.handlers)) == before


def test_counters_only_rise() -> None:
    counters = Counters("a")
    counters.add("a")
    counters.add("b", 5)
    assert counters.snapshot() == {"a": 1, "b": 5}
    assert counters["a"] == 1
    assert counters["never"] == 0


# --- files of their own, and by time --------------------------------------------------------------


def test_each_file_may_have_a_path_of_its_own(tmp_path: Path) -> None:
    paths = {
        f"{name}_file_path": tmp_path / "logs" / f"server_{name}.log"
        for name in ("info", "debug", "error")
    }
    running = start_logging(section(None, level="debug", **paths))
    log = get_logger("room")
    for method in (log.debug, log.info, log.error):
        method("said")
    stopped(running)
    found = {name: len(lines(path)) for name, path in paths.items()}
    assert found == {"info_file_path": 2, "debug_file_path": 3, "error_file_path": 1}


def test_one_path_leaves_the_others_in_the_directory(tmp_path: Path) -> None:
    stopped(start_logging(section(tmp_path / "d", error_file_path=tmp_path / "e" / "mine.log")))
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["info.log"]
    assert (tmp_path / "e" / "mine.log").exists()


def test_a_path_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"logging\.error_file_path = .*mine\.log"):
        start_logging(section(tmp_path, error_file_path=tmp_path / "file" / "mine.log"))


@pytest.mark.parametrize(
    ("rotation", "hours", "files"),
    [("never", (0, 1, 50), 1), ("hourly", (0, 0.2, 1, 1.1, 50), 3), ("daily", (0, 1, 24.5, 25), 2)],
)
def test_files_are_rotated_by_the_clock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rotation: str,
    hours: tuple[float, ...],
    files: int,
) -> None:
    midnight = 1_800_057_600  # 2027-01-16 00:00 UTC
    path = tmp_path / "info.log"
    path.touch()
    os.utime(path, (midnight, midnight))
    running = start_logging(section(tmp_path, rotation=rotation))
    log = logging.getLogger("ciphermq.room")
    for hour in hours:
        record = log.makeRecord(log.name, logging.INFO, "f", 1, f"at {hour}", (), None)
        record.created = midnight + hour * 3600
        log.handle(record)
    stopped(running)
    assert len(list(tmp_path.glob("info.log*"))) == files
    assert [line["message"] for line in lines(path)][-1] == f"at {hours[-1]}"
    said = sum(len(lines(found)) for found in tmp_path.glob("info.log*"))
    assert said == len(hours)


def test_an_hour_that_ended_while_the_server_was_down_has_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "info.log"
    path.write_text('{"message": "of yesterday"}\n')
    os.utime(path, (1_000_000, 1_000_000))
    running = start_logging(section(tmp_path, rotation="hourly"))
    get_logger("room").info("of today")
    stopped(running)
    assert [line["message"] for line in lines(path)] == ["of today"]
    assert [line["message"] for line in lines(tmp_path / "info.log.1")] == ["of yesterday"]
