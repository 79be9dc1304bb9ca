"""Which revocation lists count, and when they stop to."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import ClockWrong, RevocationListStale
from ciphermq.pki.profiles import Issuer
from ciphermq.pki.revocation import RevocationList
from support import odd_certificates as odd
from support.odd_certificates import DAY_MS, NOW_MS

ISSUER = odd.authority()
GOOD = odd.crl(ISSUER, number=7, revoked=[5, 2**158])


def read(der: bytes, issuer: Issuer = ISSUER) -> RevocationList:
    return RevocationList(der, [issuer.certificate])


def test_a_list_says_its_number_its_dates_and_who_is_on_it() -> None:
    crl = read(GOOD)
    assert crl.number == 7
    assert crl.serials == {5, 2**158}
    assert (crl.this_update_ms, crl.next_update_ms) == (NOW_MS, NOW_MS + 30 * DAY_MS)
    assert crl.issuer == ISSUER.certificate
    assert crl.der == GOOD


def test_it_is_found_which_of_several_authorities_signed_it() -> None:
    other = odd.authority()
    crl = RevocationList(GOOD, [other.certificate, ISSUER.certificate])
    assert crl.issuer == ISSUER.certificate


def test_a_list_of_another_authority() -> None:
    with pytest.raises(RevocationListStale, match="not signed by our authority"):
        read(odd.crl(odd.authority(name="elsewhere")))


def test_a_list_in_our_authority_s_name_that_it_did_not_sign() -> None:
    with pytest.raises(RevocationListStale, match="not signed by our authority"):
        read(odd.crl(ISSUER, signed_by=odd.key()))


def test_a_list_without_a_number() -> None:
    with pytest.raises(RevocationListStale, match="no number"):
        read(odd.crl(ISSUER, number=None))


@pytest.mark.parametrize(
    "extension",
    [
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(
            full_name=None,
            relative_name=None,
            only_contains_user_certs=True,
            only_contains_ca_certs=False,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        ),
    ],
    ids=["delta", "part"],
)
def test_a_list_that_is_not_the_whole(extension: x509.ExtensionType) -> None:
    with pytest.raises(RevocationListStale, match="a plain, complete list is needed"):
        read(odd.crl(ISSUER, extensions=[(extension, True)]))


def test_a_list_beyond_the_limit() -> None:
    with pytest.raises(RevocationListStale, match="are allowed"):
        read(GOOD.ljust(limits.MAX_CRL + 1))


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= flip
    with pytest.raises(RevocationListStale):
        read(bytes(changed))


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_else_than_be_refused(data: bytes) -> None:
    with pytest.raises(RevocationListStale):
        read(data)


def test_an_expired_list_is_stale_and_says_what_to_do() -> None:
    crl = read(GOOD)
    crl.check_current(NOW_MS + 30 * DAY_MS)
    with pytest.raises(RevocationListStale, match=r"list 7 expired on .* `ciphermq ca crl`"):
        crl.check_current(NOW_MS + 30 * DAY_MS + 1)


def test_a_list_from_the_future_means_a_wrong_clock() -> None:
    crl = read(GOOD)
    crl.check_current(NOW_MS - limits.CLOCK_SKEW * 1000)
    with pytest.raises(ClockWrong, match="set the clock"):
        crl.check_current(NOW_MS - limits.CLOCK_SKEW * 1000 - 1)


def test_the_warning_comes_on_day_twenty() -> None:
    crl = read(GOOD)
    assert crl.warning(NOW_MS + 20 * DAY_MS - 1) is None
    assert crl.warning(NOW_MS + 20 * DAY_MS) is not None
    soon = crl.warning(NOW_MS + 29 * DAY_MS)
    assert soon is not None
    assert soon.startswith("revocation list 7 expires in 1 day, on ")
    today = crl.warning(NOW_MS + 29 * DAY_MS + 1)
    assert today is not None
    assert "expires today" in today
    late = crl.warning(NOW_MS + 31 * DAY_MS)
    assert late is not None
    assert "expired on" in late
