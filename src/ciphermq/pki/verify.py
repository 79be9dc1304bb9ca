"""Whether a certificate chain may sign: to our authority, in time, for signing, not revoked.

Batches and key records are judged here. The path itself is checked by
`cryptography.x509.verification` (RFC 5280); this module says which certificates are anchors,
what they must have, and which of our errors a refusal becomes.

A chain is exactly one certificate, issued by an authority itself. There is nothing to gain from
intermediates here, and each one more would need a revocation list of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from ciphermq import limits
from ciphermq.custody import signatures
from ciphermq.errors import (
    CertificateError,
    RevocationListStale,
    SenderCertificateNotValid,
    SenderMayNotSign,
    SenderRevoked,
    UntrustedSender,
)
from ciphermq.pki import dates, names
from ciphermq.pki.revocation import RevocationList

_SKEW_MS: Final = limits.CLOCK_SKEW * 1000


@dataclass(frozen=True, slots=True)
class SignerInfo:
    """A certificate that may sign, as the authority vouches for it."""

    client_id: str
    public_key: ec.EllipticCurvePublicKey
    key_sha256: bytes
    """SHA-256 of the public key (SubjectPublicKeyInfo): what is pinned."""
    certificate_sha256: bytes
    not_before_ms: int
    not_after_ms: int
    serial: int

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is this key's over `data`."""
        return signatures.verifies(self.public_key, signature, data)


@dataclass(frozen=True, slots=True)
class _Verified:
    """A certificate whose path is good, and the anchor that it leads to."""

    info: SignerInfo
    authority: x509.Certificate

    def check_dates(self, at_ms: int) -> None:
        info = self.info
        first_ms = max(info.not_before_ms, dates.to_ms(self.authority.not_valid_before_utc))
        last_ms = min(info.not_after_ms, dates.to_ms(self.authority.not_valid_after_utc))
        if not first_ms - _SKEW_MS <= at_ms <= last_ms + _SKEW_MS:
            raise SenderCertificateNotValid(
                f"the certificate of {info.client_id!r} is valid from {dates.spell(first_ms)} to "
                f"{dates.spell(last_ms)}, but was used on {dates.spell(at_ms)}"
            )


