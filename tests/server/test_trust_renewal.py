"""Certificates, keys, authorities and revocation lists that are replaced under a running broker."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from server_rig import Client, Rig, batch, now_ms

from ciphermq.cli import deployment as real
from ciphermq.errors import AccessRefused, TlsFailed
from ciphermq.pki import keyfile
from ciphermq.pki.authority import Authority
from ciphermq.wire.cmq2.frames import Close, Consume, Declare, Frame, Ping, Status
from interop.onex_clients import TLS_1_2, TLS_1_3, Place, connect
from support.deployment import Deployment, make_deployment
from support.odd_certificates import DAY_MS

SOON = {"reload_seconds": 0.05}
Start = Callable[..., Any]


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Each test's own: they change it."""
    return make_deployment(tmp_path, ["alice", "bob"])


def reloads(rig: Rig, *, failed: bool = False) -> int:
    server = rig.broker.server.status()["server"]
    return int(server["tls_reloads_failed" if failed else "tls_reloads"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def renew_server(deployment: Deployment) -> int:
    """A new certificate for the broker's key; its serial."""
    made = real.renew_server(deployment.made, deployment.authority, now_ms=now_ms())
    return made.serial_number


async def served(rig: Rig, *, zmq: bool = False) -> int:
    """The serial of the certificate that the broker shows now."""
    client = await rig.client("bob", zmq=zmq)
    serial = x509.load_der_x509_certificate(client.link.peer_certificate).serial_number
    await client.leave()
    return serial


# --- revoked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zmq", [False, True], ids=["tcp", "zmq"])
async def test_a_client_that_is_revoked_is_told_and_ended_and_no_other(
    start: Start, deployment: Deployment, zmq: bool
) -> None:
    rig = await start(tls=SOON, zmq=True)
    alice, again = await rig.client("alice", zmq=zmq), await rig.client("alice", zmq=zmq)
    bob = await rig.client("bob", zmq=zmq)
    admin = await rig.client("admin")
    await alice.ask(Declare, queue={"name": "hers"})
    assert await alice.send(batch(to="hers", receivers=("alice",))) == ""
    await alice.ask(Consume, queue="hers", credit=1)
    await alice.until(lambda: alice.deliveries)
    deployment.revoke("alice")
    for client in (alice, again):
        error = await client.ended()
        assert isinstance(error, AccessRefused)
        assert "'alice' is let in no more: the certificate (serial " in str(error)
        assert "has been revoked, says revocation list 2" in str(error)
    with pytest.raises(TlsFailed, match="this side's certificate has been revoked"):
        await rig.client("alice", zmq=zmq)
    # What she held is back in its queue, and the others have not noticed.
    await until(lambda: rig.broker.queue("hers") == (1, 0))
    assert await bob.ask(Ping) is None
    status = (await admin.ask(Status))["server"]
    assert (status["clients_shut_out"], status["crl_number"]) == (2, 2)


async def test_who_is_shut_out_is_not_heard_any_more(start: Start, deployment: Deployment) -> None:
    rig = await start(tls=SOON)
    bob = await rig.registered("bob")

    class Last(Client):
        """Says something more before it closes its side."""

        def on_frame(self, frame: Frame) -> None:
            if isinstance(frame, Close):
                self.publish(batch(to="bob"))
            super().on_frame(frame)

    alice = await rig.client("alice")
    last = Last("alice")
    last.link = alice.link
    alice.link.attach(last.on_frame, last.on_lost)
    assert await last.send(batch(to="bob")) == ""
    deployment.revoke("alice")
    assert isinstance(await last.ended(), AccessRefused)
    await until(lambda: rig.broker.server.reception.connections == 1)
    assert await bob.ask(Ping) is None
    assert rig.broker.queue("bob") == (1, 0)


@pytest.mark.parametrize("tls", [TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])
async def test_a_client_of_1x_is_told_in_a_line(
    start: Start, deployment: Deployment, tls: ssl.TLSVersion
) -> None:
    one_x = {"enabled": True, "tls_1_2": True}
    rig = await start(tls=SOON, one_x=one_x, access={"allow_all": True})

    def place(name: str) -> Place:
        home = deployment.identity(name)
        files = (home / "ca.crt", home / "cert.pem", home / "key.pem")
        return Place(rig.broker.port, *files, tls=tls)

    alice, bob = await connect(place("alice")), await connect(place("bob"))
    try:
        alice.write("declare_queue q")
        assert await alice.hear() == "Queue declared"
        deployment.revoke("alice")
        async with asyncio.timeout(20):
            said = await alice.hear()
            assert said.startswith("Error: 'alice' is let in no more: the certificate (serial ")
            with pytest.raises(ConnectionError):
                await alice.hear()
        with pytest.raises(OSError, match=r"(?i)certificate.revoked"):
            again = await connect(place("alice"))
            try:  # in TLS 1.3 a client has finished its handshake before the server judges it
                await again.ask("declare_queue q")
            finally:
                await again.close()
        bob.write("declare_queue q")
        assert await bob.hear() == "Queue declared"
    finally:
        await alice.close()
        await bob.close()


async def test_a_handshake_that_began_before_the_revocation(
    start: Start, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS finds nothing wrong with it: its context is the former one."""
    rig = await start(tls=SOON)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = deployment.load("alice").ssl_context()
    alice = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.broker.port)
    with pytest.raises(ssl.SSLWantReadError):
        alice.do_handshake()
    writer.write(outgoing.read())
    incoming.write(await reader.read(65536))
    deployment.revoke("alice")
    await until(lambda: reloads(rig) == 1)
    while True:
        try:
            alice.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(await reader.read(65536))
    writer.write(outgoing.read())
    async with asyncio.timeout(20):
        while await reader.read(65536):
            pass
    writer.close()
    await writer.wait_closed()
    assert "connection refused" in caplog.text
    assert "has been revoked, says revocation list 2" in caplog.text
    assert not rig.broker.server.services.sessions


async def test_who_is_of_an_authority_that_is_gone(
    start: Start, deployment: Deployment, tmp_path: Path
) -> None:
    other = make_deployment(tmp_path / "other", ["carol"])
    server, identity = deployment.server_dir, deployment.made.identities / "carol"
    other.identity("carol").rename(identity)

    def believe(name: str, directory: Path, *whom: Deployment) -> None:
        text = b"".join((one.ca_dir / name).read_bytes() for one in whom)
        (directory / name).write_bytes(text)

    for directory in (server, identity):
        believe("ca.crt", directory, deployment, other)
        believe("crl.pem", directory, deployment, other)
    rig = await start(tls=SOON)
    carol, bob = await rig.client("carol"), await rig.client("bob")
    believe("ca.crt", server, deployment)
    believe("crl.pem", server, deployment)
    error = await carol.ended()
    assert isinstance(error, AccessRefused)
    assert "which is no authority here any more" in str(error)
    with pytest.raises(TlsFailed, match="doesn't trust the authority"):
        await rig.client("carol")
    assert await bob.ask(Ping) is None


# --- renewed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zmq", [False, True], ids=["tcp", "zmq"])
async def test_a_renewed_certificate_is_shown_to_the_next(
    start: Start, deployment: Deployment, zmq: bool
) -> None:
    rig = await start(tls=SOON, zmq=True)
    alice = await rig.client("alice", zmq=zmq)
    first = await served(rig, zmq=zmq)
    second = renew_server(deployment)
    await until(lambda: reloads(rig) == 1)
    assert first != second
    assert await served(rig, zmq=zmq) == second
    assert await alice.ask(Ping) is None


async def test_a_certificate_and_its_new_key_in_two_steps(
    start: Start, deployment: Deployment
) -> None:
    rig = await start(tls=SOON)
    first = await served(rig)
    key = keyfile.new_key(ec.SECP256R1())
    made = deployment.authority.issue_server(real.DEFAULT_HOSTS, key.public_key(), now_ms=now_ms())
    server = deployment.server_dir
    (server / "server.crt").write_bytes(made.public_bytes(Encoding.PEM))
    await until(lambda: reloads(rig, failed=True) == 1)
    assert await served(rig) == first
    keyfile.write_key(server / "server.key", key, None, replace=True)
    await until(lambda: reloads(rig) == 1)
    assert await served(rig) == made.serial_number


async def test_only_when_it_is_asked_to(start: Start, deployment: Deployment) -> None:
    rig = await start(tls={"reload_seconds": 0.0})
    first = await served(rig)
    second = renew_server(deployment)
    assert await served(rig) == first
    rig.broker.server.reread()
    await until(lambda: reloads(rig) == 1)
    assert await served(rig) == second
    rig.broker.server.reread()  # though nothing has changed: who asks wants an answer
    await until(lambda: reloads(rig) == 2)


# --- what is wrong with the new ones --------------------------------------------------------------


def half(deployment: Deployment) -> None:
    path = deployment.server_dir / "server.crt"
    path.write_bytes(path.read_bytes()[:300])


def no_key(deployment: Deployment) -> None:
    (deployment.server_dir / "server.key").unlink()


def other_key(deployment: Deployment) -> None:
    key = keyfile.new_key(ec.SECP256R1())
    keyfile.write_key(deployment.server_dir / "server.key", key, None, replace=True)


def outlived(deployment: Deployment) -> None:
    key = keyfile.read_key(deployment.server_dir / "server.key", None).public_key()
    made = deployment.authority.issue_server(real.DEFAULT_HOSTS, key, now_ms=now_ms(), lifetime=-60)
    (deployment.server_dir / "server.crt").write_bytes(made.public_bytes(Encoding.PEM))


def not_yet(deployment: Deployment) -> None:
    real.renew_server(deployment.made, deployment.authority, now_ms=now_ms() + 3 * DAY_MS)


def no_list(deployment: Deployment) -> None:
    (deployment.server_dir / "crl.pem").unlink()


def an_empty_list(deployment: Deployment) -> None:
    (deployment.server_dir / "crl.pem").write_bytes(b"")


def an_old_list(deployment: Deployment) -> None:
    deployment.authority.issue_crl(now_ms=now_ms() - 60 * DAY_MS)
    text = (deployment.ca_dir / "crl.pem").read_bytes()
    (deployment.server_dir / "crl.pem").write_bytes(text)


def no_authority(deployment: Deployment) -> None:
    (deployment.server_dir / "ca.crt").write_text("nobody")


def the_authority_s_key(deployment: Deployment) -> None:
    (deployment.server_dir / "ca.key").write_text("secret")
    renew_server(deployment)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (half, r"server\.crt"),
        (no_key, r"server\.key doesn't exist"),
        (other_key, r"server\.key is not that of .*server\.crt"),
        (outlived, r"server\.crt expired on"),
        (not_yet, r"set the clock"),
        (no_list, r"crl\.pem doesn't exist"),
        (an_empty_list, r"crl\.pem"),
        (an_old_list, r"revocation list 2 expired on"),
        (no_authority, r"ca\.crt"),
        (the_authority_s_key, r"private key .*ca\.key lies in the server's own"),
    ],
)
async def test_what_does_not_hold_leaves_the_former_in_place(
    start: Start,
    deployment: Deployment,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Deployment], None],
    why: str,
) -> None:
    rig = await start(tls=SOON)
    alice, first = await rig.client("alice"), await served(rig)
    saved = {path: path.read_bytes() for path in deployment.server_dir.iterdir() if path.is_file()}
    spoil(deployment)
    await until(lambda: reloads(rig, failed=True) == 1)
    assert await served(rig) == first
    assert await alice.ask(Ping) is None
    await asyncio.sleep(5 * SOON["reload_seconds"])  # it was said, and is not said again
    said = [record for record in caplog.records if "were not taken over" in record.message]
    (record,) = said
    assert record.levelno == logging.ERROR
    assert "the former ones still count" in record.message
    assert re.search(why, str(record.__dict__)), record.__dict__
    (deployment.server_dir / "ca.key").unlink(missing_ok=True)
    for path, data in saved.items():
        path.write_bytes(data)
        path.chmod(0o600 if path.suffix == ".key" else 0o644)
    await until(lambda: reloads(rig) >= 1)
    assert await served(rig) == first


async def test_an_older_list_lets_nobody_back_in(start: Start, deployment: Deployment) -> None:
    rig = await start(tls=SOON)
    before = (deployment.server_dir / "crl.pem").read_bytes()
    deployment.revoke("alice")
    await until(lambda: reloads(rig) == 1)
    (deployment.server_dir / "crl.pem").write_bytes(before)
    await until(lambda: reloads(rig, failed=True) == 1)
    with pytest.raises(TlsFailed, match="has been revoked"):
        await rig.client("alice")


async def test_who_is_revoked_does_not_stay_for_a_fault_of_another_file(
    start: Start, deployment: Deployment
) -> None:
    rig = await start(tls=SOON)
    alice, bob = await rig.client("alice"), await rig.client("bob")
    outlived(deployment)
    deployment.revoke("alice")
    assert isinstance(await alice.ended(), AccessRefused)
    # The context of TLS is still the former one, which knows nothing of it.
    with pytest.raises(AccessRefused, match=r"the certificate .* has been revoked, says"):
        await rig.client("alice")
    assert await bob.ask(Ping) is None
    assert reloads(rig) == 0
    renew_server(deployment)
    await until(lambda: reloads(rig) == 1)
    with pytest.raises(TlsFailed, match="has been revoked"):
        await rig.client("alice")


async def test_what_is_put_right_without_a_new_file_is_taken_too(
    start: Start, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time, permissions, a disk that comes back: nothing is replaced then."""
    later = 0
    rig = await start(tls=SOON)
    monkeypatch.setattr(rig.broker.server._trust, "_now_ms", lambda: now_ms() + later)
    made = real.renew_server(deployment.made, deployment.authority, now_ms=now_ms() + 3 * DAY_MS)
    await until(lambda: reloads(rig, failed=True) == 1)
    assert await served(rig) != made.serial_number
    later = 3 * DAY_MS
    await until(lambda: reloads(rig) == 1)
    assert reloads(rig, failed=True) == 1
    assert rig.broker.server._trust.current.certificate.serial_number == made.serial_number


async def test_another_fault_of_the_same_files_is_said(
    start: Start, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await start(tls=SOON)
    other_key(deployment)
    await until(lambda: reloads(rig, failed=True) == 1)
    no_key(deployment)
    await until(lambda: "server.key doesn't exist" in caplog.text)
    assert reloads(rig, failed=True) == 2


async def test_files_that_were_caught_half_written_are_complained_about_once(
    start: Start, deployment: Deployment
) -> None:
    """A look that falls between two writes is repeated, and by nobody's wish but its own."""
    rig = await start(tls=SOON)
    keeper = rig.broker.server._trust
    look = keeper._stamps
    looks: list[Any] = []

    def between() -> Any:
        found = look()
        if not looks and found != keeper._seen:
            found = (None, *found[1:])
            looks.append(found)
        return found

    keeper._stamps = between
    half(deployment)
    await until(lambda: bool(looks) and reloads(rig, failed=True) >= 1)
    await asyncio.sleep(0.7)  # past the moment that a second look is put off for
    assert reloads(rig, failed=True) == 1


async def test_a_replaced_file_that_looks_as_old_and_as_long(
    start: Start, deployment: Deployment
) -> None:
    """As it comes out of archives that say nothing of time."""
    path = deployment.server_dir / "server.crt"
    path.write_bytes(path.read_bytes() + b"\n" * (900 - path.stat().st_size))
    before = path.stat()
    rig = await start(tls=SOON)
    key = keyfile.read_key(deployment.server_dir / "server.key", None).public_key()
    made = deployment.authority.issue_server(real.DEFAULT_HOSTS, key, now_ms=now_ms())
    text = made.public_bytes(Encoding.PEM)
    with path.open("r+b") as file:
        file.write(text + b"\n" * (900 - len(text)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (
        before.st_mtime_ns,
        before.st_ino,
        before.st_size,
    )
    await until(lambda: shown(rig) == made.serial_number)


def shown(rig: Rig) -> int:
    return int(rig.broker.server._trust.current.certificate.serial_number)


async def test_a_newer_list_counts_though_one_before_it_does_not(
    start: Start, deployment: Deployment, tmp_path: Path
) -> None:
    """Two authorities: what is wrong with the list of one says nothing about the other's."""
    other = make_deployment(tmp_path / "other", ["carol"])
    server = deployment.server_dir
    for name in ("ca.crt", "crl.pem"):
        text = b"".join((one.ca_dir / name).read_bytes() for one in (other, deployment))
        (server / name).write_bytes(text)
    rig = await start(tls=SOON)
    alice, bob = await rig.client("alice"), await rig.client("bob")
    other.authority.issue_crl(now_ms=now_ms() - 60 * DAY_MS)
    deployment.revoke("alice")
    text = b"".join((one.ca_dir / "crl.pem").read_bytes() for one in (other, deployment))
    (server / "crl.pem").write_bytes(text)
    assert isinstance(await alice.ended(), AccessRefused)
    assert await bob.ask(Ping) is None
    assert reloads(rig) == 0


async def test_who_can_t_be_told_goes_all_the_same_and_those_after_him(
    start: Start, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await start(tls=SOON)
    clients = [await rig.client("alice") for _ in range(3)]

    def broken(_: Exception) -> None:
        raise RuntimeError("a fault of this program")

    for session in rig.broker.server.services.sessions:
        session.shut_out = broken
    deployment.revoke("alice")
    for client in clients:
        await client.ended()
    assert caplog.text.count("could not be told that it is shut out") == 3


# --- said in time ---------------------------------------------------------------------------------


async def test_the_end_of_a_list_is_said_ten_days_before(
    tmp_path: Path, deployment: Deployment, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.authority.issue_crl(now_ms=now_ms() - 21 * DAY_MS)
    text = (deployment.ca_dir / "crl.pem").read_bytes()
    (deployment.server_dir / "crl.pem").write_bytes(text)
    rig = await start(tls=SOON)
    assert "revocation list 2 expires in 8 days" in caplog.text
    assert "run `ciphermq ca crl` where the authority is" in caplog.text
    deployment.revoke()
    await until(lambda: reloads(rig) == 1)
    caplog.clear()
    rig.broker.server.reread()
    await until(lambda: reloads(rig) == 2)
    assert "revocation list 3 expires" not in caplog.text


async def test_a_server_s_own_certificate_that_is_revoked_is_said(
    start: Start, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await start(tls=SOON)
    own = x509.load_pem_x509_certificate((deployment.server_dir / "server.crt").read_bytes())
    authority: Authority = deployment.authority
    authority.issue_crl(now_ms=now_ms(), revoke=[own.serial_number])
    deployment.revoke()
    await until(lambda: reloads(rig) == 1)
    await until(lambda: "clients refuse this server" in caplog.text)
    assert "run `ciphermq ca server`" in caplog.text
