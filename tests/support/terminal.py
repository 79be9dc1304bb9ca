"""A `ciphermq` command at a terminal: for the questions that it asks only people."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_COMMAND = """\
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from ciphermq.cli.main import main
main()
"""


class Terminal:
    """One run of the command, with a terminal for its input, output and errors."""

    def __init__(self, *words: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *map(str, words)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        os.close(theirs)
        self.output = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def expect(self, text: str, seconds: float = 30) -> None:
        """Wait until `text` is printed, after what was expected before."""
        deadline = time.monotonic() + seconds
        while (at := self.output.find(text, self._seen)) < 0:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in {self.output!r}"
        self._seen = at + len(text)

    def type(self, text: str, *, hidden: bool = False) -> None:
        """Type a line; a `hidden` one is not shown, so it waits until the terminal is told so."""
        while hidden and termios.tcgetattr(self._ours)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(self._ours, f"{text}\n".encode())

    def wait(self, seconds: float = 30) -> int:
        """The exit status, once it has ended."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # the other side has gone
            return False
        self.output += data.decode()
        return bool(data)