class ChainVerifier:
    """Judges certificate chains against one set of authorities and their revocation lists.

    Cheap to ask again: a chain's path is verified once and remembered; dates and revocation are
    checked every time.
    """

    def __init__(
        self, ca_ders: Sequence[bytes], crl_der: bytes | Sequence[bytes] | None = None
    ) -> None:
        """`crl_der`: the list of each authority; with none, nothing is trusted.

        Raises `CertificateError` for an authority that can't be one, `RevocationListStale` for a
        list that none of them signed.
        """
        if not ca_ders:
            raise CertificateError("no authority to trust: its certificate (ca.crt) is missing")
        self.authorities = tuple(_load_authority(der) for der in ca_ders)
        self._store = verification.Store(list(self.authorities))
        self._lists: dict[x509.Certificate, RevocationList] = {}
        self._signers: OrderedDict[bytes, _Verified] = OrderedDict()
        if crl_der is not None:
            for der in [crl_der] if isinstance(crl_der, bytes) else crl_der:
                self.use_crl(der)

    @property
    def revocation_lists(self) -> tuple[RevocationList, ...]:
        """The lists in use, one for each authority that has one."""
        return tuple(self._lists.values())

    @property
    def crl_number(self) -> int:
        """The highest number among the lists in use; 0 without any."""
        return max((crl.number for crl in self._lists.values()), default=0)

    def check_not_older(self, before: ChainVerifier) -> None:
        """`RevocationListStale` when the list of an authority of both is older here than in
        `before`, or is none."""
        for issuer, old in before._lists.items():
            new = self._lists.get(issuer)
            if new is not None and new.number < old.number:
                raise _older(new.number, old.number)
            if new is None and issuer in self.authorities:
                raise RevocationListStale(
                    f"there is no revocation list of {issuer.subject.rfc4514_string()!r} any more"
                )

    def check_not_revoked(self, certificate: x509.Certificate) -> None:
        """`CertificateError` when it is on the list in use of the authority that issued it.

        Expired lists count here as well: what was revoked stays so.
        """
        serial = certificate.serial_number
        for issuer, crl in self._lists.items():
            # Authorities may share a name, so that a number alone says too little.
            if (
                serial in crl.serials
                and certificate.issuer == issuer.subject
                and _issued_by(certificate, issuer)
            ):
                raise CertificateError(
                    f"the certificate (serial {names.spell_serial(serial)}) has been revoked, says "
                    f"revocation list {crl.number}"
                )

    def check_issued_here(self, certificate: x509.Certificate) -> None:
        """`CertificateError` when none of the authorities issued it itself."""
        if not any(_issued_by(certificate, authority) for authority in self.authorities):
            raise CertificateError(
                f"the certificate is of {certificate.issuer.rfc4514_string()!r}, which is no "
                "authority here any more"
            )

    def use_crl(self, der: bytes, *, lowest: int = 0) -> RevocationList:
        """Judge by this list from now on.

        Raises `RevocationListStale` when no authority of ours signed it, or when its number is
        below `lowest` or below that of the list in use: an older list would bring back what was
        revoked since.
        """
        new = RevocationList(der, self.authorities)
        self.use(new, lowest=lowest)
        return new

    def use(self, new: RevocationList, *, lowest: int = 0) -> None:
        """As `use_crl`, with a list that was read by these authorities: to read a long one takes
        too long for an event loop."""
        old = self._lists.get(new.issuer)
        highest = max(lowest, old.number if old else 0)
        if new.number < highest:
            raise _older(new.number, highest)
        self._lists[new.issuer] = new

    def check_signer(self, chain: Sequence[bytes], at_ms: int, now_ms: int) -> SignerInfo:
        """Whom `chain` stands for, if it could sign at `at_ms` and is not revoked at `now_ms`.

        Raises `UntrustedSender` or one of its kinds when the chain is at fault, and
        `RevocationListStale` or `ClockWrong` when it can't be judged here and now.
        """
        # 1. The chain leads to our authority and its certificate may sign.
        leaf = _only_certificate(chain)
        verified = self._signers.get(leaf)
        if verified is None:
            verified = self._verify(leaf, at_ms)
            self._remember(leaf, verified)
        info = verified.info
        # 2. It was valid when it signed, give or take what honest clocks differ by.
        verified.check_dates(at_ms)
        # 3. It is not revoked now: a stolen key is dated as its thief likes.
        crl = self._lists.get(verified.authority)
        if crl is None:
            raise RevocationListStale(
                f"no revocation list of {verified.authority.subject.rfc4514_string()!r}, so "
                "nobody's certificate can be judged: put the authority's crl.pem in place"
            )
        crl.check_current(now_ms)
        if info.serial in crl.serials:
            raise SenderRevoked(
                f"the certificate of {info.client_id!r} (serial "
                f"{names.spell_serial(info.serial)}) is revoked"
            )
        return info

    def _verify(self, leaf: bytes, at_ms: int) -> _Verified:
        try:
            certificate = x509.load_der_x509_certificate(leaf)
            info = _signer_info(certificate, leaf)
            authority = self._anchor_of(certificate, _within(certificate, at_ms))
        except CertificateError as error:
            raise UntrustedSender(str(error)) from error
        except names.UNREADABLE as error:
            raise UntrustedSender(f"the sender's certificate can't be read: {error}") from error
        return _Verified(info, authority)

    def _anchor_of(self, certificate: x509.Certificate, moment: datetime) -> x509.Certificate:
        policy = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(moment)
            .max_chain_depth(0)
            .extension_policies(ca_policy=_AUTHORITY_POLICY, ee_policy=_SIGNER_POLICY)
        )
        try:
            path = policy.build_client_verifier().verify(certificate, [])
        except verification.VerificationError as error:
            raise UntrustedSender(
                f"the certificate of {names.client_id_of(certificate)!r} does not lead to our "
                f"authority: {error}"
            ) from error
        return path.chain[-1]

    def _remember(self, leaf: bytes, verified: _Verified) -> None:
        if len(self._signers) >= limits.MAX_SIGNERS:
            self._signers.popitem(last=False)
        self._signers[leaf] = verified


