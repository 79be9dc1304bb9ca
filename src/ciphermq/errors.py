"""Every error this package raises, in one tree.

::

    CipherMQError
    ├── UsageError                     the caller's own mistake: fix the call
    │   └── LocalProtocolError         this side tried to send what the protocol forbids
    ├── ConfigError                    a setting: which file, key, value; what is allowed
    ├── IdentityError                  certificates and private keys on this machine
    │   ├── IdentityNotFound
    │   ├── PassphraseError
    │   ├── CertificateError           expired, not yet valid, wrong usage, wrong name
    │   └── AuthorityError             the certificate authority's own directory
    ├── BatchError                     a fault of the batch: it goes to the dead letters
    │   ├── MalformedBatch
    │   │   ├── UnsupportedVersion
    │   │   └── UnsupportedSuite
    │   ├── BatchTooLarge
    │   ├── UntrustedSender            the chain does not lead to our authority
    │   │   ├── SenderCertificateNotValid   not valid when the batch was made
    │   │   ├── SenderMayNotSign       no signing usage
    │   │   └── SenderRevoked
    │   ├── SenderMismatch             the header names another than the certificate
    │   ├── NotForThisReceiver
    │   ├── BatchTooOld
    │   ├── BatchExpired
    │   ├── BatchFromTheFuture
    │   ├── BadSignature
    │   ├── WrapRefused                the session key does not open
    │   ├── CommitmentMismatch         the session key is not the one committed to
    │   ├── BodyRefused                the body does not open
    │   └── DuplicateConflict          one batch id, two contents
    ├── ReceiverFault                  a fault of the receiver: it stops, the queue is left as it is
    │   ├── ClockWrong
    │   ├── RevocationListStale
    │   ├── KeyMissing
    │   └── InboxError
    ├── KeyRecordError                 a receiver's public key can't be trusted
    │   ├── UnknownReceiver
    │   ├── KeyRecordMalformed
    │   ├── KeyRecordForged            signature or chain is wrong
    │   ├── KeyRecordSwapped           it belongs to somebody else
    │   ├── KeyRecordExpired
    │   ├── KeyRecordNotYetValid
    │   ├── KeyRecordRolledBack        older than one already seen
    │   ├── KeyRecordRevoked
    │   └── CertificateKeyChanged      until `ciphermq keys trust`
    ├── RemoteProtocolError            the peer sent what the protocol forbids
    │   ├── FrameTooLarge
    │   ├── UnknownFrame
    │   └── MalformedFrame
    ├── TransportError                 the connection
    │   ├── ConnectFailed              refused, unreachable, name unknown
    │   ├── TlsFailed                  wrong authority, expired, no certificate, not TLS
    │   ├── ProtocolNotOffered         the server does not speak cmq/2
    │   ├── ConnectionLost
    │   └── WaitTimeout                names what was waited for
    ├── Refused                        the broker said no (has a wire code)
    │   ├── AccessRefused
    │   ├── NotFound
    │   ├── PreconditionFailed
    │   ├── Unroutable
    │   ├── QueueFull
    │   ├── NoSpace
    │   ├── AfterRefusal
    │   ├── ConflictingDuplicate
    │   ├── ResourceLimit
    │   ├── BadRequest
    │   ├── Superseded                 a newer consumer of that name took over
    │   ├── Unavailable                the broker is stopping, or its log has failed
    │   └── InternalError
    ├── JournalError                   the durable log
    │   ├── JournalDamaged             which file, which offset, what salvages it
    │   ├── JournalInUse               another broker has it open
    │   ├── JournalFailed              a write or sync failed: the broker stops
    │   ├── JournalFull                no space left on the device
    │   └── PayloadDamaged             one payload fails its checksum
    ├── CatalogError                   public keys and metadata
    └── StoreError                     Inbox and Outbox files on a client's machine

A message says what happened, to what, and what to do. `code` is the stable, machine-readable
name: it is on the wire for `Refused`, in dead letters for `BatchError`, in ``--json`` for all.
"""

from __future__ import annotations

from typing import ClassVar


class CipherMQError(Exception):
    """Root of everything this package raises on purpose."""

    code: ClassVar[str] = "error"


# --- the caller's own mistakes ---------------------------------------------------------------


class UsageError(CipherMQError):
    """The call can't be right whatever the state of the system."""

    code = "usage"


class LocalProtocolError(UsageError):
    """This side tried to send what the protocol forbids."""

    code = "local-protocol"


class ConfigError(CipherMQError):
    """A setting is wrong. Names the file, the key, the value and what is allowed."""

    code = "config"


# --- certificates and keys on this machine -----------------------------------------------------


