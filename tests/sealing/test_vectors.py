"""The program against the bytes in `tests/vectors/batches.json`: opening exact, sealing exact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq import errors
from ciphermq.custody import keys
from ciphermq.custody.files import FileOpener
from ciphermq.custody.keyring import Keyring
from ciphermq.model import envelope
from ciphermq.model.body import Body
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing import derivation
from ciphermq.sealing.open import open_batch
from ciphermq.sealing.seal import assemble
from support import hpke
from support.sealing import DeterministicSigner

PATH = Path(__file__).parents[1] / "vectors" / "batches.json"
VECTORS = json.loads(PATH.read_text(encoding="utf-8"))
BATCHES = [pytest.param(batch, id=batch["name"]) for batch in VECTORS["batches"]]
REFUSED = [pytest.param(batch, id=batch["name"]) for batch in VECTORS["refused"]]
CURVES = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1()}
CLASSES = {
    found.code: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, errors.BatchError)
}

Vector = dict[str, Any]


def verifier() -> ChainVerifier:
    authority, crl = bytes.fromhex(VECTORS["authority"]), bytes.fromhex(VECTORS["crl"])
    return ChainVerifier([authority], crl)


def opener_of(name: str) -> FileOpener:
    client = VECTORS["clients"][name]
    return FileOpener(Suite[client["suite"]], bytes.fromhex(client["private_key"]))


def signer_of(name: str) -> DeterministicSigner:
    client = VECTORS["clients"][name]
    secret = client["certificate_key"]
    key = ec.derive_private_key(int(secret["scalar"], 16), CURVES[secret["curve"]])
    return DeterministicSigner(key, (bytes.fromhex(client["certificate"]),))


def header_of(batch: Vector) -> Header:
    openers = {name: opener_of(name) for name in batch["receivers"]}
    return Header(
        sender=batch["sender"],
        certificate_sha256=signer_of(batch["sender"]).certificate_sha256,
        batch_id=bytes.fromhex(batch["batch_id"]),
        created_ms=batch["created_ms"],
        expires_ms=batch["expires_ms"],
        exchange=batch["exchange"],
        routing_key=batch["routing_key"],
        count=len(batch["messages"]),
        commitment=bytes.fromhex(batch["k_commit"]),
        receivers=tuple(
            ReceiverRef(name, opener.key_id, opener.suite) for name, opener in openers.items()
        ),
    )


def messages_of(batch: Vector) -> list[OutgoingMessage]:
    return [
        OutgoingMessage(
            bytes.fromhex(one["payload"]), one["headers"], one["content_type"], one["sent_ms"]
        )
        for one in batch["messages"]
    ]


@pytest.mark.parametrize("name", VECTORS["clients"])
def test_keys(name: str) -> None:
    client, opener = VECTORS["clients"][name], opener_of(name)
    assert opener.public_key.hex() == client["public_key"]
    assert opener.key_id.hex() == client["key_id"]


@pytest.mark.parametrize("batch", BATCHES)
def test_sealing(batch: Vector) -> None:
    """Every step, from the messages to the last byte."""
    plaintext = Body.of(messages_of(batch)).data
    assert plaintext.hex() == batch["plaintext"]
    session_key = bytes.fromhex(batch["session_key"])
    derived = derivation.derive(session_key)
    assert derived.body.hex() == batch["k_body"]
    assert derived.commitment.hex() == batch["k_commit"]
    header = envelope.encode_header(header_of(batch))
    assert header.hex() == batch["header"]
    wraps = bytes.fromhex("".join(batch["wraps"]))
    assert derivation.binding(header, wraps).hex() == batch["binding"]
    body = bytes.fromhex(batch["body"])
    bound = derivation.binding(header, wraps)
    assert derivation.signed_bytes(bound, body).hex() == batch["signed"]
    signer = signer_of(batch["sender"])
    assert signer.sign(bytes.fromhex(batch["signed"])).hex() == batch["signature"]
    sealed = assemble(header, wraps, session_key, plaintext, signer)
    assert sealed.hex() == batch["sealed"]


@pytest.mark.parametrize("batch", BATCHES)
def test_opening(batch: Vector) -> None:
    sealed = bytes.fromhex(batch["sealed"])
    for name in batch["receivers"]:
        opened = open_batch(
            sealed,
            receiver=name,
            keyring=Keyring([opener_of(name)]),
            verifier=verifier(),
            now_ms=VECTORS["now_ms"],
        )
        assert opened.header == header_of(batch)
        assert opened.signer.client_id == batch["sender"]
        assert opened.digest == hashlib.sha256(bytes.fromhex(batch["signed"])).digest()
        found = [
            {
                "payload": message.payload.hex(),
                "content_type": message.properties.content_type,
                "headers": dict(message.properties.headers),
                "sent_ms": message.sent_ms,
            }
            for message in opened.messages
        ]
        assert found == batch["messages"]


@pytest.mark.parametrize("batch", BATCHES)
def test_each_wrap_holds_the_session_key(batch: Vector) -> None:
    """By our HPKE and by the second one."""
    header = bytes.fromhex(batch["header"])
    for name, wrap in zip(batch["receivers"], batch["wraps"], strict=True):
        opener = opener_of(name)
        info = derivation.wrap_info(header, name, keys.key_id(opener.suite, opener.public_key))
        private = bytes.fromhex(VECTORS["clients"][name]["private_key"])
        assert opener.unwrap(bytes.fromhex(wrap), info).hex() == batch["session_key"]
        reference = hpke.open_base(opener.suite, private, bytes.fromhex(wrap), info)
        assert reference.hex() == batch["session_key"]


@pytest.mark.parametrize("batch", REFUSED)
def test_refusing(batch: Vector) -> None:
    with pytest.raises(CLASSES[batch["error"]]) as caught:
        open_batch(
            bytes.fromhex(batch["sealed"]),
            receiver="bob",
            keyring=Keyring([opener_of("bob")]),
            verifier=verifier(),
            now_ms=VECTORS["now_ms"],
        )
    assert caught.value.code == batch["error"]


def test_nearly_every_fault_of_a_batch_has_a_vector() -> None:
    """All but those that need another clock, a second batch, or what is the receiver's own."""
    missing = {"batch", "batch-too-old", "duplicate-conflict", "unknown-key", "onex-not-enabled"}
    assert {batch["error"] for batch in VECTORS["refused"]} == set(CLASSES) - missing
