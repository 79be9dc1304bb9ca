"""The command line and 1.x: send to a receiver of 1.x, trace, dead letters, pins; with both
catalogs, against real processes and a receiver that knows no line of ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from ciphermq.custody.onex import OnexKey
from interop.onex_clients import Binding, Place, Receiver, connect, make_message
from support.deployment import Deployment, make_deployment
from support.postgres import PASSWORD, USER, Postgres, required_binaries

pytestmark = pytest.mark.crash

Capture = pytest.CaptureFixture[str]
PRIVATE = bytes(range(32))
PUBLIC = bindings.crypto_scalarmult_base(PRIVATE)
FINGERPRINT = hashlib.sha256(PUBLIC).hexdigest()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres(required_binaries()) as running:
        yield running


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    port = free_port()
    made = make_deployment(tmp_path, ["alice", "bob", "old_receiver"], port=port)
    monkeypatch.setenv("CIPHERMQ_HOME", str(made.home))
    monkeypatch.setenv("CIPHERMQ_URL", f"cmq://127.0.0.1:{port}")
    with (made.identity("alice") / "identity.toml").open("a") as file:
        file.write('\n[one_x]\ndialect = "ciphermq-1.4"\n')
    return made


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[Process]:
    environment = {
        "CIPHERMQ_ONE_X__ENABLED": "true",
        "CIPHERMQ_ACCESS__ALLOW_ALL": "true",
    }
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres")
        # One for each test: keys in it open only with their server's own.
        name = f"ciphermq_{uuid.uuid4().hex}"
        asyncio.run(database.execute(f"CREATE DATABASE {name}"))
        environment |= {
            "CIPHERMQ_DATABASE__HOST": "127.0.0.1",
            "CIPHERMQ_DATABASE__PORT": str(database.port),
            "CIPHERMQ_DATABASE__USER": USER,
            "CIPHERMQ_DATABASE__PASSWORD": PASSWORD,
            "CIPHERMQ_DATABASE__DBNAME": name,
            "CIPHERMQ_ENCRYPTION__AES_KEY": base64.b64encode(PRIVATE).decode(),
        }
    words = ["server", "--config", str(deployment.config)]
    started = Process("server", words, log=deployment.home / "out", environment=environment)
    try:
        started.wait_for("ciphermq ready on")
        yield started
    finally:
        started.kill()


def place(deployment: Deployment, name: str) -> Place:
    directory = deployment.identity(name)
    _, port = deployment.made.broker()[0].rsplit(":", 1)
    files = (directory / part for part in ("ca.crt", "cert.pem", "key.pem"))
    return Place(int(port), *files)


def until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def receiving(receiver: Receiver) -> Iterator[None]:
    """A receiver of 1.x, in a thread of its own."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(receiver.run())

    def live() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        until(lambda: "Subscribed to queue" in receiver.heard)
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(30)
        loop.close()


def publish(deployment: Deployment, message: dict[str, str]) -> str:
    """As alice, in the text protocol, into bob's inbox."""

    async def work() -> str:
        lines = await connect(place(deployment, "alice"))
        await Binding("bob", "shop", "orders").declare(lines)
        reply: str = await lines.ask(f"publish shop orders {json.dumps(message)}")
        await lines.close()
        return reply

    return asyncio.run(work())


