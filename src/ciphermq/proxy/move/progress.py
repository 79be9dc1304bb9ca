"""What a person, or a log, sees of a move that is under way."""

from __future__ import annotations

import sys
import time
from typing import Final, Protocol, TextIO

_EVERY: Final = 2.0


class Progress(Protocol):
    """Told what happens; shows it in its own way."""

    def step(self, text: str) -> None:
        """Something begins, or is worth knowing."""

    def begin(self, total: int) -> None:
        """So many messages are to be moved."""

    def moved(self, count: int, note: str) -> None:
        """So many have been; `note` says what is odd at the moment, if anything is."""

    def end(self) -> None:
        """No more messages."""


class Lines:
    """A line for each step, and one now and then for the messages."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._total = 0
        self._count = 0
        self._began = self._shown = 0.0

    def step(self, text: str) -> None:
        """One line."""
        print(text, file=self._out, flush=True)

    def begin(self, total: int) -> None:
        """Start counting."""
        self._total, self._count = total, 0
        self._began = self._shown = time.monotonic()

    def moved(self, count: int, note: str) -> None:
        """One line every two seconds."""
        self._count = count
        now = time.monotonic()
        if now - self._shown >= _EVERY:
            self._shown = now
            rate = count / (now - self._began)
            odd = f"; {note}" if note else ""
            self.step(f"  {count:,} of {self._total:,} messages, {rate:,.0f} a second{odd}")

    def end(self) -> None:
        """The last line."""
        taken = time.monotonic() - self._began
        self.step(f"  {self._count:,} messages moved in {taken:.1f} s")


class Bars(Lines):
    """A bar for the messages, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        super().__init__()
        self._bar = Bar(
            TextColumn("  messages"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, note="")

    def begin(self, total: int) -> None:
        """Show the bar."""
        super().begin(total)
        self._bar.reset(self._task, total=total, note="")
        self._bar.start()

    def moved(self, count: int, note: str) -> None:
        """Move it on."""
        self._count = count
        self._bar.update(self._task, completed=count, total=max(count, self._total), note=note)

    def end(self) -> None:
        """Take it away."""
        self._bar.stop()
        super().end()


def choose() -> Progress:
    """A bar where somebody sees it move."""
    return Bars() if sys.stderr.isatty() else Lines()
