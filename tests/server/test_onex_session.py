"""The 1.x line protocol against a real broker: its commands, its faults, the order of replies."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from nacl import bindings
from server_rig import Rig, batch

from ciphermq import limits
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.frames import Consume, Declare, List, Peek, Status
from interop.onex_clients import TLS_1_2, TLS_1_3, Lines, Place, connect, encode

ONE_X: dict[str, Any] = {
    "one_x": {"enabled": True, "tls_1_2": True},
    "access": {"allow_all": True},
}
PUBLIC = encode(bindings.crypto_scalarmult_base(bytes(range(32))))


class Peer:
    """A 1.x client that says what a test has it say."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def say(self, *lines: str) -> None:
        self.lines.write(*lines)

    async def hear(self) -> str:
        async with asyncio.timeout(20):
            return await self.lines.hear()

    async def ask(self, line: str) -> str:
        self.say(line)
        return await self.hear()

    async def set_up(self, queue: str = "q") -> None:
        for line in (f"declare_queue {queue}", "declare_exchange x", f"bind {queue} x k"):
            await self.ask(line)

    async def publish(self, message_id: str, **others: Any) -> str:
        return await self.ask(f"publish x k {message(message_id, **others)}")

    async def message(self) -> str:
        """The id of the message that comes next."""
        line = await self.hear()
        assert line.startswith("Message: "), line
        _, message_id, text = line.split(" ", 2)
        assert json.loads(text)["message_id"] == message_id
        return message_id

    async def silent(self) -> bool:
        """Whether nothing comes before the reply to something new."""
        return await self.ask("ping") == "Unknown command"


def message(message_id: str, **others: Any) -> str:
    members = {
        "message_id": message_id,
        "receiver_client_id": "bob",
        "enc_session_key": "AAAA",
        "nonce": "BBBB",
        "ciphertext": "CCCC",
    }
    return json.dumps(members | others)


class OnexRig:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.broker = rig.broker
        self.open: list[Lines] = []

    def place(self, name: str, tls: ssl.TLSVersion = TLS_1_3) -> Place:
        home = self.rig.deployment.identity(name)
        files = (home / "ca.crt", home / "cert.pem", home / "key.pem")
        return Place(self.broker.port, *files, tls=tls)

    async def peer(self, name: str = "alice", tls: ssl.TLSVersion = TLS_1_3) -> Peer:
        lines = await connect(self.place(name, tls))
        self.open.append(lines)
        return Peer(lines)


@pytest.fixture
async def begin(start: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    rigs: list[OnexRig] = []

    async def begun(options: LinkOptions | None = None, **sections: Any) -> OnexRig:
        rigs.append(OnexRig(await start(options, **(ONE_X | sections))))
        return rigs[-1]

    yield begun
    for each in rigs:
        for lines in each.open:
            await lines.close()


@pytest.fixture
async def onex_rig(begin: Callable[..., Any]) -> OnexRig:
    rig: OnexRig = await begin()
    return rig


# --- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])
async def test_every_command_has_its_reply(onex_rig: OnexRig, tls: ssl.TLSVersion) -> None:
    peer = await onex_rig.peer("alice", tls)
    for line, reply in [
        ("declare_queue q", "Queue declared"),
        ("declare_queue q", "Queue declared"),
        ("declare_queue", "Missing queue name"),
        ("declare_queue ", "Missing queue name"),
        ("declare_exchange x", "Exchange declared"),
        ("bind q x k", "Queue bound"),
        ("bind q x k", "Queue bound"),
        ("bind q x", "Missing parameters"),
        ("fetch q", "No messages"),
        (f"publish x k {message('m-1')}", "ACK m-1"),
        (f"publish x k {message('m-1')}", "ACK m-1"),
        ("publish x k", "Missing parameters"),
        ("resend m-1", "Resend requested"),
        ("resend m-2", "Message ID not found"),
        ("resend ", "Missing message ID"),
        ("ack m-1", "ACK_CONFIRMED m-1"),
        ("ack ", "Missing message ID"),
        ("get_public_key alice", "Public key not found"),
        (f"register_public_key {PUBLIC}", "Public key registered"),
        ("get_public_key alice", f"Public key: {PUBLIC}"),
        ("get_key alice", f"Public key: {PUBLIC}"),
        (f"register_key {PUBLIC}", "Public key registered"),
        (f"register_key alice {PUBLIC}", "Public key registered"),
        ("get_public_key ", "Missing client ID"),
        ("consume q", "Subscribed to queue"),
    ]:
        assert await peer.ask(line) == reply, line
    assert await peer.message() == "m-1"
    assert await peer.ask("hello") == "Unknown command"
    assert await peer.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert await peer.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert onex_rig.broker.queue("q") == (0, 0)


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("bind nowhere x k", "Error: .*'nowhere'"),
        ("bind q nowhere k", "Error: .*'nowhere'"),
        (f"publish nowhere k {message('m')}", "Error: .*'nowhere'"),
        (f"publish x other {message('m')}", "Error: no queue is bound"),
        ("publish x k {}", "Invalid message format: .*'message_id' is missing"),
        (f"publish x k {message('a b')}", "Invalid message format: .*white space"),
        ("publish_batch x k {}", "Invalid batch format: "),
        ("publish_batch x k []", "Invalid batch format: "),
        ("fetch nowhere", "Error: .*'nowhere'"),
        ("declare_queue dead.q", "Error: "),
        ("register_public_key AAAA", "Error: this is no public key"),
        (f"register_key bob {PUBLIC}", "Error: 'alice' can only register a key of its own"),
        ("x" * (limits.MAX_LINE + 1), "Error: a command has"),
    ],
)
async def test_what_is_refused_and_why(onex_rig: OnexRig, line: str, reply: str) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    peer.say(line)
    said = await peer.hear()
    assert re.match(reply, said), said
    assert await peer.silent()


