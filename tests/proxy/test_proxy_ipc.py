"""The conversation between two processes: answers, order, size, descriptors, loss."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.errors import ChannelLost, ConfigError, ProxyError
from ciphermq.proxy.change import SetDatacenter
from ciphermq.proxy.ipc import Channel, Handler, WithDescriptors, socket_pair
from ciphermq.proxy.limits import Verdict
from ciphermq.proxy.messages import (
    Apply,
    Closed,
    DoSession,
    Estate,
    ListSessions,
    Log,
    MayOpen,
    TakeOver,
    ToPredecessor,
    ToSupervisor,
    ToWorker,
)
from ciphermq.proxy.model import Configuration, Listener


@contextmanager
def talking(
    handler: Handler, questions: Any = ToWorker, lost: Any = lambda: None
) -> Iterator[tuple[Channel, Channel]]:
    near, far = socket_pair()

    async def silent(_: Any, __: list[int]) -> None:
        return None

    asking = Channel(near, ToSupervisor, silent, lost)
    answering = Channel(far, questions, handler)
    yield asking, answering
    asking.close()
    answering.close()


async def test_every_question_has_its_own_answer() -> None:
    async def handle(message: DoSession, _: list[int]) -> bool:
        await asyncio.sleep(0.01 * (5 - message.number))
        return message.number % 2 == 0

    with talking(handle) as (asking, _):
        answers = [asking.ask(DoSession(number, "pause")) for number in range(5)]
        assert await asyncio.gather(*answers) == [True, False, True, False, True]


async def test_messages_are_begun_in_their_order() -> None:
    seen: list[str] = []

    async def handle(message: Any, _: list[int]) -> None:
        seen.append(message.vhost)

    with talking(handle, ToSupervisor) as (asking, _):
        for number in range(300):
            asking.tell(Closed(str(number)))
        await asking.flush()
        while len(seen) < 300:
            await asyncio.sleep(0)
    assert seen == [str(number) for number in range(300)]


async def test_long_messages_are_parted_and_joined() -> None:
    rows = [{"id": number, "vhost": "v" * 200} for number in range(20_000)]

    async def handle(_: Any, __: list[int]) -> list[dict[str, Any]]:
        return rows

    with talking(handle) as (asking, _):
        assert len(rows) * 200 > 20 * limits.PROXY_PACKET
        assert await asking.ask(ListSessions()) == rows


async def test_what_is_not_taken_is_queued_and_counted() -> None:
    near, far = socket_pair()

    async def silent(_: Any, __: list[int]) -> None:
        return None

    channel = Channel(near, ToWorker, silent)
    for _ in range(50):
        channel.tell(Log(b"x" * limits.PROXY_PACKET, b""))
    assert channel.queued > 30 * limits.PROXY_PACKET
    seen = 0

    async def count(message: Log, _: list[int]) -> None:
        nonlocal seen
        seen += len(message.file)

    other = Channel(far, ToSupervisor, count)
    await channel.flush()
    assert channel.queued == 0
    while seen < 50 * limits.PROXY_PACKET:
        await asyncio.sleep(0)
    channel.close()
    other.close()


async def test_descriptors_travel_with_a_question() -> None:
    async def handle(message: Apply, descriptors: list[int]) -> None:
        assert len(descriptors) == len(message.listeners)
        for descriptor in descriptors:
            os.write(descriptor, b"!")
            os.close(descriptor)

    number = limits.PROXY_DESCRIPTORS + 7  # more than one packet takes
    pairs = [os.pipe() for _ in range(number)]
    with talking(handle) as (asking, _):
        listeners = tuple(Listener(port=1 + at) for at in range(number))
        question = Apply(SetDatacenter("here"), listeners)
        assert await asking.ask(question, [write for _, write in pairs]) is None
    for read, write in pairs:
        assert os.read(read, 9) == b"!"
        os.close(read)
        os.close(write)


async def test_descriptors_travel_with_an_answer() -> None:
    reading, writing = os.pipe()
    estate = Estate(configuration=Configuration(), listeners=(), next_id=7)

    async def handle(_: Any, __: list[int]) -> WithDescriptors:
        return WithDescriptors(estate, [writing])

    with talking(handle, ToPredecessor) as (asking, _):
        answer, (descriptor,) = await asking.ask(TakeOver(1))
        assert answer == estate
        os.write(descriptor, b"!")
        assert os.read(reading, 9) == b"!"
    for one in (reading, writing, descriptor):
        os.close(one)


async def test_a_refusal_is_raised_where_it_was_asked() -> None:
    async def handle(_: Any, __: list[int]) -> None:
        raise ConfigError("no such file")

    with talking(handle) as (asking, _), pytest.raises(ProxyError, match="no such file"):
        await asking.ask(ListSessions())


async def test_a_fault_is_a_refusal_too() -> None:
    async def handle(_: Any, __: list[int]) -> None:
        raise ZeroDivisionError("oops")

    failed = pytest.raises(ProxyError, match="ListSessions failed: ZeroDivisionError")
    with talking(handle) as (asking, _), failed:
        await asking.ask(ListSessions())


async def test_answers_may_be_types_of_their_own() -> None:
    async def handle(_: Any, __: list[int]) -> Verdict:
        return Verdict("too many", ("alarm",))

    with talking(handle, ToSupervisor) as (asking, _):
        assert await asking.ask(MayOpen("/")) == Verdict("too many", ("alarm",))


async def test_the_loss_is_told_once_and_ends_what_waits() -> None:
    losses: list[None] = []

    async def handle(_: Any, __: list[int]) -> None:
        await asyncio.Event().wait()

    with talking(handle, lost=lambda: losses.append(None)) as (asking, answering):
        waiting = asking.ask(ListSessions())
        await asyncio.sleep(0)
        answering.close()
        with pytest.raises(ChannelLost):
            await waiting
        with pytest.raises(ChannelLost):
            await asking.ask(ListSessions())
        asking.tell(ListSessions())
        assert losses == [None]


async def test_an_answer_nobody_waits_for_any_more_is_dropped() -> None:
    go = asyncio.Event()

    async def handle(message: DoSession, _: list[int]) -> bool:
        await go.wait()
        return message.number == 2

    with talking(handle) as (asking, _):
        late = asking.ask(DoSession(1, "pause"))
        late.cancel()
        go.set()
        assert await asking.ask(DoSession(2, "pause")) is True


def test_both_ends_keep_the_boundaries_of_messages() -> None:
    near, far = socket_pair()
    assert near.type & socket.SOCK_SEQPACKET == socket.SOCK_SEQPACKET
    near.close()
    far.close()


async def test_what_can_not_be_read_keeps_nobody_waiting() -> None:
    """Another version at the other end is told so at once; and nonsense ends the conversation."""

    async def wrong(message: Any, _: list[int]) -> str:
        return "neither true nor false"

    lost = asyncio.Event()
    async with asyncio.timeout(30):
        with talking(wrong, Closed | DoSession, lost.set) as (asking, _):
            with pytest.raises(ProxyError, match="This version can't read that"):
                await asking.ask(ListSessions())
            with pytest.raises(ProxyError, match="answer can't be read"):
                await asking.ask(DoSession(1, "pause"))
            assert not lost.is_set()
        near, far = socket_pair()
        listening = Channel(near, ToWorker, wrong, lost.set)
        waiting = listening.ask(ListSessions())
        with far:
            far.send(b"\0\xc1")
            with pytest.raises(ChannelLost):
                await waiting
        assert lost.is_set()
        assert listening.closed
