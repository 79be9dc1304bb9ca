"""Receiving from a real broker: what is acked, what comes again, what goes to the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.client import Client, Inbox, Message, Receiver
from ciphermq.client.session import now_ms
from ciphermq.custody import keys
from ciphermq.engines.face import Publish
from ciphermq.errors import (
    AccessRefused,
    InboxError,
    KeyMissing,
    NotFound,
    Superseded,
    UsageError,
    WaitTimeout,
)
from ciphermq.model.envelope import read_header
from ciphermq.model.ids import new_batch_id
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import Suite
from ciphermq.sealing.seal import ReceiverKey, seal
from support.broker import Broker
from support.deployment import Deployment

Join = Callable[..., Awaitable[Client]]


@pytest.fixture
async def five(alice: Client, bob: Client) -> list[bytes]:
    """Five messages wait for bob, in one batch."""
    payloads = [b"%d" % number for number in range(5)]
    await alice.sender("bob").send_many(payloads)
    return payloads


def empty(broker: Broker) -> bool:
    return broker.queue("bob") == (0, 0)


# --- what counts as done ------------------------------------------------------------------------


async def test_asking_for_the_next_acks_the_one_before(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver(limit=5) as messages:
        assert [message.payload async for message in messages] == five
    assert empty(broker)


async def test_an_exception_nacks_the_one_in_hand_and_gives_the_rest_back(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    with pytest.raises(ValueError, match="can't do 2"):
        async with bob.receiver() as messages:
            async for message in messages:
                if message.payload == b"2":
                    raise ValueError("can't do 2")
    assert broker.queue("bob") == (3, 0)
    async with bob.receiver(limit=3, timeout=10) as messages:
        found = [(each.payload, each.redelivered, each.redeliveries) async for each in messages]
    # What was nacked waits a while.
    assert found == [(payload, True, 1) for payload in (b"3", b"4", b"2")]


async def test_leaving_early_nacks_the_one_in_hand(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver() as messages:
        async for message in messages:
            if message.payload == b"1":
                break
    assert broker.queue("bob") == (4, 0)


async def test_leaving_early_after_an_ack_leaves_nothing_in_hand(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver() as messages:
        async for message in messages:
            if message.payload == b"1":
                message.ack()
                break
    assert broker.queue("bob") == (3, 0)


async def test_an_exception_that_is_caught_outside_of_the_loop_is_not_success(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    seen = []
    async with bob.receiver(timeout=5) as messages:
        while len(seen) < 6:
            try:
                async for message in messages:
                    seen.append(message.payload)
                    if seen == [b"0"]:
                        raise ValueError("the first time")
                    if len(seen) == 6:
                        message.ack()
                        break
            except ValueError:
                pass
    assert seen == [b"0", b"1", b"2", b"3", b"4", b"0"]
    assert empty(broker)


async def test_cancelling_gives_back_without_counting_a_try(broker: Broker, bob: Client) -> None:
    await bob.declare_queue("work", max_tries=1)
    await bob.sender("bob", queue="work").send_many([b"0", b"1", b"2"])
    shown = asyncio.Event()

    async def work() -> None:
        async with bob.receiver("work") as messages:
            async for message in messages:
                if message.payload == b"1":
                    shown.set()
                    await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await shown.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert broker.queue("work") == (2, 0)
    with pytest.raises(ValueError, match="this counts"):
        async with bob.receiver("work", timeout=10) as messages:
            async for message in messages:
                assert message.payload == b"1"
                raise ValueError("this counts")
    assert broker.queue("work") == (1, 0)
    assert broker.queue("dead.work") == (1, 0)


async def test_messages_can_be_settled_in_any_order(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver(timeout=10) as messages:
        found = [await messages.next() for _ in range(5)]
        zero, one, two, three, four = [message for message in found if message is not None]
        three.ack()
        one.reject("unwanted", "one is not wanted")
        four.nack()
        four.ack()
        zero.ack()
        zero.ack()
        assert [m.settled for m in (zero, one, two, three, four)] == [True, True, False, True, True]
    assert broker.queue("bob") == (2, 0)
    assert broker.queue("dead.bob") == (1, 0)
    async with bob.receiver("dead.bob", limit=1, timeout=10) as dead:
        async for message in dead:
            assert message.payload == b"1"
            assert message.dead is not None
            assert (message.dead.queue, message.dead.reason) == ("bob", "unwanted")
            assert message.dead.detail == "one is not wanted"


async def test_batches_are_shown_and_settled_whole(
    broker: Broker, alice: Client, bob: Client, five: list[bytes]
) -> None:
    await alice.sender("bob").send_many([b"5", b"6"])
    async with bob.receiver(limit=7, timeout=10) as receiver:
        seen = []
        async for batch in receiver.batches():
            assert batch.sender == "alice"
            assert batch.queue == "bob"
            assert [message.payload for message in batch] == batch.payloads
            assert batch[-1].payload == batch.payloads[-1]
            assert [message.payload for message in batch[1:]] == batch.payloads[1:]
            assert batch[0].id == batch.id
            seen.append(batch.payloads)
    assert seen == [five, [b"5", b"6"]]
    assert empty(broker)


async def test_what_is_left_of_a_batch_is_settled_with_it(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver(timeout=10) as receiver:
        batch = await receiver.next_batch()
        assert batch is not None
        batch[0].ack()
        batch[1].nack()
        batch.reject()
        assert len(batch) == 5
        assert await receiver.next() is not None, "the nacked one, after a while"
    assert broker.queue("dead.bob") == (3, 0)


async def test_a_limit_shows_no_more_and_gives_back_the_rest(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver(limit=2, timeout=10) as messages:
        assert [message.payload async for message in messages] == five[:2]
    assert broker.queue("bob") == (3, 0)
    async with bob.receiver(limit=2, timeout=10) as messages:
        assert [batch.payloads async for batch in messages.batches()] == [five[2:4]]
    assert broker.queue("bob") == (1, 0)


async def test_while_nothing_comes_what_is_done_is_told(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    async with bob.receiver(timeout=10) as messages:
        held = [await messages.next() for _ in range(5)]
        for message in held[:3]:
            assert message is not None
            message.ack()
        # One of its batch is still open: the timer tells of the rest.
        await broker.until(lambda broker: broker.queue("bob") == (0, 2))


async def test_the_client_ends_its_receivers(
    broker: Broker, join: Join, bob: Client, five: list[bytes]
) -> None:
    other = await join("bob")
    messages = other.receiver(timeout=10)
    async for message in messages:
        message.ack()
        break
    await other.close()
    assert broker.queue("bob") == (4, 0)
    with pytest.raises(UsageError, match="this receiver is closed"):
        await messages.next()


# --- by a handler -------------------------------------------------------------------------------


async def test_a_handler_gets_each_message_until_it_is_stopped(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    receiver = bob.receiver()
    seen = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        seen.append(message.payload)
        if len(seen) == 5:
            receiver.stop()

    await receiver.run(handle)
    assert seen == five
    assert empty(broker)


async def test_a_handler_that_fails_gets_the_message_again(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    receiver = bob.receiver(timeout=10)
    seen: list[bytes] = []

    def handle(message: Message) -> None:
        seen.append(message.payload)
        if len(seen) == 6:
            receiver.stop()
        elif message.payload == b"2":
            raise ValueError("not at first")

    await receiver.run(handle)
    assert seen == [*five, b"2"]
    assert empty(broker)


async def test_several_handlers_work_at_once(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    receiver = bob.receiver(limit=5)
    at_once, most = 0, 0
    all_three = asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == 3:
            all_three.set()
        await all_three.wait()
        at_once -= 1

    async with asyncio.timeout(20):
        await receiver.run(handle, concurrency=3)
    assert most == 3
    assert empty(broker)


async def test_stopping_lets_handlers_finish_and_cancelling_does_not(
    broker: Broker, bob: Client, five: list[bytes]
) -> None:
    done = []
    started = asyncio.Event()

    async def handle(message: Message) -> None:
        started.set()
        await asyncio.sleep(0.1)
        done.append(message.payload)

    receiver = bob.receiver()
    task = asyncio.create_task(receiver.run(handle))
    await started.wait()
    receiver.stop()
    await task
    assert done == five[:1]
    assert broker.queue("bob") == (4, 0)
    started.clear()
    task = asyncio.create_task(bob.receiver().run(handle))
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert done == five[:1]
    assert broker.queue("bob") == (4, 0)


# --- what comes, and who gets it ---------------------------------------------------------------


async def test_nothing_comes_within_the_time_out(bob: Client) -> None:
    with pytest.raises(WaitTimeout, match=r"no message came in queue 'bob' within 0\.1 s.*is up"):
        async with bob.receiver(timeout=0.1) as messages:
            await messages.next()


async def test_more_than_the_prefetch_comes_in_the_end(
    broker: Broker, alice: Client, bob: Client
) -> None:
    payloads = [b"%d" % number for number in range(700)]
    await alice.sender("bob", batch_bytes=200).send_many(payloads)
    async with bob.receiver(prefetch=10, limit=700, timeout=10) as messages:
        found = []
        async for message in messages:
            assert broker.queue("bob")[1] <= 20
            found.append(message.payload)
    assert found == payloads


async def test_messages_that_come_are_shown_at_once(alice: Client, bob: Client) -> None:
    async with bob.receiver(limit=20, timeout=10) as messages:
        sender = alice.sender("bob")
        await sender.send(b"0")
        async for message in messages:
            number = int(message.payload)
            if number < 19:
                await sender.send(b"%d" % (number + 1))
    assert number == 19


async def test_competing_receivers_share_a_queue(
    broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    await alice.register_key()
    await bob.declare_queue("work")
    await bob.sender("bob", queue="work", batch_bytes=100).send_many(
        [b"%d" % number for number in range(200)]
    )
    other = await join("bob")
    seen: list[bytes] = []
    both = asyncio.Barrier(2)
    receivers = [client.receiver("work", prefetch=8, timeout=20) for client in (bob, other)]

    async def work(receiver: Receiver) -> int:
        """Each has its first message before either takes a second."""
        count = 0
        async with receiver as messages:
            async for message in messages:
                seen.append(message.payload)
                count += 1
                if count == 1:
                    await both.wait()
                if len(seen) == 200:
                    for each in receivers:
                        each.stop()
        return count

    counts = await asyncio.gather(*map(work, receivers))
    assert sorted(map(int, seen)) == list(range(200))
    assert min(counts) > 0


async def test_a_receiver_takes_over_from_one_of_its_name(
    bob: Client, join: Join, five: list[bytes]
) -> None:
    first = bob.receiver(name="worker", timeout=10)
    assert await first.next() is not None
    other = await join("bob")
    async with other.receiver(name="worker", limit=5, timeout=10) as second:
        found = [message.payload async for message in second]
    assert found == five
    with pytest.raises(Superseded, match="worker"):
        while await first.next() is not None:
            pass


async def test_a_queue_that_is_not_there(bob: Client) -> None:
    with pytest.raises(AccessRefused, match="nowhere"):
        async with bob.receiver("nowhere", timeout=10) as messages:
            await messages.next()


async def test_a_queue_that_goes_away(broker: Broker, bob: Client) -> None:
    await bob.declare_queue("work")
    async with bob.receiver("work", timeout=10) as messages:
        waiting = asyncio.create_task(messages.next())
        await broker.until(lambda broker: broker.consumers == 1)
        await bob.delete_queue("work")
        with pytest.raises(NotFound, match="work"):
            await waiting


async def test_work_that_takes_long_can_be_renewed(
    broker: Broker, alice: Client, bob: Client
) -> None:
    await bob.declare_queue("slow", ack_timeout_ms=2000)
    await bob.sender("bob", queue="slow").send_many([b"a", b"b"])
    async with bob.receiver("slow", timeout=10) as messages:
        message = await messages.next()
        assert message is not None
        for _ in range(15):
            await asyncio.sleep(0.2)
            messages.renew()
        assert broker.counter("deliveries") == 1
        await broker.until(lambda broker: broker.counter("deliveries") == 2)


async def test_fetching_takes_what_is_there(broker: Broker, bob: Client, five: list[bytes]) -> None:
    assert await bob.fetch("bob", 3) != []
    messages = await bob.fetch()
    assert messages == []
    assert broker.queue("bob") == (0, 5)


async def test_fetched_messages_are_settled_one_by_one(
    broker: Broker, alice: Client, bob: Client, five: list[bytes]
) -> None:
    messages = await bob.fetch()
    assert [message.payload for message in messages] == five
    for message in messages[:3]:
        message.ack()
    messages[3].reject()
    messages[4].nack()
    await broker.until(lambda broker: broker.queue("bob") == (1, 0))
    assert broker.queue("dead.bob") == (1, 0)


# --- what can't be opened -----------------------------------------------------------------------


async def test_a_batch_for_somebody_else_blocks_nobody(
    deployment: Deployment, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    await alice.register_key()
    await alice.sender("alice", queue="bob").send(b"not for bob")
    await alice.sender("bob").send(b"for bob")
    async with bob.receiver(limit=1, timeout=10) as messages:
        assert [message.payload async for message in messages] == [b"for bob"]
        assert messages.refused == 1
    await broker.until(lambda broker: broker.queue("dead.bob") == (1, 0))
    (row,) = await bob.peek("dead.bob")
    assert row["dead"]["reason"] == "not-for-this-receiver"
    assert "sealed for alice" in row["dead"]["detail"]


async def test_a_missing_key_stops_the_receiver_and_leaves_the_queue(
    broker: Broker, alice: Client, bob: Client, five: list[bytes]
) -> None:
    keys = bob.identity.keys
    former = keys.current.key_id
    await bob.rotate_key()
    keys.keyring.remove(former)
    key_file = keys.directory / f"{former.hex()}.key"
    content = key_file.read_bytes()
    key_file.unlink()
    with pytest.raises(KeyMissing, match="restore it from a backup"):
        async with bob.receiver(timeout=10) as messages:
            await messages.next()
    assert broker.queue("bob") == (5, 0)
    key_file.write_bytes(content)
    key_file.chmod(0o600)
    async with bob.receiver(limit=5, timeout=10) as messages:
        assert [message.payload async for message in messages] == five


async def test_an_invented_key_blames_the_batch_and_not_the_receiver(
    broker: Broker, alice: Client, bob: Client, deployment: Deployment
) -> None:
    public_key = keys.public_bytes(Suite.X25519, keys.generate(Suite.X25519))
    invented_id = keys.key_id(Suite.X25519, public_key)
    identity = deployment.load("alice")
    invented = seal(
        [OutgoingMessage(b"?", sent_ms=now_ms())],
        sender="alice",
        signer=identity.signer,
        receivers=[ReceiverKey("bob", invented_id, Suite.X25519, public_key)],
        exchange="",
        routing_key="bob",
        batch_id=new_batch_id(now_ms()),
        created_ms=now_ms(),
    )
    header = read_header(invented)
    await broker.engine.publish(Publish(client="alice", header=header, sealed=invented))
    await alice.sender("bob").send(b"genuine")
    async with bob.receiver(limit=1, timeout=10) as messages:
        assert [message.payload async for message in messages] == [b"genuine"]
    (row,) = await bob.peek("dead.bob")
    assert row["dead"]["reason"] == "unknown-key"


async def test_a_key_that_another_process_took_into_use_is_found(
    alice: Client, bob: Client, join: Join
) -> None:
    other = await join("bob")
    async with bob.receiver(limit=1, timeout=10) as messages:
        await other.rotate_key()
        await alice.sender("bob").send(b"to the new key")
        assert [message.payload async for message in messages] == [b"to the new key"]


async def test_what_was_sealed_to_a_former_key_is_still_opened(alice: Client, bob: Client) -> None:
    sender = alice.sender("bob")
    await sender.send(b"before")
    await bob.rotate_key()
    await sender.send(b"after, with the key that alice remembers")
    async with bob.receiver(limit=2, timeout=10) as messages:
        assert len([message async for message in messages]) == 2


async def test_wrong_calls_are_told(bob: Client) -> None:
    with pytest.raises(UsageError):
        bob.receiver(prefetch=0)
    with pytest.raises(UsageError):
        bob.receiver(limit=0)
    with pytest.raises(UsageError, match="concurrency"):
        await bob.receiver().run(print, concurrency=0)
    assert limits.DEFAULT_PREFETCH > 1


async def test_who_waits_does_not_wait_for_acks_that_nobody_tells(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, tmp_path: Path
) -> None:
    """One handler asks for more while another has the only message that credit allows."""
    monkeypatch.setattr("ciphermq.limits.ACK_INTERVAL", 60.0)
    sender = alice.sender("bob")
    for number in range(5):
        await sender.send(b"%d" % number)
    found: list[bytes] = []
    with Inbox(tmp_path / "inbox.db") as inbox:
        receiver = bob.receiver(inbox=inbox, prefetch=1)

        async def handle(message: Message) -> None:
            await asyncio.sleep(0.01)  # the other one asks meanwhile
            found.append(message.payload)
            if len(found) == 5:
                receiver.stop()

        async with asyncio.timeout(20):
            await receiver.run(handle, concurrency=2)
    assert found == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_receiver_that_can_not_be_closed_leaves_the_rest_in_order(
    monkeypatch: pytest.MonkeyPatch, alice: Client, bob: Client, join: Join, tmp_path: Path
) -> None:
    """An Inbox on a full disk must not cost what is being sent."""
    await alice.sender("bob").send(b"x")
    client = await join("bob")
    with Inbox(tmp_path / "inbox.db") as inbox:
        receiver = client.receiver(inbox=inbox, timeout=10)
        message = await receiver.next()
        assert message is not None
        message.ack()
        monkeypatch.setattr(inbox, "finish", _disk_full)
        posted = [await client.sender("bob").post(b"%d" % number) for number in range(3)]
        with pytest.raises(InboxError, match="full"):
            await client.close()
    assert all([await answer for answer in posted])
    assert not client.connected


def _disk_full(*_: object) -> None:
    raise InboxError("database or disk is full")
