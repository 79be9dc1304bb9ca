"""What a malicious broker can try with key records, and what it gets for it."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.custody import keys
from ciphermq.directory import records
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import (
    CertificateKeyChanged,
    ClockWrong,
    KeyRecordExpired,
    KeyRecordForged,
    KeyRecordMalformed,
    KeyRecordNotYetValid,
    KeyRecordRevoked,
    KeyRecordRolledBack,
    KeyRecordSwapped,
    RevocationListStale,
    UsageError,
)
from ciphermq.model import keyrecord
from ciphermq.pki.verify import ChainVerifier
from support import odd_certificates as odd
from support.sealing import DAY_MS, NOW_MS, MemoryAuthority, Party

SKEW_MS = limits.CLOCK_SKEW * 1000
OURS = MemoryAuthority()
BOB = OURS.party("bob")
MALLORY = OURS.party("mallory")
VERIFIER = OURS.verifier()


def record_of(
    party: Party = BOB,
    *,
    client: str | None = None,
    version: int = NOW_MS,
    start_ms: int = NOW_MS,
    days: int = 30,
) -> bytes:
    return records.make(
        party.signer,
        client=client or party.name,
        suite=party.opener.suite,
        public_key=party.opener.public_key,
        version=version,
        not_before_ms=start_ms,
        not_after_ms=start_ms + days * DAY_MS,
    )


def verify(
    record: bytes,
    *,
    client: str = "bob",
    now_ms: int = NOW_MS,
    highest: int = 0,
    pin: bytes | None = None,
    verifier: ChainVerifier = VERIFIER,
) -> VerifiedRecord:
    return records.verify(
        record,
        expected_client=client,
        verifier=verifier,
        now_ms=now_ms,
        highest_version=highest,
        pinned_key_sha256=pin,
    )


def forge(record: bytes, **changes: object) -> bytes:
    """The record with other contents under its old signature."""
    signed = keyrecord.parse(record)
    body = keyrecord.encode_body(msgspec.structs.replace(signed.record, **changes))
    return keyrecord.build(body, signed.chain, signed.signature)


def resign(record: bytes, party: Party, **changes: object) -> bytes:
    """The record with other contents, signed by `party` as if it were so."""
    said = msgspec.structs.replace(keyrecord.parse(record).record, **changes)
    body = keyrecord.encode_body(said)
    signature = party.signer.sign(keyrecord.signed_bytes(body))
    return keyrecord.build(body, party.signer.chain, signature)


GOOD = record_of()


def test_an_honest_record() -> None:
    found = verify(GOOD)
    assert (found.client, found.public_key) == ("bob", BOB.opener.public_key)
    assert found.key_id == BOB.opener.key_id
    assert found.version == NOW_MS
    assert found.certificate_sha256 == BOB.signer.certificate_sha256
    signer = VERIFIER.check_signer(BOB.signer.chain, NOW_MS, NOW_MS)
    assert found.certificate_key_sha256 == signer.key_sha256


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= flip
    with pytest.raises((KeyRecordMalformed, KeyRecordForged)):
        verify(bytes(changed))


# --- forged ---------------------------------------------------------------------------------------


def test_another_key_in_the_record() -> None:
    other = MALLORY.opener
    with pytest.raises(KeyRecordForged, match="signature is not its owner's"):
        verify(forge(GOOD, public_key=other.public_key, key_id=other.key_id))


def test_a_key_that_the_key_id_does_not_name() -> None:
    lying = resign(GOOD, BOB, public_key=MALLORY.opener.public_key)
    with pytest.raises(KeyRecordMalformed, match="names another key than it holds"):
        verify(lying)


@pytest.mark.parametrize(
    "changes",
    [{"version": NOW_MS + 1}, {"not_after_ms": NOW_MS + 40 * DAY_MS}, {"client": "mallory"}],
)
def test_anything_else_changed_in_the_record(changes: dict[str, object]) -> None:
    with pytest.raises(KeyRecordForged):
        verify(forge(GOOD, **changes))


def test_another_client_s_signature_in_bob_s_name() -> None:
    forged = resign(GOOD, MALLORY, certificate_sha256=MALLORY.signer.certificate_sha256)
    with pytest.raises(KeyRecordForged, match="it is signed by 'mallory'"):
        verify(forged)


def test_another_certificate_beside_it() -> None:
    with pytest.raises(KeyRecordForged, match="not the one it names"):
        verify(resign(GOOD, MALLORY))


def test_another_authority() -> None:
    impostor = MemoryAuthority().party("bob")
    with pytest.raises(KeyRecordForged, match="of another authority"):
        verify(record_of(impostor))


def test_a_batch_s_signature_is_no_record_s() -> None:
    signed = keyrecord.parse(GOOD)
    batchlike = BOB.signer.sign(b" " * 64 + b"CipherMQ/2 batch\0" + signed.body)
    with pytest.raises(KeyRecordForged):
        verify(keyrecord.build(signed.body, signed.chain, batchlike))


def test_the_other_spelling_of_the_signature() -> None:
    """(r, n - s) verifies as well as (r, s); only one is the owner's."""
    from cryptography.hazmat.primitives.asymmetric.utils import (
        decode_dss_signature,
        encode_dss_signature,
    )

    signed = keyrecord.parse(GOOD)
    r, s = decode_dss_signature(signed.signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = encode_dss_signature(r, order - s)
    with pytest.raises(KeyRecordForged):
        verify(keyrecord.build(signed.body, signed.chain, other))


# --- swapped --------------------------------------------------------------------------------------


def test_another_client_s_genuine_record() -> None:
    with pytest.raises(KeyRecordSwapped, match=r"asked for the key of 'bob'.*that of 'mallory'"):
        verify(record_of(MALLORY))


# --- dates ----------------------------------------------------------------------------------------


def test_an_expired_record_says_who_must_do_what() -> None:
    record = record_of(days=1)
    verify(record, now_ms=NOW_MS + DAY_MS + SKEW_MS)
    with pytest.raises(KeyRecordExpired, match=r"'bob' expired on .*keys renew"):
        verify(record, now_ms=NOW_MS + DAY_MS + SKEW_MS + 1)


def test_a_record_of_the_future() -> None:
    record = record_of(start_ms=NOW_MS + SKEW_MS)
    verify(record)
    with pytest.raises(KeyRecordNotYetValid, match="one of the two clocks is wrong"):
        verify(record, now_ms=NOW_MS - 1)


def test_an_owner_whose_certificate_has_ended() -> None:
    brief = OURS.party("bob", lifetime=2 * limits.DAY)
    with pytest.raises(KeyRecordExpired, match="'bob' must renew its certificate"):
        verify(record_of(brief), now_ms=NOW_MS + 2 * DAY_MS)


def test_an_owner_whose_certificate_is_yet_to_come() -> None:
    early = OURS.party("bob", now_ms=NOW_MS + 9 * DAY_MS)
    with pytest.raises(KeyRecordNotYetValid, match="check this machine's clock"):
        verify(record_of(early))


# --- rolled back ----------------------------------------------------------------------------------


def test_an_older_version_than_was_seen() -> None:
    assert verify(GOOD, highest=NOW_MS).version == NOW_MS
    with pytest.raises(KeyRecordRolledBack, match=rf"version {NOW_MS} .*{NOW_MS + 1} was seen"):
        verify(GOOD, highest=NOW_MS + 1)


def test_versions_rise_even_when_the_clock_goes_back() -> None:
    assert records.next_version(0, NOW_MS) == NOW_MS
    assert records.next_version(NOW_MS, NOW_MS) == NOW_MS + 1
    assert records.next_version(NOW_MS, NOW_MS - DAY_MS) == NOW_MS + 1
    with pytest.raises(UsageError, match="used up"):
        records.next_version(keyrecord.MAX_VERSION, NOW_MS)


# --- revoked --------------------------------------------------------------------------------------


def test_an_owner_whose_certificate_is_revoked() -> None:
    info = VERIFIER.check_signer(BOB.signer.chain, NOW_MS, NOW_MS)
    with pytest.raises(KeyRecordRevoked, match=r"'bob'.*is revoked: nothing is sealed"):
        verify(GOOD, verifier=OURS.verifier(info.serial))


def test_who_can_t_judge_says_so_and_blames_nobody() -> None:
    with pytest.raises(RevocationListStale, match="no revocation list"):
        verify(GOOD, verifier=ChainVerifier([OURS.der]))
    with pytest.raises(RevocationListStale, match="expired"):
        verify(GOOD, now_ms=NOW_MS + 31 * DAY_MS)
    later = ChainVerifier([OURS.der], OURS.crl(now_ms=NOW_MS + 5 * DAY_MS))
    with pytest.raises(ClockWrong, match="set the clock"):
        verify(GOOD, verifier=later)


# --- the certificate key changed ------------------------------------------------------------------


def test_a_new_sealing_key_under_the_same_certificate_key() -> None:
    pin = verify(GOOD).certificate_key_sha256
    renewed = dataclasses.replace(BOB, opener=OURS.party("bob").opener)
    found = verify(record_of(renewed, version=NOW_MS + 1), highest=NOW_MS, pin=pin)
    assert found.public_key == renewed.opener.public_key


def test_a_new_certificate_for_the_same_key() -> None:
    pin = verify(GOOD).certificate_key_sha256
    certificate = odd.certificate(
        OURS.issuer, "bob", uris=None, public_key=BOB.signer._key.public_key()
    )
    signer = type(BOB.signer)(BOB.signer._key, (odd.der(certificate),))
    found = verify(record_of(dataclasses.replace(BOB, signer=signer)), pin=pin)
    assert found.certificate_sha256 != BOB.signer.certificate_sha256


def test_another_certificate_key_stops_until_a_person_decides() -> None:
    """Even one that our own authority certified: it may have been made to."""
    pin = verify(GOOD).certificate_key_sha256
    other = record_of(OURS.party("bob"), version=NOW_MS + 1)
    new = verify(other).certificate_key_sha256
    with pytest.raises(CertificateKeyChanged) as caught:
        verify(other, pin=pin)
    said = str(caught.value)
    assert records.fingerprint(pin) in said
    assert records.fingerprint(new) in said
    assert f"ciphermq keys trust bob --fingerprint {new.hex()}" in said


def test_the_change_is_told_before_the_version_is_judged() -> None:
    """Versions of two keys can't be compared: a new machine's clock may be behind the old one's."""
    pin = verify(GOOD).certificate_key_sha256
    other = record_of(OURS.party("bob"), version=5)
    with pytest.raises(CertificateKeyChanged):
        verify(other, pin=pin, highest=NOW_MS)


# --- what others would refuse is not made ---------------------------------------------------------


def test_a_record_for_more_than_a_year() -> None:
    with pytest.raises(UsageError, match="365 days"):
        record_of(days=366)


@pytest.mark.parametrize("suite", list(keys.Suite), ids=lambda suite: suite.name)
def test_every_suite_has_its_record(suite: keys.Suite) -> None:
    party = OURS.party("bob", suite)
    record = record_of(party)
    assert verify(record).suite is suite
    assert len(record) < limits.MAX_KEY_RECORD


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_are_for_people() -> None:
    digest = bytes(range(32))
    text = records.fingerprint(digest)
    assert text.startswith("0001 0203 0405 ")
    assert len(text.split()) == 16
    for spelling in (text, text.lower(), digest.hex(), digest.hex(":"), digest.hex("-", 2)):
        assert records.parse_fingerprint(spelling) == digest


@pytest.mark.parametrize("text", ["", "0001", "g" * 64, "00" * 31, "00" * 33])
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        records.parse_fingerprint(text)
