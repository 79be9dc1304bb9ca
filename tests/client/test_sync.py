"""The synchronous face: the same names, and everything of the application's in its own thread."""

from __future__ import annotations

import inspect
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ciphermq
from ciphermq import sync
from ciphermq.client import connection, onexpeers, receiver, relay, sender
from ciphermq.client.sync import onexpeers as sync_onexpeers
from ciphermq.custody.onex import OnexKey, fingerprint
from ciphermq.errors import (
    ConnectFailed,
    InboxError,
    UnknownReceiver,
    UsageError,
    WaitTimeout,
)
from support.background import background_broker
from support.broker import Broker
from support.deployment import Deployment, make_deployment

Join = Callable[[str], sync.Client]


@pytest.fixture
def broker(deployment: Deployment) -> Iterator[Broker]:
    with background_broker(deployment) as broker:
        yield broker


@pytest.fixture
def alice(deployment: Deployment, broker: Broker) -> Iterator[sync.Client]:
    with sync.connect(broker.url, identity=deployment.load("alice"), close_timeout=5) as client:
        yield client


@pytest.fixture
def bob(deployment: Deployment, broker: Broker) -> Iterator[sync.Client]:
    with sync.connect(broker.url, identity=deployment.load("bob"), close_timeout=5) as client:
        client.register_key()
        yield client


def test_a_receiver_that_can_not_be_closed_leaves_the_rest_in_order(
    monkeypatch: pytest.MonkeyPatch,
    deployment: Deployment,
    broker: Broker,
    bob: sync.Client,
    tmp_path: Path,
) -> None:
    bob.sender("bob").send(b"x")
    client = sync.connect(broker.url, identity=deployment.load("bob"), close_timeout=5)
    with ciphermq.Inbox(tmp_path / "inbox.db") as inbox:
        message = client.receiver(inbox=inbox, timeout=10).next()
        assert message is not None
        message.ack()
        monkeypatch.setattr(inbox, "finish", _disk_full)
        posted = client.sender("bob").post(b"y")
        with pytest.raises(InboxError, match="full"):
            client.close()
    assert posted.result(0)
    assert not client.connected


def _disk_full(*_: object) -> None:
    raise InboxError("database or disk is full")


def test_messages_go_from_one_to_the_other(alice: sync.Client, bob: sync.Client) -> None:
    with alice.sender("bob") as sending:
        message_id = sending.send("hello", headers={"a": "b"})
        posted = [sending.post(b"%d" % number) for number in range(50)]
        sending.flush()
        assert all(future.done() for future in posted)
    with bob.receiver(limit=51, timeout=10) as messages:
        first = next(messages)
        assert (first.id, first.text, dict(first.headers)) == (message_id, "hello", {"a": "b"})
        assert first.sender == "alice"
        assert [message.payload for message in messages] == [b"%d" % n for n in range(50)]


def test_many_come_from_an_iterator_of_the_applications_thread(
    alice: sync.Client, bob: sync.Client
) -> None:
    threads = set()

    def source() -> Iterator[bytes]:
        for number in range(5000):
            threads.add(threading.get_ident())
            yield b"%d" % number

    told: list[int] = []
    assert alice.sender("bob").send_many(source(), progress=told.append) == 5000
    assert told[-1] == 5000
    assert threads == {threading.get_ident()}
    with bob.receiver(limit=5000, timeout=10) as messages:
        found = [payload for batch in messages.batches() for payload in batch.payloads]
    assert found == [b"%d" % number for number in range(5000)]


def test_when_the_source_fails_what_went_before_counts(
    alice: sync.Client, bob: sync.Client
) -> None:
    def source() -> Iterator[bytes]:
        yield from (b"x" for _ in range(3000))
        raise OSError("the disk is gone")

    told: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        alice.sender("bob").send_many(source(), progress=told.append)
    assert told[-1] >= 2048


def test_errors_are_the_same(alice: sync.Client, bob: sync.Client) -> None:
    with pytest.raises(UnknownReceiver):
        alice.sender("carol").send(b"x")
    with pytest.raises(UnknownReceiver):
        alice.sender("carol").send_many([b"x"] * 10_000)
    with pytest.raises(WaitTimeout), bob.receiver(timeout=0.1) as messages:
        next(messages)
    with pytest.raises(UsageError):
        bob.receiver(limit=0)


def test_nobody_listens(deployment: Deployment, broker: Broker) -> None:
    with pytest.raises(ConnectFailed):
        sync.connect("cmq://127.0.0.1:1", identity=deployment.load("alice"))
    assert not [t for t in threading.enumerate() if t.name == "ciphermq client"]


def test_the_inbox_is_used_in_the_applications_thread(
    broker: Broker, alice: sync.Client, bob: sync.Client, tmp_path: Path
) -> None:
    own = sqlite3.connect(tmp_path / "own.db")
    own.execute("CREATE TABLE effects (what TEXT)")
    inbox = ciphermq.Inbox(own)
    alice.sender("bob").send_many([b"0", b"1", b"2"])
    with pytest.raises(ValueError, match="no"), bob.receiver(inbox=inbox, timeout=10) as messages:
        for message in messages:
            with inbox.transaction(message) as db:
                db.execute("INSERT INTO effects VALUES (?)", (message.text,))
            if message.text == "1":
                raise ValueError("no")
    with bob.receiver(inbox=inbox, limit=1, timeout=10) as messages:
        assert [message.text for message in messages] == ["2"]
    assert own.execute("SELECT what FROM effects").fetchall() == [("0",), ("1",)]
    own.close()


