"""Revocation lists: whose they are, whether they still count, and what is on them.

A list that can't be believed is a fault of whoever holds it, not of the certificate under
judgement: hence `RevocationListStale` and `ClockWrong`, which stop a receiver and leave its queue
alone, rather than errors that would send good batches to the dead letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.errors import ClockWrong, RevocationListStale
from ciphermq.pki import dates
from ciphermq.pki.names import UNREADABLE

_KNOWN_CRITICAL = frozenset({x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid})

_RENEWAL = "run `ciphermq ca crl` where the authority is, then hand the new list out"


class RevocationList:
    """One authority's list, its signature checked. Immutable."""

    def __init__(self, der: bytes, authorities: Sequence[x509.Certificate]) -> None:
        """Raises `RevocationListStale` when `der` is not a whole list of one of `authorities`."""
        if len(der) > limits.MAX_CRL:
            raise RevocationListStale(
                f"the revocation list has {len(der)} bytes; {limits.MAX_CRL} are allowed"
            )
        try:
            crl = x509.load_der_x509_crl(der)
            self.issuer = _signer(crl, authorities)
            self.number = _number(crl)
            self.serials = frozenset(entry.serial_number for entry in crl)
            this_update, next_update = crl.last_update_utc, crl.next_update_utc
        except UNREADABLE as error:
            raise RevocationListStale(f"not a revocation list: {error}") from error
        if next_update is None:
            raise RevocationListStale("the revocation list doesn't say until when it counts")
        self.der = der
        self.issuer_sha256 = sha256(self.issuer.public_bytes(Encoding.DER)).digest()
        """Whose numbers this list's number can be compared with."""
        self.this_update_ms = dates.to_ms(this_update)
        self.next_update_ms = dates.to_ms(next_update)

    def check_current(self, now_ms: int) -> None:
        """`RevocationListStale` once it has expired; `ClockWrong` if it is not issued yet."""
        if now_ms > self.next_update_ms:
            raise RevocationListStale(
                f"revocation list {self.number} expired on {dates.spell(self.next_update_ms)}: "
                + _RENEWAL
            )
        if now_ms < self.this_update_ms - limits.CLOCK_SKEW * 1000:
            raise ClockWrong(
                f"revocation list {self.number} is of {dates.spell(self.this_update_ms)}, but "
                f"this machine's clock says {dates.spell(now_ms)}: set the clock"
            )

    def warning(self, now_ms: int) -> str | None:
        """What to tell the operator; None while the list is young."""
        notice_ms = limits.CRL_WARNING * 1000
        what = f"revocation list {self.number}"
        said = dates.ending(what, self.next_update_ms, notice_ms, now_ms)
        return said and f"{said}: {_RENEWAL}"


def _signer(
    crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]
) -> x509.Certificate:
    for authority in authorities:
        key = authority.public_key()
        if authority.subject == crl.issuer and crl.is_signature_valid(key):  # type: ignore[arg-type]
            return authority
    raise RevocationListStale(
        f"the revocation list is not signed by our authority but by "
        f"{crl.issuer.rfc4514_string()!r}: get the right one"
    )


def _number(crl: x509.CertificateRevocationList) -> int:
    number = None
    for extension in crl.extensions:
        # A delta list, or one of a part of the certificates, would pass for the whole.
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise RevocationListStale(
                f"the revocation list has a restriction ({extension.oid.dotted_string}) that this "
                "program doesn't know: a plain, complete list is needed"
            )
        if isinstance(extension.value, x509.CRLNumber):
            number = extension.value.crl_number
    if number is None:
        raise RevocationListStale("the revocation list has no number, so an old one can't be told")
    return number
