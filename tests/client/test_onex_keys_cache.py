"""Keys of 1.x receivers: asked for once in a while, compared with the pin each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nacl import bindings

from ciphermq.client.onexkeys import OnexKeys
from ciphermq.client.trust import TrustFile
from ciphermq.custody.onex import fingerprint
from ciphermq.errors import ConnectionLost, KeyNotPinned, PinnedKeyChanged


def key(number: int) -> bytes:
    return bindings.crypto_scalarmult_base(bytes([number]) * 32)


class Broker:
    """Gives out `now`, and remembers who was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now = key(1)
        self.error: Exception | None = None

    async def ask(self, client: str) -> bytes:
        self.asked.append(client)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.now


@pytest.fixture
def trust(tmp_path: Path) -> TrustFile:
    made = TrustFile(tmp_path / "trust.json")
    for name in ("a", "b", "c"):
        pin(made, name, key(1))
    return made


def pin(trust: TrustFile, name: str, public_key: bytes) -> None:
    trust.trust_onex(name, bytes.fromhex(fingerprint(public_key)))


async def test_it_is_asked_for_once(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask)
    assert await asyncio.gather(*(keys.key("a") for _ in range(5))) == [key(1)] * 5
    assert await keys.key("a") == key(1)
    assert broker.asked == ["a"]
    assert await keys.newest("a") == key(1)
    assert broker.asked == ["a", "a"]


async def test_it_is_asked_for_again_after_a_while(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask, lifetime=-1.0)
    await keys.key("a")
    await keys.key("a")
    assert broker.asked == ["a", "a"]


async def test_only_so_many_are_kept(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask, most=2)
    for name in ("a", "b", "a", "c", "c", "b", "a"):
        await keys.key(name)
    assert broker.asked == ["a", "b", "c", "a"]


async def test_a_pin_counts_from_the_moment_it_is_made_or_taken_back(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask)
    await keys.key("a")
    trust.forget_onex("a")
    with pytest.raises(KeyNotPinned):
        await keys.key("a")
    pin(trust, "a", key(2))
    with pytest.raises(PinnedKeyChanged):
        await keys.key("a")
    broker.now = key(2)
    assert await keys.key("a") == key(2)


async def test_what_failed_is_not_kept(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask)
    broker.error = ConnectionLost("gone")
    with pytest.raises(ConnectionLost):
        await keys.key("a")
    broker.error = None
    assert await keys.key("a") == key(1)


async def test_who_gives_up_takes_it_from_nobody_else(trust: TrustFile) -> None:
    broker = Broker()
    keys = OnexKeys(trust, broker.ask)
    first = asyncio.ensure_future(keys.key("a"))
    second = asyncio.ensure_future(keys.key("a"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == key(1)
    assert broker.asked == ["a"]
