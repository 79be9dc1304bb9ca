"""A whole deployment in one directory, run as processes: for the demo, the crash tests, the bench.

What runs is the `ciphermq` command itself, over mutual TLS on the loopback, each process with
its output in a file. Nothing outlives the program that started it: not an error, not Ctrl-C, and
(the kernel sees to that) not even a SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import ciphermq
from ciphermq.cli import deployment
from ciphermq.cli.common import HOME_VARIABLE
from ciphermq.cli.deployment import ADMINISTRATOR
from ciphermq.client import enrol
from ciphermq.client.connecting import Connecting
from ciphermq.errors import Unfinished, WaitTimeout

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 20.0

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the command. Not between fork and exec of our own:
# this process may have threads. The parent may be gone before prctl is called, hence the question.
_LAUNCH: Final = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or sys.exit("its parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def _without_settings(base: Mapping[str, str]) -> dict[str, str]:
    """`base` without what is set for another deployment: its broker, its identity, its limits."""
    return {name: base[name] for name in base if not name.startswith("CIPHERMQ_")}


class Process:
    """One `ciphermq` command that runs, or did."""

    def __init__(
        self, name: str, words: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        """What it prints; a process of the same name adds to it."""
        self._before = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
        command += [sys.executable, "-m", "ciphermq", *words]
        with log.open("ab") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_without_settings(os.environ) | dict(environment),
                start_new_session=True,  # a Ctrl-C in the terminal is its parent's to answer
            )

    @property
    def pid(self) -> int:
        """Its process id; the command's own, since the launcher becomes it."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What this process has printed so far."""
        with self.log.open("rb") as file:
            file.seek(self._before)
            return file.read().decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL: no clean-up, no last words."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> int:
        """SIGTERM and its exit status; SIGKILL for one that does not listen."""
        self._popen.terminate()
        try:
            return self._popen.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Unfinished(
                f"{self.name} did not stop within {STOP_TIMEOUT:g} s of a SIGTERM"
            ) from None

    def wait(self, timeout: float = START_TIMEOUT) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise WaitTimeout(
                f"{self.name} has not ended within {timeout:g} s; it printed:\n{self.output}"
            ) from None

    def wait_for(self, pattern: str, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """The first match of `pattern` in what it prints."""
        found: list[re.Match[str]] = []

        def printed() -> bool:
            found.extend(re.finditer(pattern, self.output))
            return bool(found)

        self._until(printed, f"print {pattern!r}", timeout)
        return found[0]

    def _until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.running and not condition():
                raise Unfinished(
                    f"{self.name} ended with status {self._popen.returncode} before it could "
                    f"{what}; it printed:\n{self.output}"
                )
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{self.name} did not {what} within {timeout:g} s")
            time.sleep(0.005)


class Stage:
    """A deployment in a directory of its own, with processes that end with the block.

    The broker has a port of its own on the loopback and keeps it, so that it can be killed and
    started again while its clients go on knocking.
    """

    def __init__(self, directory: Path, clients: Sequence[str], *, port: int) -> None:
        """Makes the deployment in the new directory `directory`, without passphrases."""
        now_ms = time.time_ns() // 1_000_000
        self.directory = directory
        self.port = port
        self.url = f"cmq://localhost:{port}"
        directory.mkdir(parents=True)
        self.deployment = deployment.make(
            directory / "deployment", now_ms=now_ms, passphrase=None, port=port
        )
        authority = self.deployment.open_authority(None)
        for name in clients:
            enrol.create(
                self.deployment.identity(name),
                name=name,
                url=self.url,
                authority=authority,
                now_ms=now_ms,
            )
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()

    def start(
        self,
        name: str,
        *words: str,
        identity: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Process:
        """Run `ciphermq` with these words, as `identity` where one is named; `settings` by the
        names that they have in the environment."""
        environment = {HOME_VARIABLE: str(self.deployment.home), **(settings or {})}
        if identity is not None:
            environment["CIPHERMQ_IDENTITY"] = str(self.deployment.identity(identity))
        log = self.directory / f"{name}.log"
        process = Process(name, words, log=log, environment=environment)
        self._processes.append(process)
        return process

    def broker(self, settings: Mapping[str, str] | None = None) -> Process:
        """The broker, ready to serve; `settings` go before those of its configuration."""
        words = ("server", "--config", str(self.deployment.config))
        process = self.start("broker", *words, settings=settings)
        process.wait_for("ciphermq ready on")
        return process

    def register(self, name: str) -> None:
        """Have the broker know a client's key before anybody seals to it."""

        async def register() -> None:
            async with self._connect(name) as client:
                await client.register_key()

        asyncio.run(register())

    def wait_until_empty(self, queue: str, timeout: float = START_TIMEOUT) -> None:
        """Until nothing waits in `queue` and nothing of it is in a receiver's hands."""

        async def empty() -> None:
            async with self._connect(ADMINISTRATOR) as client:
                left = 1
                while left:
                    rows = [row async for row in client.rows("queues", queue)]
                    left = sum(row["messages_ready"] + row["messages_unacked"] for row in rows)
                    await asyncio.sleep(0.02)

        try:
            asyncio.run(asyncio.wait_for(empty(), timeout))
        except TimeoutError:
            raise WaitTimeout(f"queue {queue!r} is not empty after {timeout:g} s") from None

    def wait_for_consumers(self, count: int, timeout: float = START_TIMEOUT) -> None:
        """Until the broker has so many consumers, of whatever queues."""

        async def reached() -> None:
            async with self._connect(ADMINISTRATOR) as client:
                there = -1
                while there != count:
                    there = len([row async for row in client.rows("consumers")])
                    await asyncio.sleep(0.02)

        try:
            asyncio.run(asyncio.wait_for(reached(), timeout))
        except TimeoutError:
            raise WaitTimeout(f"{count} consumers are not there after {timeout:g} s") from None

    def _connect(self, name: str) -> Connecting:
        # A broker that was just killed is on its way. All is said, lest $CIPHERMQ_URL say other.
        identity = self.deployment.identity(name)
        return ciphermq.connect(self.url, identity=identity, passphrase="", wait=START_TIMEOUT)


def free_port() -> int:
    """A loopback port that nothing listens on, and that the kernel gives to nobody else.

    It is below the range for outgoing connections (32768 and up on Linux): otherwise a client
    that knocks while the broker is away can be given the very port that the broker wants back.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