def said(capsys: Capture, *words: object) -> tuple[int, Any]:
    """A command's status, and the last object it printed, errors too."""
    capsys.readouterr()
    status = run([*map(str, words), "--json"])
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    return status, json.loads(lines[-1]) if lines else None


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", ["old_receiver", "old_receiver_queue"])
def test_send_to_a_receiver_of_1x_and_trace_it(
    deployment: Deployment, tmp_path: Path, capsys: Capture, name: str
) -> None:
    alice = ("--identity", "alice")
    notes = tmp_path / "notes.txt"
    notes.write_text("one\r\ntwo €\n\nfour")
    queue = Binding(name, "unused", "unused")
    receiver = Receiver(place(deployment, "old_receiver"), "old_receiver", queue, PRIVATE)
    with receiving(receiver):
        # Nobody has pinned a key: a receiver of cmq/2 is looked for.
        assert said(capsys, "send", "old_receiver", notes, *alice)[1]["error"] == "unknown-receiver"
        pin = ("--one-x", "--fingerprint", FINGERPRINT)
        assert run(["keys", "trust", "old_receiver", *pin, *alice]) == 0
        status, error = said(capsys, "send", "old_receiver", notes, "--queue", "none", *alice)
        assert (status, error["error"]) == (3, "unroutable")
        status, facts = said(capsys, "send", "old_receiver", notes, *alice)
        assert (status, facts["messages"], facts["confirmed"]) == (0, 4, 4)
        assert run(["send", "old_receiver", str(notes), "--whole", *alice]) == 0
        until(lambda: len(receiver.received) == 5)
        texts = [text for _, text in receiver.received]
        assert texts == ["one", "two €", "", "four", "one\r\ntwo €\n\nfour"]
        notes.write_bytes(b"fine\n\xff\xfe\n")
        status, error = said(capsys, "send", "old_receiver", notes, *alice)
        assert (status, error["error"]) == (2, "usage")
        notes.write_text("one\n")

        message_id = receiver.received[0][0]
        assert message_id.startswith("alice-")

        def acknowledged() -> bool:
            found = said(capsys, "trace", message_id, *alice)[1]
            return bool(found["acknowledged_time"])

        until(acknowledged)
    _, found = said(capsys, "trace", message_id, *alice)
    assert (found["message_id"], found["client"]) == (message_id, "alice")
    assert found["sent_time"] <= found["delivered_time"] <= found["acknowledged_time"]
    # The pin is shown, and can be taken back.
    assert said(capsys, "keys", "list", *alice)[1][0]["one_x_key"] == FINGERPRINT
    assert said(capsys, "keys", "show", "old_receiver", *alice)[1]["one_x_key"] == FINGERPRINT
    assert run(["keys", "list", *alice]) == 0
    assert f"{FINGERPRINT[:16]}…" in capsys.readouterr().out
    assert run(["keys", "forget", "old_receiver", *alice]) == 0
    assert said(capsys, "keys", "forget", "old_receiver", *alice)[0] == 5
    assert said(capsys, "send", "old_receiver", notes, *alice)[0] == 5


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("kind", ["composed", "uuid"])
def test_dead_letters_come_back(deployment: Deployment, capsys: Capture, kind: str) -> None:
    bob = ("--identity", "bob")
    assert run(["keys", "renew", *bob]) == 0
    key = OnexKey.create(deployment.identity("bob") / "one_x")
    message_id = str(uuid.uuid4())
    if kind == "composed":
        message_id = f"sender_1-{message_id[:8]}-bob"
    made = make_message("1.4", "alice", "bob", key.public_key, "from 1.x")
    assert publish(deployment, made | {"message_id": message_id}) == f"ACK {message_id}"
    # Refused, since bob's identity takes none; and that is known by its id.
    capsys.readouterr()
    assert run(["receive", "--wait", "0.5", *bob]) == 0
    _, (dead,) = said(capsys, "dead", "list", "bob")
    assert dead["dead"]["reason"] == "onex-not-enabled"
    status, found = said(capsys, "trace", message_id, "--identity", "alice")
    assert (status, found["message_id"], found["acknowledged_time"]) == (0, message_id, None)
    # Once it does, it is put back and read.
    with (deployment.identity("bob") / "identity.toml").open("a") as file:
        file.write('\n[one_x]\nenabled = true\ndialect = "ciphermq-1.4"\n')
    assert said(capsys, "dead", "redrive", "bob")[1]["messages"] == 1
    status, row = said(capsys, "receive", "--count", "1", "--wait", "30", *bob)
    assert status == 0
    assert (row["sender"], row["verified"]) == (None, False)
    assert row["headers"]["message_id"] == message_id
    assert "from 1.x" in json.dumps(row)
    until(
        lambda: bool(
            said(capsys, "trace", message_id, "--identity", "alice")[1]["acknowledged_time"]
        )
    )


def test_what_1x_has_not_is_refused(
    deployment: Deployment, tmp_path: Path, capsys: Capture
) -> None:
    """Before anybody is asked: there is no server."""
    alice = ("--identity", "alice", "--confirm-timeout", "0.1")
    notes = tmp_path / "notes.txt"
    notes.write_text("one\n")
    run(["keys", "trust", "old_receiver", "--one-x", "--fingerprint", FINGERPRINT, *alice[:2]])
    for words in (
        ("--header", "a=b"),
        ("--content-type", "text/plain"),
        ("--ttl", "5"),
        ("--outbox", str(tmp_path / "outbox.db")),
        ("--queue", "a", "--exchange", "b"),
    ):
        status, error = said(capsys, "send", "old_receiver", notes, *words, *alice)
        assert (status, error["error"]) == (2, "usage"), words
    status, error = said(capsys, "send", "old_receiver,bob", notes, *alice)
    assert (status, error["error"]) == (2, "usage")
