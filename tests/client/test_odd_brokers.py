"""Brokers that don't behave: no call hangs, none is believed further than it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ciphermq.cli.processes import free_port
from ciphermq.client import Client, connect
from ciphermq.errors import (
    AccessRefused,
    ConnectionLost,
    RemoteProtocolError,
    Superseded,
    WaitTimeout,
)
from ciphermq.net.channel import Channel
from ciphermq.net.link import Link
from ciphermq.net.listener import Listener
from ciphermq.net.tls import ALPN
from ciphermq.server import trust
from ciphermq.settings import load_server_settings
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.cmq2.frames import Frame
from support.deployment import Deployment, now_ms

Answer = Callable[[Link, Frame], None]


class Odd:
    """A broker whose every word is the test's."""

    def __init__(self, deployment: Deployment) -> None:
        self.answer: Answer = lambda _link, _frame: None
        self.links: list[Link] = []
        self.heard: list[Frame] = []
        settings = load_server_settings(deployment.config)
        context = trust.load(settings.tls).context
        self._listener = Listener(("127.0.0.1", free_port()), lambda: context, {ALPN: self._take})

    def start(self) -> str:
        host, port = self._listener.start()
        return f"cmq://{host}:{port}"

    def stop(self) -> None:
        self._listener.stop()
        for link in self.links:
            link.abort()

    async def linked(self, times: int) -> None:
        """Wait until so many connections have come."""
        async with asyncio.timeout(20):
            while len(self.links) < times:
                await asyncio.sleep(0.01)

    def _take(self, channel: Channel, _client: str) -> None:
        link = Link(channel)
        self.links.append(link)
        link.attach(lambda frame: self._hear(link, frame), lambda _error: None)

    def _hear(self, link: Link, frame: Frame) -> None:
        self.heard.append(frame)
        if isinstance(frame, frames.Hello):
            link.send(frames.Hello(client="alice", max_publish_window=4))
        elif isinstance(frame, frames.Close):
            link.close()
        self.answer(link, frame)


@asynccontextmanager
async def odd_broker(
    deployment: Deployment, answer: Answer | None = None
) -> AsyncIterator[tuple[Odd, Client]]:
    odd = Odd(deployment)
    if answer is not None:
        odd.answer = answer
    client = await connect(
        odd.start(),
        identity=deployment.load("alice"),
        request_timeout=0.3,
        send_timeout=0.5,
        close_timeout=0.3,
    )
    try:
        yield odd, client
    finally:
        await client.close()
        odd.stop()


async def test_one_that_never_answers(deployment: Deployment) -> None:
    async with odd_broker(deployment) as (_, alice):
        waits: list[Awaitable[object]] = [
            alice.status(),
            alice.declare_queue("q"),
            alice.purge("q"),
            alice.fetch("q"),
            alice.register_key(),
            alice.sender("bob").send(b"x"),
            alice.sender("bob").send_many([b"x"]),
            alice.key_record("bob"),
        ]
        outcomes = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [WaitTimeout] * len(outcomes)
        assert "did not answer STATUS within 0.3 s" in str(outcomes[0])


async def test_a_receiver_that_gets_no_answer_goes_on_trying(deployment: Deployment) -> None:
    async with odd_broker(deployment) as (odd, alice):
        async with alice.receiver(timeout=1.5) as messages:
            with pytest.raises(WaitTimeout):
                await messages.next()
        assert len(odd.links) > 1


async def test_one_that_answers_what_was_not_asked(deployment: Deployment) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.Status):
            link.send(frames.Ok(request=frame.request + 5, result="nobody asked"))
            link.send(frames.Error(request=frame.request + 6, code="no-such-code"))
            link.send(frames.Cancelled(consumer=7, code="superseded"))
            link.send(frames.DeliverFrame(7, 1, 0, False, 0, b"", b"", b"no batch at all"))
            link.send(frames.Ok(request=frame.request, result={"server": {}}))

    async with odd_broker(deployment, answer) as (_, alice):
        assert await alice.status() == {"server": {}}


