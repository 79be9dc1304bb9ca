"""Keys on a token: its operations a second, the whole path with it, and what the path asks of it.

The token is SoftHSM's, so the figures are what CipherMQ and PKCS#11 cost; a device adds its own
time to each operation. What carries over to a device is the count: one operation a batch at each
end that has its key there, and none a message.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ciphermq
from bench import machine
from bench.queue import PAYLOAD, _Side
from ciphermq.cli.processes import Stage, free_port
from ciphermq.cli.softhsm import SoftToken
from ciphermq.client.identity import Identity
from ciphermq.custody import keys
from ciphermq.custody.pkcs11 import wrapping
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.signer import TokenSigningKey
from ciphermq.custody.pkcs11.token import Token
from ciphermq.custody.signatures import sign
from ciphermq.model.suites import Suite

SECONDS = 1.0
"""Spent on each operation alone."""
RSA_BITS = 2048


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The operations alone; then the path with no key, the receiver's, and both ends' there."""
    cores = machine.two_cores()
    soft = SoftToken(directory / "hsm")
    results = [
        _path(directory / f"path-{number}", soft, kept, options.messages)
        for number, kept in enumerate(((), ("bob",), ("bob", "alice")))
    ]
    return {
        "measured": "operations of a SoftHSM token, one after the other; and messages of 1 KiB "
        "sealed, signed, sent over mTLS, synced, confirmed, delivered, verified, opened, acked",
        "cores_used": cores,
        "operations_per_second": _operations(soft.token),
        "results": results,
        "most_token_calls_per_batch": max(each["token_calls_per_batch"] for each in results),
    }


def _operations(token: Token) -> dict[str, int]:
    opener = TokenOpener.make(token)
    wrap = keys.wrap(Suite.P256, opener.public_key, bytes(32), b"")
    signing = TokenSigningKey.find(token, token.make_p256("bench", may=("sign",)))
    rsa = token.make_rsa("bench", RSA_BITS)
    wrapped = wrapping.decode(wrapping.wrap(bytes(32), token, rsa, purpose="bench"), "bench")
    found = {
        "hpke_open_p256": _rate(lambda: opener.unwrap(wrap, b"")),
        "sign_p256": _rate(lambda: sign(signing, b"batch")),
        f"unwrap_rsa_{RSA_BITS}": _rate(lambda: wrapped.open(token, "bench", "it")),
    }
    for key_id in (opener.object_id, signing.object_id, rsa):
        token.destroy(key_id)
    return found


def _rate(work: Callable[[], object]) -> int:
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < SECONDS:
        work()
        done += 1
    return round(done / took)


def _path(directory: Path, soft: SoftToken, kept: tuple[str, ...], messages: int) -> dict[str, Any]:
    plans = {name: soft.plan(signing=name == "alice") for name in kept}
    with Stage(directory, ["alice", "bob"], port=free_port(), plans=plans) as stage:
        stage.broker()
        receiver = _Side(_receive, stage, "bob", "none", messages)
        receiver.ready()
        sender = _Side(_send, stage, "alice", "none", messages)
        sender.ready()
        receiver.go()
        sender.go()
        sent, received = sender.result(), receiver.result()
    took = received["ended"] - sent["began"]
    calls = {"receiver": received["calls"], "sender": sent["calls"]}
    most = max(sum(each.values()) for each in calls.values())
    if most > received["batches"]:
        raise AssertionError(f"{most} calls to the token for {received['batches']} batches")
    return {
        "keys_on_the_token": [f"{'receiver' if name == 'bob' else 'sender'}'s" for name in kept],
        "messages": messages,
        "seconds": round(took, 2),
        "messages_per_second": round(messages / took),
        "batches": received["batches"],
        "token_calls": calls,
        "token_calls_per_batch": round(most / received["batches"], 3),
        "token_calls_per_message": round(most / messages, 6),
    }


def _calls(identity: Identity) -> dict[str, int]:
    token = getattr(identity.current_key, "token", None)
    return token.call_counts() if token is not None else {}


def _since(identity: Identity, before: dict[str, int]) -> dict[str, int]:
    now = _calls(identity)
    return {
        what: now[what] - before.get(what, 0) for what in now if now[what] > before.get(what, 0)
    }


async def _send(
    pipe: Connection, path: Path, _directory: Path, _kind: str, messages: int
) -> dict[str, Any]:
    identity = Identity.load(path)
    pool = [os.urandom(PAYLOAD) for _ in range(4096)]
    async with ciphermq.connect(identity=identity) as client:
        sender = client.sender("bob")
        await sender.send(b"the first one fetches and checks the key")
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        began, before = time.monotonic(), _calls(identity)
        await sender.send_many(itertools.islice(itertools.cycle(pool), messages))
        return {"began": began, "calls": _since(identity, before)}


async def _receive(
    pipe: Connection, path: Path, _directory: Path, _kind: str, messages: int
) -> dict[str, Any]:
    identity = Identity.load(path)
    async with ciphermq.connect(identity=identity) as client:
        await client.register_key()
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        before, batches, received = _calls(identity), 0, 0
        async with client.receiver(limit=messages + 1) as receiver:
            async for batch in receiver.batches():
                batches += 1
                received += len(batch.payloads)
        if received != messages + 1:
            raise AssertionError(f"{received} messages came, not {messages + 1}")
        ended = time.monotonic()
    return {
        "ended": ended,
        "batches": batches,
        "calls": _since(identity, before),
    }
