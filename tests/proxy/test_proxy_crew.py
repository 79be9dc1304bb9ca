"""The supervisor's workers, real ones, asked."""

from __future__ import annotations

from typing import Any

from ciphermq.proxy.crew import Crew
from ciphermq.proxy.messages import AskReport, Begin
from ciphermq.proxy.model import Configuration


def beginning(number: int) -> tuple[Begin, list[int]]:
    begin = Begin(
        worker=number,
        workers=2,
        first_id=1,
        configuration=Configuration(),
        console_level=0,
        file_level=0,
        log_as_json=False,
        listeners=(),
    )
    return begin, []


async def heard(worker: int, message: Any) -> None:
    return None


async def test_all_are_asked_before_anything_is_awaited() -> None:
    """A change reaches the workers that there are when it is made, and no later ones: these begin
    with it."""
    crew = Crew(2, beginning, heard, lambda _: None)
    await crew.start()
    try:
        asked: list[int] = []

        def question(worker: int) -> AskReport:
            asked.append(worker)
            return AskReport()

        answers = crew.ask_all(question)
        assert asked == [0, 1]
        assert [report.next_id for report in await answers] == [1, 1]
    finally:
        await crew.stop()