async def test_one_that_invents_error_codes(deployment: Deployment) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.Purge):
            link.send(frames.Error(request=frame.request, code="access-refused", message="no"))

    async with odd_broker(deployment, answer) as (_, alice):
        with pytest.raises(AccessRefused, match=r"^no$"):
            await alice.purge("q")


async def test_one_that_closes_with_a_reason(deployment: Deployment) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.Purge):
            link.close("enough of you", "access-refused")

    async with odd_broker(deployment, answer) as (_, alice):
        with pytest.raises(ConnectionLost, match="enough of you"):
            await alice.purge("q")


async def test_one_that_ends_each_connection_is_not_stormed(deployment: Deployment) -> None:
    odd = Odd(deployment)
    url = odd.start()
    alice = await connect(url, identity=deployment.load("alice"), close_timeout=0.1)
    odd.answer = lambda link, frame: link.abort() if isinstance(frame, frames.Hello) else None
    odd.links[0].abort()
    await odd.linked(2)
    await asyncio.sleep(1.0)
    assert len(odd.links) < 9
    await alice.close()
    odd.stop()


async def test_one_that_always_wants_another_connection_is_not_stormed(
    deployment: Deployment,
) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.Hello):
            link.send(frames.Reconnect(reason="I like new ones"))

    async with odd_broker(deployment, answer) as (odd, _):
        await odd.linked(2)
        await asyncio.sleep(1.0)
        assert len(odd.links) < 20


async def test_one_that_closes_before_it_is_used(deployment: Deployment) -> None:
    odd = Odd(deployment)
    url = odd.start()
    odd.answer = lambda link, frame: link.close("not today", "unavailable")
    with pytest.raises(Exception, match="not today"):
        await connect(url, identity=deployment.load("alice"))
    odd.stop()


async def test_one_that_returns_a_batch_twice(deployment: Deployment) -> None:
    """The second answer is a fault: the client ends the connection, and sends the rest again."""
    alice_record = deployment.load("alice").key_record
    published = 0

    def answer(link: Link, frame: Frame) -> None:
        nonlocal published
        if isinstance(frame, frames.KeyGet):
            link.send(frames.Ok(request=frame.request, result=alice_record(now_ms())))
        elif isinstance(frame, frames.PublishFrame):
            published += 1
            if published == 1:
                link.send(frames.Return(seq=1, code="queue-full"))
                link.send(frames.Return(seq=1, code="queue-full"))
            else:
                link.send(frames.ConfirmFrame(frames.ConfirmKind.PUBLISH, frame.seq))

    async with odd_broker(deployment, answer) as (odd, alice):
        await alice.sender("alice", timeout=5).send(b"x")
        assert published == 2
        assert len(odd.links) == 2


async def test_one_that_ends_a_consumer(deployment: Deployment) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.KeyGet):
            link.send(frames.Error(request=frame.request, code="not-found"))
        elif isinstance(frame, frames.KeyPut | frames.Cancel):
            link.send(frames.Ok(request=frame.request))
        elif isinstance(frame, frames.Consume):
            link.send(frames.Ok(request=frame.request, result=3))
            link.send(frames.Cancelled(consumer=3, code="superseded", message="another one"))

    async with odd_broker(deployment, answer) as (_, alice):
        with pytest.raises(Superseded, match="another one"):
            async with alice.receiver() as messages:
                await messages.next()


