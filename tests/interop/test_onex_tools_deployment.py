"""What `ciphermq ca make` and `ciphermq keys make` make is enough for a deployment of 1.x."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from ciphermq.cli.processes import Process, free_port
from ciphermq.custody.onex import OnexKey
from interop.onex_clients import TLS_1_2, TLS_1_3, Binding, Place, Receiver, Sender

pytestmark = pytest.mark.crash

Capture = pytest.CaptureFixture[str]
BINDING = Binding("receiver_1_queue", "CipherMQ_exchange", "receiver_1_key")


async def test_a_deployment_of_what_the_tools_made(tmp_path: Path, capsys: Capture) -> None:
    certs, keys = tmp_path / "certs", tmp_path / "keys"
    assert run(["ca", "make", "--out", str(certs), "sender_1", "receiver_1"]) == 0
    assert run(["keys", "make", "--out", str(keys)]) == 0
    port = free_port()
    (tmp_path / "config.toml").write_text(f"""
[server]
address = "127.0.0.1:{port}"
connection_type = "tls"

[tls]
cert_path = "certs/server.crt"
key_path = "certs/server.key"
ca_cert_path = "certs/ca.crt"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
""")
    words = ["server", "--config", str(tmp_path / "config.toml")]
    environment = {"CIPHERMQ_STORAGE__RESERVE_MB": "1"}
    server = Process("server", words, log=tmp_path / "output", environment=environment)
    try:
        await asyncio.to_thread(server.wait_for, "ciphermq ready on")

        def place(name: str) -> Place:
            client = certs / "clients" / name
            tls = TLS_1_2 if name == "sender_1" else TLS_1_3
            return Place(
                port, certs / "ca.crt", client / "client.crt", client / "client.key", tls=tls
            )

        private = OnexKey.load(keys / "receiver_private.key")._private
        receiver = Receiver(place("receiver_1"), "receiver_1", BINDING, private)
        task = asyncio.create_task(receiver.run())
        async with asyncio.timeout(20):
            while "Subscribed to queue" not in receiver.heard:
                await asyncio.sleep(0.01)
            sender = Sender(place("sender_1"), "sender_1", "receiver_1", BINDING)
            await sender.run(["one", "two"])
            while len(receiver.received) < 2:
                await asyncio.sleep(0.01)
        assert [text for _, text in receiver.received] == ["one", "two"]
        await asyncio.to_thread(look_inside, tmp_path, port, receiver.received[0][0], capsys)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        server.kill()


def look_inside(directory: Path, port: int, message_id: str, capsys: Capture) -> None:
    """What an operator of 1.x does to use the commands that look into a server."""
    authority = [str(directory / "certs" / name) for name in ("ca.crt", "ca.key")]
    home = ["--home", str(directory / "home")]
    open_keys = ["--no-passphrase", *home]
    assert run(["ca", "adopt", *authority, *open_keys]) == 0
    assert run(["ca", "adopt", *authority, *open_keys]) == 2
    url = f"cmq://localhost:{port}"
    assert run(["identity", "add", "admin", "--url", url, *open_keys]) == 0
    capsys.readouterr()
    assert run(["trace", message_id, "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["client"] == "sender_1"
    assert run(["purge", BINDING.queue, "--yes", *home]) == 0