def test_a_handler_is_called_until_it_is_stopped(alice: sync.Client, bob: sync.Client) -> None:
    alice.sender("bob").send_many([b"0", b"1", b"2"])
    messages = bob.receiver()
    seen: list[str] = []

    def handle(message: ciphermq.Message) -> None:
        seen.append(message.text)
        if seen == ["0"]:
            raise ValueError("not at first")
        if len(seen) == 4:
            messages.stop()

    messages.run(handle)
    assert seen == ["0", "1", "2", "0"]


def test_a_signal_can_stop_who_waits(bob: sync.Client) -> None:
    messages = bob.receiver()
    former = signal.signal(signal.SIGALRM, lambda *_: messages.stop())
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        messages.run(print)
    finally:
        signal.signal(signal.SIGALRM, former)


def test_an_interrupt_gives_the_message_in_hand_back(
    broker: Broker, alice: sync.Client, bob: sync.Client
) -> None:
    alice.sender("bob").send_many([b"0", b"1"])
    with pytest.raises(KeyboardInterrupt), bob.receiver(timeout=10) as messages:
        for _ in messages:
            raise KeyboardInterrupt
    assert broker.queue("bob") == (2, 0)
    with bob.receiver(limit=2, timeout=10) as messages:
        assert [message.text for message in messages] == ["0", "1"]


def test_fetched_messages_are_settled_in_this_thread(
    broker: Broker, alice: sync.Client, bob: sync.Client
) -> None:
    alice.sender("bob").send_many([b"0", b"1"])
    zero, one = bob.fetch()
    zero.ack()
    one.nack()
    deadline = time.monotonic() + 10
    while broker.queue("bob") != (1, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_outbox_is_relayed(alice: sync.Client, bob: sync.Client, tmp_path: Path) -> None:
    with ciphermq.Outbox(tmp_path / "outbox.db") as outbox:
        outbox.add(b"one", to="bob")
        assert alice.drain(outbox) == 1
        with alice.relay(outbox) as relay:
            outbox.add(b"two", to="bob")
            relay.drained()
            assert relay.confirmed == 1
    with bob.receiver(limit=2, timeout=10) as messages:
        assert [message.text for message in messages] == ["one", "two"]


def test_queues_and_exchanges(bob: sync.Client) -> None:
    bob.declare_queue("q", max_messages=5)
    bob.declare_exchange("e", "fanout")
    bob.bind("e", "q")
    bob.sender("bob", exchange="e").send(b"x")
    assert [row["name"] for row in bob.rows("queues", "q")] == ["q"]
    assert len(bob.peek("q")) == 1
    bob.unbind("e", "q")
    assert bob.purge("q") == 1
    bob.delete_exchange("e")
    assert bob.delete_queue("q") == 0
    message_id = bob.sender("bob").send(b"x")
    bob.fetch()[0].reject()
    deadline = time.monotonic() + 10
    while not bob.redrive("dead.bob"):
        assert time.monotonic() < deadline
    assert bob.trace(message_id) is not None
    assert bob.key_record("bob").client == "bob"
    bob.rotate_key()
    assert bob.connected


def test_clients_of_1x(tmp_path: Path) -> None:
    deployment = make_deployment(tmp_path, ["alice"])
    with (deployment.identity("alice") / "identity.toml").open("a") as file:
        file.write('\n[one_x]\nenabled = true\ndialect = "ciphermq-1.4"\n')
    key = OnexKey.create(deployment.identity("alice") / "one_x")
    sections = {"one_x": {"enabled": True}, "access": {"allow_all": True}}
    with background_broker(deployment, **sections) as broker:
        identity = deployment.load("alice")
        identity.trust.trust_onex("alice", bytes.fromhex(fingerprint(key.public_key)))
        with sync.connect(broker.url, identity=identity) as alice:
            alice.register_key()
            alice.onex.register_key()
            assert alice.onex.public_key("alice") == key.public_key
            posted = alice.onex.post("alice", "first")
            sent = [alice.onex.send("alice", "second")]
            sent.insert(0, posted.result(10))
            with alice.receiver(limit=2, timeout=10) as messages:
                found = [(each.headers["message_id"], each.text) for each in messages]
            assert found == list(zip(sent, ["first", "second"], strict=True))


@pytest.mark.parametrize(
    ("face", "original"),
    [
        (sync.Client, connection.Client),
        (sync.Sender, sender.Sender),
        (sync.Receiver, receiver.Receiver),
        (sync.Relay, relay.Relay),
        (sync_onexpeers.OnexPeers, onexpeers.OnexPeers),
    ],
)
def test_every_name_is_there(face: type, original: type) -> None:
    """But for what only serves to build faces, and counts of the loop's own."""
    inner = {"source", "fetch_opened", "send_chunks", "ask", "connections"}
    names = {name for name, _ in inspect.getmembers(original) if not name.startswith("_")}
    missing = names - inner - {name for name, _ in inspect.getmembers(face)}
    assert missing == set()
