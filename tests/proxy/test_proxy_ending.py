"""The order in which sessions are ended, and the names of their clients."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.proxy.exiting import drain
from ciphermq.proxy.hostnames import Hostnames


class Guests:
    """Sessions that answer a Close or don't."""

    def __init__(self, *, answering: int, stubborn: int) -> None:
        self.emptied = asyncio.Event()
        self.left: list[Guest] = []
        self.left += [Guest(self, answers=True) for _ in range(answering)]
        self.left += [Guest(self, answers=False) for _ in range(stubborn)]
        self.told: list[tuple[int, str]] = []

    async def drain(self, patience: float = 0, spread: float = 0, close: float = 0) -> int:
        return await drain(
            lambda: list(self.left),
            self.emptied,
            patience=patience,
            spread=spread,
            close_seconds=close,
            reason="the reason",
        )


class Guest:
    def __init__(self, guests: Guests, *, answers: bool) -> None:
        self._guests = guests
        self._answers = answers
        self.forced = False

    def disconnect_graceful(self, reply: int = 200, text: str = "OK") -> None:
        self._guests.told.append((reply, text))
        if self._answers:
            asyncio.get_running_loop().call_soon(self.leave)

    def force_disconnect(self) -> None:
        self.forced = True
        self.leave()

    def leave(self) -> None:
        self._guests.left.remove(self)
        if not self._guests.left:
            self._guests.emptied.set()


async def test_everybody_is_told_and_who_does_not_go_is_cut_off() -> None:
    guests = Guests(answering=3, stubborn=2)
    assert await guests.drain(close=0.05) == 2
    assert guests.left == []
    assert guests.told == [(320, "CONNECTION_FORCED - the reason")] * 5


async def test_who_goes_in_time_is_told_nothing() -> None:
    guests = Guests(answering=2, stubborn=0)
    for guest in list(guests.left):
        asyncio.get_running_loop().call_later(0.01, guest.leave)
    assert await guests.drain(patience=60) == 0
    assert guests.told == []


async def test_closes_are_spread() -> None:
    guests = Guests(answering=10, stubborn=0)
    seen = []
    loop = asyncio.get_running_loop()
    guests_told = guests.told

    async def watch() -> None:
        while guests.left:
            seen.append(len(guests_told))
            await asyncio.sleep(limits.PROXY_DRAIN_STEP / 4)

    watching = loop.create_task(watch())
    assert await guests.drain(spread=0.5, close=60) == 0
    await watching
    assert len(set(seen)) >= 3  # some at a time, not all at once
    assert len(guests.told) == 10


async def test_nobody_there_is_done_at_once() -> None:
    guests = Guests(answering=0, stubborn=0)
    guests.emptied.set()
    assert await guests.drain(patience=600, spread=600, close=600) == 0


# --- names ---------------------------------------------------------------------------------------


class Resolver:
    """Stands in for DNS, which answers when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getnameinfo", self._ask)

    async def _ask(self, address: tuple[str, int], flags: int) -> tuple[str, str]:
        assert flags == socket.NI_NAMEREQD
        self.asked.append(address[0])
        await self.go.wait()
        if address[0].endswith("9"):
            raise socket.gaierror(socket.EAI_NONAME, "no name")
        return f"host-{address[0]}", "0"


async def test_names_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, names = Resolver(monkeypatch), Hostnames()
    resolver.go.set()
    found = await asyncio.gather(*(names.name("10.0.0.1") for _ in range(5)))
    assert set(found) == {"host-10.0.0.1"}
    assert await names.name("10.0.0.1") == names.known("10.0.0.1") == "host-10.0.0.1"
    assert await names.name("10.0.0.9") == "10.0.0.9"  # it has none, and isn't asked again
    assert await names.name("10.0.0.9") == "10.0.0.9"
    assert resolver.asked == ["10.0.0.1", "10.0.0.9"]
    assert names.known("10.0.0.2") == "10.0.0.2"


async def test_nobody_waits_long_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_NAME_TIMEOUT", 0.01)
    resolver, names = Resolver(monkeypatch), Hostnames()
    for number in range(5):
        assert await names.name(f"10.0.0.{number}") == f"10.0.0.{number}"
    assert len(resolver.asked) == limits.PROXY_NAMES_AT_ONCE
    resolver.go.set()
    while names.known("10.0.0.0") == "10.0.0.0":
        await asyncio.sleep(0.005)  # late answers are kept for the next one
    assert await names.name("10.0.0.0") == "host-10.0.0.0"


async def test_only_so_many_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_SOURCES", 3)
    resolver, names = Resolver(monkeypatch), Hostnames()
    resolver.go.set()
    for number in range(5):
        await names.name(f"10.0.0.{number}")
    kept: Any = names._known
    assert list(kept) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
