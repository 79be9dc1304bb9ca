"""An `Office` without sockets and processes: what commands change is on paper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from ciphermq.proxy.change import Change
from ciphermq.proxy.model import Configuration
from ciphermq.proxy.office import SessionAct, VhostAct
from ciphermq.proxy.statistics import Snapshot, Tally


class PaperOffice:
    def __init__(self, config_file: Path | None = None) -> None:
        self.configuration = Configuration()
        self.config_file = config_file
        self.changes: list[Change] = []
        self.acts: list[tuple[int | str, str]] = []
        self.known_sessions: list[Mapping[str, object]] = []
        self.known_health: dict[str, Mapping[str, object]] = {}
        self.listening = 0
        self.left = self.restarted = False

    async def change(self, change: Change) -> None:
        self.configuration = change.apply(self.configuration)
        self.changes.append(change)

    async def sessions(self) -> list[Mapping[str, object]]:
        return self.known_sessions

    async def session(self, number: int, act: SessionAct) -> bool:
        self.acts.append((number, act))
        return any(one["id"] == number for one in self.known_sessions)

    async def vhost(self, vhost: str, act: VhostAct) -> int:
        self.acts.append((vhost, act))
        return 0

    async def statistics(self) -> AsyncGenerator[Snapshot, None]:
        self.listening += 1
        try:
            while True:
                yield Snapshot(Tally(), 0.0, 0.0, 1, 0, {})
                await asyncio.sleep(0.01)
        finally:
            self.listening -= 1

    async def health(self) -> Mapping[str, Mapping[str, object]]:
        return self.known_health

    async def restart(self) -> None:
        self.restarted = True

    def exit(self) -> None:
        self.left = True
