"""Contexts for `ciphermq.zmq`: of files, of identities, and what is said of those that end."""

from __future__ import annotations

import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ciphermq.zmq
import ciphermq.zmq.asyncio
from ciphermq.client import enrol, wrapping
from ciphermq.client.identity import Identity
from ciphermq.client.tokens import TokenPlan
from ciphermq.custody.passphrase import CHEAP
from ciphermq.errors import (
    IdentityNotFound,
    PassphraseError,
    UsageError,
    WaitTimeout,
)
from ciphermq.zmq import TlsReq, TlsRouter, client_context, server_context
from support.certificates import Certificates
from support.deployment import Deployment, make_deployment, now_ms
from support.softhsm import PIN, make_softhsm

SOON = 20.0
PHRASE = "correct horse"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Alice's keys are in the clear, carol's under a passphrase."""
    made = make_deployment(tmp_path_factory.mktemp("bank"), clients=["alice"])
    made.add("carol", passphrase=PHRASE)
    return made


def of_server(bank: Deployment, **more: Any) -> ssl.SSLContext:
    place = bank.server_dir
    files = {
        "certificate": place / "server.crt",
        "key": place / "server.key",
        "authority": place / "ca.crt",
        "revocations": place / "crl.pem",
    }
    return server_context(**files | more)


def files_of(path: Path) -> dict[str, Any]:
    """What `ciphermq identity add` made, one by one."""
    return {
        "certificate": path / "cert.pem",
        "key": path / "key.pem",
        "authority": path / "ca.crt",
        "revocations": path / "crl.pem",
    }


@pytest.fixture
def known_as(bank: Deployment) -> Iterator[Any]:
    """Asks a server, with a client's context, whom it takes the client for."""
    done = threading.Event()
    with TlsRouter(of_server(bank)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")

        def serve() -> None:
            while not done.is_set():
                try:
                    peer, _ = router.recv(timeout=0.05)
                except WaitTimeout:
                    continue
                router.send(peer, (peer.client or "nobody").encode())

        def ask(tls: ssl.SSLContext) -> str:
            with TlsReq(tls, server_name="localhost") as client:
                client.connect(f"tcp://127.0.0.1:{port}")
                client.send(b"who am I?")
                return client.recv(timeout=SOON).decode()

        thread = threading.Thread(target=serve)
        thread.start()
        yield ask
        done.set()
        thread.join()


# --- identities -----------------------------------------------------------------------------------


def test_an_identity_brings_all_it_has(bank: Deployment, known_as: Any) -> None:
    assert known_as(client_context(identity=bank.identity("alice"))) == "alice"
    assert known_as(client_context(identity=str(bank.identity("carol")), passphrase=PHRASE)) == (
        "carol"
    )
    assert known_as(client_context(identity=bank.load("alice"))) == "alice"


def test_an_identity_is_found_as_the_queue_finds_it(
    bank: Deployment, known_as: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_HOME", str(bank.home))
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", PHRASE)
    assert known_as(client_context(identity="carol")) == "carol"
    with pytest.raises(IdentityNotFound, match="'nobody'"):
        client_context(identity="nobody")


def test_a_passphrase_opens_the_key_through_the_file_beside_it(
    bank: Deployment, known_as: Any
) -> None:
    files = files_of(bank.identity("carol"))
    assert known_as(client_context(**files, passphrase=PHRASE)) == "carol"
    with pytest.raises(PassphraseError, match="carol"):
        client_context(**files, passphrase="another")
    with pytest.raises(PassphraseError, match=r"key\.pem is encrypted, and no passphrase"):
        client_context(**files)
    with pytest.raises(PassphraseError):
        client_context(identity=bank.identity("carol"), passphrase="another")


def test_a_key_in_the_clear_needs_no_passphrase_and_looks_at_none(
    bank: Deployment, known_as: Any
) -> None:
    files = files_of(bank.identity("alice"))
    assert known_as(client_context(**files, passphrase=PHRASE)) == "alice"


def test_a_key_under_the_passphrase_itself(tmp_path: Path, certificates: Certificates) -> None:
    """One that others have made: nothing is beside it."""
    certificates.issue("dave")
    key = certificates.encrypted("dave", PHRASE.encode(), tmp_path / "dave.key")
    more = {
        "certificate": certificates.path("dave", "crt"),
        "authority": certificates.authority.path / "ca.crt",
    }
    client_context(**more, key=key, passphrase=PHRASE)
    with pytest.raises(PassphraseError, match="doesn't open the private key"):
        client_context(**more, key=key, passphrase="another")
    with pytest.raises(PassphraseError, match="no passphrase was given"):
        client_context(**more, key=key)


def test_an_identity_on_a_token(
    bank: Deployment, known_as: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate's key is on the token, and a second one does TLS; then a token opens the
    files, too."""
    monkeypatch.setenv("CIPHERMQ_PIN", PIN)
    token = make_softhsm(tmp_path / "hsm", monkeypatch).token()
    path = bank.identity("erin")
    url, server_name = bank.made.broker()
    enrol.create(
        path,
        name="erin",
        url=url,
        server_name=server_name,
        authority=bank.authority,
        now_ms=now_ms(),
        cost=CHEAP,
        plan=TokenPlan(token=token, signing=True),
    )
    assert known_as(client_context(identity=path)) == "erin"
    wrapping.wrap_identity(path, token, token.make_rsa("kek", 2048), phrase=None)
    assert known_as(client_context(identity=path)) == "erin"
    with pytest.raises(PassphraseError, match=r"hardware token: say client_context\(identity="):
        client_context(
            certificate=path / "tls-cert.pem", key=path / "tls-key.pem", authority=path / "ca.crt"
        )


@pytest.mark.parametrize("extra", ["certificate", "key", "authority", "revocations"])
def test_an_identity_or_files(bank: Deployment, extra: str) -> None:
    path = bank.identity("alice")
    with pytest.raises(UsageError, match="not both"):
        client_context(identity=path, **{extra: files_of(path)[extra]})


def test_neither_an_identity_nor_files(bank: Deployment) -> None:
    files = files_of(bank.identity("alice"))
    with pytest.raises(UsageError, match="whom is the client to believe"):
        client_context()
    with pytest.raises(UsageError, match="come together"):
        client_context(authority=files["authority"], key=files["key"])
    with pytest.raises(UsageError, match="open already"):
        client_context(identity=Identity.load(bank.identity("alice")), passphrase=PHRASE)


# --- what ends, or is not what it should be -------------------------------------------------------


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    """What has been warned about."""
    caplog.set_level("WARNING", "ciphermq.zmq")
    return lambda: [record.getMessage() for record in caplog.records]


def server_files(certificates: Certificates, name: str) -> dict[str, Any]:
    return {
        "certificate": certificates.path(name, "crt"),
        "key": certificates.path(name, "key"),
        "authority": certificates.authority.path / "ca.crt",
    }


def test_nothing_is_said_while_all_is_well(bank: Deployment, warned: Any) -> None:
    of_server(bank)
    client_context(identity=bank.identity("alice"))
    client_context(**files_of(bank.identity("alice")))
    assert warned() == []


@pytest.mark.parametrize(
    ("days", "said"), [((-30, -1), "expired on"), ((-30, 3), "expires in 2 days")]
)
def test_a_certificate_that_ends(
    certificates: Certificates, warned: Any, days: tuple[int, int], said: str
) -> None:
    certificates.issue("old", server=True, days=days)
    files = server_files(certificates, "old")
    server_context(**files)
    (sentence,) = warned()
    assert f"the certificate in {files['certificate']} {said}" in sentence


def test_an_identity_that_ends(bank: Deployment, warned: Any) -> None:
    client_context(identity=bank.add("frank", lifetime=-60))
    assert any("the certificate of 'frank' expired on" in sentence for sentence in warned())


def test_a_clients_certificate_for_a_server(bank: Deployment, warned: Any) -> None:
    """What `ciphermq identity add` makes is no server's; clients would only say so at the other
    end."""
    path = bank.identity("alice")
    server_context(**files_of(path))
    (sentence,) = warned()
    assert f"{path / 'cert.pem'} is not for a server" in sentence
    place = bank.server_dir
    client_context(
        certificate=place / "server.crt", key=place / "server.key", authority=place / "ca.crt"
    )
    assert "server.crt is not for a client" in warned()[-1]


def test_a_list_that_ends(tmp_path: Path, warned: Any) -> None:
    certificates = Certificates(tmp_path)
    certificates.renew_crl(at_ms=int(time.time() * 1000) - 60 * 86_400_000)
    crl = shutil.copy(certificates.authority.path / "crl.pem", tmp_path / "list.pem")
    server_context(**server_files(certificates, "server"), revocations=crl)
    (sentence,) = warned()
    assert f"the revocation list in {crl} expired on" in sentence


# --- names ----------------------------------------------------------------------------------------


def test_the_face_for_an_event_loop_has_the_same_names() -> None:
    assert ciphermq.zmq.asyncio.__all__ == ciphermq.zmq.__all__
    same = {"ALPN", "Bounds", "Peer", "Times", "client_context", "server_context"}
    for name in ciphermq.zmq.__all__:
        here, there = getattr(ciphermq.zmq, name), getattr(ciphermq.zmq.asyncio, name)
        assert (here is there) is (name in same)
