"""A deployment of CipherMQ 1.x for its two programs: certificates, keys, files of each generation.

::

    DIRECTORY/certs/…               what 1.x's tools make
    DIRECTORY/config.toml           a server's
    DIRECTORY/GENERATION/sender/config.json  GENERATION/receiver/config.json  and the keys beside
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from nacl import bindings

from ciphermq.cli.processes import Process, free_port
from support.onex_certificates import make_certificates

QUEUE, EXCHANGE, KEY = "receiver_1_queue", "ciphermq_exchange", "receiver_1_key"
PLACES = {"1.4.0": "certs", "1.4": "keys", "1.5": "../../create_ca_key/Rust_Key_Maker_X25519"}
"""Where a receiver of each generation has its key."""
LOGGING = {
    "level": "INFO",
    "info_file_path": "logs/info.log",
    "debug_file_path": "logs/debug.log",
    "error_file_path": "logs/error.log",
    "rotation": "daily",
    "max_size_mb": 100,
}


class ClassicDeployment:
    """What is described at the top. Its processes end with `close`."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.certificates = make_certificates(directory / "certs", "sender_1", "receiver_1")
        self.private_key = os.urandom(32)
        self.public_key = bindings.crypto_scalarmult_base(self.private_key)
        self._processes: list[Process] = []

    def close(self) -> None:
        for process in self._processes:
            process.kill()

    def server(self) -> Process:
        """Ours, started from a configuration of 1.x; ready."""
        config = self.directory / "config.toml"
        config.write_text(f"""
[server]
address = "127.0.0.1:{self.port}"
connection_type = "tls"

[tls]
cert_path = "certs/server.crt"
key_path = "certs/server.key"
ca_cert_path = "certs/ca.crt"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "{base64.b64encode(bytes(range(32))).decode()}"
""")
        server = self.start("server", "server", "--config", str(config))
        server.wait_for("ciphermq ready on")
        return server

    def start(self, name: str, *words: str) -> Process:
        """One `ciphermq` command."""
        log = self.directory / f"{name}.out"
        environment = {"CIPHERMQ_STORAGE__RESERVE_MB": "1"} if words[0] == "server" else {}
        process = Process(name, words, log=log, environment=environment)
        self._processes.append(process)
        return process

    def sender(self, generation: str, *words: str, **changes: Any) -> Process:
        """`ciphermq sender` from a file of this generation."""
        return self.start(
            "sender", "sender", "-c", str(self.file(generation, "sender", changes)), *words
        )

    def receiver(self, generation: str, *words: str, **changes: Any) -> Process:
        """`ciphermq receiver` from a file of this generation."""
        path = self.file(generation, "receiver", changes)
        return self.start("receiver", "receiver", "-c", str(path), *words)

    def received(self, generation: str) -> list[dict[str, Any]]:
        """The whole lines of the receiver's file; the last one may be under way."""
        path = self.directory / generation / "receiver" / "data" / "received_messages.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def file(self, generation: str, program: str, changes: dict[str, Any] | None = None) -> Path:
        """The path of a configuration, with the keys where it expects them."""
        base = self.directory / generation / program
        base.mkdir(parents=True, exist_ok=True)
        if program == "receiver":
            keys = base / PLACES[generation]
            keys.mkdir(parents=True, exist_ok=True)
            (keys / "receiver_private.key").write_bytes(base64.b64encode(self.private_key))
            (keys / "receiver_public.key").write_bytes(base64.b64encode(self.public_key))
        path = base / "config.json"
        path.write_text(json.dumps(self.values(generation, program) | (changes or {}), indent=4))
        return path

    def values(self, generation: str, program: str) -> dict[str, Any]:
        """What stands in a configuration of 1.x, with its relative paths."""
        name = f"{program}_1"
        client = f"../../certs/clients/{name}"
        values: dict[str, Any] = {
            "exchange_name": EXCHANGE,
            "server_address": "127.0.0.1",
            "server_port": self.port,
            "tls": {
                "protocol": "PROTOCOL_TLS_CLIENT",
                "certificate_path": "../../certs/ca.crt",
                "client_cert_path": f"{client}/client.crt",
                "client_key_path": f"{client}/client.key",
                "verify_mode": "CERT_REQUIRED",
                "check_hostname": False,
            },
        }
        if generation != "1.4.0":
            values["logging"] = dict(LOGGING)
        if program == "receiver":
            return values | {"queue_name": QUEUE, "routing_key": KEY}
        binding = {"queue_name": QUEUE, "exchange_name": EXCHANGE, "routing_key": KEY}
        if generation == "1.4.0":
            return values | {
                "receiver_client_ids": ["receiver_1"],
                "queue_name": QUEUE,
                "routing_key": KEY,
            }
        if generation == "1.4":
            return values | {"receiver_client_ids": "receiver_1", "bindings": [binding]}
        return values | {
            "receiver_client_ids": ["receiver_1"],
            "bindings": [binding],
            "sender": {
                "num_messages": 200,
                "max_inflight": 100,
                "max_retries": 3,
                "ack_timeout_secs": 30,
                "tcp_connect_timeout_secs": 120,
                "batch_size": 10,
                "batch_delay_ms": 1,
                "message": {
                    "content_template": "{greeting} {seq} from {sender_id}: {correlation_id}",
                    "extra_fields": {"greeting": "Hello"},
                },
            },
        }
