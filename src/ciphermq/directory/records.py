"""Making and verifying key records, so that a directory need not be trusted.

The broker that stores and serves the records is the adversary here. It can withhold one; it can't
make one (the signature), pass one off as another client's (the id), bring an old one back (the
version), or, once a client has been seen, have the authority's help in replacing it unnoticed
(the pin on the client's certificate key).
"""

from __future__ import annotations

from typing import Final

from ciphermq import limits
from ciphermq.custody.face import Signer
from ciphermq.custody.keys import key_id
from ciphermq.errors import (
    CertificateKeyChanged,
    KeyRecordError,
    KeyRecordExpired,
    KeyRecordForged,
    KeyRecordMalformed,
    KeyRecordNotYetValid,
    KeyRecordRevoked,
    KeyRecordRolledBack,
    KeyRecordSwapped,
    SenderCertificateNotValid,
    SenderRevoked,
    UntrustedSender,
    UsageError,
)
from ciphermq.model import keyrecord
from ciphermq.model.keyrecord import KeyRecord, SignedRecord
from ciphermq.model.suites import Suite
from ciphermq.pki import dates, names
from ciphermq.pki.verify import ChainVerifier, SignerInfo

_SKEW_MS: Final = limits.CLOCK_SKEW * 1000
_GROUP: Final = 4


class VerifiedRecord(KeyRecord, frozen=True):
    """A key record that passed every check; only `verify` makes one."""

    certificate_key_sha256: bytes
    """SHA-256 of the owner's certificate key: what a sender pins."""


def make(
    signer: Signer,
    *,
    client: str,
    suite: Suite,
    public_key: bytes,
    version: int,
    not_before_ms: int,
    not_after_ms: int,
) -> bytes:
    """A signed key record. `UsageError` when nobody would accept it."""
    record = KeyRecord(
        client=client,
        suite=suite,
        public_key=public_key,
        key_id=key_id(suite, public_key),
        version=version,
        not_before_ms=not_before_ms,
        not_after_ms=not_after_ms,
        certificate_sha256=signer.certificate_sha256,
    )
    body = keyrecord.encode_body(record)
    return keyrecord.build(body, signer.chain, signer.sign(keyrecord.signed_bytes(body)))


def next_version(last: int, now_ms: int) -> int:
    """The version of the record after version `last`: rises even when the clock goes back."""
    version = max(last + 1, now_ms)
    if version > keyrecord.MAX_VERSION:
        raise UsageError(f"no version follows {last}: this identity's key records are used up")
    return version


def verify(
    record: bytes,
    *,
    expected_client: str,
    verifier: ChainVerifier,
    now_ms: int,
    highest_version: int = 0,
    pinned_key_sha256: bytes | None = None,
) -> VerifiedRecord:
    """The key to seal to for `expected_client`, if `record` deserves it at `now_ms`.

    `highest_version` is the highest seen of that client, `pinned_key_sha256` the certificate key
    it had (None: never seen). Raises a `KeyRecordError` for each way to fail; `RevocationListStale`
    or `ClockWrong` when this machine can't judge.
    """
    # 1. It is a record, and its key is the one that its key id names.
    signed = keyrecord.parse(record)
    said = signed.record
    if said.key_id != key_id(said.suite, said.public_key):
        raise KeyRecordMalformed(
            f"the key record of {said.client!r} names another key than it holds"
        )
    # 2. The chain leads to our authority now, and is not revoked.
    signer = _signer(signed, verifier, now_ms)
    # 3. That certificate signed it: nobody else can have made or changed it.
    _check_signature(signed, signer)
    # 4. It is about the client that was asked for: a broker could serve another's, all genuine.
    if said.client != expected_client:
        raise KeyRecordSwapped(
            f"asked for the key of {expected_client!r}, the broker gave that of {said.client!r}: "
            f"nothing was sealed. Tell whoever runs the broker; ask {expected_client!r} to "
            "register again"
        )
    # 5. It counts now.
    _check_dates(said, now_ms)
    verified = VerifiedRecord(
        client=said.client,
        suite=said.suite,
        public_key=said.public_key,
        key_id=said.key_id,
        version=said.version,
        not_before_ms=said.not_before_ms,
        not_after_ms=said.not_after_ms,
        certificate_sha256=said.certificate_sha256,
        certificate_key_sha256=signer.key_sha256,
    )
    # 6. The same certificate key as ever: the authority can name a new one, not slip it in.
    check_pin(verified, pinned_key_sha256)
    # 7. It is not an old one brought back, whose key might be known to others by now.
    check_version(verified, highest_version)
    return verified


