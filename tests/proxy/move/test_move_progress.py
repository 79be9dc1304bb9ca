"""What is seen of a move that is under way."""

from __future__ import annotations

import io

import pytest

from ciphermq.proxy.move import progress
from ciphermq.proxy.move.progress import Bars, Lines


def test_lines_say_each_step_and_the_sum() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.step("Pause")
    lines.begin(2000)
    lines.moved(1500, "")
    lines.end()
    said = out.getvalue().splitlines()
    assert said[0] == "Pause"
    assert said[-1].startswith("  1,500 messages moved in ")


def test_a_line_says_what_is_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    out = io.StringIO()
    lines = Lines(out)
    lines.begin(2000)
    lines.moved(1000, "farm green takes nothing: low on memory")
    (line,) = out.getvalue().splitlines()
    assert line.startswith("  1,000 of 2,000 messages, ")
    assert line.endswith("; farm green takes nothing: low on memory")


def test_a_bar_goes_with_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(progress.choose(), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bars = progress.choose()
    assert isinstance(bars, Bars)
    for _ in range(2):  # a second sweep finds a few more
        bars.begin(10)
        bars.moved(7, "")
        bars.end()
    assert capsys.readouterr().err.count("7 messages moved in") == 2
