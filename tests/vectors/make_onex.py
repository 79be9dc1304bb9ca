"""Makes `onex.json`: messages of CipherMQ 1.x byte for byte, and ones that must be refused.

    PYTHONPATH=src:tests python -m vectors.make_onex

Nothing in it is drawn at random, and the boxes are those of `support.nacl`, so that none of the
code under test takes part: each run writes the same file. Binary values are hexadecimal where they
are not part of a message.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from support import nacl

TARGET = Path(__file__).with_name("onex.json")
CIPHERS = {"chacha20-poly1305": ChaCha20Poly1305, "aes-256-gcm": AESGCM}
TEXT = "Hello, receiver_1: 21.5 °C"


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that stand for random ones."""
    return hashlib.sha256(f"CipherMQ vectors: {name}".encode()).digest()[:size]


PRIVATE = fixed("receiver_1")
PUBLIC = nacl.public_of(PRIVATE)


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


def vector(
    name: str,
    seal: str,
    cipher: str = "chacha20-poly1305",
    *,
    separate: bool = False,
    text: str = TEXT,
    public: bytes = PUBLIC,
    **others: Any,
) -> dict[str, Any]:
    """One message, with every step."""
    session_key, nonce, ephemeral = fixed(f"{name} key"), fixed(f"{name} nonce", 12), fixed(name)
    sealed_key = nacl.sealed_box(seal, public, session_key, ephemeral)
    ciphertext = CIPHERS[cipher](session_key).encrypt(nonce, text.encode(), None)
    members = {
        "message_id": "sender_1-1a2b3c4d-receiver_1",
        "receiver_client_id": "receiver_1",
        "enc_session_key": base(sealed_key),
        "nonce": base(nonce),
        "ciphertext": base(ciphertext[:-16] if separate else ciphertext),
    }
    if separate:
        members["tag"] = base(ciphertext[-16:])
    return {
        "name": name,
        "seal": seal,
        "cipher": cipher,
        "separate_tag": separate,
        "text": text,
        "session_key": session_key.hex(),
        "nonce": nonce.hex(),
        "ephemeral_private_key": ephemeral.hex(),
        "sealed_key": sealed_key.hex(),
        "json": json.dumps({**members, **others}),
    }


def messages() -> list[dict[str, Any]]:
    return [
        vector(
            "1.4, as its later clients send it", "ciphermq-1.4", sent_time="2025-09-08T07:03:00Z"
        ),
        vector("1.4.0, with the tag apart", "ciphermq-1.4", separate=True),
        vector("1.5", "ciphermq-1.5", sent_time="2025-09-08T07:03:00.123456+00:00"),
        vector("1.5 with the tag apart", "ciphermq-1.5", separate=True),
        vector("1.4 with AES, as its document says", "ciphermq-1.4", "aes-256-gcm", separate=True),
        vector("1.5 with AES", "ciphermq-1.5", "aes-256-gcm"),
        vector("no text at all", "ciphermq-1.4", text=""),
        vector("members that nobody knows", "ciphermq-1.5", note={"for": ["you", 1]}, tag=""),
    ]


def refused() -> list[dict[str, Any]]:
    """Each opened as its ``seal`` and ``cipher`` say."""
    good = vector("good", "ciphermq-1.4")
    apart = vector("apart", "ciphermq-1.4", separate=True)

    def but(name: str, error: str, of: dict[str, Any] = good, **changes: Any) -> dict[str, Any]:
        members = {**json.loads(of["json"]), **changes}
        kept = {key: of[key] for key in ("seal", "cipher")}
        return {"name": name, "error": error, **kept, "json": json.dumps(members)}

    def flipped(of: dict[str, Any], member: str, at: int) -> str:
        data = bytearray(base64.b64decode(json.loads(of["json"])[member]))
        data[at] ^= 1
        return base(bytes(data))

    members = json.loads(good["json"])
    other = vector("other", "ciphermq-1.4", public=nacl.public_of(fixed("somebody else")))
    low = base(bytes(32) + bytes.fromhex(good["sealed_key"])[32:])
    low_1_5 = but("", "", vector("low", "ciphermq-1.5"), enc_session_key=low)["json"]
    return [
        but("for another receiver", "not-for-this-receiver", receiver_client_id="receiver_2"),
        but("sealed to another key", "wrap-refused", other),
        {**but("sealed as 1.4, opened as 1.5", "wrap-refused"), "seal": "ciphermq-1.5"},
        {
            **but("sealed as 1.5, opened as 1.4", "wrap-refused", vector("x", "ciphermq-1.5")),
            "seal": "ciphermq-1.4",
        },
        but("an ephemeral key of low order", "wrap-refused", enc_session_key=low),
        {
            "name": "an ephemeral key of low order, 1.5",
            "error": "wrap-refused",
            "seal": "ciphermq-1.5",
            "cipher": "chacha20-poly1305",
            "json": low_1_5,
        },
        but(
            "the ephemeral key changed",
            "wrap-refused",
            enc_session_key=flipped(good, "enc_session_key", 0),
        ),
        but(
            "the box changed", "wrap-refused", enc_session_key=flipped(good, "enc_session_key", 79)
        ),
        but("the box too short", "wrap-refused", enc_session_key=base(fixed("x"))),
        but("the nonce changed", "body-refused", nonce=flipped(good, "nonce", 0)),
        but("the ciphertext changed", "body-refused", ciphertext=flipped(good, "ciphertext", 0)),
        but("the attached tag changed", "body-refused", ciphertext=flipped(good, "ciphertext", -1)),
        but("the separate tag changed", "body-refused", apart, tag=flipped(apart, "tag", 0)),
        but("a second tag", "body-refused", tag=base(bytes(16))),
        but("no tag at all", "body-refused", apart, tag=None),
        but("nothing to open", "body-refused", ciphertext=""),
        {**but("the other cipher", "body-refused"), "cipher": "aes-256-gcm"},
        but("a short nonce", "malformed-batch", nonce=base(bytes(8))),
        but("a short tag", "malformed-batch", apart, tag=base(bytes(15))),
        but("a key that is not base64", "malformed-batch", enc_session_key="!" * 108),
        but("base64 of another alphabet", "malformed-batch", nonce="-_-_-_-_-_-_-_-_"),
        but("base64 without its end", "malformed-batch", ciphertext=members["ciphertext"][:-1]),
        but("an id of two words", "malformed-batch", message_id="a b"),
        but("an id of two lines", "malformed-batch", message_id="a\nACK b"),
        but("a member missing", "malformed-batch", nonce=None),
    ]


def make() -> str:
    """The file's content."""
    found = {
        "about": "Messages of CipherMQ 1.x (envelope kind ciphermq-1).",
        "receiver": {
            "client": "receiver_1",
            "receiver_private.key": base(PRIVATE),
            "receiver_public.key": base(PUBLIC),
            "fingerprint": hashlib.sha256(PUBLIC).hexdigest(),
        },
        "messages": messages(),
        "refused": refused(),
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(make(), encoding="utf-8")
