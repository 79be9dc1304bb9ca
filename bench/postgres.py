"""A real PostgreSQL in a directory of its own, to be measured, killed and started again.

It listens on the loopback only, with passwords demanded, and ends with the program that started
it. The server refuses to run as root, so root starts it as Debian's ``postgres`` user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Self

import asyncpg

from ciphermq.cli.processes import free_port

USER = "mq"
PASSWORD = "correct horse/battery staple"
_START_TIMEOUT = 60.0
_DEBIAN = Path("/usr/lib/postgresql")
_SYSTEM_USER = "postgres"

# Become the server's user, then prctl(PR_SET_PDEATHSIG, SIGQUIT), then the server: that is an
# immediate shutdown, which takes its children along.
_LAUNCH = """\
import ctypes, os, sys
parent, uid, gid = map(int, sys.argv[1:4])
if os.getuid() != uid:
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
ctypes.CDLL(None).prctl(1, 3)
os.getppid() == parent or sys.exit("its parent is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; the newest, if there are several."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One cluster of databases, and the server that serves it while it runs."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.directory = Path(tempfile.mkdtemp(prefix="ciphermq-postgres-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._uid, self._gid = os.getuid(), os.getgid()
        if self._uid == 0:
            user = pwd.getpwnam(_SYSTEM_USER)
            self._uid, self._gid = user.pw_uid, user.pw_gid
        self._give(self.directory)
        self._initialise()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.directory / "data"

    @property
    def version(self) -> str:
        """What it calls itself."""
        program = str(self._binaries / "postgres")
        made = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
        return made.stdout.strip()

    def _initialise(self) -> None:
        password = self.directory / "password"
        self.write(password, PASSWORD)
        self._run(
            "initdb",
            *("--pgdata", str(self.data), "--username", USER, "--pwfile", str(password)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"),
        )
        self.configure(
            listen_addresses="127.0.0.1",
            port=str(self.port),
            unix_socket_directories=str(self.directory),
            dynamic_shared_memory_type="mmap",
            shared_buffers="16MB",
            max_connections="40",
            # A kill of the server is not one of the machine: what it wrote is there.
            fsync="off",
        )

    def configure(self, **settings: str) -> None:
        """Add settings; they count from the next start."""
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{value}'\n")

    def write(self, path: Path, text: str) -> None:
        """A file that only the server's user may read."""
        path.write_text(text)
        path.chmod(0o600)
        self._give(path)

    def _give(self, path: Path) -> None:
        os.chown(path, self._uid, self._gid)

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(self._command(program, *words), check=True, **self._options())

    def _command(self, program: str, *words: str) -> list[str]:
        """A program of PostgreSQL's, as the server's user, and no longer than this process."""
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH]
        who = [str(os.getpid()), str(self._uid), str(self._gid)]
        return [*launch, *who, str(self._binaries / program), *words]

    def _options(self, output: IO[bytes] | int = subprocess.PIPE) -> dict[str, Any]:
        return {
            "stdin": subprocess.DEVNULL,
            "stdout": output,
            "stderr": subprocess.STDOUT,
            "cwd": self.directory,
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            "start_new_session": True,
        }

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve, and return when it does."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._try_to_start(deadline):
            # Children of a server that was killed hold its memory until they notice.
            time.sleep(0.1)

    def _try_to_start(self, deadline: float) -> bool:
        log = self.directory / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self.data)), **self._options(output)
            )
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._ready():
                return True
            time.sleep(0.02)
        said = log.read_text()
        if self._process.poll() is None or "pre-existing shared memory" not in said:
            raise AssertionError(f"PostgreSQL did not start; it said:\n{said[-2000:]}")
        return False

    def _ready(self) -> bool:
        assert self._process is not None
        with contextlib.suppress(OSError, IndexError, ValueError):
            lines = (self.data / "postmaster.pid").read_text().split("\n")
            return int(lines[0]) == self._process.pid and lines[7].startswith("ready")
        return False

    def kill(self) -> None:
        """SIGKILL to the server itself; its children end by themselves."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly end that waits for nobody."""
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(_START_TIMEOUT)

    def freeze(self) -> None:
        """Stop every process of it: connections stay, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """The reverse."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in [self._process.pid, *map(int, children.read_text().split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- what is in it --------------------------------------------------------------------------

    async def connect(self, database: str = "postgres") -> asyncpg.Connection:
        """A connection of the test's own."""
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database=database
        )

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """One statement, or several."""
        connection = await self.connect(database)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def rows(self, query: str, database: str) -> list[tuple[Any, ...]]:
        """What a query finds."""
        connection = await self.connect(database)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()