class IdentityError(CipherMQError):
    """A certificate or private key on this machine is unusable."""

    code = "identity"


class IdentityNotFound(IdentityError):
    """No identity of that name at that place."""

    code = "identity-not-found"


class PassphraseError(IdentityError):
    """A passphrase is missing or wrong."""

    code = "passphrase"


class CertificateError(IdentityError):
    """A certificate is expired, not yet valid, of the wrong usage or of another name."""

    code = "certificate"


class AuthorityError(IdentityError):
    """The certificate authority's directory is missing, damaged or not openable."""

    code = "authority"


# --- faults of a batch: to the dead letters ----------------------------------------------------


class BatchError(CipherMQError):
    """The batch itself is at fault: it is dead-lettered with this reason."""

    code = "batch"


class MalformedBatch(BatchError):
    """The bytes are not a sealed batch."""

    code = "malformed-batch"


class UnsupportedVersion(MalformedBatch):
    """A format version this program does not know."""

    code = "unsupported-version"


class UnsupportedSuite(MalformedBatch):
    """A cryptographic suite this program does not know."""

    code = "unsupported-suite"


class BatchTooLarge(BatchError):
    """Over one of the limits on a batch; the limit is named."""

    code = "batch-too-large"


class UntrustedSender(BatchError):
    """The sender's certificate chain does not lead to our authority."""

    code = "untrusted-sender"


class SenderCertificateNotValid(UntrustedSender):
    """The sender's certificate was not valid when the batch was made."""

    code = "sender-certificate-not-valid"


class SenderMayNotSign(UntrustedSender):
    """The sender's certificate lacks CipherMQ's signing usage."""

    code = "sender-may-not-sign"


class SenderRevoked(UntrustedSender):
    """The sender's certificate is on the revocation list."""

    code = "sender-revoked"


class SenderMismatch(BatchError):
    """The header names another sender than the certificate."""

    code = "sender-mismatch"


class NotForThisReceiver(BatchError):
    """This receiver is not among the batch's receivers."""

    code = "not-for-this-receiver"


class BatchTooOld(BatchError):
    """Older than the greatest message age."""

    code = "batch-too-old"


class BatchExpired(BatchError):
    """Past the time to live its sender gave it."""

    code = "batch-expired"


class BatchFromTheFuture(BatchError):
    """Made later than now, beyond the allowed skew."""

    code = "batch-from-the-future"


class BadSignature(BatchError):
    """The sender's signature does not verify: some byte was changed on the way."""

    code = "bad-signature"


class WrapRefused(BatchError):
    """The session key does not open with the key the batch names."""

    code = "wrap-refused"


class CommitmentMismatch(BatchError):
    """The session key opened is not the one the header commits to."""

    code = "commitment-mismatch"


class BodyRefused(BatchError):
    """The body does not open, or what is inside is not well formed."""

    code = "body-refused"


class DuplicateConflict(BatchError):
    """One batch id with two different contents."""

    code = "duplicate-conflict"


# --- faults of the receiver: it stops ----------------------------------------------------------


class ReceiverFault(CipherMQError):
    """The receiver can't judge or open batches now: it stops and leaves the queue as it is."""

    code = "receiver-fault"


class ClockWrong(ReceiverFault):
    """This machine's clock can't be right."""

    code = "clock-wrong"


class RevocationListStale(ReceiverFault):
    """The revocation list is missing, expired or not signed by our authority."""

    code = "revocation-list-stale"


class KeyMissing(ReceiverFault):
    """The private key that a batch names is not on this machine."""

    code = "key-missing"


class InboxError(ReceiverFault):
    """The Inbox can't be read or written."""

    code = "inbox"


# --- key records --------------------------------------------------------------------------------


class KeyRecordError(CipherMQError):
    """A receiver's public key can't be trusted, so nothing is sealed to it."""

    code = "key-record"


class UnknownReceiver(KeyRecordError):
    """Nobody of that name has registered a key."""

    code = "unknown-receiver"


class KeyRecordMalformed(KeyRecordError):
    """The bytes are not a key record."""

    code = "key-record-malformed"


class KeyRecordForged(KeyRecordError):
    """Its signature or its certificate chain is wrong."""

    code = "key-record-forged"


class KeyRecordSwapped(KeyRecordError):
    """It is genuine, but belongs to another client than the one asked for."""

    code = "key-record-swapped"


class KeyRecordExpired(KeyRecordError):
    """Past its own 'not after'."""

    code = "key-record-expired"


class KeyRecordNotYetValid(KeyRecordError):
    """Before its own 'not before'."""

    code = "key-record-not-yet-valid"


