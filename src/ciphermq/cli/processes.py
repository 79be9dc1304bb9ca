"""A whole deployment in one directory, run as processes: for the demo, the crash tests, the bench.

What runs is the `ciphermq` command itself, over mutual TLS on the loopback, each process with
its output in a file. Nothing outlives the program that started it: not an error, not Ctrl-C, and
(the kernel sees to that) not even a SIGKILL.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

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
                env={**os.environ, **environment},
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
