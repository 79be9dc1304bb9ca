"""Taking certificates back: which ones a person means, and why.

A certificate is named in three ways: by the client it was issued to, which means all that client's
certificates; by its serial number, as ``ciphermq ca list`` and ``openssl x509`` spell it; or by a
file that holds it. The last is for an authority that was adopted, and does not know what it has
certified before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ciphermq import limits
from ciphermq.errors import AuthorityError, CertificateError, UsageError
from ciphermq.pki import dates, names
from ciphermq.pki.authority import AuthorityDirectory, Issued, issued_as

REASONS: Final[Mapping[str, x509.ReasonFlags]] = {
    flag.value: flag
    for flag in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}
"""By their names in RFC 5280 section 5.3.1. Not those of authorities, and not the one on which a
certificate could come back: clients that have seen a list take no shorter one."""

_SERIAL: Final = re.compile(r"(0x)?[0-9a-f]{1,40}")
_LONGEST_FILE: Final = limits.MAX_KEY_FILE


class Target(NamedTuple):
    """A certificate to revoke."""

    serial: int
    issued: Issued | None
    """None: the authority does not remember that it issued it."""


class Standing(NamedTuple):
    """A certificate of this authority, and what has become of it."""

    serial: int
    issued: Issued | None
    """None: it is on the revocation list, and the authority does not remember it."""
    revoked_ms: int | None
    reason: str | None
    """Why it was revoked, where that was said."""

    def state(self, now_ms: int) -> str:
        """``revoked``, ``expired`` or ``valid``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.issued and self.issued.not_after_ms <= now_ms else "valid"


def reason_named(name: str) -> x509.ReasonFlags:
    """The reason of that name, in any case; `UsageError` naming those there are."""
    for known, flag in REASONS.items():
        if known.lower() == name.lower():
            return flag
    raise UsageError(f"--reason {name!r}: it must be one of {', '.join(REASONS)}")


def standing(authority: AuthorityDirectory) -> list[Standing]:
    """All that the authority issued, oldest first, and what else is on its revocation list."""
    revoked = {entry.serial_number: entry for entry in authority.revocations()}
    found = []
    for item in authority.issued():
        serial = item.certificate.serial_number
        found.append(_standing(serial, item, revoked.pop(serial, None)))
    return found + [_standing(serial, None, entry) for serial, entry in revoked.items()]


def find(
    authority: AuthorityDirectory, words: Iterable[str], *, unknown: bool = False
) -> list[Target]:
    """What `words` mean, each once: client names, serial numbers or certificate files.

    `unknown` lets serial numbers in that the authority does not remember. Raises `AuthorityError`
    for a word that means nothing here, `CertificateError` for a file of another authority's.
    """
    issued = authority.issued()
    found: dict[int, Target] = {}
    for word in words:
        for target in _meant(authority, issued, word, unknown):
            found.setdefault(target.serial, target)
    return list(found.values())


def _meant(
    authority: AuthorityDirectory, issued: list[Issued], word: str, unknown: bool
) -> list[Target]:
    # A name first: a client may be called as a number is written, or as a file is.
    named = [item for item in issued if item.is_client and item.name == word]
    if named:
        return [Target(item.certificate.serial_number, item) for item in named]
    by_serial = {item.certificate.serial_number: item for item in issued}
    if os.path.isfile(word):  # noqa: PTH113 - no word may raise, however long
        certificate = _read(authority, Path(word))
        item = by_serial.get(certificate.serial_number) or issued_as(certificate)
        return [Target(certificate.serial_number, item)]
    spelt = word.lower().replace(":", "")
    if _SERIAL.fullmatch(spelt):
        serial = int(spelt, 16)
        # A slip of the pen must not look like somebody shut out.
        if serial in by_serial or unknown:
            return [Target(serial, by_serial.get(serial))]
    raise AuthorityError(
        f"{word!r} is no client that this authority certified, no serial number of a certificate "
        "it issued, and no certificate file: look with `ciphermq ca list`. An adopted authority "
        "does not know what it certified before: give it the file, or a serial with --unknown"
    )


def _read(authority: AuthorityDirectory, path: Path) -> x509.Certificate:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LONGEST_FILE)
        if b"-----BEGIN" in data:
            certificate = x509.load_pem_x509_certificate(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, TypeError) as error:
        raise CertificateError(
            f"{path} was not issued by the authority in {authority.path}"
        ) from error
    except (OSError, *names.UNREADABLE) as error:
        raise CertificateError(
            f"{path} holds no certificate of the authority in {authority.path}: {error}"
        ) from error
    if certificate == authority.certificate:
        raise CertificateError(
            f"{path} is the authority's own: nobody can be told by itself that it counts no more. "
            "Take it out of each ca.crt instead"
        )
    return certificate


def _standing(
    serial: int, issued: Issued | None, entry: x509.RevokedCertificate | None
) -> Standing:
    if entry is None:
        return Standing(serial, issued, None, None)
    return Standing(serial, issued, dates.to_ms(entry.revocation_date_utc), _reason(entry))


def _reason(entry: x509.RevokedCertificate) -> str | None:
    try:
        found = entry.extensions.get_extension_for_class(x509.CRLReason)
    except (x509.ExtensionNotFound, *names.UNREADABLE):
        return None
    return found.value.reason.value