def _older(number: int, highest: int) -> RevocationListStale:
    return RevocationListStale(
        f"revocation list {number} is older than {highest}, which was seen before: somebody is "
        "showing an old one; get the newest from the authority"
    )


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _only_certificate(chain: Sequence[bytes]) -> bytes:
    # Bytes beside the one certificate that the header names would be carried unsigned.
    if len(chain) != 1:
        raise UntrustedSender(f"a chain has one certificate, this one has {len(chain)}")
    if len(chain[0]) > limits.MAX_CHAIN:
        raise UntrustedSender(f"a certificate of {len(chain[0])} bytes: over {limits.MAX_CHAIN}")
    return bytes(chain[0])


def _within(certificate: x509.Certificate, at_ms: int) -> datetime:
    """`at_ms`, or the nearest moment of the certificate's life.

    The path is checked as of then; whether `at_ms` itself is near enough is asked later.
    """
    earliest, latest = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return max(earliest, min(latest, dates.from_ms(at_ms)))


def _signer_info(certificate: x509.Certificate, der: bytes) -> SignerInfo:
    client_id = names.client_id_of(certificate)
    if not names.may_sign(certificate):
        raise SenderMayNotSign(
            f"the certificate of {client_id!r} may not sign batches and key records "
            f"(usage {names.SIGNING_USAGE.dotted_string})"
        )
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in signatures.CURVES:
        raise UntrustedSender(f"the key of {client_id!r} is not on P-256, P-384 or P-521")
    return SignerInfo(
        client_id=client_id,
        public_key=key,
        key_sha256=key_sha256(key),
        certificate_sha256=sha256(der).digest(),
        not_before_ms=dates.to_ms(certificate.not_valid_before_utc),
        not_after_ms=dates.to_ms(certificate.not_valid_after_utc),
        serial=certificate.serial_number,
    )


def key_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of a public key's SubjectPublicKeyInfo: stays when a certificate is renewed."""
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(spki).digest()


def _load_authority(der: bytes) -> x509.Certificate:
    certificate = names.load(der)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        is_authority = constraints.value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    except names.UNREADABLE as error:
        raise CertificateError(f"the authority's certificate can't be read: {error}") from error
    if not is_authority:
        raise CertificateError(
            f"{certificate.subject.rfc4514_string()!r} is not an authority's certificate: "
            "ca.crt must hold the certificate that `ciphermq init` made, or your own authority's"
        )
    return certificate


def _check_authority_constraints(
    _policy: verification.Policy, _certificate: x509.Certificate, found: x509.BasicConstraints
) -> None:
    if not found.ca:
        raise ValueError("not an authority")


def _check_authority_usage(
    _policy: verification.Policy, _certificate: x509.Certificate, found: x509.KeyUsage | None
) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("the authority's key may not sign certificates")


def _check_signer_usage(
    _policy: verification.Policy, _certificate: x509.Certificate, found: x509.KeyUsage | None
) -> None:
    if found is not None and not found.digital_signature:
        raise ValueError("the key may not make signatures")


_AUTHORITY_POLICY: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(
        x509.BasicConstraints, verification.Criticality.AGNOSTIC, _check_authority_constraints
    )
    .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _check_authority_usage)
)
"""Less than the web's rules, because authorities of CipherMQ 1.x have no key usage."""

_SIGNER_POLICY: Final = verification.ExtensionPolicy.permit_all().may_be_present(
    x509.KeyUsage, verification.Criticality.AGNOSTIC, _check_signer_usage
)
"""Name and extended usages are checked by `names`, with errors of their own."""
