"""A client whose certificate, key, authorities or lists are replaced while it runs."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.client import Client, connect, enrol, layout
from ciphermq.client.classic.peer import Peer
from ciphermq.client.identity import Identity
from ciphermq.errors import CertificateError, RevocationListStale
from ciphermq.model import keyrecord
from ciphermq.pki.authority import CERTIFICATE, REVOCATION_LIST
from ciphermq.settings.onexclient import ReceiverFile, load_client_file
from support.broker import Broker, running_broker
from support.classic import ClassicDeployment
from support.deployment import Deployment, make_deployment, now_ms


@pytest.fixture
def alice(deployment: Deployment) -> Identity:
    return deployment.load("alice")


def renew(deployment: Deployment, name: str) -> x509.Certificate:
    """As the command does, in the identity's directory."""
    path = deployment.identity(name)
    return enrol.renew(path, authority=deployment.authority, now_ms=now_ms()).certificate


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# --- what is taken over ---------------------------------------------------------------------------


def test_nothing_new_is_nothing_to_take_over(alice: Identity) -> None:
    before = alice.signer, alice.verifier
    assert not alice.refresh()
    assert (alice.signer, alice.verifier) == before


def test_a_renewed_certificate_signs_from_then_on(deployment: Deployment, alice: Identity) -> None:
    first = alice.key_record(now_ms())
    made = renew(deployment, "alice")
    assert alice.key_record(now_ms()) == first
    assert alice.refresh()
    assert alice.signer.chain == (der(made),)
    assert not alice.refresh()
    # The record that others seal by names the certificate, so there must be a new one.
    second = keyrecord.parse(alice.key_record(now_ms())).record
    assert second.certificate_sha256 == alice.signer.certificate_sha256
    assert second.version > keyrecord.parse(first).record.version


def test_a_new_key_too(deployment: Deployment, alice: Identity) -> None:
    enrol.renew_with_new_key(
        alice.path, authority=deployment.authority, now_ms=now_ms(), passphrase=None
    )
    assert alice.refresh()
    alice.check(now_ms())
    record = alice.key_record(now_ms())
    assert alice.accept(record, "alice", now_ms()).client == "alice"