async def test_bytes_that_are_no_batch_go_to_the_dead_letters(deployment: Deployment) -> None:
    nacked = asyncio.Event()
    found: list[frames.Nack] = []

    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.KeyGet):
            link.send(frames.Error(request=frame.request, code="not-found"))
        elif isinstance(frame, frames.KeyPut | frames.Cancel):
            link.send(frames.Ok(request=frame.request))
        elif isinstance(frame, frames.Consume):
            link.send(frames.Ok(request=frame.request, result=3))
            link.send(frames.DeliverFrame(3, 9, 0, False, 0, b"", b"", b"no batch at all"))
        elif isinstance(frame, frames.Nack):
            found.append(frame)
            link.send(frames.Ok(request=frame.request))
            nacked.set()

    async with (
        odd_broker(deployment, answer) as (_, alice),
        alice.receiver(timeout=5) as messages,
    ):
        waiting = asyncio.create_task(messages.next())
        await asyncio.wait_for(nacked.wait(), 5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert messages.refused == 1
    assert (found[0].tag, found[0].requeue, found[0].reason) == (9, False, "malformed-batch")
    assert found[0].bitmap == b""


# --- ones that want this machine's memory ---------------------------------------------------------


@pytest.mark.parametrize("result", [1 << 40, [0] * 9, "text", None], ids=repr)
async def test_one_that_answers_with_something_else_than_was_asked_for(
    deployment: Deployment, result: object
) -> None:
    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.KeyGet | frames.CrlGet):
            link.send(frames.Ok(request=frame.request, result=result))

    async with odd_broker(deployment, answer) as (odd, alice):
        with pytest.raises(WaitTimeout, match="gave an answer to KEYGET that is a"):
            await alice.key_record("bob")
        with pytest.raises(ConnectionLost, match="gave an answer to KEYGET that is a"):
            await alice.register_key()
        ends = [frame for frame in odd.heard if isinstance(frame, frames.Close) and frame.code]
        assert {frame.code for frame in ends} == {RemoteProtocolError.code}


def _consuming(then: Callable[[Link], None]) -> Answer:
    """Answers what a receiver asks at its start, and goes on with `then`."""

    def answer(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.KeyGet):
            link.send(frames.Error(request=frame.request, code="not-found"))
        elif isinstance(frame, frames.KeyPut | frames.Cancel | frames.Nack):
            link.send(frames.Ok(request=frame.request))
        elif isinstance(frame, frames.Consume):
            link.send(frames.Ok(request=frame.request, result=3))
            then(link)

    return answer


def _deliver(link: Link, tag: int, bitmap: bytes = b"") -> None:
    link.send(frames.DeliverFrame(3, tag, 0, False, 0, bitmap, b"", b"no batch at all"))


def _more_than_its_credit(link: Link) -> None:
    for tag in range(1, 20):
        _deliver(link, tag)


def _nothing(link: Link) -> None:
    _deliver(link, 1, b"\0")


@pytest.mark.parametrize(
    ("then", "said"),
    [(_more_than_its_credit, "more than it was given credit for"), (_nothing, "delivered none")],
)
async def test_one_that_delivers_what_was_not_asked_for(
    deployment: Deployment, then: Callable[[Link], None], said: str
) -> None:
    async with odd_broker(deployment, _consuming(then)) as (odd, alice):
        async with alice.receiver(prefetch=8, timeout=0.6) as messages:
            with pytest.raises(WaitTimeout):
                await messages.next()
        ends = [frame for frame in odd.heard if isinstance(frame, frames.Close) and frame.code]
        assert ends
        assert said in ends[0].reason


async def test_one_that_gives_more_than_is_fetched(deployment: Deployment) -> None:
    def more(link: Link, frame: Frame) -> None:
        if isinstance(frame, frames.Fetch):
            for tag in range(1, 5):
                batch = b"no batch at all"
                link.send(frames.DeliverFrame(0, tag, 0, False, 0, b"", b"", batch))

    answer = _consuming(lambda _link: None)

    def both(link: Link, frame: Frame) -> None:
        answer(link, frame)
        more(link, frame)

    async with odd_broker(deployment, both) as (_, alice):
        with pytest.raises(ConnectionLost, match="more than the 2 messages that were to be"):
            await alice.fetch("alice", 2)
