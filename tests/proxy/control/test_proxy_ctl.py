"""``ciphermq-proxy-ctl`` and ``amqpprox_ctl``, as programs: words, exit statuses, time to start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from paper_office import PaperOffice

from ciphermq import limits
from ciphermq.proxy import ctl
from ciphermq.proxy.control.commands import help_text
from ciphermq.proxy.control.desk import Desk

NEW, OLD = "ciphermq-proxy-ctl", "amqpprox_ctl"


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[PaperOffice]:
    """An office with its desk at `tmp_path`/control."""
    office = PaperOffice()
    server = await asyncio.start_unix_server(
        Desk(office).serve, tmp_path / "control", limit=limits.PROXY_CONTROL_LINE
    )
    async with server:
        yield office


async def _start(program: str, *words: str) -> asyncio.subprocess.Process:
    # As an installed command is started: its name is in argv[0].
    start = (
        f"import sys; sys.argv[0] = '/usr/bin/{program}';"
        "from ciphermq.proxy.ctl import main; main()"
    )
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", start, *words, stdin=pipe, stdout=pipe, stderr=pipe
    )


async def _run(program: str, *words: str) -> tuple[int | None, str, str]:
    process = await _start(program, *words)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_it_says_its_words_and_shows_the_answer(office: PaperOffice, tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    assert await _run(NEW, control, "datacenter", "set", "dc1") == (0, "", "")
    assert await _run(NEW, control, "DATACENTER", "PRINT") == (0, "dc1\n", "")
    # A whole command in one argument, and names with spaces in their own.
    assert await _run(NEW, control, "MAP FARM / f") == (0, "", "")
    assert await _run(NEW, control, "MAP", "FARM", 'a "b', "f") == (0, "", "")
    assert sorted(office.configuration.maps) == ["/", 'a "b']


@pytest.mark.parametrize(
    "words", [("--json", "@", "CONN"), ("@", "--json", "CONN"), ("@", "CONN", "--json")]
)
async def test_json_may_be_asked_for_anywhere(
    office: PaperOffice, tmp_path: Path, words: tuple[str, ...]
) -> None:
    office.known_sessions = [{"id": 1}]
    control = str(tmp_path / "control")
    said = [control if word == "@" else word for word in words]
    assert await _run(NEW, *said) == (0, '[{"id": 1}]\n', "")


async def test_statuses(office: PaperOffice, tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    assert await _run(NEW, control, "BACKEND", "DELETE", "x") == (3, "Backend 'x' not found\n", "")
    assert await _run(NEW, control, "WHAT") == (3, help_text(), "")
    status, out, err = await _run(NEW, str(tmp_path / "nowhere"), "CONN")
    assert (status, out) == (2, "")
    assert err.startswith(f"No proxy answers at {tmp_path}/nowhere: ")
    status, _, err = await _run(NEW, "x" * 200, "CONN")
    assert (status, err.startswith("No proxy answers at")) == (2, True)
    for words in ((), (control,), ("--what", control, "CONN"), ("--json", control)):
        status, out, err = await _run(NEW, *words)
        assert (status, out) == (1, "")
        assert err.startswith("Usage: ciphermq-proxy-ctl [--json] CONTROL_SOCKET WORD...\n")
    status, _, err = await _run(NEW, control, "MAP", "FARM", "a\nb", "f")
    assert (status, err) == (1, "A command is one line.\n")
    status, out, _ = await _run(NEW, "--help")
    assert (status, out.startswith("Usage: ")) == (0, True)


async def test_under_its_old_name_it_is_the_old_program(
    office: PaperOffice, tmp_path: Path
) -> None:
    control = str(tmp_path / "control")
    assert await _run(OLD, control, "MAP", "FARM", "/", "f") == (0, "", "")
    assert await _run(OLD, control, "MAP PRINT") == (0, '"/" => Farm:f\n', "")
    assert await _run(OLD, control, "BACKEND", "DELETE", "x") == (0, "Backend 'x' not found\n", "")
    status, _, err = await _run(OLD, control)
    assert (status, err.startswith("Usage: amqpprox_ctl CONTROL_SOCKET WORD...\n")) == (1, True)
    assert (await _run(OLD, str(tmp_path / "nowhere"), "CONN"))[0] == 2


async def test_a_proxy_that_ends_before_its_answer_is_a_failure(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"half an ans")
        writer.close()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "control"):
        assert await _run(NEW, str(tmp_path / "control"), "CONN") == (
            3,
            "half an ans",
            "The proxy ended before it had answered.\n",
        )


async def test_a_proxy_that_hangs_up_at_once_is_a_failure(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "control"):
        status, out, err = await _run(NEW, str(tmp_path / "control"), "CONN")
        assert (status, out, err) == (3, "", "The proxy ended before it had answered.\n")


async def test_a_line_that_is_too_long_is_refused_with_a_sentence(
    office: PaperOffice, tmp_path: Path
) -> None:
    names = ["b" * 200] * (limits.PROXY_CONTROL_LINE // 100)
    said = await _run(NEW, str(tmp_path / "control"), "FARM", "ADD", "f", "round-robin", *names)
    assert said == (3, f"A command has at most {limits.PROXY_CONTROL_LINE} bytes.\n", "")


async def test_a_status_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for byte in b"out\n\x000":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async with await asyncio.start_unix_server(dribble, tmp_path / "control"):
        assert await _run(NEW, str(tmp_path / "control"), "CONN") == (0, "out\n", "")


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGINT])
async def test_statistics_end_quietly_with_their_reader_and_at_ctrl_c(
    office: PaperOffice, tmp_path: Path, number: signal.Signals
) -> None:
    process = await _start(NEW, str(tmp_path / "control"), "STAT", "LISTEN", "json")
    assert process.stdout is not None
    assert process.stderr is not None
    assert (await process.stdout.readline()).startswith(b"{")
    if number == signal.SIGINT:
        process.send_signal(number)
    else:
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        assert await process.wait() == -number
        assert await process.stderr.read() == b""


async def test_fifty_at_once(office: PaperOffice, tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    runs = (_run(NEW, control, "MAP", "FARM", f"v{number}", "f") for number in range(50))
    assert set(await asyncio.gather(*runs)) == {(0, "", "")}
    assert len(office.configuration.maps) == 50


def test_it_brings_nothing_that_takes_long_to_start() -> None:
    """The promise is 100 ms; this is what it rests on, whatever else a machine is doing."""
    script = (
        "import sys; before = set(sys.modules); import ciphermq.proxy.ctl;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("ciphermq")}
    assert ours == {
        "ciphermq",
        "ciphermq.errors",
        "ciphermq.proxy",
        "ciphermq.proxy.control",
        "ciphermq.proxy.control.words",
        "ciphermq.proxy.ctl",
        "ciphermq.version",
    }
    others = {name.partition(".")[0] for name in loaded} - {"ciphermq"}
    assert others <= sys.stdlib_module_names
    assert not others & {"asyncio", "ssl", "json", "argparse", "subprocess", "importlib.metadata"}
    assert len(loaded) < 60


def test_a_move_of_a_vhost_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ciphermq.proxy.move import main as move

    handed = []

    def noted(path: str, words: list[str]) -> int:
        handed.append((path, words))
        return 4

    monkeypatch.setattr(move, "main", noted)
    before = signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGINT)
    try:
        assert ctl.run(NEW, ["--json", "/c", "vhost", "MOVE", "/", "--to", "green"]) == 4
    finally:
        signal.signal(signal.SIGPIPE, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert handed == [("/c", ["/", "--to", "green", "--json"])]
