"""A cmq/2 client that takes messages of CipherMQ 1.x, and one that doesn't."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from ciphermq.client import Client, Identity, Inbox
from ciphermq.client.layout import IdentitySettings
from ciphermq.client.onex import OnexReader
from ciphermq.custody.onex import OnexKey
from ciphermq.errors import (
    ConfigError,
    IdentityError,
    KeyNotPinned,
    PinnedKeyChanged,
    UnknownReceiver,
)
from interop.onex_clients import (
    Binding,
    PipelinedSender,
    Place,
    Receiver,
    Sender,
    connect,
    encode,
    make_message,
)
from support.broker import Broker, running_broker
from support.deployment import Deployment

BINDING = Binding("bob", "shop", "orders")
"""What is published there goes to bob's inbox."""
TEXTS = [f"order {number}: 21.5 €" for number in range(20)]


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[Broker]:
    """One for 1.x clients, too."""
    sections: dict[str, dict[str, Any]] = {
        "one_x": {"enabled": True, "tls_1_2": True},
        "access": {"allow_all": True},
    }
    async with running_broker(deployment, **sections) as broker:
        yield broker


def enable(deployment: Deployment, name: str, **settings: object) -> OnexKey:
    """Have the identity take messages of 1.x; the key they are sealed to."""
    directory = deployment.identity(name)
    section = {"enabled": "true", "dialect": '"ciphermq-1.4"'} | settings
    with (directory / "identity.toml").open("a") as file:
        file.write("\n[one_x]\n" + "".join(f"{key} = {section[key]}\n" for key in section))
    return OnexKey.create(directory / "one_x")


def place(deployment: Deployment, broker: Broker, name: str) -> Place:
    directory = deployment.identity(name)
    files = (directory / part for part in ("ca.crt", "cert.pem", "key.pem"))
    return Place(broker.port, *files)


async def register(deployment: Deployment, broker: Broker, name: str, key: OnexKey) -> None:
    lines = await connect(place(deployment, broker, name))
    reply = await lines.ask(f"register_public_key {encode(key.public_key)}")
    assert reply == "Public key registered"
    await lines.close()


async def send(
    deployment: Deployment, broker: Broker, version: str = "1.4", texts: list[str] = TEXTS
) -> Sender:
    kind = PipelinedSender if version == "1.5" else Sender
    sender = kind(place(deployment, broker, "alice"), "alice", "bob", BINDING, version)
    await sender.run(texts)
    assert sorted(sender.sent.values()) == sorted(texts)
    return sender


async def prepare(deployment: Deployment, broker: Broker, join: Any, **settings: object) -> Client:
    """Bob, who takes messages of 1.x; his inbox is there, and his key."""
    key = enable(deployment, "bob", **settings)
    bob: Client = await join("bob")
    await bob.register_key()
    await register(deployment, broker, "bob", key)
    return bob


@pytest.mark.parametrize(
    ("version", "dialect"),
    [("1.4.0", "ciphermq-1.4"), ("1.4", "ciphermq-1.4"), ("1.5", "ciphermq-1.5")],
)
async def test_what_1x_sends_is_read(
    deployment: Deployment, broker: Broker, join: Any, version: str, dialect: str
) -> None:
    bob = await prepare(deployment, broker, join, dialect=f'"{dialect}"')
    sender = await send(deployment, broker, version)
    async with bob.receiver(limit=len(TEXTS), timeout=10) as messages:
        found = [message async for message in messages]
    assert [message.text for message in found] == TEXTS
    assert {(message.sender, message.verified) for message in found} == {(None, False)}
    assert {message.headers["message_id"]: message.text for message in found} == sender.sent
    assert len({message.id for message in found}) == len(TEXTS)
    assert {message.sent_at.isoformat() for message in found} == {"2025-09-08T07:03:00+00:00"}
    await broker.until(lambda broker: broker.queue("bob") == (0, 0))


async def test_both_kinds_come_from_one_queue(
    deployment: Deployment, broker: Broker, join: Any
) -> None:
    bob = await prepare(deployment, broker, join)
    alice = await join("alice")
    await send(deployment, broker, texts=["from 1.x"])
    await alice.sender("bob").send(b"sealed")
    async with bob.receiver(limit=2, timeout=10) as messages:
        found = [(each.text, each.sender, each.verified) async for each in messages]
    assert found == [("from 1.x", None, False), ("sealed", "alice", True)]