def check_pin(record: VerifiedRecord, pinned_key_sha256: bytes | None) -> None:
    """`CertificateKeyChanged` when another certificate key is pinned (None: none is)."""
    if pinned_key_sha256 is None or record.certificate_key_sha256 == pinned_key_sha256:
        return
    raise CertificateKeyChanged(
        f"the certificate key of {record.client!r} changed from {fingerprint(pinned_key_sha256)} "
        f"to {fingerprint(record.certificate_key_sha256)}: nothing was sealed. Ask "
        f"{record.client!r} by another road for the new fingerprint, and if it is this one: "
        f"ciphermq keys trust {record.client} --fingerprint {record.certificate_key_sha256.hex()}"
    )


def check_version(record: VerifiedRecord, highest_version: int) -> None:
    """`KeyRecordRolledBack` when a higher version was seen under the same certificate key."""
    if record.version < highest_version:
        raise KeyRecordRolledBack(
            f"the broker gave version {record.version} of the key of {record.client!r}, although "
            f"{highest_version} was seen before: nothing was sealed. If the broker was restored "
            f"from a backup, have {record.client!r} run `ciphermq keys renew`"
        )


def fingerprint(digest: bytes) -> str:
    """A digest for people to compare: groups of four hexadecimal digits."""
    text = digest.hex().upper()
    return " ".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def parse_fingerprint(text: str) -> bytes:
    """A SHA-256 fingerprint as people write it: spaces and colons don't count, nor does case."""
    digits = text.replace(" ", "").replace(":", "").replace("-", "")
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError(f"{text!r} is not a fingerprint: 64 hexadecimal digits were expected")
    return digest


def _signer(signed: SignedRecord, verifier: ChainVerifier, now_ms: int) -> SignerInfo:
    client = signed.record.client
    try:
        return verifier.check_signer(signed.chain, now_ms, now_ms)
    except SenderRevoked as error:
        raise KeyRecordRevoked(
            f"{error}: nothing is sealed to {client!r} until it has a new certificate and has "
            "registered again"
        ) from error
    except SenderCertificateNotValid as error:
        raise _not_now(signed, now_ms, error) from error
    except UntrustedSender as error:
        raise KeyRecordForged(
            f"the key record of {client!r} is not signed by one of ours ({error}): nothing was "
            "sealed. Somebody tampers with the key directory, or the client is of another authority"
        ) from error


def _not_now(signed: SignedRecord, now_ms: int, error: Exception) -> KeyRecordError:
    """Whether the owner's certificate is over or yet to come."""
    client = signed.record.client
    if now_ms < dates.to_ms(names.load(signed.chain[0]).not_valid_before_utc):
        return KeyRecordNotYetValid(f"{error}: check this machine's clock")
    return KeyRecordExpired(
        f"{error}: {client!r} must renew its certificate (`ciphermq identity renew`) and "
        "register again"
    )


def _check_signature(signed: SignedRecord, signer: SignerInfo) -> None:
    said = signed.record
    wrong = None
    if not signer.verifies(signed.signature, keyrecord.signed_bytes(signed.body)):
        wrong = "its signature is not its owner's"
    elif said.certificate_sha256 != signer.certificate_sha256:
        wrong = "the certificate beside it is not the one it names"
    elif said.client != signer.client_id:
        wrong = f"it is signed by {signer.client_id!r}"
    if wrong:
        raise KeyRecordForged(
            f"the key record of {said.client!r} is forged: {wrong}. Nothing was sealed; somebody "
            "tampers with the key directory"
        )


def _check_dates(said: KeyRecord, now_ms: int) -> None:
    if now_ms > said.not_after_ms + _SKEW_MS:
        raise KeyRecordExpired(
            f"the key of {said.client!r} expired on {dates.spell(said.not_after_ms)}: it is "
            "renewed when that client next connects; or have it run `ciphermq keys renew`"
        )
    if now_ms < said.not_before_ms - _SKEW_MS:
        raise KeyRecordNotYetValid(
            f"the key of {said.client!r} is valid from {dates.spell(said.not_before_ms)}, but this "
            f"machine's clock says {dates.spell(now_ms)}: one of the two clocks is wrong"
        )
