"""Makes `batches.json`: sealed batches byte for byte, and batches that must be refused.

    PYTHONPATH=src:tests python -m vectors.make

Each run draws new keys, certificates and wraps (HPKE has randomness of its own), so it is run only
when the format changes; `tests/sealing/test_vectors.py` holds the program to what is written here.
All binary values are hexadecimal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq import limits
from ciphermq.custody import keys
from ciphermq.custody.files import FileOpener
from ciphermq.errors import BatchError
from ciphermq.model import envelope
from ciphermq.model.body import Body
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import Suite
from ciphermq.pki import names, profiles
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing import derivation
from ciphermq.sealing.open import open_batch
from ciphermq.sealing.seal import assemble
from support.sealing import DAY_MS, DER, NOW_MS, DeterministicSigner, MemoryAuthority, Party, Recipe

TARGET = Path(__file__).with_name("batches.json")
BATCH_IDS = [bytes.fromhex(f"01a3185c5000700080000000000{number:x}0000") for number in range(16)]

MESSAGES: dict[str, list[OutgoingMessage]] = {
    "one empty message": [OutgoingMessage(b"")],
    "properties": [
        OutgoingMessage(b"Temperature 21.5", {"unit": "°C", "trace": "7f3a"}, "text/plain", NOW_MS),
        OutgoingMessage(b"\x00\xff\x00", sent_ms=NOW_MS - 1),
        OutgoingMessage("schön".encode(), {}, "text/plain; charset=utf-8", NOW_MS),
    ],
    "several receivers": [
        OutgoingMessage(f"message {number}".encode(), sent_ms=NOW_MS + number)
        for number in range(5)
    ],
}


class Scene:
    """The clients of the vectors, with everything that is secret laid open."""

    def __init__(self) -> None:
        self.authority = MemoryAuthority()
        self.certificate_keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.private_keys: dict[str, bytes] = {}
        self.alice = self.party("alice", Suite.X25519, ec.SECP256R1())
        self.bob = self.party("bob", Suite.X25519, ec.SECP256R1())
        self.carol = self.party("carol", Suite.MLKEM768_X25519, ec.SECP384R1())
        self.dave = self.party("dave", Suite.P256, ec.SECP256R1())
        self.revoked = self.party("revoked", Suite.X25519, ec.SECP256R1())
        serial = x509.load_der_x509_certificate(self.revoked.signer.chain[0]).serial_number
        self.crl = self.authority.crl(serial)

    def party(self, name: str, suite: Suite, curve: ec.EllipticCurve) -> Party:
        key = ec.generate_private_key(curve)
        certificate = profiles.client_certificate(
            self.authority.issuer,
            name,
            key.public_key(),
            self.authority.now_ms,
            limits.CERTIFICATE_LIFETIME,
        )
        self.certificate_keys[name] = key
        self.private_keys[name] = keys.generate(suite)
        signer = DeterministicSigner(key, (certificate.public_bytes(DER),))
        return Party(name, signer, FileOpener(suite, self.private_keys[name]))

    def client(self, party: Party) -> dict[str, Any]:
        key = self.certificate_keys[party.name]
        size = (key.curve.key_size + 7) // 8
        return {
            "certificate": party.signer.chain[0].hex(),
            "certificate_key": {
                "curve": key.curve.name,
                "scalar": key.private_numbers().private_value.to_bytes(size, "big").hex(),
            },
            "suite": party.opener.suite.name,
            "private_key": self.private_keys[party.name].hex(),
            "public_key": party.opener.public_key.hex(),
            "key_id": party.opener.key_id.hex(),
        }


def batch(number: int, name: str, sender: Party, receivers: list[Party]) -> dict[str, Any]:
    """One valid batch: what goes in, each step between, what comes out."""
    session_key = bytes((number * 37 + index) % 256 for index in range(32))
    plaintext = Body.of(MESSAGES[name]).data
    derived = derivation.derive(session_key)
    header = Header(
        sender=sender.name,
        certificate_sha256=sender.signer.certificate_sha256,
        batch_id=BATCH_IDS[number],
        created_ms=NOW_MS,
        expires_ms=NOW_MS + DAY_MS if number else 0,
        exchange="sensors" if number else "",
        routing_key="house.kitchen" if number else "",
        count=len(MESSAGES[name]),
        commitment=derived.commitment,
        receivers=tuple(receiver.ref for receiver in receivers),
    )
    encoded = envelope.encode_header(header)
    wraps = [
        keys.wrap(
            receiver.opener.suite,
            receiver.opener.public_key,
            session_key,
            derivation.wrap_info(encoded, receiver.name, receiver.opener.key_id),
        )
        for receiver in receivers
    ]
    bound = derivation.binding(encoded, b"".join(wraps))
    sealed = assemble(encoded, b"".join(wraps), session_key, plaintext, sender.signer)
    parsed = envelope.parse(sealed)
    return {
        "name": name,
        "sender": sender.name,
        "receivers": [receiver.name for receiver in receivers],
        "batch_id": header.batch_id.hex(),
        "created_ms": header.created_ms,
        "expires_ms": header.expires_ms,
        "exchange": header.exchange,
        "routing_key": header.routing_key,
        "messages": [
            {
                "payload": message.payload.hex(),
                "content_type": message.content_type,
                "headers": dict(message.headers),
                "sent_ms": message.sent_ms,
            }
            for message in MESSAGES[name]
        ],
        "session_key": session_key.hex(),
        "wraps": [wrap.hex() for wrap in wraps],
        "plaintext": plaintext.hex(),
        "k_body": derived.body.hex(),
        "k_commit": derived.commitment.hex(),
        "header": encoded.hex(),
        "binding": bound.hex(),
        "body": bytes(parsed.body).hex(),
        "signed": derivation.signed_bytes(bound, parsed.body).hex(),
        "signature": parsed.signature.hex(),
        "sealed": sealed.hex(),
    }


def refused(scene: Scene) -> list[dict[str, Any]]:
    """Batches with one fault each. The errors are found by opening them, and read by a person
    before they are committed."""
    good = Recipe(scene.alice, [scene.bob])
    sealed = good.make()
    two = Recipe(scene.alice, [scene.bob, scene.dave]).make()
    parsed = envelope.parse(sealed)
    header = bytearray(parsed.header_bytes)
    stranger = MemoryAuthority().party("alice")
    cases: dict[str, bytes] = {
        "a byte follows": sealed + b"\0",
        "the last byte is missing": sealed[:-1],
        "another magic": b"XXXX" + sealed[4:],
        "a later format": b"CMQ3" + sealed[4:],
        "a later version": sealed[:20] + b"\x03" + sealed[21:],
        "an unknown suite": sealed.replace(bytes(header[-17:]), bytes(header[-17:-1]) + b"\x09"),
        "a body over the limit": sealed[:12] + b"\x00\x10\x00\x11" + sealed[16:],
        "the receivers in another order": two.replace(b"\x00\x03bob", b"\x00\x03zoe"),
        "another authority": good.but(chain=stranger.signer.chain).make(),
        "a certificate that may not sign": good.but(chain=(without_signing(scene),)).make(),
        "made before its certificate": good.but(created_ms=NOW_MS - 3 * DAY_MS).make(),
        "a revoked certificate": Recipe(scene.revoked, [scene.bob]).make(),
        "another sender's name": good.but(name="carol").make(),
        "another certificate's hash": good.but(certificate_sha256=bytes(32)).make(),
        "not for this receiver": Recipe(scene.alice, [scene.dave]).make(),
        "made in the future": good.but(created_ms=NOW_MS + 300_001).make(),
        "expired": good.but(expires_ms=NOW_MS).make(),
        "a changed body": flip(sealed, parsed.body),
        "a changed wrap": flip(sealed, parsed.wraps),
        "the other value of s": signed_otherwise(parsed, twin(parsed.signature)),
        "signed as a key record": signed_otherwise(parsed, for_key_record(scene, parsed)),
        "signed by another": good.but(signer=scene.dave.signer, chain=parsed.chain).make(),
        "a wrap for another key": good.but(wraps=bytes(80)).make(),
        "another suite than the key's": good.but(
            refs=(ReceiverRef("bob", scene.bob.opener.key_id, Suite.P256),), wraps=bytes(113)
        ).make(),
        "another session key in the wrap": good.but(wrapped_key=bytes(32)).make(),
        "a body of another batch": good.but(body=bytes(parsed.body)).make(),
        "fewer messages than said": good.but(
            plaintext=Body.of_payloads([bytes(40)], 0).data, count=2
        ).make(),
        "a body of an unknown layout": good.but(plaintext=b"\x02\x00\x01" + bytes(16)).make(),
        "lengths that do not add up": good.but(plaintext=b"\x01\x00\x01" + bytes(17)).make(),
    }
    verifier = ChainVerifier([scene.authority.der], scene.crl)
    found = []
    for name, data in cases.items():
        try:
            open_batch(
                data,
                receiver="bob",
                keyring=scene.bob.keyring,
                verifier=verifier,
                now_ms=NOW_MS,
            )
        except BatchError as error:
            found.append({"name": name, "error": error.code, "sealed": data.hex()})
        else:
            raise AssertionError(f"{name}: not refused")
    return found


def without_signing(scene: Scene) -> bytes:
    """A certificate of alice's that may only do TLS."""
    key = scene.certificate_keys["alice"].public_key()
    uri = x509.UniformResourceIdentifier(names.URI_SCHEME + "alice")
    certificate = profiles._end_entity(
        scene.authority.issuer,
        "alice",
        key,
        [uri],
        [ExtendedKeyUsageOID.CLIENT_AUTH],
        scene.authority.now_ms,
        limits.CERTIFICATE_LIFETIME,
    )
    return certificate.public_bytes(DER)