def test_a_certificate_without_its_key_leaves_the_former(
    deployment: Deployment, alice: Identity
) -> None:
    before = alice.signer
    other = deployment.load("bob")
    made = deployment.authority.issue_client(
        "alice", other.certificate.public_key(), now_ms=now_ms(), replace=True
    )
    (alice.path / layout.CERTIFICATE).write_bytes(made.public_bytes(Encoding.PEM))
    with pytest.raises(CertificateError, match="the private key is not that of the certificate"):
        alice.refresh()
    (alice.path / layout.CERTIFICATE).write_bytes(other.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(CertificateError, match=r"is not of 'alice'"):
        alice.refresh()
    assert alice.signer is before


def test_a_newer_list_on_the_disk_counts_and_an_older_does_not(
    deployment: Deployment, alice: Identity
) -> None:
    old = (alice.path / layout.REVOCATION_LIST).read_bytes()
    alice.check(now_ms())
    newest = deployment.authority.issue_crl(now_ms=now_ms())
    enrol.install_crl(alice.path, newest)
    assert alice.verifier.crl_number == 1
    assert alice.refresh()
    assert alice.verifier.crl_number == 2
    (alice.path / layout.REVOCATION_LIST).write_bytes(old)
    with pytest.raises(RevocationListStale, match="1 is older than 2"):
        alice.refresh()
    assert alice.verifier.crl_number == 2


def test_one_more_authority(tmp_path: Path, deployment: Deployment, alice: Identity) -> None:
    alice.check(now_ms())
    other = make_deployment(tmp_path / "other")
    for name, kept in ((CERTIFICATE, layout.AUTHORITY), (REVOCATION_LIST, layout.REVOCATION_LIST)):
        with (alice.path / kept).open("ab") as file:
            file.write((other.ca_dir / name).read_bytes())
    assert alice.refresh()
    assert [*alice.verifier.authorities] == [
        deployment.authority.certificate,
        other.authority.certificate,
    ]
    assert len(alice.verifier.revocation_lists) == 2
    assert not alice.refresh()


# --- with a broker --------------------------------------------------------------------------------


async def said(client: Client, count: int) -> list[bytes]:
    """The next messages."""
    found = []
    async with asyncio.timeout(60), client.receiver(limit=count) as receiver:
        async for message in receiver:
            found.append(message.payload)
    return found


async def until_connected(client: Client, times: int) -> None:
    async with asyncio.timeout(60):
        while not (client.connected and client.connections >= times):
            await asyncio.sleep(0.01)


async def test_a_renewed_certificate_is_shown_at_the_next_connection(
    deployment: Deployment, broker: Broker, join
) -> None:
    alice = await join("alice")
    made = renew(deployment, "alice")
    broker.cut()
    await until_connected(alice, 2)
    (channel,) = broker.server.reception.channels
    assert channel.peer_certificate == der(made)
    assert alice.identity.certificate == made


@pytest.mark.parametrize("zmq", [False, True], ids=["tcp", "zmq"])
async def test_who_is_renewed_before_the_old_one_is_revoked_goes_on(
    deployment: Deployment, zmq: bool
) -> None:
    """Nobody is restarted; but what the old one has signed is not believed any more."""
    tls = {"reload_seconds": 0.05}
    async with running_broker(deployment, zmq=True, tls=tls) as broker:
        url = broker.zmq_url if zmq else broker.url
        async with (
            connect(url, identity=deployment.load("alice"), close_timeout=5.0) as alice,
            connect(url, identity=deployment.load("bob"), close_timeout=5.0) as bob,
        ):
            await bob.register_key()
            async with alice.sender("bob") as sender:
                await sender.send(b"0")
                old = alice.identity.certificate.serial_number
                made = renew(deployment, "alice")
                authority = deployment.authority
                authority.issue_crl(now_ms=now_ms(), revoke=[old])
                deployment.revoke()
                await until_connected(alice, 2)
                await sender.send(b"1")
            assert alice.identity.certificate == made
            # It could be a thief's, dated as he likes.
            await bob._core.refresh_crl()
            assert await said(bob, 1) == [b"1"]
            await broker.until(lambda there: there.queue("dead.bob") == (1, 0))
        assert broker.server.status()["server"]["clients_shut_out"] == 1


async def test_who_is_revoked_tries_on_and_says_why(deployment: Deployment) -> None:
    async with (
        running_broker(deployment, tls={"reload_seconds": 0.05}) as broker,
        connect(
            broker.url, identity=deployment.load("alice"), close_timeout=1.0, request_timeout=1.0
        ) as alice,
    ):
        deployment.revoke("alice")
        async with asyncio.timeout(60):
            while "has been revoked" not in alice._core.line.describe() or alice.connected:
                await asyncio.sleep(0.01)
        # And comes back by herself once she has another.
        path = deployment.identity("alice")
        enrol.renew_with_new_key(
            path, authority=deployment.authority, now_ms=now_ms(), passphrase=None
        )
        await until_connected(alice, 2)


async def test_a_disk_that_fails_once_does_not_end_the_hourly_look(
    deployment: Deployment, broker: Broker, join, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(limits, "CLIENT_ROUND", 0.05)
    alice = await join("alice")
    lock = deployment.identity("alice") / layout.LOCK
    lock.unlink(missing_ok=True)
    lock.mkdir()  # which can't be opened as a file
    deployment.authority.issue_crl(now_ms=now_ms())
    text = (deployment.ca_dir / REVOCATION_LIST).read_bytes()
    (deployment.identity("alice") / layout.REVOCATION_LIST).write_bytes(text)
    async with asyncio.timeout(60):
        while "hourly look at the broker failed" not in caplog.text:
            await asyncio.sleep(0.01)
        assert alice.identity.verifier.crl_number == 1
        lock.rmdir()
        while alice.identity.verifier.crl_number != 2:
            await asyncio.sleep(0.01)


# --- the programs of 1.x --------------------------------------------------------------------------


async def test_a_1x_program_shows_the_certificate_that_is_there_now(tmp_path: Path) -> None:
    classic = ClassicDeployment(tmp_path)
    certs, seen = classic.certificates, []

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certs / "ca.crt")
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    server = await asyncio.start_server(greet, "127.0.0.1", classic.port, ssl=context)
    values = classic.values("1.4", "receiver")
    values |= {"server_address": "127.0.0.1", "server_port": classic.port}
    paths = {name: tmp_path / f"{name}.pem" for name in ("client_cert_path", "client_key_path")}
    values["tls"] |= {name: str(path) for name, path in paths.items()}
    values["tls"]["certificate_path"] = str(certs / "ca.crt")
    (tmp_path / "config.json").write_text(json.dumps(values))

    def put(client: str) -> bytes:
        for path, suffix in zip(paths.values(), ("crt", "key"), strict=True):
            path.write_bytes((certs / "clients" / client / f"client.{suffix}").read_bytes())
        return der(x509.load_pem_x509_certificate(paths["client_cert_path"].read_bytes()))

    async def shown(peer: Peer) -> bytes:
        line = await peer.connect(20)
        async with asyncio.timeout(20):
            while not seen:
                await asyncio.sleep(0.01)
        line.abort()
        return seen.pop()

    first = put("receiver_1")
    peer = Peer.of(load_client_file(tmp_path / "config.json", ReceiverFile)[0])
    assert await shown(peer) == first
    second = put("sender_1")
    assert await shown(peer) == second
    paths["client_key_path"].unlink()  # being replaced: what it had at the start may still do
    assert await shown(peer) == first
    server.close()
