"""Control clients as they come: many, slow, silent, with any bytes, gone before the answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_office import PaperOffice

from ciphermq import limits
from ciphermq.proxy.control.commands import help_text
from ciphermq.proxy.control.desk import Desk

PATIENCE = 60.0


@contextlib.asynccontextmanager
async def _served(
    office: PaperOffice, path: Path, patience: float = PATIENCE
) -> AsyncIterator[Callable[[bytes], object]]:
    """A desk at a socket; what comes back for some bytes, until the end."""
    desk = Desk(office, patience)
    server = await asyncio.start_unix_server(
        desk.serve,
        path / "control",
        limit=limits.PROXY_CONTROL_LINE,
        backlog=limits.PROXY_BACKLOG,
    )

    async def said(line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path / "control")
        writer.write(line)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        writer.close()
        return answer

    async with server:
        yield said


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


async def test_one_command_a_connection(tmp_path: Path) -> None:
    office = PaperOffice()
    async with _served(office, tmp_path) as said:
        assert await said(b"DATACENTER SET dc1\nDATACENTER SET dc2\n") == b""
        assert await said(b"DATACENTER PRINT\n") == b"dc1\n"


async def test_the_status_comes_after_the_answer_for_those_that_ask(tmp_path: Path) -> None:
    async with _served(PaperOffice(), tmp_path) as said:
        assert await said(b"--status DATACENTER SET dc1\n") == b"\x000"
        assert await said(b"--status DATACENTER PRINT\n") == b"dc1\n\x000"
        assert await said(b"--status BACKEND DELETE x\n") == b"Backend 'x' not found\n\x003"
        assert await said(b"--status --json BACKEND DELETE x\n") == (
            b'{"error": "proxy", "message": "Backend \'x\' not found"}\n\x003'
        )
        assert (await said(b"--status WHAT\n")) == help_text().encode() + b"\x003"


async def test_a_line_may_end_with_the_stream_and_be_spoken_by_one_that_says_no_more(
    tmp_path: Path,
) -> None:
    async with _served(PaperOffice(), tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        writer.write(b"BACKEND DELETE x")
        writer.write_eof()
        assert await reader.read() == b"Backend 'x' not found\n"
        writer.close()


async def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    office = PaperOffice()
    async with _served(office, tmp_path) as said:
        for length in (1, 40):
            line = b"MAP FARM " + b"v" * length * limits.PROXY_CONTROL_LINE + b" f\n"
            answer = await said(line)
            assert answer == f"A command has at most {limits.PROXY_CONTROL_LINE} bytes.\n".encode()
        assert office.changes == []
        assert await said(b"DATACENTER PRINT\n") == b"\n"


async def test_one_that_never_finishes_its_line_is_left_and_disturbs_nobody(
    tmp_path: Path,
) -> None:
    async with _served(PaperOffice(), tmp_path, patience=0.2) as said:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        writer.write(b"DATACENTER")
        assert await said(b"DATACENTER PRINT\n") == b"\n"
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()


async def test_one_that_does_not_read_is_left(tmp_path: Path) -> None:
    class Wordy(PaperOffice):
        async def sessions(self) -> list[Mapping[str, object]]:
            return [{"id": 1, "vhost": "v" * 16_000_000}]

    async with _served(Wordy(), tmp_path, patience=0.2):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        writer.write(b"CONN\n")
        await asyncio.sleep(0)
        # Its answer ends early, and nothing of it is kept for a reader that came too late.
        await _until(lambda: len(asyncio.all_tasks()) == 1)
        with contextlib.suppress(ConnectionResetError):
            assert len(await reader.read()) < 16_000_000
        writer.close()


async def test_readers_of_statistics_that_leave_are_noticed(tmp_path: Path) -> None:
    office = PaperOffice()
    async with _served(office, tmp_path):
        writers = []
        for _ in range(20):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
            writer.write(b"STAT LISTEN json\n")
            assert (await reader.readline()).startswith(b"{")
            writers.append(writer)
        assert office.listening == 20
        for writer in writers:
            writer.close()
        await _until(lambda: office.listening == 0)


async def test_many_at_once_are_all_answered(tmp_path: Path) -> None:
    office = PaperOffice()
    count = 3 * limits.PROXY_CONTROL_CLIENTS
    async with _served(office, tmp_path) as said:
        answers = await asyncio.gather(
            *(said(f"--status MAP FARM v{number} f\n".encode()) for number in range(count))
        )
    assert set(answers) == {b"\x000"}
    assert len(office.configuration.maps) == count


async def test_more_than_have_places_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROXY_CONTROL_CLIENTS", 1)
    office = PaperOffice()
    async with _served(office, tmp_path) as said:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        writer.write(b"STAT LISTEN json\n")
        await reader.readline()
        waiting = asyncio.ensure_future(said(b"DATACENTER PRINT\n"))
        await reader.readline()
        assert not waiting.done()
        writer.close()
        assert await waiting == b"\n"


async def test_a_fault_in_a_command_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(PaperOffice):
        async def sessions(self) -> list[Mapping[str, object]]:
            raise ZeroDivisionError("on purpose")

        async def health(self) -> Mapping[str, Mapping[str, object]]:
            raise BrokenPipeError("to a worker, say")

    async with _served(Faulty(), tmp_path) as said:
        assert await said(b"--status CONN\n") == (
            b"The proxy has a fault, which is in its log: ZeroDivisionError('on purpose')\n\x003"
        )
        assert (await said(b"--status BACKEND HEALTH\n")).endswith(b"worker, say')\n\x003")
        assert await said(b"DATACENTER PRINT\n") == b"\n"
    assert "A control command failed" in caplog.text


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer_and_an_end(line: bytes) -> None:
    async def work() -> None:
        office = PaperOffice()
        near, far = await _pair()
        serving = asyncio.ensure_future(Desk(office).serve(*far))
        near[1].write(b"--status " + line)
        near[1].write_eof()
        async with asyncio.timeout(PATIENCE):
            if not office.listening:
                answer = await near[0].read()
                assert answer == b"" or answer[-2:] in (b"\x000", b"\x003")
            near[1].close()
            await serving

    asyncio.run(work())


async def _pair() -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return [await asyncio.open_unix_connection(sock=end) for end in socket.socketpair()]
