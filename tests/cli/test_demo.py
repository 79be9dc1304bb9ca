"""The demo tells the truth, and leaves nothing behind, however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ciphermq.cli import rehearsal
from ciphermq.cli.demo import _show
from ciphermq.cli.rehearsal import Outcome, Rehearsal, real_lines
from ciphermq.client.layout import IdentitySettings
from ciphermq.custody.files import is_elsewhere
from support import softhsm

pytestmark = pytest.mark.crash

MEMBERS = {
    "sent",
    "confirmed",
    "received",
    "duplicates_dropped",
    "lost",
    "checksum_equal",
    "kills",
    "messages_per_second",
}


ELSEWHERE = {
    "CIPHERMQ_URL": "cmq://127.0.0.1:1",
    "CIPHERMQ_IDENTITY": "nobody",
    "CIPHERMQ_STORAGE__DIRECTORY": "/nowhere",
    "CIPHERMQ_SERVER__ADDRESS": "192.0.2.1:1",
}
"""What may be set for a deployment that is not the demo's."""


def start(directory: Path, *words: str) -> subprocess.Popen[str]:
    """The demo, with its temporary directories in `directory`, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ciphermq", "demo", *words],
        env={**os.environ, **ELSEWHERE, "TMPDIR": str(directory), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_in(directory: Path) -> list[str]:
    """Command lines of the processes that work in `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(directory) in command:
            found.append(command)
    return found


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_what_it_finds_as_json(tmp_path: Path) -> None:
    process = start(tmp_path, "--messages", "20000", "--json")
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert errors == ""
    found = json.loads(output)
    assert found.keys() >= MEMBERS
    assert found["sent"] == found["confirmed"] == found["received"] == 20_000
    assert found["lost"] == found["shown_twice"] == 0
    assert found["checksum_equal"] is True
    assert found["kills"] == 2
    assert found["messages_per_second"] > 0
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_with_the_receivers_key_on_a_token(tmp_path: Path) -> None:
    """Killed or not, it opens what comes with a key that it never had."""
    softhsm.require()
    kept = tmp_path / "kept"
    process = start(tmp_path, "--messages", "20000", "--softhsm", "--json", "--keep", str(kept))
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert found["sent"] == found["confirmed"] == found["received"] == 20_000
    assert (found["lost"], found["shown_twice"], found["kills"]) == (0, 0, 2)
    assert found["checksum_equal"] is True
    bob = kept / "run" / "deployment" / "identities" / "bob"
    assert IdentitySettings.read(bob).custody == "pkcs11"
    (file,) = (bob / "sealing").glob("*.key")
    assert is_elsewhere(file.read_bytes())
    # The PIN is in its file, and nowhere else: in no log, no configuration, no store.
    pin = (kept / "hsm" / "pin").read_bytes().strip()
    holders = [path for path in kept.rglob("*") if path.is_file() and pin in path.read_bytes()]
    assert holders == [kept / "hsm" / "pin"]
    assert processes_in(tmp_path) == []


def test_a_table_and_where_to_look_next(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    process = start(tmp_path, "--messages", "500", "--no-kill", "--keep", str(kept))
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    for words in ("sent", "500", "lost", "equal", "ciphermq status"):
        assert words in output
    assert (kept / "received.txt").read_bytes() == (kept / "sent.txt").read_bytes()
    assert (kept / "run" / "deployment" / "server" / "config.toml").is_file()
    assert processes_in(tmp_path) == []

    # It never writes over anything.
    again = start(tmp_path, "--messages", "500", "--keep", str(kept))
    _, errors = again.communicate(timeout=60)
    assert again.returncode != 0
    assert str(kept) in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "--messages", "300000")
    until(lambda: any(" receive " in each for each in processes_in(tmp_path)), "a receiver")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    # One that was just being started is killed by the kernel, a moment later.
    until(lambda: not processes_in(tmp_path), "the end of its processes")


def test_killed_itself_it_takes_its_processes_along(tmp_path: Path) -> None:
    process = start(tmp_path, "--messages", "300000")
    until(lambda: any(" receive " in each for each in processes_in(tmp_path)), "a receiver")
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not processes_in(tmp_path), "the end of its processes")


def compare(tmp_path: Path, received: bytes) -> Outcome:
    """What the demo finds when this came out for ``a b c``."""
    from rich.console import Console

    run = Rehearsal(tmp_path, 3, kill=False, console=Console(quiet=True))
    (tmp_path / "sent.txt").write_bytes(b"a\nb\nc\n")
    (tmp_path / "received.txt").write_bytes(received)
    return run._compare([b"a\n", b"b\n", b"c\n"], confirmed=3, dropped=0, took=1.0)


@pytest.mark.parametrize(
    ("received", "lost", "shown_twice", "equal"),
    [
        (b"a\nb\nc\n", 0, 0, True),
        (b"a\nc\n", 1, 0, False),
        (b"a\nb\nb\nc\n", 0, 1, False),
        (b"a\nc\nb\n", 0, 0, False),
        (b"a\nb\nX\n", 1, 1, False),
        (b"", 3, 0, False),
    ],
)
def test_it_would_notice(
    received: bytes, lost: int, shown_twice: int, equal: bool, tmp_path: Path
) -> None:
    outcome = compare(tmp_path, received)
    assert (outcome.lost, outcome.shown_twice, outcome.checksum_equal) == (lost, shown_twice, equal)
    assert outcome.perfect is (received == b"a\nb\nc\n")


def test_the_table_says_so_too(tmp_path: Path) -> None:
    from rich.console import Console

    printed = io.StringIO()
    _show(compare(tmp_path, b"a\nb\nb\n"), None, Console(file=printed, width=100))
    assert "DIFFERENT" in printed.getvalue()


def test_the_lines_are_this_machine_s_own() -> None:
    lines, whence = real_lines(5000)
    assert len(lines) == 5000
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert whence


def test_python_s_library_is_there_when_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def library_only(path: Path, pattern: str):
        return iter(()) if pattern in {"*", "*.list"} else Path.rglob(path, pattern)

    monkeypatch.setattr(rehearsal.Path, "glob", library_only)
    lines, whence = real_lines(100_000)
    assert whence == "Python's own library"
    assert len(lines) == 100_000
