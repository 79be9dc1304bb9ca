"""1.x messages against `tests/vectors/onex.json`, and against a second implementation of NaCl."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from ciphermq import errors
from ciphermq.custody import onex as custody
from ciphermq.custody.onex import OnexKey
from ciphermq.errors import BatchError
from ciphermq.model import onex
from ciphermq.model.onex import Dialect, PayloadCipher, SessionSeal
from ciphermq.sealing.onex import assemble, open_message, seal_message
from support import nacl
from vectors import make_onex

PATH = Path(__file__).parents[1] / "vectors" / "onex.json"
VECTORS = json.loads(PATH.read_text(encoding="utf-8"))
RECEIVER = VECTORS["receiver"]
PRIVATE = base64.b64decode(RECEIVER["receiver_private.key"])
MESSAGES = [pytest.param(each, id=each["name"]) for each in VECTORS["messages"]]
REFUSED = [pytest.param(each, id=each["name"]) for each in VECTORS["refused"]]
CLASSES = {
    found.code: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, BatchError)
}

Vector = dict[str, Any]
keys = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=24, max_size=24)


def dialect_of(vector: Vector) -> Dialect:
    return Dialect(
        SessionSeal(vector["seal"]),
        PayloadCipher(vector["cipher"]),
        vector.get("separate_tag", False),
    )


def test_the_file_is_what_its_maker_makes() -> None:
    assert make_onex.make() == PATH.read_text(encoding="utf-8")


def test_the_receiver_s_key() -> None:
    key = OnexKey(PRIVATE)
    assert key.public_key == custody.read_public_key(RECEIVER["receiver_public.key"])
    assert custody.write_public_key(key.public_key) == RECEIVER["receiver_public.key"]
    assert custody.fingerprint(key.public_key) == RECEIVER["fingerprint"]


@pytest.mark.parametrize("vector", MESSAGES)
def test_opening(vector: Vector) -> None:
    message = onex.parse(vector["json"].encode())
    text = open_message(
        message, receiver="receiver_1", key=OnexKey(PRIVATE), dialect=dialect_of(vector)
    )
    assert text.decode() == vector["text"]


@pytest.mark.parametrize("vector", MESSAGES)
def test_sealing(vector: Vector) -> None:
    """What would be drawn at random is given."""
    members = json.loads(vector["json"])
    session_key = bytes.fromhex(vector["session_key"])
    sealed_key = bytes.fromhex(vector["sealed_key"])
    if vector["seal"] == "ciphermq-1.5":
        ephemeral = bytes.fromhex(vector["ephemeral_private_key"])
        public = OnexKey(PRIVATE).public_key
        assert custody.seal_as_1_5(public, session_key, ephemeral) == sealed_key
    data = assemble(
        vector["text"].encode(),
        session_key,
        bytes.fromhex(vector["nonce"]),
        sealed_key,
        message_id=members["message_id"],
        receiver=members["receiver_client_id"],
        dialect=dialect_of(vector),
        sent_time=members.get("sent_time"),
        others={"note": members["note"]} if "note" in members else None,
    )
    if members.get("tag") == "":  # as some clients say that there is none
        del members["tag"]
    assert json.loads(data) == members


@pytest.mark.parametrize("vector", REFUSED)
def test_refusing(vector: Vector) -> None:
    with pytest.raises(CLASSES[vector["error"]]) as caught:
        open_message(
            onex.parse(vector["json"].encode()),
            receiver="receiver_1",
            key=OnexKey(PRIVATE),
            dialect=dialect_of(vector),
        )
    assert caught.value.code == vector["error"]


# --- a second implementation --------------------------------------------------------------------


def test_the_second_implementation_by_published_values() -> None:
    """ "Cryptography in NaCl" (Bernstein 2009), sections 8 to 10."""
    key = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    text = bytes.fromhex(
        "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a"
        "1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057"
        "e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040"
        "e082f937763848645e0705"
    )
    box = bytes.fromhex(
        "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4"
        "476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738"
        "b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de"
        "56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5"
    )
    assert nacl.secretbox(key, nonce, text) == box
    assert nacl.open_secretbox(key, nonce, box) == text


@given(keys, nonces, st.binary(max_size=200))
def test_libsodium_and_the_second_implementation_make_the_same_boxes(
    key: bytes, nonce: bytes, text: bytes
) -> None:
    assert bindings.crypto_secretbox(text, nonce, key) == nacl.secretbox(key, nonce, text)


@pytest.mark.parametrize("how", SessionSeal)
@given(private=keys, session_key=keys, ephemeral=keys)
def test_what_one_seals_the_other_opens(
    how: SessionSeal, private: bytes, session_key: bytes, ephemeral: bytes
) -> None:
    key = OnexKey(private)
    assert key.public_key == nacl.public_of(private)
    ours = custody.seal(how, key.public_key, session_key)
    assert nacl.open_sealed_box(how.value, private, ours) == session_key
    theirs = nacl.sealed_box(how.value, key.public_key, session_key, ephemeral)
    assert key.unseal(how, theirs) == session_key


# --- whole messages -----------------------------------------------------------------------------

dialects = st.builds(Dialect, st.sampled_from(SessionSeal), st.sampled_from(PayloadCipher))
dialects |= dialects.map(lambda found: Dialect(found.seal, found.cipher, separate_tag=True))


@given(dialects, st.binary(max_size=500))
def test_what_is_sealed_is_opened(dialect: Dialect, text: bytes) -> None:
    key = OnexKey(PRIVATE)
    made = [
        seal_message(text, message_id="a", receiver="b", public_key=key.public_key, dialect=dialect)
        for _ in range(2)
    ]
    for data in made:
        message = onex.parse(data)
        assert (message.tag is not None) == dialect.separate_tag
        assert open_message(message, receiver="b", key=key, dialect=dialect) == text
    # Nothing of it is used twice.
    one, other = map(onex.parse, made)
    assert one.nonce != other.nonce
    assert one.enc_session_key[:43] != other.enc_session_key[:43]
    assert not text or one.ciphertext != other.ciphertext