def flip(sealed: bytes, part: memoryview) -> bytes:
    return sealed.replace(bytes(part), bytes([part[0] ^ 1]) + bytes(part[1:]))


def signed_otherwise(parsed: envelope.Envelope, signature: bytes) -> bytes:
    return envelope.build(parsed.header_bytes, parsed.wraps, parsed.body, parsed.chain, signature)


def twin(signature: bytes) -> bytes:
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, ec.SECP256R1().group_order - s)


def for_key_record(scene: Scene, parsed: envelope.Envelope) -> bytes:
    bound = derivation.binding(parsed.header_bytes, parsed.wraps)
    signed = derivation.signed_bytes(bound, parsed.body)
    return scene.alice.signer.sign(signed.replace(b"batch", b"key record"))


def main() -> None:
    scene = Scene()
    clients = [scene.alice, scene.bob, scene.carol, scene.dave, scene.revoked]
    vectors = {
        "about": "Sealed batches of CipherMQ format 2; docs/reference/envelope.md explains them.",
        "now_ms": NOW_MS,
        "authority": scene.authority.der.hex(),
        "crl": scene.crl.hex(),
        "clients": {party.name: scene.client(party) for party in clients},
        "batches": [
            batch(0, "one empty message", scene.alice, [scene.bob]),
            batch(1, "properties", scene.carol, [scene.dave]),
            batch(2, "several receivers", scene.alice, [scene.bob, scene.carol, scene.dave]),
        ],
        "refused": refused(scene),
    }
    TARGET.write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