async def test_an_identity_that_has_not_enabled_it_takes_none(
    deployment: Deployment, broker: Broker, bob: Client
) -> None:
    key = OnexKey.create(deployment.home / "elsewhere")
    await register(deployment, broker, "bob", key)
    alice = await send(deployment, broker, texts=["from 1.x"])
    assert alice.sent
    async with bob.receiver(timeout=10) as receiver:
        task = receiver.next()
        await alice_seals(deployment, broker)
        message = await task
        assert message is not None
        assert (message.sender, receiver.refused) == ("alice", 1)
        message.ack()
    (dead,) = await bob.peek("dead.bob")
    assert dead["dead"]["reason"] == "onex-not-enabled"
    assert "identity.toml" in dead["dead"]["detail"]


async def alice_seals(deployment: Deployment, broker: Broker) -> None:
    from ciphermq.client import connect as join

    async with join(broker.url, identity=deployment.load("alice")) as alice:
        await alice.sender("bob").send(b"sealed")


@pytest.mark.parametrize(
    ("dialect", "version", "reason"),
    [("ciphermq-1.4", "1.5", "wrap-refused"), ("ciphermq-1.5", "1.4", "wrap-refused")],
)
async def test_the_other_dialect_is_not_guessed(
    deployment: Deployment, broker: Broker, join: Any, dialect: str, version: str, reason: str
) -> None:
    bob = await prepare(deployment, broker, join, dialect=f'"{dialect}"')
    await send(deployment, broker, version, ["from 1.x"])
    await alice_seals(deployment, broker)
    async with bob.receiver(limit=1, timeout=10) as messages:
        assert [message.payload async for message in messages] == [b"sealed"]
    (dead,) = await bob.peek("dead.bob")
    assert dead["dead"]["reason"] == reason
    assert f"ciphermq-{version}" in dead["dead"]["detail"]


@pytest.mark.parametrize("store_payloads", [False, True])
async def test_an_inbox_shows_each_once(
    deployment: Deployment, broker: Broker, join: Any, tmp_path: Path, store_payloads: bool
) -> None:
    bob = await prepare(deployment, broker, join)
    assert bob.identity.onex is not None
    key = bob.identity.onex.key.public_key
    once, twice = (make_message("1.4", "alice", "bob", key, text) for text in ("once", "twice"))
    with Inbox(tmp_path / "inbox.db", store_payloads=store_payloads) as inbox:
        # To the broker the same id from two clients is two messages. To a receiver it is one,
        # since nothing proves who sent either.
        for sender in ("alice", "admin"):
            assert await publish(deployment, broker, sender, once) == f"ACK {once['message_id']}"
        await publish(deployment, broker, "alice", twice)
        async with bob.receiver(inbox=inbox, limit=2, timeout=10) as messages:
            found = []
            async for message in messages:
                with inbox.transaction(message):
                    found.append((message.headers["message_id"], message.text))
        assert found == [(once["message_id"], "once"), (twice["message_id"], "twice")]
    await broker.until(lambda broker: broker.queue("bob") == (0, 0))


async def publish(
    deployment: Deployment, broker: Broker, name: str, message: dict[str, str]
) -> str:
    lines = await connect(place(deployment, broker, name))
    await BINDING.declare(lines)
    reply: str = await lines.ask(f"publish shop orders {json.dumps(message)}")
    await lines.close()
    return reply


# --- sealing for 1.x ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        ("1.4.0", {"dialect": '"ciphermq-1.4"', "separate_tag": "true"}),
        ("1.4", {"dialect": '"ciphermq-1.4"'}),
        ("1.5", {"dialect": '"ciphermq-1.5"'}),
    ],
)
async def test_what_is_sealed_here_a_1x_receiver_reads(
    deployment: Deployment, broker: Broker, join: Any, version: str, settings: dict[str, object]
) -> None:
    enable(deployment, "alice", **settings)
    private = secrets.token_bytes(32)
    queue = Binding("bobs", "shop", "orders")
    receiver = Receiver(place(deployment, broker, "bob"), "bob", queue, private, version)
    task = asyncio.create_task(receiver.run())
    await broker.until(lambda _: "Subscribed to queue" in receiver.heard)
    alice: Client = await join("alice")
    fingerprint = hashlib.sha256(bindings.crypto_scalarmult_base(private)).digest()
    alice.identity.trust.trust_onex("bob", fingerprint)
    sent = [
        (await alice.onex.send("bob", text, exchange="shop", routing_key="orders"), text)
        for text in TEXTS[:3]
    ]
    await broker.until(lambda _: len(receiver.received) == 3)
    assert receiver.received == sent
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_broker_that_crashes_stores_each_once(
    deployment: Deployment, broker: Broker, join: Any
) -> None:
    """The same bytes go again until they are confirmed, and keys are not asked for again."""
    enable(deployment, "alice")
    key = OnexKey.create(deployment.home / "elsewhere")
    await register(deployment, broker, "bob", key)
    bob: Client = await join("bob")
    await bob.register_key()
    alice: Client = await join("alice")
    fingerprint = hashlib.sha256(key.public_key).digest()
    alice.identity.trust.trust_onex("bob", fingerprint)
    await alice.onex.public_key("bob")
    posted = [await alice.onex.post("bob", f"number {number}") for number in range(10)]
    await broker.crash()
    posting = asyncio.gather(*(alice.onex.post("bob", f"number {n}") for n in range(10, 30)))
    await broker.start()
    async with asyncio.timeout(30):
        sent = await asyncio.gather(*posted, *await posting)
    assert len(set(sent)) == 30
    assert broker.queue("bob") == (30, 0)