class KeyRecordRolledBack(KeyRecordError):
    """Older than a version this identity has already seen."""

    code = "key-record-rolled-back"


class KeyRecordRevoked(KeyRecordError):
    """Its owner's certificate is on the revocation list."""

    code = "key-record-revoked"


class CertificateKeyChanged(KeyRecordError):
    """The owner's certificate key is not the one seen first; a person must decide."""

    code = "certificate-key-changed"


# --- the peer and the road ----------------------------------------------------------------------


class RemoteProtocolError(CipherMQError):
    """The peer sent what the protocol forbids."""

    code = "protocol"


class FrameTooLarge(RemoteProtocolError):
    """A frame announces more bytes than its type may have."""

    code = "frame-too-large"


class UnknownFrame(RemoteProtocolError):
    """A frame of a type this side does not know."""

    code = "unknown-frame"


class MalformedFrame(RemoteProtocolError):
    """A frame whose body is not what its type demands."""

    code = "malformed-frame"


class TransportError(CipherMQError):
    """The connection could not be made, or ended."""

    code = "transport"


class ConnectFailed(TransportError):
    """Refused, unreachable, or the name is unknown."""

    code = "connect-failed"


class TlsFailed(TransportError):
    """TLS was refused by one side; the message says which and why."""

    code = "tls-failed"


class ProtocolNotOffered(TransportError):
    """The server does not speak cmq/2."""

    code = "protocol-not-offered"


class ConnectionLost(TransportError):
    """The connection ended before the answer came."""

    code = "connection-lost"


class WaitTimeout(TransportError):
    """A wait reached its limit; the message names what was waited for and how long."""

    code = "timeout"


# --- the broker's refusals ----------------------------------------------------------------------


class Refused(CipherMQError):
    """The broker said no."""

    code = "refused"


class AccessRefused(Refused):
    """This client may not do that."""

    code = "access-refused"


class NotFound(Refused):
    """No queue, exchange, message or client of that name."""

    code = "not-found"


class PreconditionFailed(Refused):
    """It exists with other properties, is not empty, or is in use."""

    code = "precondition-failed"


class Unroutable(Refused):
    """No binding matches: the batch is returned, nothing was stored."""

    code = "unroutable"


class QueueFull(Refused):
    """One of the queues it goes to is full: nothing was stored in any."""

    code = "queue-full"


class NoSpace(Refused):
    """The broker's disk is full: nothing was stored."""

    code = "no-space"


class AfterRefusal(Refused):
    """Refused because an earlier one on this connection was, to keep the order."""

    code = "after-refusal"


class ConflictingDuplicate(Refused):
    """The broker has that batch id with other bytes."""

    code = "conflicting-duplicate"


class ResourceLimit(Refused):
    """Over one of the broker's limits; the limit is named."""

    code = "resource-limit"


class BadRequest(Refused):
    """The request makes no sense; the message says what would."""

    code = "bad-request"


class Superseded(Refused):
    """A newer consumer with the same client and name has taken over."""

    code = "superseded"


class Unavailable(Refused):
    """The broker is stopping, or its journal has failed."""

    code = "unavailable"


class InternalError(Refused):
    """The broker failed in a way it did not foresee; its log says more."""

    code = "internal"


# --- stores ------------------------------------------------------------------------------------


class JournalError(CipherMQError):
    """The durable log."""

    code = "journal"


class JournalDamaged(JournalError):
    """Bad bytes before good ones. Names file, offset and the command that salvages."""

    code = "journal-damaged"


class JournalInUse(JournalError):
    """Another broker has this directory open."""

    code = "journal-in-use"


class JournalFailed(JournalError):
    """A write or a sync failed; nothing after it is confirmed and the broker stops."""

    code = "journal-failed"


class JournalFull(JournalError):
    """No space left on the device."""

    code = "journal-full"


class PayloadDamaged(JournalError):
    """One stored payload fails its checksum."""

    code = "payload-damaged"


class CatalogError(CipherMQError):
    """The catalog of public keys and metadata can't be read or written."""

    code = "catalog"


class StoreError(CipherMQError):
    """An Outbox or trust file on a client's machine can't be read or written."""

    code = "store"


def _walk(cls: type[CipherMQError]) -> list[type[CipherMQError]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in _walk(sub)]


REFUSALS: dict[str, type[Refused]] = {
    cls.code: cls for cls in _walk(Refused) if issubclass(cls, Refused)
}
"""Wire code to exception, for the side that receives a refusal."""


def refusal(code: str, message: str) -> Refused:
    """The exception for a refusal that came over the wire; unknown codes become `Refused`."""
    return REFUSALS.get(code, Refused)(message)