async def test_a_batch_has_a_reply_for_each_message(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    await peer.publish("m-1")
    texts = [message("m-0"), message("m-1", nonce="other"), "{}", message("m-3"), message("m-0")]
    peer.say(f"publish_batch x k [{','.join(texts)}]", "fetch q")
    assert await peer.hear() == "ACK m-0"
    assert await peer.hear() == (
        "Error: this message_id was published before, with other content for message m-1"
    )
    assert (await peer.hear()).endswith("'message_id' is missing for message number 3 of the batch")
    assert await peer.hear() == "ACK m-3"
    assert await peer.hear() == "ACK m-0"
    assert await peer.message() == "m-1"
    assert onex_rig.broker.queue("q") == (2, 1)


async def test_a_large_batch(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    peer.say(f"publish_batch x k [{','.join(message(f'm-{n}') for n in range(2500))}]", "hello")
    assert [await peer.hear() for _ in range(2500)] == [f"ACK m-{n}" for n in range(2500)]
    assert await peer.hear() == "Unknown command"


async def test_replies_come_in_the_order_of_their_commands(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    peer.say("declare_queue q", "declare_exchange x", "bind q x k")
    for number in range(300):
        peer.say(f"publish x k {message(f'm-{number}')}", "hello", f"get_key {number}")
    peer.say("consume q", "nonsense")
    setting_up = ["Queue declared", "Exchange declared", "Queue bound"]
    assert [await peer.hear() for _ in range(3)] == setting_up
    for number in range(300):
        assert await peer.hear() == f"ACK m-{number}"
        assert await peer.hear() == "Unknown command"
        assert await peer.hear() == "Public key not found"
    assert await peer.hear() == "Subscribed to queue"
    heard = [await peer.hear() for _ in range(301)]
    heard.remove("Unknown command")
    assert [line.split(" ", 2)[1] for line in heard] == [f"m-{n}" for n in range(300)]


async def test_thousands_of_commands_without_reading(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    peer.say("declare_queue q", *["nonsense"] * 5000, "declare_queue p")
    assert await peer.hear() == "Queue declared"
    assert [await peer.hear() for _ in range(5000)] == ["Unknown command"] * 5000
    assert await peer.hear() == "Queue declared"


# --- what 1.x gets wrong ------------------------------------------------------------------------


async def test_a_line_may_come_in_any_pieces_and_with_others(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    large = message("m-large", padding="x" * 300_000)
    for piece in (large[:7], large[7:100_000], large[100_000:]):
        peer.lines._writer.write((f"publish x k {piece}" if piece == large[:7] else piece).encode())
        await asyncio.sleep(0.01)
    peer.lines._writer.write(b"\r\nfetch q\nack m-large\nfetch q\n")
    assert await peer.hear() == "ACK m-large"
    assert await peer.hear() == f"Message: m-large {large}"
    assert await peer.hear() == "ACK_CONFIRMED m-large"
    assert await peer.hear() == "No messages"


async def test_a_restart_loses_nothing_that_was_acknowledged(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    for number in range(3):
        assert await peer.publish(f"m-{number}") == f"ACK m-{number}"
    await onex_rig.broker.restart()
    peer = await onex_rig.peer("bob")
    assert await peer.ask("consume q") == "Subscribed to queue"
    assert [await peer.message() for _ in range(3)] == ["m-0", "m-1", "m-2"]


async def test_a_fetched_message_stays_until_its_ack(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    await peer.publish("m-1")
    assert (await peer.ask("fetch q")).startswith("Message: m-1 {")
    assert await peer.ask("fetch q") == "No messages"
    await peer.lines.close()
    await onex_rig.broker.until(lambda broker: broker.queue("q") == (1, 0))
    peer = await onex_rig.peer()
    assert (await peer.ask("fetch q")).startswith("Message: m-1 {")
    assert await peer.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert onex_rig.broker.queue("q") == (0, 0)


async def test_a_new_consumer_gets_the_backlog_first(onex_rig: OnexRig) -> None:
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    for number in range(3):
        await sender.publish(f"m-{number}")
    assert await receiver.ask("consume q") == "Subscribed to queue"
    await sender.publish("m-3")
    assert [await receiver.message() for _ in range(4)] == ["m-0", "m-1", "m-2", "m-3"]


async def test_consume_declares_the_queue(onex_rig: OnexRig) -> None:
    receiver = await onex_rig.peer("bob")
    assert await receiver.ask("consume new") == "Subscribed to queue"
    assert await receiver.ask("consume new") == "Subscribed to queue"
    assert await receiver.ask("consume ") == "Missing queue name"
    assert onex_rig.broker.queue("new") == (0, 0)


async def test_a_queue_of_the_client_s_own_name_is_its_inbox(onex_rig: OnexRig) -> None:
    receiver = await onex_rig.peer("bob")
    assert await receiver.ask("consume bob") == "Subscribed to queue"
    info = onex_rig.broker.engine.queue("bob")
    assert info is not None
    assert info.spec.inbox


async def test_consumers_compete(onex_rig: OnexRig) -> None:
    sender = await onex_rig.peer()
    await sender.set_up()
    receivers = [await onex_rig.peer("bob"), await onex_rig.peer("carol")]
    for receiver in receivers:
        await receiver.ask("consume q")
    for number in range(10):
        await sender.publish(f"m-{number}")
    got = [[await receiver.message() for _ in range(5)] for receiver in receivers]
    assert sorted(got[0] + got[1]) == [f"m-{n}" for n in range(10)]


async def test_an_ack_settles_only_what_its_client_holds(onex_rig: OnexRig) -> None:
    sender, bob, carol = [await onex_rig.peer(name) for name in ("alice", "bob", "carol")]
    await sender.set_up("q")
    await sender.set_up("p")
    await bob.ask("consume q")
    await carol.ask("consume p")
    await sender.publish("m-1")
    assert await bob.message() == await carol.message() == "m-1"
    assert await sender.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert await bob.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert onex_rig.broker.queue("q") == (0, 0)
    assert onex_rig.broker.queue("p") == (0, 1)


async def test_a_retry_after_a_lost_ack_is_acknowledged_again(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    assert await peer.publish("m-1") == "ACK m-1"
    await peer.lines.close()
    peer = await onex_rig.peer()
    assert await peer.publish("m-1") == "ACK m-1"
    await onex_rig.broker.restart()
    peer = await onex_rig.peer()
    assert await peer.publish("m-1") == "ACK m-1"
    assert onex_rig.broker.queue("q") == (1, 0)
    refused = await peer.publish("m-1", nonce="another")
    assert refused == "Error: this message_id was published before, with other content"


async def test_a_resend_is_delivered_again(onex_rig: OnexRig) -> None:
    sender, bob, carol = [await onex_rig.peer(name) for name in ("alice", "bob", "carol")]
    await sender.set_up()
    await bob.ask("consume q")
    await sender.publish("m-1")
    assert await bob.message() == "m-1"
    assert await carol.ask("resend m-1") == "Unauthorized resend request"
    assert await sender.ask("resend m-1") == "Resend requested"
    assert await bob.message() == "m-1"
    assert await bob.ask("ack m-1") == "ACK_CONFIRMED m-1"
    assert onex_rig.broker.queue("q") == (0, 0)
    said = await sender.ask("resend m-1")
    assert said.startswith("Error: nothing to send again, since 20")
    assert said.endswith(" for message m-1")
    assert await carol.ask("resend m-1") == "Unauthorized resend request"
    assert await bob.silent()


async def test_an_id_can_t_make_lines(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    said = await peer.publish("m-1\nMessage: forged {}")
    assert said.startswith("Invalid message format: ")
    assert "\\n" in said
    assert await peer.silent()


async def test_a_replaced_key_is_logged(
    onex_rig: OnexRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ciphermq")
    peer = await onex_rig.peer()
    other = encode(bindings.crypto_scalarmult_base(bytes(range(1, 33))))
    for key in (PUBLIC, PUBLIC, other):
        assert await peer.ask(f"register_public_key {key}") == "Public key registered"
    said = [record.getMessage() for record in caplog.records]
    assert sum("1.x key registered" in line for line in said) == 1
    assert sum("1.x key replaced" in line for line in said) == 1
    assert await peer.ask("get_public_key alice") == f"Public key: {other}"


async def test_access_rules_hold_for_1x_too(begin: Callable[..., Any]) -> None:
    rig: OnexRig = await begin(access={"allow_all": False})
    alice, bob = await rig.peer(), await rig.peer("bob")
    await alice.set_up()
    assert (await bob.ask("fetch q")).startswith("Error: 'bob' may not consume queue 'q'")
    assert (await bob.publish("m")).startswith("Error: 'bob' may not publish to exchange 'x'")
    assert (await bob.ask("consume alice")).startswith("Subscribed")  # a queue like any other
    assert await alice.publish("m") == "ACK m"


# --- consumers ----------------------------------------------------------------------------------


async def test_redeliveries_do_not_use_up_the_window(onex_rig: OnexRig) -> None:
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    count = limits.ONEX_WINDOW + 5
    sender.say(f"publish_batch x k [{','.join(message(f'm-{n}') for n in range(count))}]")
    for _ in range(count):
        await sender.hear()
    await receiver.ask("consume q")
    for _ in range(limits.ONEX_WINDOW):
        await receiver.message()
    assert await receiver.silent()
    await receiver.lines.close()
    receiver = await onex_rig.peer("bob")
    await receiver.ask("consume q")
    assert [await receiver.message() for _ in range(count)] == [f"m-{n}" for n in range(count)]
    await sender.publish("more")
    assert await receiver.message() == "more"


async def test_an_ack_makes_room_in_the_window(
    onex_rig: OnexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ONEX_WINDOW", 2)
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    await receiver.ask("consume q")
    for number in range(3):
        await sender.publish(f"m-{number}")
    assert [await receiver.message(), await receiver.message()] == ["m-0", "m-1"]
    assert await receiver.silent()
    receiver.say("ack m-1")
    assert {await receiver.hear(), await receiver.hear()} == {
        "ACK_CONFIRMED m-1",
        f"Message: m-2 {message('m-2')}",
    }


async def test_what_a_connection_holds_is_bounded(
    onex_rig: OnexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redeliveries cost no credit: a client that never acks would in time hold a whole queue."""
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    for number in range(6):
        await sender.publish(f"m-{number}")
    await receiver.ask("consume q")
    assert [await receiver.message() for _ in range(6)] == [f"m-{n}" for n in range(6)]
    await receiver.lines.close()
    await onex_rig.broker.until(lambda broker: broker.queue("q") == (6, 0))
    monkeypatch.setattr(limits, "MAX_HELD_BATCHES", 4)
    receiver = await onex_rig.peer("bob")
    await receiver.ask("consume q")
    assert [await receiver.message() for _ in range(4)] == [f"m-{n}" for n in range(4)]
    assert await receiver.silent()
    assert onex_rig.broker.queue("q") == (2, 4)
    assert await receiver.ask("fetch q") == ("Error: this connection has 4 messages without an ack")
    receiver.say("ack m-1", "ack m-0")
    heard = {await receiver.hear() for _ in range(4)}
    assert {line.split("{")[0] for line in heard} == {
        "ACK_CONFIRMED m-1",
        "ACK_CONFIRMED m-0",
        "Message: m-4 ",
        "Message: m-5 ",
    }


async def test_resends_without_end_are_one_message_in_hand(onex_rig: OnexRig) -> None:
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    await receiver.ask("consume q")
    await sender.publish("m")
    for _ in range(20):
        assert await receiver.message() == "m"
        assert await sender.ask("resend m") == "Resend requested"
    assert await receiver.message() == "m"
    (session,) = [each for each in onex_rig.broker.server.services.sessions if each.client == "bob"]
    assert session.consuming.held == 1
    assert await receiver.ask("ack m") == "ACK_CONFIRMED m"
    assert session.consuming.held == 0
    assert onex_rig.broker.queue("q") == (0, 0)


async def test_an_id_that_two_senders_chose_is_settled_by_who_holds_it(
    onex_rig: OnexRig,
) -> None:
    alice, carol, bob = [await onex_rig.peer(name) for name in ("alice", "carol", "bob")]
    await alice.set_up("q")
    await carol.ask("declare_queue p")
    await carol.ask("bind p x other")
    await bob.ask("consume q")
    assert await alice.publish("m") == "ACK m"
    assert await carol.ask(f"publish x other {message('m', nonce='other')}") == "ACK m"
    assert await bob.message() == "m"
    assert await carol.ask("fetch p") == f"Message: m {message('m', nonce='other')}"
    assert await bob.ask("ack m") == "ACK_CONFIRMED m"
    assert onex_rig.broker.queue("q") == (0, 0)
    assert onex_rig.broker.queue("p") == (0, 1)
    assert await bob.ask("ack m") == "ACK_CONFIRMED m"  # 1.x acks again until it hears this
    assert onex_rig.broker.queue("p") == (0, 1)
    assert await carol.ask("ack m") == "ACK_CONFIRMED m"
    assert onex_rig.broker.queue("p") == (0, 0)


async def test_a_deleted_queue_ends_the_connection(onex_rig: OnexRig) -> None:
    receiver = await onex_rig.peer("bob")
    await receiver.ask("consume q")
    await onex_rig.broker.engine.delete_queue("q")
    with pytest.raises(ConnectionError):
        await receiver.hear()


# --- beside cmq/2 -------------------------------------------------------------------------------


async def test_both_protocols_share_the_queues(onex_rig: OnexRig) -> None:
    sender, receiver = await onex_rig.peer(), await onex_rig.peer("bob")
    await sender.set_up()
    client = await onex_rig.rig.client("carol")
    sealed = batch("carol", exchange="x", to="k")
    assert await client.send(sealed) == ""
    await receiver.ask("consume q")
    assert await receiver.silent()
    status = await client.ask(Status)
    assert status["engine"]["messages_nobody_takes"] == 1
    await sender.publish("m-1")
    assert await receiver.message() == "m-1"
    (row,) = await client.ask(List, what="queues", prefix="q")
    assert (row["messages_ready"], row["messages_unacked"], row["messages_onex"]) == (1, 1, 1)
    assert {row["software"] for row in await client.ask(List, what="connections")} >= {
        "CipherMQ 1.x"
    }
    rows = await client.ask(Peek, queue="q")
    assert [row["sender"] for row in rows] == ["carol", "alice"]
    await receiver.lines.close()
    await client.ask(Consume, queue="q", credit=10)
    await client.until(lambda: len(client.deliveries) == 2)
    assert [bytes(each.sealed) for each in client.deliveries] == [sealed, message("m-1").encode()]


async def test_a_cmq2_client_publishes_to_a_1x_receiver(onex_rig: OnexRig) -> None:
    client, receiver = await onex_rig.rig.client("carol"), await onex_rig.peer("bob")
    await receiver.set_up()
    await receiver.ask("consume q")
    await receiver.ask("consume bob")
    routed = message("m-1", exchange="x", routing_key="k").encode()
    assert await client.send(routed) == ""
    assert await receiver.hear() == f"Message: m-1 {routed.decode()}"
    assert await client.send(message("m-2").encode()) == ""
    assert await receiver.message() == "m-2"
    assert await client.send(routed) == ""
    assert await client.send(b"{}") == "bad-request"
    row = await onex_rig.broker.catalog.trace_message("m-1")
    assert row is not None
    assert (row["client"], row["exchange"], row["routing_key"]) == ("carol", "x", "k")


async def test_metadata_of_a_message(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    await peer.publish("m-1")
    await peer.publish("m-1")
    await peer.ask("fetch q")
    await peer.ask("ack m-1")
    row = await onex_rig.broker.catalog.trace_message("m-1")
    assert row is not None
    assert all(row.values())
    assert (row["client"], row["exchange"], row["routing_key"]) == ("alice", "x", "k")


async def test_without_one_x_nobody_speaks_it(rig: Rig) -> None:
    peer = OnexRig(rig)
    with pytest.raises((OSError, ConnectionError)):
        await (await peer.peer()).hear()
    with pytest.raises(OSError):
        await (await peer.peer("alice", TLS_1_2)).hear()
    client = await rig.client()
    assert await client.send(message("m").encode()) == "bad-request"


async def test_cmq2_is_refused_below_tls_1_3(
    onex_rig: OnexRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ciphermq")
    place = onex_rig.place("alice", TLS_1_2)
    context = place.context()
    context.set_alpn_protocols(["cmq/2"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", place.port, ssl=context, server_hostname="localhost"
    )
    await reader.read()
    writer.close()
    await onex_rig.broker.until(
        lambda _: any(
            "which is for CipherMQ 1.x alone" in each.getMessage() for each in caplog.records
        )
    )


# --- the connection -----------------------------------------------------------------------------


async def test_a_line_that_is_not_ended_ends_the_connection(begin: Callable[..., Any]) -> None:
    rig: OnexRig = await begin(LinkOptions(linger=0.3, frame_timeout=0.2, heartbeat=0.05))
    silent, slow = await rig.peer(), await rig.peer()
    slow.lines._writer.write(b"declare_queue q")
    with pytest.raises(ConnectionError):
        await slow.hear()
    assert await silent.silent()


async def test_a_connection_ends_before_its_keys_wear_out(begin: Callable[..., Any]) -> None:
    rig: OnexRig = await begin(LinkOptions(linger=0.3, tls_records=50))
    peer = await rig.peer()
    with pytest.raises(OSError):
        for _ in range(60):
            await peer.ask("hello")
    assert await (await rig.peer()).silent()


async def test_large_messages_again_and_again_with_little_room(begin: Callable[..., Any]) -> None:
    rig: OnexRig = await begin(
        LinkOptions(linger=0.3, write_high_water=10_000, most_untaken=10_000)
    )
    peer = await rig.peer()
    await peer.set_up()
    await peer.publish("m", padding="x" * 500_000)
    await peer.ask("consume q")
    assert await peer.message() == "m"
    for _ in range(20):
        peer.say("resend m")
    requested = 0
    while requested < 20:
        requested += await peer.hear() == "Resend requested"
    peer.say("ack m")
    while await peer.hear() != "ACK_CONFIRMED m":
        pass


async def test_the_server_s_stop_answers_what_is_owed(onex_rig: OnexRig) -> None:
    peer = await onex_rig.peer()
    await peer.set_up()
    stopping = asyncio.create_task(onex_rig.broker.stop())
    await asyncio.sleep(0)
    peer.say(f"publish x k {message('m')}")
    try:
        said = await peer.hear()
    except ConnectionError:
        said = ""
    assert said in {"", "ACK m", "Error: the broker is stopping"}
    await stopping
    with pytest.raises(OSError):
        await peer.ask("hello")


async def test_a_queue_s_properties_are_no_business_of_1x(onex_rig: OnexRig) -> None:
    client = await onex_rig.rig.client("carol")
    await client.ask(Declare, queue={"name": "q", "ttl_ms": 60_000})
    peer = await onex_rig.peer()
    assert await peer.ask("declare_queue q") == "Queue declared"
