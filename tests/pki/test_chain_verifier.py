"""Which certificates may sign, for whom, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.custody import signatures
from ciphermq.errors import (
    CertificateError,
    ClockWrong,
    RevocationListStale,
    SenderCertificateNotValid,
    SenderMayNotSign,
    SenderRevoked,
    UntrustedSender,
)
from ciphermq.pki import profiles
from ciphermq.pki.verify import ChainVerifier, key_sha256
from support import odd_certificates as odd
from support.odd_certificates import DAY_MS, NOW_MS

SKEW_MS = limits.CLOCK_SKEW * 1000
ISSUER = odd.authority(name="ours")
CRL = odd.crl(ISSUER)
KEY = odd.key()
ALICE = odd.der(
    profiles.client_certificate(ISSUER, "alice", KEY.public_key(), NOW_MS, limits.DAY * 365)
)


def verifier(crl: bytes | Sequence[bytes] | None = CRL) -> ChainVerifier:
    return ChainVerifier([odd.der(ISSUER.certificate)], crl)


def check(der: bytes, at_ms: int = NOW_MS, now_ms: int = NOW_MS) -> str:
    return verifier().check_signer([der], at_ms, now_ms).client_id


def test_a_client_of_our_authority_may_sign() -> None:
    info = verifier().check_signer([ALICE], NOW_MS, NOW_MS)
    assert info.client_id == "alice"
    assert info.public_key == KEY.public_key()
    assert info.key_sha256 == key_sha256(KEY.public_key())
    assert info.serial == x509.load_der_x509_certificate(ALICE).serial_number
    assert info.not_before_ms == NOW_MS - SKEW_MS
    assert info.not_after_ms == NOW_MS + 365 * DAY_MS
    assert info.verifies(signatures.sign(KEY, b"data"), b"data")
    assert not info.verifies(signatures.sign(KEY, b"data"), b"date")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_every_usual_curve_is_taken(curve: ec.EllipticCurve) -> None:
    key = odd.key(curve)
    assert check(odd.der(odd.certificate(ISSUER, public_key=key.public_key()))) == "alice"


def test_the_second_time_gives_the_same() -> None:
    judge = verifier()
    assert judge.check_signer([ALICE], NOW_MS, NOW_MS) is judge.check_signer(
        [ALICE], NOW_MS + 5, NOW_MS + 5
    )


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SIGNERS", 2)
    judge = verifier()
    ders = [odd.der(odd.certificate(ISSUER)) for _ in range(4)]
    for der in ders * 2:
        assert judge.check_signer([der], NOW_MS, NOW_MS).client_id == "alice"
    assert len(judge._signers) == 2


# --- the chain ------------------------------------------------------------------------------------


def test_a_certificate_of_another_authority() -> None:
    with pytest.raises(UntrustedSender, match="'alice' does not lead to our authority"):
        check(odd.der(odd.certificate(odd.authority(name="ours"))))


def test_a_self_signed_certificate() -> None:
    key = odd.key()
    own = odd.authority(name="alice", with_key=key, extensions=())
    with pytest.raises(UntrustedSender):
        check(odd.der(odd.certificate(own)))


def test_a_client_can_t_issue_for_others() -> None:
    alice = profiles.Issuer(x509.load_der_x509_certificate(ALICE), KEY)
    forged = odd.der(odd.certificate(alice, "bob", uris=None))
    with pytest.raises(UntrustedSender, match="'bob' does not lead to our authority"):
        check(forged)
    with pytest.raises(UntrustedSender, match="one certificate, this one has 2"):
        verifier().check_signer([forged, ALICE], NOW_MS, NOW_MS)


@pytest.mark.parametrize("chain", [[], [ALICE, ALICE], [ALICE, odd.der(ISSUER.certificate)]])
def test_nothing_travels_beside_the_one_certificate(chain: list[bytes]) -> None:
    with pytest.raises(UntrustedSender, match="a chain has one certificate"):
        verifier().check_signer(chain, NOW_MS, NOW_MS)


def test_a_certificate_beyond_the_limit() -> None:
    with pytest.raises(UntrustedSender, match="over 4096"):
        check(ALICE.ljust(5000))


@given(st.integers(0, len(ALICE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = bytearray(ALICE)
    changed[at] ^= flip
    with pytest.raises(UntrustedSender):
        check(bytes(changed))


@given(st.binary(max_size=600))
def test_no_bytes_do_anything_else_than_be_refused(data: bytes) -> None:
    with pytest.raises(UntrustedSender):
        check(data)


def test_a_critical_extension_that_nobody_knows() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(UntrustedSender, match="critical"):
        check(odd.der(odd.certificate(ISSUER, extensions=[(unknown, True)])))


def test_a_key_that_may_not_make_signatures() -> None:
    usage = x509.KeyUsage(
        digital_signature=False,
        key_agreement=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    with pytest.raises(UntrustedSender, match="may not make signatures"):
        check(odd.der(odd.certificate(ISSUER, extensions=[(usage, True)])))


def test_a_key_that_is_not_for_ecdsa() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(UntrustedSender, match="not on P-256, P-384 or P-521"):
        check(odd.der(odd.certificate(ISSUER, public_key=key)))


# --- what it may do, and who it is ----------------------------------------------------------------


def test_a_certificate_for_tls_alone_can_t_sign() -> None:
    tls_only = odd.certificate(ISSUER, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
    with pytest.raises(SenderMayNotSign, match="'alice' may not sign"):
        check(odd.der(tls_only))


@pytest.mark.parametrize(
    "changes",
    [
        {"usages": [ExtendedKeyUsageOID.SERVER_AUTH, *odd.CLIENT]},
        {"usages": None},
        {"name": odd.subject("alice", "bob")},
        {"uris": ["ciphermq:bob"]},
    ],
    ids=["server", "no usage", "two names", "two minds"],
)
def test_who_is_no_client_is_no_sender(changes: dict[str, object]) -> None:
    with pytest.raises(UntrustedSender):
        check(odd.der(odd.certificate(ISSUER, **changes)))  # type: ignore[arg-type]


# --- dates ----------------------------------------------------------------------------------------


def test_it_counts_when_it_was_valid_as_it_signed() -> None:
    der = odd.der(odd.certificate(ISSUER, start_ms=NOW_MS - 9 * DAY_MS, end_ms=NOW_MS - DAY_MS))
    early = odd.authority(name="ours", start_ms=NOW_MS - 99 * DAY_MS, with_key=ISSUER.key)
    judge = ChainVerifier([odd.der(early.certificate)], CRL)
    assert judge.check_signer([der], NOW_MS - 2 * DAY_MS, NOW_MS).client_id == "alice"
    with pytest.raises(SenderCertificateNotValid, match=r"valid from .* but was used on"):
        judge.check_signer([der], NOW_MS, NOW_MS)


@pytest.mark.parametrize("first", [True, False])
def test_clocks_may_differ_by_five_minutes(first: bool) -> None:
    certificate = odd.certificate(ISSUER)
    start, end = NOW_MS - DAY_MS, NOW_MS + 100 * DAY_MS
    judge = verifier()
    if not first:
        judge.check_signer([odd.der(certificate)], NOW_MS, NOW_MS)
    for at_ms in (start - SKEW_MS, start, end, end + SKEW_MS):
        assert judge.check_signer([odd.der(certificate)], at_ms, NOW_MS).client_id == "alice"
    for at_ms in (start - SKEW_MS - 1, end + SKEW_MS + 1):
        with pytest.raises(SenderCertificateNotValid):
            judge.check_signer([odd.der(certificate)], at_ms, NOW_MS)


def test_an_authority_that_has_ended_vouches_for_nobody() -> None:
    ending = odd.authority(start_ms=NOW_MS - 9 * DAY_MS, end_ms=NOW_MS - DAY_MS)
    der = odd.der(odd.certificate(ending, start_ms=NOW_MS - 9 * DAY_MS))
    judge = ChainVerifier([odd.der(ending.certificate)], odd.crl(ending))
    assert judge.check_signer([der], NOW_MS - 2 * DAY_MS, NOW_MS).client_id == "alice"
    with pytest.raises(SenderCertificateNotValid):
        judge.check_signer([der], NOW_MS, NOW_MS)
    fresh = ChainVerifier([odd.der(ending.certificate)], odd.crl(ending))
    with pytest.raises(UntrustedSender):
        fresh.check_signer([der], NOW_MS, NOW_MS)


@given(st.integers(0, 253_402_300_799_999))
def test_any_time_a_header_can_hold_is_judged(at_ms: int) -> None:
    try:
        assert verifier().check_signer([ALICE], at_ms, NOW_MS).client_id == "alice"
    except SenderCertificateNotValid:
        assert not NOW_MS - 2 * SKEW_MS <= at_ms <= NOW_MS + 365 * DAY_MS + SKEW_MS


# --- revocation -----------------------------------------------------------------------------------


def test_a_revoked_certificate_whatever_its_holder_dates_it() -> None:
    info = verifier().check_signer([ALICE], NOW_MS, NOW_MS)
    judge = verifier(odd.crl(ISSUER, number=2, revoked=[info.serial]))
    for at_ms in (NOW_MS - SKEW_MS, NOW_MS, NOW_MS + DAY_MS):
        with pytest.raises(SenderRevoked, match=r"'alice'.*is revoked"):
            judge.check_signer([ALICE], at_ms, NOW_MS)


def test_a_newer_list_counts_at_once_for_who_was_seen_before() -> None:
    judge = verifier()
    info = judge.check_signer([ALICE], NOW_MS, NOW_MS)
    assert judge.crl_number == 1
    judge.use_crl(odd.crl(ISSUER, number=2, revoked=[info.serial]))
    assert judge.crl_number == 2
    with pytest.raises(SenderRevoked):
        judge.check_signer([ALICE], NOW_MS, NOW_MS)


def test_an_older_list_is_not_taken_back() -> None:
    judge = verifier(odd.crl(ISSUER, number=5))
    judge.use_crl(odd.crl(ISSUER, number=5))
    with pytest.raises(RevocationListStale, match="list 4 is older than 5"):
        judge.use_crl(odd.crl(ISSUER, number=4))
    with pytest.raises(RevocationListStale, match="list 6 is older than 9"):
        judge.use_crl(odd.crl(ISSUER, number=6), lowest=9)
    assert judge.crl_number == 5


def test_without_a_list_nobody_is_trusted_and_it_is_no_fault_of_the_sender() -> None:
    judge = verifier(None)
    assert judge.crl_number == 0
    with pytest.raises(RevocationListStale, match=r"no revocation list of .*crl\.pem in place"):
        judge.check_signer([ALICE], NOW_MS, NOW_MS)


def test_an_expired_list_stops_the_receiver() -> None:
    with pytest.raises(RevocationListStale, match="expired"):
        check(ALICE, now_ms=NOW_MS + 31 * DAY_MS)


def test_a_clock_before_the_list_stops_the_receiver() -> None:
    with pytest.raises(ClockWrong):
        check(ALICE, now_ms=NOW_MS - DAY_MS)


def test_two_authorities_each_with_its_list() -> None:
    second = odd.authority(name="the next one")
    bob = odd.der(odd.certificate(second, "bob", uris=None))
    ders = [odd.der(ISSUER.certificate), odd.der(second.certificate)]
    judge = ChainVerifier(ders, [CRL])
    assert judge.check_signer([ALICE], NOW_MS, NOW_MS).client_id == "alice"
    with pytest.raises(RevocationListStale, match="the next one"):
        judge.check_signer([bob], NOW_MS, NOW_MS)
    judge.use_crl(odd.crl(second, number=40))
    assert judge.check_signer([bob], NOW_MS, NOW_MS).client_id == "bob"
    assert len(judge.revocation_lists) == 2


# --- authorities ----------------------------------------------------------------------------------


def test_no_authority_at_all() -> None:
    with pytest.raises(CertificateError, match=r"ca\.crt"):
        ChainVerifier([])


@pytest.mark.parametrize("der", [ALICE, b"nonsense"])
def test_what_is_no_authority(der: bytes) -> None:
    with pytest.raises(CertificateError):
        ChainVerifier([der])


def test_an_authority_as_1x_made_them_is_one() -> None:
    bare = odd.authority(extensions=[(x509.BasicConstraints(ca=True, path_length=None), False)])
    judge = ChainVerifier([odd.der(bare.certificate)], odd.crl(bare))
    assert judge.check_signer([odd.der(odd.certificate(bare))], NOW_MS, NOW_MS)


def test_an_authority_whose_key_may_not_certify() -> None:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=False,
        crl_sign=True,
        key_agreement=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        encipher_only=False,
        decipher_only=False,
    )
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    weak = odd.authority(extensions=[(constraints, True), (usage, True)])
    judge = ChainVerifier([odd.der(weak.certificate)], odd.crl(weak))
    with pytest.raises(UntrustedSender):
        judge.check_signer([odd.der(odd.certificate(weak))], NOW_MS, NOW_MS)
