"""When owners are warned, and in which words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.pki import dates
from support import odd_certificates as odd
from support.odd_certificates import DAY_MS, NOW_MS


def test_a_certificate_is_warned_about_for_thirty_days() -> None:
    certificate = odd.certificate(odd.authority(), end_ms=NOW_MS)

    def warning(days: float) -> str | None:
        return dates.certificate_warning(
            certificate, "the certificate", NOW_MS - int(days * DAY_MS)
        )

    assert warning(30.001) is None
    assert warning(30) == "the certificate expires in 30 days, on 2027-01-15 08:00 UTC"
    assert warning(1.5) == "the certificate expires in 1 day, on 2027-01-15 08:00 UTC"
    assert warning(0.5) == "the certificate expires today, on 2027-01-15 08:00 UTC"
    assert warning(0) == "the certificate expired on 2027-01-15 08:00 UTC"
    assert warning(-9) == "the certificate expired on 2027-01-15 08:00 UTC"


@given(st.integers(0, 253_402_300_799_999))
def test_every_moment_goes_there_and_back(ms: int) -> None:
    assert dates.to_ms(dates.from_ms(ms)) == ms // 1000 * 1000
    assert dates.spell(ms).endswith(" UTC")
