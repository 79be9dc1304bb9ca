"""A broker that lies about keys is caught before anything is sealed; honest changes are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ciphermq.client import Client, enrol
from ciphermq.errors import (
    CertificateKeyChanged,
    KeyRecordError,
    KeyRecordForged,
    KeyRecordMalformed,
    KeyRecordRevoked,
    KeyRecordRolledBack,
    KeyRecordSwapped,
    RevocationListStale,
    UnknownReceiver,
)
from support.broker import Broker
from support.deployment import Deployment, now_ms

Join = Callable[..., Awaitable[Client]]


@pytest.fixture
async def carol(deployment: Deployment, join: Join) -> Client:
    deployment.add("carol")
    client = await join("carol")
    await client.register_key()
    return client


def serve(monkeypatch: pytest.MonkeyPatch, broker: Broker, record: bytes) -> None:
    """From now on the broker answers every question for a key with this one."""

    async def get(_: str) -> bytes:
        return record

    monkeypatch.setattr(broker.server.services.keys, "get", get)


async def refused(broker: Broker, sender: Client, expected: type[KeyRecordError]) -> None:
    """Sending to bob fails with `expected`, and nothing left the machine."""
    before = broker.counter("publishes")
    with pytest.raises(expected):
        await sender.sender("bob").send(b"secret")
    with pytest.raises(expected):
        await sender.sender("bob").send_many([b"secret"])
    with pytest.raises(expected):
        await sender.key_record("bob")
    assert broker.counter("publishes") == before


async def test_another_clients_record_is_no_substitute(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, alice: Client, bob: Client, carol: Client
) -> None:
    serve(monkeypatch, broker, await carol.register_key())
    await refused(broker, alice, KeyRecordSwapped)


async def test_a_record_that_was_changed_is_forged(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, alice: Client, bob: Client
) -> None:
    record = bytearray(await bob.register_key())
    serve(monkeypatch, broker, bytes(record[:-1]) + bytes([record[-1] ^ 1]))
    await refused(broker, alice, KeyRecordForged)
    serve(monkeypatch, broker, b"nonsense")
    await refused(broker, alice, KeyRecordMalformed)


async def test_an_old_record_is_not_brought_back(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    old = await bob.register_key()
    new = await bob.rotate_key()
    assert old != new
    await alice.sender("bob").send(b"to the new key")
    serve(monkeypatch, broker, old)
    other = await join("alice")
    await refused(broker, other, KeyRecordRolledBack)


async def test_a_changed_certificate_key_waits_for_a_person(
    deployment: Deployment, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    await alice.sender("bob").send(b"to the key that was seen first")
    enrol.renew_with_new_key(
        deployment.identity("bob"),
        authority=deployment.authority,
        now_ms=now_ms(),
        passphrase=None,
    )
    changed = await join("bob")
    await changed.register_key()
    again = await join("alice")
    await refused(broker, again, CertificateKeyChanged)
    offered = again.identity.trust.clients()["bob"].offered
    assert offered is not None
    again.identity.trust.trust("bob", bytes.fromhex(offered), now_ms())
    await again.sender("bob").send(b"a person said so")


async def test_a_revoked_clients_key_is_not_sealed_to(
    deployment: Deployment, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    await alice.sender("bob").send(b"before")
    deployment.revoke("bob")
    await broker.restart()
    later = await join("alice")
    assert later.identity.verifier.crl_number > 1
    await refused(broker, later, KeyRecordRevoked)


async def test_a_newer_revocation_list_is_taken_and_an_older_is_not(
    deployment: Deployment, broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    first = alice.identity.crl_ders
    deployment.revoke("admin")
    await broker.restart()
    later = await join("alice")
    number = later.identity.verifier.crl_number
    assert later.identity.crl_ders != first
    with pytest.raises(RevocationListStale):
        later.identity.install_crl(first[0])
    assert later.identity.verifier.crl_number == number


async def test_keys_are_asked_for_once_and_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, alice: Client, bob: Client
) -> None:
    asked = 0
    keys = broker.server.services.keys
    original = keys.get

    async def get(client: str) -> bytes:
        nonlocal asked
        asked += 1
        return await original(client)

    monkeypatch.setattr(keys, "get", get)
    sender, other = alice.sender("bob"), alice.sender(["bob"])
    await asyncio.gather(*(each.send(b"x") for each in (sender, other) * 3))
    assert asked == 1
    await alice.key_record("bob")
    await sender.send(b"x")
    assert asked == 3


async def test_nobody_is_registered_by_sending(broker: Broker, alice: Client, bob: Client) -> None:
    await alice.sender("bob").send(b"x")
    assert broker.queue("alice") == (-1, -1)
    with pytest.raises(UnknownReceiver, match="does so when it first receives"):
        await bob.key_record("alice")


async def test_receiving_keeps_the_key_record_fresh(
    broker: Broker, alice: Client, bob: Client, join: Join
) -> None:
    """A broker that lost its catalog, or has an old one, is given the record again."""
    version = (await alice.key_record("bob")).version
    bob.identity.make_key_record(now_ms())
    async with bob.receiver(limit=1, timeout=10) as messages:
        await alice.sender("bob").send(b"x")
        async for message in messages:
            assert message.text == "x"
    assert (await alice.key_record("bob")).version > version


async def test_a_record_holds_what_its_owner_said(alice: Client, bob: Client) -> None:
    record = await alice.key_record("bob")
    assert record.client == "bob"
    assert record.key_id == bob.identity.current_key.key_id
    assert record.public_key == bob.identity.current_key.public_key


async def test_who_renewed_its_own_certificate_key_believes_its_own_record(
    deployment: Deployment, alice: Client, bob: Client, join: Join
) -> None:
    await bob.sender("bob").send(b"to myself")
    await alice.sender("bob").send(b"before")
    enrol.renew_with_new_key(
        deployment.identity("bob"),
        authority=deployment.authority,
        now_ms=now_ms(),
        passphrase=None,
    )
    renewed = await join("bob")
    await renewed.register_key()
    await renewed.sender("bob").send(b"to myself")
    with pytest.raises(CertificateKeyChanged):
        await alice.key_record("bob")
