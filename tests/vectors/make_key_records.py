"""Makes `key_records.json`: key records byte for byte, and those that must be refused.

    PYTHONPATH=src:tests python -m vectors.make_key_records

As with `make.py`, each run draws new keys, so it is run only when the format changes. All binary
values are hexadecimal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from ciphermq.directory import records
from ciphermq.errors import KeyRecordError
from ciphermq.model import keyrecord
from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier
from support.sealing import DAY_MS, NOW_MS, DeterministicSigner, MemoryAuthority, Party

TARGET = Path(__file__).with_name("key_records.json")


class Scene:
    """An authority with a list, and the clients whose records are shown."""

    def __init__(self) -> None:
        self.authority = MemoryAuthority()
        self.bob = self._client("bob", Suite.X25519)
        self.carol = self._client("carol", Suite.MLKEM768_X25519)
        self.dave = self._client("dave", Suite.P256)
        self.other_bob = self._client("bob", Suite.X25519)
        self.stranger = self._client("bob", Suite.X25519, MemoryAuthority())
        self.revoked = self._client("bob", Suite.X25519)
        judge = self.authority.verifier()
        serial = judge.check_signer(self.revoked.signer.chain, NOW_MS, NOW_MS).serial
        self.crl = self.authority.crl(serial)
        self.verifier = ChainVerifier([self.authority.der], self.crl)

    def _client(self, name: str, suite: Suite, authority: MemoryAuthority | None = None) -> Party:
        party = (authority or self.authority).party(name, suite)
        signer = DeterministicSigner(party.signer._key, party.signer.chain)
        return Party(name, signer, party.opener)

    def record(self, party: Party, *, version: int = NOW_MS, start_ms: int = NOW_MS) -> bytes:
        """An honest record."""
        return records.make(
            party.signer,
            client=party.name,
            suite=party.opener.suite,
            public_key=party.opener.public_key,
            version=version,
            not_before_ms=start_ms,
            not_after_ms=start_ms + 30 * DAY_MS,
        )


def shown(scene: Scene, party: Party) -> dict[str, Any]:
    """A good record with every step between."""
    record = scene.record(party)
    signed = keyrecord.parse(record)
    return {
        "client": party.name,
        "suite": party.opener.suite.name,
        "public_key": party.opener.public_key.hex(),
        "key_id": party.opener.key_id.hex(),
        "version": NOW_MS,
        "not_before_ms": NOW_MS,
        "not_after_ms": NOW_MS + 30 * DAY_MS,
        "certificate": signed.chain[0].hex(),
        "body": signed.body.hex(),
        "signed_bytes": keyrecord.signed_bytes(signed.body).hex(),
        "signature": signed.signature.hex(),
        "certificate_key_sha256": _pin(scene, record, party.name),
        "record": record.hex(),
    }


def refused(scene: Scene) -> list[dict[str, Any]]:
    """What a broker can serve for bob, with the error for each."""
    good = scene.record(scene.bob)
    signed = keyrecord.parse(good)
    batchlike = scene.bob.signer.sign(b" " * 64 + b"CipherMQ/2 batch\0" + signed.body)
    altered = keyrecord.encode_body(msgspec.structs.replace(signed.record, version=NOW_MS + 1))
    cases = {
        "cut short": good[:-1],
        "a byte follows": good + b"\0",
        "an unknown body version": good.replace(b"\x01\x00\x03bob", b"\x02\x00\x03bob", 1),
        "an unknown suite": good.replace(b"bob\x02", b"bob\x09", 1),
        "of carol": scene.record(scene.carol),
        "changed after signing": keyrecord.build(altered, signed.chain, signed.signature),
        "the certificate of another": keyrecord.build(
            signed.body, scene.carol.signer.chain, signed.signature
        ),
        "the signature of a batch": keyrecord.build(signed.body, signed.chain, batchlike),
        "another authority's bob": scene.record(scene.stranger),
        "revoked": scene.record(scene.revoked),
        "expired": scene.record(scene.bob, start_ms=NOW_MS - 31 * DAY_MS),
        "not valid yet": scene.record(scene.bob, start_ms=NOW_MS + DAY_MS),
        "rolled back": scene.record(scene.bob, version=NOW_MS - 1),
        "another certificate key": scene.record(scene.other_bob, version=NOW_MS + 1),
    }
    pin = bytes.fromhex(_pin(scene, good, "bob"))
    found = []
    for name, record in cases.items():
        try:
            records.verify(
                record,
                expected_client="bob",
                verifier=scene.verifier,
                now_ms=NOW_MS,
                highest_version=NOW_MS,
                pinned_key_sha256=pin,
            )
        except KeyRecordError as error:
            found.append({"name": name, "error": error.code, "record": record.hex()})
        else:
            raise AssertionError(f"{name} was accepted")
    return found


def _pin(scene: Scene, record: bytes, client: str) -> str:
    verified = records.verify(
        record, expected_client=client, verifier=scene.verifier, now_ms=NOW_MS
    )
    return verified.certificate_key_sha256.hex()


def main() -> None:
    """Write the file."""
    scene = Scene()
    vectors = {
        "about": "Key records of CipherMQ format 2; docs/reference/identities.md explains them.",
        "now_ms": NOW_MS,
        "authority": scene.authority.der.hex(),
        "crl": scene.crl.hex(),
        "accepted": [shown(scene, party) for party in (scene.bob, scene.carol, scene.dave)],
        "refused": refused(scene),
    }
    TARGET.write_text(json.dumps(vectors, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
