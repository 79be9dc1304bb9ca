"""Times as certificates spell them and as the rest of the program counts them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from ciphermq import limits

DAY_MS: Final = limits.DAY * 1000


def to_ms(when: datetime) -> int:
    """Milliseconds since the epoch of an aware `when`."""
    return int(when.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """The second that holds `ms`, in UTC: certificates know whole seconds only."""
    return datetime.fromtimestamp(ms // 1000, UTC)


def spell(ms: int) -> str:
    """`ms` for a person: ``2030-01-31 09:05 UTC``."""
    return f"{from_ms(ms):%Y-%m-%d %H:%M} UTC"


def certificate_warning(certificate: x509.Certificate, what: str, now_ms: int) -> str | None:
    """What to tell the owner of `certificate`, called `what`; None while all is well."""
    end_ms = to_ms(certificate.not_valid_after_utc)
    return ending(what, end_ms, limits.CERTIFICATE_WARNING * 1000, now_ms)


def ending(what: str, end_ms: int, notice_ms: int, now_ms: int) -> str | None:
    """A sentence when `what` has ended, or ends within `notice_ms`."""
    left_ms = end_ms - now_ms
    if left_ms <= 0:
        return f"{what} expired on {spell(end_ms)}"
    if left_ms <= notice_ms:
        days = left_ms // DAY_MS
        when = "today" if days == 0 else f"in {days} day{'s' if days > 1 else ''}"
        return f"{what} expires {when}, on {spell(end_ms)}"
    return None
