"""The program against the bytes in `tests/vectors/key_records.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ciphermq import errors
from ciphermq.custody.keys import key_id
from ciphermq.directory import records
from ciphermq.directory.records import VerifiedRecord
from ciphermq.model import keyrecord
from ciphermq.model.keyrecord import KeyRecord
from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier

PATH = Path(__file__).parents[1] / "vectors" / "key_records.json"
VECTORS = json.loads(PATH.read_text(encoding="utf-8"))
ACCEPTED = [pytest.param(vector, id=vector["suite"]) for vector in VECTORS["accepted"]]
REFUSED = [pytest.param(vector, id=vector["name"]) for vector in VECTORS["refused"]]
CLASSES = {
    found.code: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, errors.KeyRecordError)
}
VERIFIER = ChainVerifier([bytes.fromhex(VECTORS["authority"])], bytes.fromhex(VECTORS["crl"]))

Vector = dict[str, Any]


def verify(record: bytes, client: str, **seen: Any) -> VerifiedRecord:
    return records.verify(
        record, expected_client=client, verifier=VERIFIER, now_ms=VECTORS["now_ms"], **seen
    )


@pytest.mark.parametrize("vector", ACCEPTED)
def test_a_record_means_what_it_always_meant(vector: Vector) -> None:
    found = verify(bytes.fromhex(vector["record"]), vector["client"])
    assert found.suite is Suite[vector["suite"]]
    for name in ("public_key", "key_id", "certificate_key_sha256"):
        assert getattr(found, name).hex() == vector[name]
    for name in ("version", "not_before_ms", "not_after_ms"):
        assert getattr(found, name) == vector[name]


@pytest.mark.parametrize("vector", ACCEPTED)
def test_a_record_is_written_as_it_always_was(vector: Vector) -> None:
    record = bytes.fromhex(vector["record"])
    public_key, suite = bytes.fromhex(vector["public_key"]), Suite[vector["suite"]]
    assert key_id(suite, public_key).hex() == vector["key_id"]
    body = keyrecord.encode_body(
        KeyRecord(
            client=vector["client"],
            suite=suite,
            public_key=public_key,
            key_id=bytes.fromhex(vector["key_id"]),
            version=vector["version"],
            not_before_ms=vector["not_before_ms"],
            not_after_ms=vector["not_after_ms"],
            certificate_sha256=keyrecord.parse(record).record.certificate_sha256,
        )
    )
    assert body.hex() == vector["body"]
    assert keyrecord.signed_bytes(body).hex() == vector["signed_bytes"]
    chain = (bytes.fromhex(vector["certificate"]),)
    assert keyrecord.build(body, chain, bytes.fromhex(vector["signature"])) == record


@pytest.mark.parametrize("vector", REFUSED)
def test_what_must_be_refused_is_by_its_own_error(vector: Vector) -> None:
    pin = bytes.fromhex(VECTORS["accepted"][0]["certificate_key_sha256"])
    with pytest.raises(errors.KeyRecordError) as caught:
        verify(
            bytes.fromhex(vector["record"]),
            "bob",
            highest_version=VECTORS["now_ms"],
            pinned_key_sha256=pin,
        )
    assert type(caught.value) is CLASSES[vector["error"]]


def test_every_way_to_refuse_a_record_is_shown() -> None:
    shown = {vector["error"] for vector in VECTORS["refused"]}
    of_1x = {"key-not-pinned", "pinned-key-changed"}  # which has no records
    assert shown == CLASSES.keys() - {"key-record", "unknown-receiver"} - of_1x
