"""What a message says is nowhere between its two ends: on no wire, in no file of the broker."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

import ciphermq
from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.cli.processes import Stage, free_port
from ciphermq.settings import load_server_settings
from support.recorder import Recorder

pytestmark = pytest.mark.crash

MARKER = b"Birnam Wood to high Dunsinane Hill"
HEADER = "banquo-was-here"
COUNT = 2000


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "stage", ["alice", "bob"], port=free_port()) as stage:
        yield stage


async def exchange(stage: Stage, url: str) -> list[ciphermq.Message]:
    """Alice sends marked messages to Bob, he reads the first half."""
    identities = stage.deployment
    async with ciphermq.connect(url, identity=identities.identity("bob")) as bob:
        await bob.register_key()
        async with ciphermq.connect(url, identity=identities.identity("alice")) as alice:
            sender = alice.sender("bob")
            await sender.send(MARKER, headers={"who": HEADER}, content_type=f"text/{HEADER}")
            await sender.send_many([b"%s %d" % (MARKER, number) for number in range(COUNT)])
        received = []
        async with bob.receiver(limit=COUNT // 2) as messages:
            async for message in messages:
                received.append(message)
    return received


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def spellings(secret: bytes) -> list[bytes]:
    """As it is, and as a dump or an encoder would have it."""
    return [
        secret,
        secret.hex().encode(),
        base64.b64encode(secret)[:-4],
        secret.decode().encode("utf-16-le"),
    ]


async def test_a_marker_is_in_no_packet_and_in_no_file(stage: Stage) -> None:
    broker = stage.broker()
    async with Recorder(stage.port).recording() as wire:
        received = await exchange(stage, f"cmq://localhost:{wire.port}")
    assert received[0].payload == MARKER
    assert received[0].headers == {"who": HEADER}
    assert received[-1].payload.startswith(MARKER)

    for secret in (MARKER, HEADER.encode()):
        for spelling in spellings(secret):
            assert spelling not in wire.to_broker
            assert spelling not in wire.to_client
            for path, data in contents(stage.deployment.server).items():
                assert spelling not in data, path
            assert spelling not in broker.output.encode()

    # The search looks in the right places: what anyone may read of a batch is found by it.
    stored = contents(stage.deployment.server / "data")
    assert any(b"\x00\x05alice" in data for data in stored.values())
    assert len(wire.to_broker) > COUNT * len(MARKER)
    assert len(wire.to_client) > COUNT // 2 * len(MARKER)


async def test_a_stolen_disk_opens_nothing(stage: Stage) -> None:
    """Whoever has the broker's whole directory, its keys among it, still has no key to a batch."""
    broker = stage.broker()
    await exchange(stage, f"cmq://localhost:{stage.port}")
    assert broker.stop() == 0
    stolen = contents(stage.deployment.server)

    for name in ("alice", "bob"):
        directory = stage.deployment.identity(name)
        private = [directory / "key.pem", *(directory / "sealing").glob("*.key")]
        assert len(private) >= 2
        for path in private:
            secret = [line for line in path.read_bytes().splitlines() if b"-----" not in line]
            assert any(len(line) >= 32 for line in secret), path
            for line in secret:
                assert len(line) < 32 or not any(line in data for data in stolen.values()), path


async def test_key_records_on_a_stolen_disk_are_encrypted(stage: Stage) -> None:
    broker = stage.broker()
    await exchange(stage, f"cmq://localhost:{stage.port}")
    assert broker.stop() == 0

    public = ciphermq.Identity.load(stage.deployment.identity("bob")).current_key.public_key
    for path, data in contents(stage.deployment.server / "data").items():
        assert public[:32] not in data, path

    # It is there, for whoever has the at-rest key, which can be kept on another disk.
    storage = load_server_settings(stage.deployment.config).storage
    catalog = SqliteCatalog(storage.catalog_path, AtRestKey.load(storage.at_rest_key_path))
    await catalog.start()
    assert public in (await catalog.get_key("bob") or b"")
    await catalog.stop()