async def test_nothing_is_sealed_to_a_key_that_nobody_pinned(
    deployment: Deployment, broker: Broker, join: Any
) -> None:
    enable(deployment, "alice")
    key = OnexKey.create(deployment.home / "elsewhere")
    alice: Client = await join("alice")
    with pytest.raises(UnknownReceiver):
        await alice.onex.send("bob", "for bob")
    await register(deployment, broker, "bob", key)
    with pytest.raises(KeyNotPinned):
        await alice.onex.send("bob", "for bob")
    alice.identity.trust.trust_onex("bob", bytes(32))
    with pytest.raises(PinnedKeyChanged):
        await alice.onex.send("bob", "for bob")
    assert broker.counter("publishes") == 0


async def test_a_dialect_must_be_said(
    deployment: Deployment, broker: Broker, alice: Client
) -> None:
    with pytest.raises(ConfigError, match=r"one_x\.dialect"):
        await alice.onex.send("bob", "for bob")


async def test_a_key_is_given_out_to_1x_senders(
    deployment: Deployment, broker: Broker, join: Any
) -> None:
    enable(deployment, "bob")
    bob: Client = await join("bob")
    await bob.register_key()
    await bob.onex.register_key()
    sender = await send(deployment, broker, texts=["from 1.x"])
    async with bob.receiver(limit=1, timeout=10) as messages:
        assert [each.headers["message_id"] async for each in messages] == list(sender.sent)


async def test_none_is_given_out_where_it_is_not_enabled(broker: Broker, alice: Client) -> None:
    with pytest.raises(ConfigError, match="enable"):
        await alice.onex.register_key()


# --- the key and the settings ---------------------------------------------------------------------


def test_a_key_that_is_missing_is_said(deployment: Deployment) -> None:
    enable(deployment, "bob")
    (deployment.identity("bob") / "one_x" / "receiver_private.key").unlink()
    with pytest.raises(IdentityError, match="ciphermq keys make --out"):
        deployment.load("bob")


def test_a_key_that_something_else_uses_is_refused(deployment: Deployment) -> None:
    key = enable(deployment, "bob")
    bob = deployment.load("bob")
    assert bob.onex is not None
    assert bob.onex.key.public_key == key.public_key

    class Hybrid:
        public_key = bytes(1184) + key.public_key

    with pytest.raises(IdentityError, match=r"for 1\.x alone"):
        OnexReader.load(bob.path, bob.settings.one_x, [Hybrid()])  # type: ignore[list-item]


def test_off_is_off(deployment: Deployment) -> None:
    assert deployment.load("bob").onex is None
    enable(deployment, "bob", enabled="false")
    assert deployment.load("bob").onex is None


def test_the_settings_are_kept_when_the_file_is_written(deployment: Deployment) -> None:
    enable(deployment, "bob", dialect='"ciphermq-1.5"', separate_tag="true")
    directory = deployment.identity("bob")
    before = IdentitySettings.read(directory)
    assert before.one_x is not None
    before.write(directory)
    assert IdentitySettings.read(directory) == before


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"dialect": '"ciphermq-1.6"'}, "ciphermq-1.4, ciphermq-1.5"),
        ({"cipher": '"rot13"'}, "chacha20-poly1305, aes-256-gcm"),
        ({"keys": '""'}, "no directory"),
        ({"enabled": '"yes"'}, "enabled"),
        ({"colour": '"red"'}, "colour"),
    ],
)
def test_a_bad_setting_is_named(
    deployment: Deployment, section: dict[str, object], named: str
) -> None:
    enable(deployment, "bob", **section)
    with pytest.raises(ConfigError, match=named):
        IdentitySettings.read(deployment.identity("bob"))


def test_the_key_travels_with_an_exported_identity(deployment: Deployment, tmp_path: Path) -> None:
    from ciphermq.client import bundle, enrol
    from support.deployment import now_ms

    key = enable(deployment, "bob")
    text = enrol.export(deployment.identity("bob"))
    enrol.import_identity(bundle.unpack(text), tmp_path / "bob", now_ms())
    moved = Identity.load(tmp_path / "bob")
    assert moved.onex is not None
    assert moved.onex.key.public_key == key.public_key
    private = tmp_path / "bob" / "one_x" / "receiver_private.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
