"""Sending to a real broker: what goes together, what comes back, what is told."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from weakref import WeakSet

import pytest

from ciphermq import limits
from ciphermq.client import Client, Receiver, Sender
from ciphermq.errors import (
    BatchTooLarge,
    CertificateError,
    ClockWrong,
    QueueFull,
    UnknownReceiver,
    Unroutable,
    UsageError,
    WaitTimeout,
)
from ciphermq.model import ids
from ciphermq.model.message import OutgoingMessage
from support.broker import Broker
from support.chopper import Chopper
from support.deployment import Deployment, now_ms

Join = Callable[..., Awaitable[Client]]


async def received(client: Client, count: int, queue: str | None = None) -> list[bytes]:
    payloads: list[bytes] = []
    async with client.receiver(queue, limit=count, timeout=10) as messages:
        async for message in messages:
            payloads.append(message.payload)
    return payloads


# --- what arrives -------------------------------------------------------------------------------


async def test_a_message_arrives_as_it_was_sent(alice: Client, bob: Client) -> None:
    before = now_ms()
    message_id = await alice.sender("bob").send(
        "naïve ☃", headers={"kind": "test", "empty": ""}, content_type="text/plain"
    )
    async with bob.receiver(limit=1, timeout=10) as messages:
        async for message in messages:
            assert message.id == message_id
            assert message.payload == "naïve ☃".encode()
            assert message.text == "naïve ☃"
            assert dict(message.headers) == {"kind": "test", "empty": ""}
            assert message.content_type == "text/plain"
            assert message.sender == "alice"
            assert message.verified
            assert message.queue == "bob"
            assert message.redeliveries == 0
            assert not message.redelivered
            assert message.dead is None
            assert before <= message.sent_ms <= now_ms()
            assert message.sent_at.timestamp() == message.sent_ms / 1000


@pytest.mark.parametrize("payload", [b"", bytearray(b"ab"), memoryview(b"xabx")[1:3], "ab"])
async def test_payloads_are_any_bytes_or_text(
    alice: Client, bob: Client, payload: bytes | str
) -> None:
    await alice.sender("bob").send(payload)
    expected = payload.encode() if isinstance(payload, str) else bytes(payload)
    assert await received(bob, 1) == [expected]


async def test_several_receivers_get_the_same_batch(
    deployment: Deployment, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    deployment.add("carol")
    carol = await join("carol")
    await carol.register_key()
    await alice.sender(["bob", "carol"]).send(b"both")
    assert await received(bob, 1) == [b"both"]
    assert await received(carol, 1) == [b"both"]
    assert broker.counter("publishes") == 1


async def test_messages_go_by_queue_and_by_exchange(alice: Client, bob: Client) -> None:
    await bob.declare_queue("work")
    await bob.declare_exchange("news", "topic")
    await bob.bind("news", "work", "sport.#")
    await alice.sender("bob", queue="work").send(b"direct")
    admin_less = alice.sender("bob", exchange="news", routing_key="sport.ski")
    with pytest.raises(Exception, match="alice"):
        await admin_less.send(b"not alice's exchange")
    await bob.sender("bob", exchange="news", routing_key="sport.ski").send(b"by topic")
    assert await received(bob, 2, "work") == [b"direct", b"by topic"]


# --- what shares a batch ------------------------------------------------------------------------


async def test_alone_a_message_goes_at_once(broker: Broker, alice: Client, bob: Client) -> None:
    sender = alice.sender("bob")
    for number in range(5):
        await sender.send(b"%d" % number)
    assert broker.counter("publishes") == 5


async def test_what_is_sent_together_shares_batches_and_keeps_its_order(
    broker: Broker, alice: Client, bob: Client
) -> None:
    sender = alice.sender("bob")
    found = await asyncio.gather(*(sender.send(b"%d" % number) for number in range(500)))
    assert broker.counter("publishes") <= 3
    assert len({ids.parse_message_id(message_id) for message_id in found}) == 500
    assert await received(bob, 500) == [b"%d" % number for number in range(500)]


async def test_messages_with_different_ends_do_not_share_a_batch(
    broker: Broker, alice: Client, bob: Client
) -> None:
    sender = alice.sender("bob", ttl=60)
    await asyncio.gather(*(sender.send(b"x", ttl=ttl) for ttl in (None, None, 600)))
    headers = await bob.peek("bob")
    lives = [round((row["expires_ms"] - row["created_ms"]) / 60_000) for row in headers]
    assert sorted(lives) == [1, 10]


async def test_a_large_message_has_a_batch_to_itself(alice: Client, bob: Client) -> None:
    large = b"x" * (limits.MAX_PLAINTEXT - 19)
    sender = alice.sender("bob")
    await asyncio.gather(*(sender.send(payload) for payload in (b"a", large, b"b")))
    assert await received(bob, 3) == [b"a", large, b"b"]


# --- many ---------------------------------------------------------------------------------------


async def test_many_messages_of_all_kinds(broker: Broker, alice: Client, bob: Client) -> None:
    told: list[int] = []
    messages = [b"one", "two", bytearray(b"three"), OutgoingMessage(b"four", {"n": "4"})]
    assert await alice.sender("bob").send_many(messages, progress=told.append) == 4
    assert told == [4]
    assert await received(bob, 4) == [b"one", b"two", b"three", b"four"]


async def test_many_are_cut_into_batches_by_size(
    broker: Broker, alice: Client, bob: Client
) -> None:
    told: list[int] = []
    payloads = [b"%06d" % number * 100 for number in range(3000)]
    sender = alice.sender("bob", batch_bytes=100_000)
    assert await sender.send_many(iter(payloads), progress=told.append) == 3000
    assert told[-1] == 3000
    assert told == sorted(told)
    assert broker.counter("publishes") == len(told) == -(-3000 // (99_997 // 616))
    assert await received(bob, 3000) == payloads


async def test_many_come_from_an_asynchronous_source(alice: Client, bob: Client) -> None:
    async def source() -> AsyncIterator[bytes]:
        for number in range(2500):
            if number % 1000 == 0:
                await asyncio.sleep(0)
            yield b"%d" % number

    assert await alice.sender("bob").send_many(source()) == 2500
    assert await received(bob, 2500) == [b"%d" % number for number in range(2500)]


async def test_none_are_many_too(alice: Client) -> None:
    assert await alice.sender("bob").send_many([]) == 0


async def test_when_the_source_fails_what_went_before_counts(alice: Client, bob: Client) -> None:
    def source() -> Iterator[bytes]:
        yield from (b"x" * 1000 for _ in range(2048))
        raise OSError("the disk is gone")

    told: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        await alice.sender("bob").send_many(source(), progress=told.append)
    assert told
    assert len(await received(bob, told[-1])) == told[-1]


async def test_the_one_that_is_too_large_is_named(alice: Client, bob: Client) -> None:
    payloads = [b"x"] * 1500 + [b"x" * limits.MAX_PLAINTEXT]
    with pytest.raises(BatchTooLarge, match="message 1501: "):
        await alice.sender("bob").send_many(payloads)


async def test_the_first_failure_ends_it(alice: Client, bob: Client) -> None:
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100_000):
            taken += 1
            yield b"x" * 1000

    with pytest.raises(Unroutable, match="nowhere"):
        await alice.sender("bob", queue="nowhere").send_many(source())
    assert taken < 20_000


# --- many, as somebody writes them ----------------------------------------------------------------


async def test_what_has_come_goes_while_its_source_waits(
    broker: Broker, alice: Client, bob: Client
) -> None:
    async def source() -> AsyncIterator[list[bytes | OutgoingMessage]]:
        for sent in range(3):
            yield [b"%d" % sent]
            await broker.until(lambda broker, sent=sent: broker.counter("publishes") == sent + 1)

    assert await alice.sender("bob").send_chunks(source(), prompt=True) == 3
    assert await received(bob, 3) == [b"0", b"1", b"2"]


async def test_what_comes_while_a_batch_is_under_way_goes_together(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        await alice.sender("bob").send(b"fetches the keys")

        async def source() -> AsyncIterator[list[bytes | OutgoingMessage]]:
            road.answers = False
            yield [b"first"]
            await broker.until(lambda broker: broker.counter("publishes") == 2)
            for number in range(2500):
                yield [b"%d" % number]
            road.cut()
            road.answers = True

        assert await alice.sender("bob").send_chunks(source(), prompt=True) == 2501
    async with bob.receiver(limit=2502, timeout=10) as messages:
        found = [
            (ids.parse_message_id(message.id)[0], message.payload) async for message in messages
        ]
    sent = [b"fetches the keys", b"first", *(b"%d" % number for number in range(2500))]
    assert [payload for _, payload in found] == sent
    sizes = list(Counter(batch_id for batch_id, _ in found).values())
    assert sizes == [1, 1, 1024, 1024, 452]


async def test_a_refusal_is_raised_while_the_source_waits(alice: Client, bob: Client) -> None:
    closed = False

    async def source() -> AsyncIterator[list[bytes | OutgoingMessage]]:
        nonlocal closed
        try:
            yield [b"x"]
            await asyncio.Event().wait()
        finally:
            closed = True

    with pytest.raises(Unroutable, match="nowhere"):
        await alice.sender("bob", queue="nowhere").send_chunks(source(), prompt=True)
    assert closed


async def test_what_came_before_the_source_failed_is_sent(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        await alice.sender("bob").send(b"fetches the keys")

        async def source() -> AsyncIterator[list[bytes | OutgoingMessage]]:
            road.answers = False
            yield [b"under way"]
            await broker.until(lambda broker: broker.counter("publishes") == 2)
            yield [b"held back for it"]
            road.cut()
            road.answers = True
            raise OSError("the disk is gone")

        told: list[int] = []
        with pytest.raises(OSError, match="the disk is gone"):
            await alice.sender("bob").send_chunks(source(), progress=told.append, prompt=True)
    assert told[-1] == 2
    assert await received(bob, 3) == [b"fetches the keys", b"under way", b"held back for it"]


# --- what can't be sent -------------------------------------------------------------------------


async def test_a_message_that_is_too_large_is_refused_before_anything_else(alice: Client) -> None:
    with pytest.raises(BatchTooLarge, match="at most"):
        await alice.sender("nobody").send(b"x" * limits.MAX_PLAINTEXT)


async def test_nobody_of_that_name(alice: Client) -> None:
    with pytest.raises(UnknownReceiver, match="'carol' has registered a key"):
        await alice.sender("carol").send(b"x")


async def test_a_receiver_is_known_once_it_receives(alice: Client, join: Join) -> None:
    bob = await join("bob")
    sender = alice.sender("bob")
    with pytest.raises(UnknownReceiver):
        await sender.send(b"x")
    async with bob.receiver(limit=1, timeout=10) as messages:
        while True:
            try:
                await sender.send(b"now")
                break
            except UnknownReceiver:
                await asyncio.sleep(0.01)
        assert [message.payload async for message in messages] == [b"now"]


async def test_a_refusal_concerns_its_own_batch_only(alice: Client, bob: Client) -> None:
    nowhere, there = alice.sender("bob", queue="nowhere"), alice.sender("bob")
    outcomes = await asyncio.gather(
        nowhere.send(b"1"), there.send(b"2"), nowhere.send(b"3"), return_exceptions=True
    )
    assert [isinstance(outcome, Unroutable) for outcome in outcomes] == [True, False, True]
    assert await received(bob, 1) == [b"2"]
    await there.send(b"4")


async def test_a_full_queue_is_waited_for(broker: Broker, alice: Client, bob: Client) -> None:
    await bob.declare_queue("small", max_messages=2)
    sender = alice.sender("bob", queue="small", batch_bytes=20)
    sending = asyncio.gather(*(sender.send(b"%d" % number) for number in range(6)))
    await broker.until(lambda broker: broker.counter("publishes_returned") > 0)
    assert not sending.done()
    assert await received(bob, 6, "small") == [b"%d" % number for number in range(6)]
    await sending


async def test_a_full_queue_holds_nobody_else_up(alice: Client, bob: Client) -> None:
    await bob.declare_queue("small", max_messages=1)
    small = alice.sender("bob", queue="small", timeout=0.72)  # between two tries, most likely
    await small.send(b"fits")
    waiting = asyncio.create_task(small.send(b"waits"))
    other = alice.sender("bob")
    for number in range(20):
        await other.send(b"%d" % number)
    with pytest.raises(QueueFull, match=r"within 0\.72 s: the broker refuses it for now.*small"):
        await waiting
    with pytest.raises(QueueFull, match=r"a batch of 1 message was not confirmed within 0\.72 s"):
        await small.send_many([b"waits, too"])
    assert await received(bob, 20) == [b"%d" % number for number in range(20)]
    assert await bob.purge("small") == 1


async def test_wrong_calls_are_told(alice: Client) -> None:
    sender = alice.sender("bob")
    with pytest.raises(UsageError, match="bytes or text, not int"):
        await sender.send(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="time to live"):
        await sender.send(b"x", ttl=0)
    with pytest.raises(UsageError, match="headers are text"):
        await sender.send(b"x", headers={"n": 1})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="1 to 32 receivers"):
        alice.sender([])
    with pytest.raises(UsageError, match="1 to 32 receivers"):
        alice.sender([f"client_{number}" for number in range(33)])
    with pytest.raises(UsageError, match="not to both"):
        alice.sender("bob", queue="q", exchange="e")
    with pytest.raises(UsageError, match="can't be a client id"):
        alice.sender("bob!")
    await sender.close()
    with pytest.raises(UsageError, match="this sender is closed"):
        await sender.send(b"x")
    with pytest.raises(UsageError, match="this sender is closed"):
        await sender.send_many([b"x"])


async def test_who_nobody_would_believe_is_told_so(
    deployment: Deployment, bob: Client, join: Join
) -> None:
    """An expired certificate can still be inside TLS's skew: sealing with it must fail here, not
    at every receiver."""
    alice = await join("alice")
    identity = alice.identity
    sender = alice.sender("bob")
    await sender.send(b"while it is valid")
    after = now_ms() + 400 * 86_400_000
    with pytest.raises(CertificateError, match="renew it"):
        identity.check(after)


async def test_a_wrong_clock_is_found_out_before_anything_is_sealed(
    broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    await broker.stop()
    broker.clock_ahead_ms = 400_000
    await broker.start()
    late = await join("alice")
    with pytest.raises(ClockWrong, match="400 s behind the broker's"):
        await late.sender("bob").send(b"x")
    with pytest.raises(ClockWrong, match="set the clock"):
        async with late.receiver() as messages:
            await messages.next()


# --- waiting ------------------------------------------------------------------------------------


async def test_a_broker_that_says_nothing_is_waited_for_so_long(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url, close_timeout=0.1)
        sender = alice.sender("bob", timeout=0.3)
        await sender.send(b"a")
        road.answers = False
        with pytest.raises(WaitTimeout, match=r"\(sent\) was not confirmed within 0\.3 s"):
            await sender.send(b"b")
        with pytest.raises(WaitTimeout, match=r"not confirmed within 0\.3 s"):
            await sender.send_many([b"c"])


async def test_without_a_connection_the_error_says_since_when_and_why(
    broker: Broker, bob: Client, join: Join
) -> None:
    alice = await join("alice", request_timeout=0.2)
    sender = alice.sender("bob", timeout=0.3)
    await sender.send(b"a")
    await broker.stop()
    with pytest.raises(
        WaitTimeout, match=r"\(not sent\).*no connection to cmq://.*nothing listens"
    ):
        await sender.send(b"b")
    with pytest.raises(WaitTimeout, match=r"waited 0\.2 s for a connection"):
        await alice.status()
    await broker.start()


async def test_who_sends_faster_than_the_broker_stores_must_wait(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        sender = alice.sender("bob", timeout=60)
        await sender.send(b"warm")
        road.answers = False
        posted: list[asyncio.Future[str]] = []

        async def post() -> None:
            for _ in range(50):
                posted.append(await sender.post(b"x" * 1_000_000))

        posting = asyncio.create_task(post())
        await broker.until(lambda _: len(posted) >= 16)
        await asyncio.sleep(0.3)
        # What waits in the sender, and the one batch that it had sealed.
        assert len(posted) <= limits.SEND_BUFFER // 1_000_000 + limits.SEND_WINDOW + 1
        assert not posting.done()
        road.answers = True
        road.cut()
        await posting
        await asyncio.gather(*posted)
    assert broker.queue("bob") == (51, 0)


async def test_a_cancelled_send_is_withdrawn_while_it_is_not_sealed(
    broker: Broker, bob: Client, join: Join
) -> None:
    async with Chopper(broker.port) as road:
        alice = await join("alice", road.url)
        road.answers = False  # without the receiver's key nothing can be sealed
        sender = alice.sender("bob")
        first = asyncio.create_task(sender.send(b"first"))
        await asyncio.sleep(0)
        second = asyncio.create_task(sender.send(b"second"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        road.answers = True
        road.cut()
        await first
        await sender.send(b"third")
        assert await received(bob, 2) == [b"first", b"third"]


async def test_flush_and_close_wait_for_what_was_posted(alice: Client, bob: Client) -> None:
    async with alice.sender("bob") as sender:
        futures = [await sender.post(b"%d" % number) for number in range(100)]
        await sender.flush()
        assert all(future.done() for future in futures)
        last = await sender.post(b"last")
    assert last.done()
    assert len(await received(bob, 101)) == 101


async def test_senders_and_receivers_that_are_done_are_not_kept(alice: Client, bob: Client) -> None:
    """`client.sender("bob").send(...)` for each of a service's requests."""
    await alice.sender("bob").send(b"0")
    tasks = len(asyncio.all_tasks())
    made: WeakSet[Sender | Receiver] = WeakSet()
    for _ in range(20):
        sender = alice.sender("bob")
        made.add(sender)
        await sender.send(b"x")
    await alice.sender("bob").post(b"last")
    del sender
    for _ in range(5):
        async with bob.receiver(limit=1, timeout=10) as receiver:
            made.add(receiver)
            await anext(receiver)
    receiver = bob.receiver()
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
        while made:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_what_a_forgotten_sender_has_posted_is_sent(alice: Client, bob: Client) -> None:
    answers = [await alice.sender("bob").post(b"%d" % number) for number in range(5)]
    gc.collect()
    await asyncio.gather(*answers)
    async with bob.receiver(limit=5, timeout=10) as messages:
        assert {message.payload async for message in messages} == {b"0", b"1", b"2", b"3", b"4"}
