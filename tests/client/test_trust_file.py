"""What an identity remembers of others: pins, highest versions, list numbers."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from ciphermq.client.trust import TrustFile
from ciphermq.directory import records
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import (
    CertificateKeyChanged,
    IdentityError,
    KeyRecordRolledBack,
    KeyRecordSwapped,
    RevocationListStale,
    StoreError,
)
from ciphermq.pki.revocation import RevocationList
from support.sealing import DAY_MS, NOW_MS, MemoryAuthority, Party

OURS = MemoryAuthority()
VERIFIER = OURS.verifier()
BOB = OURS.party("bob")
OTHER_BOB = OURS.party("bob")


@pytest.fixture
def trust(tmp_path: Path) -> TrustFile:
    return TrustFile(tmp_path / "trust.json")


def record_of(party: Party, version: int = NOW_MS) -> bytes:
    return records.make(
        party.signer,
        client=party.name,
        suite=party.opener.suite,
        public_key=party.opener.public_key,
        version=version,
        not_before_ms=NOW_MS,
        not_after_ms=NOW_MS + 30 * DAY_MS,
    )


def accept(trust: TrustFile, record: bytes, client: str = "bob") -> VerifiedRecord:
    return trust.accept(record, expected_client=client, verifier=VERIFIER, now_ms=NOW_MS)


def key_of(party: Party) -> bytes:
    return VERIFIER.check_signer(party.signer.chain, NOW_MS, NOW_MS).key_sha256


def test_the_first_key_seen_is_pinned(trust: TrustFile) -> None:
    assert trust.known("bob") is None
    accept(trust, record_of(BOB))
    known = trust.known("bob")
    assert known is not None
    assert known.pin == key_of(BOB).hex()
    assert known.version == NOW_MS
    assert known.since_ms == NOW_MS
    assert not known.by_hand


def test_the_file_is_private_and_for_people_to_read(trust: TrustFile) -> None:
    accept(trust, record_of(BOB))
    assert stat.S_IMODE(trust.path.stat().st_mode) == 0o600
    content = json.loads(trust.path.read_text())
    assert content["clients"]["bob"]["pin"] == key_of(BOB).hex()


def test_another_process_sees_it_at_once(trust: TrustFile) -> None:
    accept(trust, record_of(BOB))
    with pytest.raises(CertificateKeyChanged):
        accept(TrustFile(trust.path), record_of(OTHER_BOB))


def test_the_highest_version_is_remembered(trust: TrustFile) -> None:
    accept(trust, record_of(BOB, 5))
    accept(trust, record_of(BOB, 9))
    accept(trust, record_of(BOB, 9))
    with pytest.raises(KeyRecordRolledBack, match="9 was seen before"):
        accept(trust, record_of(BOB, 8))
    known = trust.known("bob")
    assert known is not None
    assert known.version == 9


def test_a_refused_record_teaches_nothing(trust: TrustFile) -> None:
    with pytest.raises(KeyRecordSwapped):
        accept(trust, record_of(BOB), client="carol")
    assert trust.clients() == {}
    assert not trust.path.exists()


def test_a_changed_key_is_refused_until_a_person_trusts_it(trust: TrustFile) -> None:
    accept(trust, record_of(BOB, 50))
    for _ in range(2):
        with pytest.raises(CertificateKeyChanged):
            accept(trust, record_of(OTHER_BOB, 60))
    known = trust.known("bob")
    assert known is not None
    assert known.pin == key_of(BOB).hex()
    assert known.offered == key_of(OTHER_BOB).hex()
    accept(trust, record_of(BOB, 51))
    trust.trust("bob", key_of(OTHER_BOB), NOW_MS + 1)
    known = trust.known("bob")
    assert known is not None
    assert (known.pin, known.offered, known.by_hand) == (key_of(OTHER_BOB).hex(), None, True)
    # A new machine's clock may be behind the old one's: its versions start anew.
    accept(trust, record_of(OTHER_BOB, 7))
    with pytest.raises(CertificateKeyChanged):
        accept(trust, record_of(BOB, 99))


def test_trusting_the_key_one_has_keeps_its_version(trust: TrustFile) -> None:
    accept(trust, record_of(BOB, 50))
    trust.trust("bob", key_of(BOB), NOW_MS)
    with pytest.raises(KeyRecordRolledBack):
        accept(trust, record_of(BOB, 49))


def test_a_key_may_be_trusted_before_it_is_seen(trust: TrustFile) -> None:
    trust.trust("bob", key_of(BOB), NOW_MS)
    with pytest.raises(CertificateKeyChanged):
        accept(trust, record_of(OTHER_BOB))
    accept(trust, record_of(BOB))


def test_list_numbers_rise_for_each_authority(trust: TrustFile) -> None:
    def crl(authority: MemoryAuthority, number: int) -> RevocationList:
        return RevocationList(authority.crl(number=number), [authority.issuer.certificate])

    other = MemoryAuthority()
    trust.note_crl(crl(OURS, 5))
    trust.note_crl(crl(OURS, 5))
    trust.note_crl(crl(other, 2))
    with pytest.raises(RevocationListStale, match="list 4 is older than 5"):
        trust.note_crl(crl(OURS, 4))
    assert trust.lowest_crl_number(crl(OURS, 1).issuer_sha256) == 5
    assert trust.lowest_crl_number(crl(other, 1).issuer_sha256) == 2
    assert trust.lowest_crl_number(bytes(32)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 1, "clients": {"bob": {"pin": "12"}}}',
        '{"clients": {"bob": {"pin": 1}}}',
        '{"more": 1}',
    ],
)
def test_a_damaged_file_is_never_started_anew(trust: TrustFile, text: str) -> None:
    trust.path.write_text(text)
    trust.path.chmod(0o600)
    with pytest.raises(StoreError, match=r"is damaged .*restore it from a backup"):
        accept(trust, record_of(BOB))
    assert trust.path.read_text() == text


def test_a_file_of_a_later_program(trust: TrustFile) -> None:
    trust.path.write_text('{"format": 2}')
    trust.path.chmod(0o600)
    with pytest.raises(StoreError, match=r"format 2.*upgrade"):
        trust.clients()


def test_a_file_that_others_could_have_changed(trust: TrustFile) -> None:
    accept(trust, record_of(BOB))
    trust.path.chmod(0o666)
    with pytest.raises(IdentityError, match="chmod 600"):
        trust.known("bob")


def _trust_many(path: Path, first: int) -> None:
    trust = TrustFile(path)
    for index in range(first, first + 10):
        trust.trust(f"client-{index}", bytes([index]) * 32, NOW_MS)


def test_processes_do_not_lose_each_other_s_lines(trust: TrustFile) -> None:
    context = multiprocessing.get_context("forkserver")
    workers = [
        context.Process(target=_trust_many, args=(trust.path, first)) for first in (0, 10, 20)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(trust.clients()) == 30
